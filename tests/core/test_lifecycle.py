"""How connections end: FIN and FIN_ACK, deadlines, heartbeats, slow readers."""

from collections.abc import Callable

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import EPOCH, FIN, FIN_ACK, MESSAGE, Edge, frame_of, wait_for

PING, PONG = 4, 5


def test_the_clients_fin_is_acknowledged_and_the_transport_closed(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    alice.send([FIN, 0, "bye", {}])
    assert alice.frame() == [FIN_ACK]
    assert alice.frame() is None
    kinds = {edge.router.take()["kind"] for _ in range(3)}
    assert kinds == {records.CLOSE, records.UNSUBSCRIBE}
    alice.close()
    edge.wait_empty()
    assert edge.counter("closed_bye") == 1


def test_nothing_follows_our_fin_and_fin_ack_ends_it(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    handle = edge.join(alice, "group:a")
    edge.join_known(bob, "group:a")
    edge.put(notes.FIN, alice.conn, first=Code.KICKED, text=b"enough")
    assert alice.frame() == [FIN, Code.KICKED, "enough", {"class": "stop"}]
    edge.router.send(wire.message(handle, EPOCH, 1, frame_of("group:a", 1, "x")))
    assert bob.frame()[0] == MESSAGE
    alice.send([8, 7, "group:a", "late"], [FIN_ACK])
    assert alice.frame() is None
    alice.close()
    wait_for(lambda: edge.counter("closed_kicked") == 1, "the reason is counted")


def test_without_fin_ack_the_deadline_ends_it(edges: Callable[..., Edge]) -> None:
    edge = edges(fin_timeout_ms=100)
    alice = edge.open("alice")
    edge.put(notes.FIN, alice.conn, first=Code.KICKED, text=b"")
    assert alice.frame()[0] == FIN
    edge.wait_empty()
    assert alice.frame() is None


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\0\0\x05ab"])
def test_without_hello_the_deadline_ends_it(edges: Callable[..., Edge], said: bytes) -> None:
    edge = edges(hello_timeout_ms=100, fin_timeout_ms=100)
    silent = edge.client()
    silent.socket.sendall(said)
    code, _, options = silent.frame()[1:]
    assert (code, options["class"]) == (Code.HELLO_TIMEOUT, "fresh")
    edge.wait_empty()
    assert edge.counter("hello_timeouts") == 1


def test_silence_is_asked_about_and_ends_the_connection(edges: Callable[..., Edge]) -> None:
    edge = edges(ping_ms=200, misses=2, fin_timeout_ms=100)
    alice = edge.open("alice")
    kind, first, _ = alice.frame()
    assert (kind, first) == (PING, 1)
    while (frame := alice.frame())[0] == PING:
        first += 1
        assert frame[1] == first
    assert frame[:2] == [FIN, Code.HEARTBEAT_LOST]
    assert alice.frame() is None
    edge.wait_empty()
    assert edge.counter("closed_heartbeat_lost") == edge.counter("heartbeats_lost") == 1


def test_an_answered_heartbeat_keeps_the_connection(edges: Callable[..., Edge]) -> None:
    edge = edges(ping_ms=100, misses=2)
    alice = edge.open("alice")
    for seq in range(1, 6):
        kind, number, time = alice.frame()
        assert (kind, number) == (PING, seq)
        alice.send([PONG, number, time])
    assert edge.counter("heartbeats_lost") == 0
    alice.send([PING, 77, 88])
    while (frame := alice.frame())[0] == PING:
        continue
    assert frame == [PONG, 77, 88]


def test_a_slow_reader_is_told_and_its_memory_given_back(edges: Callable[..., Edge]) -> None:
    edge = edges(queue_bytes_max=100_000, fin_timeout_ms=100)
    slow, quick = edge.open("slow", receive_bytes=4096), edge.open("quick")
    handle = edge.join(slow, "group:a")
    edge.join_known(quick, "group:a")
    offset = 0
    while edge.counter("slow_consumers") == 0:
        offset += 1
        assert offset < 2000, "the queue has no bound"
        edge.router.send(wire.message(handle, EPOCH, offset, frame_of("group:a", offset, "x" * 10_000)))
        assert quick.frame()[2] == offset
        # Two batches of the bound: what waits, and the arena of the turn.
        assert edge.stats.read()["gauges"]["queued_bytes"] <= 104_096
    heard = []
    while (frame := slow.frame())[0] == MESSAGE:
        heard.append(frame[2])
    assert heard == list(range(1, len(heard) + 1))
    assert frame[:2] == [FIN, Code.SLOW_CONSUMER]
    assert frame[3]["class"] == "resume"
    slow.close()
    wait_for(lambda: edge.live("connection") == 1, "it is gone")
    wait_for(lambda: edge.live("segment") == 0 and edge.live("buffer") <= 1, "its memory is given back")
    assert edge.counter("closed_slow_consumer") == 1


def test_a_reader_that_takes_nothing_is_cut_off_after_the_write_deadline(edges: Callable[..., Edge]) -> None:
    edge = edges(write_timeout_ms=200, queue_bytes_max=1 << 24)
    stuck = edge.open("stuck", receive_bytes=4096)
    handle = edge.join(stuck, "group:a")
    body = frame_of("group:a", 1, "x" * 6_000_000)
    edge.router.send(wire.message(handle, EPOCH, 1, body))
    wait_for(lambda: edge.counter("closed_slow_consumer") == 1, "it is cut off")
    edge.wait_empty()


@pytest.mark.parametrize("reason", ["", "x" * 2000, "grüße"])
def test_a_fin_fits_whatever_the_reason(edge: Edge, reason: str) -> None:
    alice = edge.open("alice")
    edge.put(notes.FIN, alice.conn, first=Code.DRAINING, second=1234, text=reason.encode())
    kind, code, text, options = alice.frame()
    assert (kind, code, options) == (FIN, Code.DRAINING, {"class": "resume", "after": 1234})
    assert text == reason[:512]
    assert msgpack.packb(text)
