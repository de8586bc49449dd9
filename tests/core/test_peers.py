"""The bus's own streams, spoken to byte by byte: handshakes, broken and lost peers, and what a socket holds back."""

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest

from core import notes, records, zmtp
from core.ledger import Stats
from core.loop import EdgeLoop
from core.router_loop import RouterLoop
from tests.core import wire
from tests.core.edge_harness import DEADLINE_S, EPOCH, OPTIONS, PUBLISH, Edge, wait_for
from tests.core.router_harness import OPTIONS as ROUTER_OPTIONS
from tests.core.router_harness import Sequencer

LARGE = 60_000


class Stream:
    """One end of a stream of ZMTP frames."""

    def __init__(self, stream: socket.socket) -> None:
        self.socket = stream
        self.socket.settimeout(DEADLINE_S)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the stream ended"
            data += more
        return data

    def frame(self) -> tuple[int, bytes]:
        """Flags and body of the next frame."""
        head = self.exactly(2)
        if head[0] & 2:
            head += self.exactly(7)
        found = zmtp.frame(head)
        assert found is not None
        return found[0], self.exactly(found[2])

    def greeted(self) -> bytes:
        """The identity that the other side says in its handshake."""
        assert zmtp.greeting_accepted(self.exactly(64))
        flags, body = self.frame()
        assert flags & 4
        return zmtp.ready_identity(body)

    def records(self) -> list[wire.Record]:
        return records.unpack(self.frame()[1])

    def ended(self) -> bool:
        """Whether the other side has closed; whatever it said before is read and passed over."""
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionResetError:
            pass
        return True


def framed(batch: bytes) -> bytes:
    return b"\x02" + struct.pack(">Q", len(batch)) + batch


def link(number: int = 0, epoch: int = 1) -> bytes:
    writer = records.BatchWriter()
    writer.link(records.LINK, epoch, number)
    return writer.take()


def subscribe(stream: Stream, sequencer: Sequencer) -> None:
    """Say that this worker, number 1, holds `group:a` and nothing else."""
    writer = records.BatchWriter()
    writer.link(records.BEGIN, 1, 1)
    writer.shards(range(256))
    writer.shards(range(256), said=True)
    writer.channel(records.SUBSCRIBE, b"group:a", 1)
    writer.link(records.END, 1, 1)
    stream.socket.sendall(framed(writer.take()))
    wait_for(lambda: sequencer.live("subscription") == 1, "the subscription")


Connect = Callable[..., Stream]


@pytest.fixture
def connect(sequencer: Sequencer) -> Iterator[Connect]:
    """Connects to the router's own path; closed after the test."""
    made: list[socket.socket] = []

    def open_one(identity: bytes | None = None) -> Stream:
        one = socket.socket(socket.AF_UNIX)
        made.append(one)
        stream = Stream(one)
        one.connect(str(sequencer.path))
        if identity is not None:
            one.sendall(zmtp.greeting() + zmtp.ready(b"DEALER", identity))
            assert stream.greeted() == b""
        return stream

    yield open_one
    for one in made:
        one.close()


def test_a_handshake_may_come_byte_by_byte(connect: Connect) -> None:
    stream = connect()
    for byte in zmtp.greeting() + zmtp.ready(b"DEALER", b"node/1/1") + framed(link()):
        stream.socket.sendall(bytes([byte]))
    assert stream.greeted() == b""
    kinds = [one["kind"] for one in stream.records()]
    assert [kind for kind in kinds if kind != records.LEADS] == [records.LINKED, records.LINKED]


@pytest.mark.parametrize("seed", range(5))
def test_frames_cut_anywhere_are_the_same_batches(connect: Connect, sequencer: Sequencer, seed: int) -> None:
    chance = random.Random(seed)
    worker = sequencer.worker(9)
    worker.subscribe("group:a", 1)
    stream = connect(b"node/1/1")
    writer = records.BatchWriter()
    writer.link(records.BEGIN, 1, 1)
    writer.shards(range(256))
    writer.shards(range(256), said=True)
    writer.link(records.END, 1, 1)
    data = framed(writer.take())
    for number in range(1, 40):
        writer.publish(number, b"group:a", msgpack.packb("x" * chance.randrange(5000)), b"alice")
        data += framed(writer.take())
    while data:
        cut = chance.choice((1, 7, 9, 100, 5000, 50_000))
        stream.socket.sendall(data[:cut])
        data = data[cut:]
    assert [worker.expect(records.MESSAGE)["offset"] for _ in range(1, 40)] == list(range(1, 40))


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n".ljust(64, b" "),
        zmtp.greeting()[:12] + b"CURVE".ljust(52, b"\0"),
        zmtp.greeting() + b"\x00\x05hello",
        zmtp.greeting() + zmtp.ready(b"DEALER", b"node/1/1") + b"\xff\xff",
        zmtp.greeting() + zmtp.ready(b"DEALER", b"node/1/1") + b"\x02" + b"\xff" * 8,
        zmtp.greeting() + b"\x04\x05WRONG",
    ],
)
def test_who_speaks_something_else_is_closed_and_harms_nobody(
    connect: Connect, sequencer: Sequencer, said: bytes
) -> None:
    stream, before = connect(), sequencer.live("peer")
    stream.socket.sendall(said)
    assert stream.ended()
    wait_for(lambda: sequencer.live("peer") <= before, "the peer's end")
    assert sequencer.worker().publish("group:a", 1)["offset"] == 1


