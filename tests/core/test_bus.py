"""The bus finds its libzmq and speaks with pyzmq's sockets over it."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from core import records
from core.bus import libzmq_path
from core.ledger import Stats
from core.router_loop import RouterLoop
from tests.core import router_harness, wire
from tests.core.edge_harness import EPOCH, Edge, frame_of, wait_for
from tests.core.router_harness import OPTIONS, Sequencer, Worker


@pytest.fixture(params=["ipc", "tcp"])
def bus(request: pytest.FixtureRequest) -> str:
    """Both sides of the port: our own streams, and libzmq's."""
    side: str = request.param
    return side


def test_the_library_is_pyzmqs_own() -> None:
    path = Path(libzmq_path())
    assert path.exists()
    assert path.name.startswith("libzmq")
    zmq.zmq_version()
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libzmq" in line}
    assert loaded == {str(path.resolve())}, "two libraries would have two sets of threads"


def test_a_peer_without_an_identity_of_its_own_is_served(sequencer: Sequencer) -> None:
    """ZeroMQ then makes one up, with a zero byte in front."""
    peer = sequencer.context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    peer.connect(sequencer.endpoint)
    writer = records.BatchWriter()
    writer.link(records.LINK, 1, 0)
    peer.send(writer.take())
    assert peer.poll(10_000)
    assert [one["kind"] for one in records.unpack(peer.recv()) if one["kind"] != records.LEADS] == [records.LINKED] * 2
    peer.close()


def test_an_identity_that_is_too_long_is_not_served_and_harms_nobody(sequencer: Sequencer) -> None:
    peer = sequencer.context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    peer.setsockopt(zmq.IDENTITY, b"x" * 200)
    peer.connect(sequencer.endpoint)
    writer = records.BatchWriter()
    writer.link(records.LINK, 1, 0)
    peer.send(writer.take())
    worker = sequencer.worker()
    assert worker.publish("group:a", 1)["offset"] == 1
    assert not peer.poll(0)
    peer.close()


def test_a_message_larger_than_a_socket_buffer_arrives_whole(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.subscribe("group:a", 1)
    worker.publish("group:a", "x" * 3_000_000)
    (told,) = worker.rest()
    assert len(told["body"]) > 3_000_000


def test_a_batch_for_a_worker_that_is_gone_is_dropped_with_it(sequencer: Sequencer) -> None:
    """A send that finds no peer, or the end of its stream, and the router has forgotten it; others go on."""
    gone, other = sequencer.worker(0), sequencer.worker(1)
    gone.subscribe("group:a", 1)
    other.subscribe("group:a", 2)
    gone.socket.close()
    for number in range(1, 200):
        assert other.publish("group:a", number)["offset"] == number
        assert other.expect(records.MESSAGE)["offset"] == number
        if sequencer.counter("workers_lost"):
            return
    raise AssertionError("the router goes on sending to a worker that is gone")


def pair() -> tuple[bytes, bytes]:
    public, secret = zmq.curve_keypair()
    return public, secret


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Sequencer, tuple[bytes, bytes]]]:
    """A router that lets in who has its own pair."""
    keys = pair()
    router = Sequencer(bus="tcp", keys=keys)
    yield router, keys
    router.close()


def stranger(router: Sequencer, keys: tuple[bytes, bytes, bytes] | None) -> Worker:
    one = Worker(router.context, router.endpoint, "stranger/9/1", 9, 1, keys=keys)
    router.workers.append(one)
    one.say.link(records.LINK, 1, 9)
    one.flush()
    return one


def known(router: Sequencer, keys: tuple[bytes, bytes], number: int = 0) -> Worker:
    one = Worker(router.context, router.endpoint, f"node/{number}/1", number, 1, keys=(keys[0], *keys))
    router.workers.append(one)
    one.link()
    return one


def test_who_has_the_clusters_pair_is_let_in() -> None:
    with guarded() as (router, keys):
        first, second = known(router, keys), known(router, keys, 1)
        first.subscribe("group:a", 1)
        assert second.publish("group:a", "hello")["offset"] == 1
        assert first.expect(records.MESSAGE)["offset"] == 1


def test_a_stranger_gets_no_word_through_and_hears_none() -> None:
    """Without keys, with a pair of its own that it made, and with the cluster's pair for another router's key."""
    with guarded() as (router, keys):
        strangers = [
            stranger(router, None),
            stranger(router, (keys[0], *pair())),
            stranger(router, (pair()[0], *keys)),
        ]
        worker = known(router, keys)
        for number in range(1, 20):
            assert worker.publish("group:a", number)["offset"] == number
        # Its handshakes failed meanwhile, and more than once: libzmq tries again without a pause.
        assert not any(one.socket.poll(200) for one in strangers)
        assert router.counter("batches_in") == len(["LINK", "BEGIN"]) + 19


@pytest.mark.parametrize("key", ["short", "~" * 40, "%" * 40])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="40 characters of Z85"):
        RouterLoop(Stats(), **OPTIONS).bind("tcp://127.0.0.1:*", public_key=key, secret_key=pair()[1].decode())


def test_a_worker_speaks_curve_with_the_keys_it_is_given() -> None:
    public, secret = (one.decode() for one in pair())
    edge = Edge(bus="tcp", bus_keys=(public, public, secret))
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    edge.close()


def test_a_worker_reaches_its_router_over_ipv6() -> None:
    public, secret = (one.decode() for one in pair())
    edge = Edge(bus="tcp6", bus_keys=(public, public, secret))
    assert "[::1]" in edge.router.endpoint
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    edge.close()


class Relay:
    """What lies between a worker and its router over tcp://, and can be cut so that neither end is told."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = ("", 0)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.cut = threading.Event()
        self.closing = threading.Event()
        self.streams = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def through(self, endpoint: str) -> str:
        self._target = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        self._thread.start()
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        while not self.closing.is_set():
            every = [end for both in self._pairs for end in both]
            # What comes while it is cut is read and thrown away: the ends notice by what does not come.
            for one in select.select([self._listener, *every], [], [], 0.01)[0]:
                if one is self._listener:
                    self._pairs.append((one.accept()[0], socket.create_connection(self._target)))
                    self.streams += 1
                else:
                    self._pass(one)

    def _pass(self, one: socket.socket) -> None:
        both = next((both for both in self._pairs if one in both), None)
        if both is None:
            return
        try:
            data = one.recv(1 << 16)
            if data and not self.cut.is_set():
                both[both[0] is one].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._pairs.remove(both)
            for end in both:
                end.close()

    def close(self) -> None:
        self.closing.set()
        self._thread.join()
        for end in [self._listener, *(end for both in self._pairs for end in both)]:
            end.close()


def test_a_stream_that_is_cut_in_silence_is_made_again_and_nothing_lost_counts() -> None:
    """The router of this test knows the worker still, and says what stands behind something that was lost."""
    relay = Relay()
    edge = Edge(bus="tcp", through=relay.through)
    alice = edge.open("alice")
    handle = edge.join(alice, "group:a")
    relay.cut.set()
    edge.router.send(wire.message(handle, EPOCH, 1, frame_of("group:a", 1, "lost")))
    tries = relay.streams
    wait_for(lambda: relay.streams > tries, "the worker to end the stream and try again")
    relay.cut.clear()
    edge.router.fresh = False
    while not edge.router.fresh:
        edge.router.heartbeat()
    edge.router.send(wire.message(handle, EPOCH, 2, frame_of("group:a", 2, "before it was asked")))
    told = {one["name"]: one for one in edge.link(EPOCH) if one["kind"] == records.SUBSCRIBE}
    assert told[b"group:a"]["offset"] == 0
    for offset, data in ((1, "lost"), (2, "before it was asked")):
        edge.router.send(wire.message(handle, EPOCH, offset, frame_of("group:a", offset, data)))
    assert [frame[3] for frame in alice.frames(2)] == ["lost", "before it was asked"]
    assert edge.counter("gaps_router_lost") == 0
    edge.close()
    relay.close()


def test_a_router_asks_a_worker_whose_stream_is_new_for_everything(sequencer: Sequencer) -> None:
    worker, other = sequencer.worker(0), sequencer.worker(1)
    worker.subscribe("group:a", 1)
    other.publish("group:a", "heard")
    assert worker.expect(records.MESSAGE)["offset"] == 1
    worker.say.link(records.LINK, worker.epoch, worker.number, records.FRESH)
    worker.flush()
    assert worker.expect(records.LINKED)["aux"] == 1
    other.publish("group:a", "missed")
    worker.tell([("group:a", 1, router_harness.EPOCH, 1)])
    assert worker.expect(records.MESSAGE)["offset"] == 2
    assert worker.expect(records.SUBSCRIBED)["offset"] == 2