def test_a_worker_whose_stream_ends_is_forgotten_at_once(connect: Connect, sequencer: Sequencer) -> None:
    stream = connect(b"node/1/1")
    subscribe(stream, sequencer)
    stream.socket.close()
    wait_for(lambda: sequencer.live("subscription") == 0, "the end of the subscription")
    assert sequencer.counter("workers_lost") == 1


def test_a_newer_stream_of_the_same_identity_takes_over(connect: Connect) -> None:
    older = connect(b"node/1/1")
    older.socket.sendall(framed(link()))
    assert older.records()
    newer = connect(b"node/1/1")
    assert older.ended()
    newer.socket.sendall(framed(link()))
    assert newer.records()[0]["aux"] == 1, "it is asked for everything"


def test_a_heartbeat_of_zeromqs_own_is_answered(connect: Connect) -> None:
    stream = connect(b"node/1/1")
    stream.socket.sendall(b"\x04\x09\x04PING\x00\x0axy")
    assert stream.frame() == (6, b"\x04PONGxy")


def test_what_a_socket_does_not_take_comes_whole_and_in_order_later(connect: Connect, sequencer: Sequencer) -> None:
    """More than a socket's buffers hold, to a peer that does not read meanwhile."""
    slow = connect(b"node/1/1")
    subscribe(slow, sequencer)
    worker = sequencer.worker(2)
    for number in range(1, 41):
        worker.publish("group:a", bytes([number]) * LARGE)
    assert sequencer.counter("bus_full") > 0, "it was not more than the buffers hold"
    offsets: list[int] = []
    while len(offsets) < 40:
        for one in slow.records():
            if one["kind"] == records.MESSAGE:
                offsets.append(one["offset"])
                assert msgpack.unpackb(one["body"])[3] == bytes([one["offset"]]) * LARGE
    assert offsets == list(range(1, 41))


def test_a_path_that_is_too_long_is_refused_with_its_bound() -> None:
    with pytest.raises(OSError, match="107"):
        RouterLoop(Stats(), endpoint=f"ipc:///tmp/{'x' * 110}", **ROUTER_OPTIONS)


def test_a_path_that_cannot_be_bound_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot listen on the bus"):
        RouterLoop(Stats(), endpoint=f"ipc://{tmp_path}/missing/router", **ROUTER_OPTIONS)


# ---- the worker's side ----


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(DEADLINE_S)
        yield one


def accepted(listener: socket.socket) -> Stream:
    stream = Stream(listener.accept()[0])
    stream.socket.sendall(zmtp.greeting() + zmtp.ready(b"ROUTER", b""))
    assert stream.greeted() == b"test/0/1"
    return stream


@contextlib.contextmanager
def worker_loop(path: str) -> Iterator[Stats]:
    """A worker's data plane that speaks to whoever listens at `path`."""
    stats = Stats()
    options = {**OPTIONS, "tcp_fd": -1, "ws_fd": -1, "connections_max": 8}
    loop = EdgeLoop(stats, endpoint=f"ipc://{path}", identity="test/0/1", **options)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    try:
        yield stats
    finally:
        loop.put(notes.STOP)
        loop.flush()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_worker_connects_once_its_router_is_there_and_again_when_it_comes_back(
    listener: socket.socket, tmp_path: Path
) -> None:
    path = str(tmp_path / "router")
    with worker_loop(path) as stats:
        listener.bind(path)
        listener.listen()
        for epoch in (5, 6):
            router = accepted(listener)
            assert router.records()[0]["kind"] == records.LINK
            router.socket.sendall(framed(wire.linked(epoch, ask=True)))
            assert [one["kind"] for one in router.records()] == [
                records.BEGIN,
                records.SHARDS,
                records.SHARDS,
                records.END,
            ]
            wait_for(lambda: stats.read()["gauges"]["linked"] == 1, "the link")
            router.socket.close()
            wait_for(lambda: stats.read()["gauges"]["linked"] == 0, "the end of the link")


def test_what_a_router_said_before_it_went_is_read_also_when_it_takes_nothing_any_more(
    listener: socket.socket, tmp_path: Path
) -> None:
    path = str(tmp_path / "router")
    listener.bind(path)
    listener.listen()
    with worker_loop(path) as stats:
        router = accepted(listener)
        assert router.records()[0]["kind"] == records.LINK
        router.socket.shutdown(socket.SHUT_RD)
        wait_for(lambda: stats.read()["counters"]["bus_full"] > 0, "a send that the stream refused")
        router.socket.sendall(framed(wire.linked(5, ask=True)))
        wait_for(lambda: stats.read()["gauges"]["linked"] == 1, "the router's words")
        router.socket.close()
        # What it could not say to the one before comes too; a router that does not know it passes that over.
        assert records.LINK in [one["kind"] for one in accepted(listener).records()]


def test_publishes_that_the_link_does_not_take_leave_later_whole_and_in_order(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    for number in range(40):
        alice.send([PUBLISH, 0, "group:a", bytes([number]) * LARGE])
    wait_for(lambda: edge.counter("publishes") == 40, "the publishes")
    for number in range(40):
        one = edge.router.expect(records.PUBLISH)
        assert msgpack.unpackb(one["data"]) == bytes([number]) * LARGE
    edge.router.send(wire.linked(EPOCH, ask=False))
