"""The worker's loop: what one wake-up brought leaves in one system call a connection, without the GIL."""

import time

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import notes, records
from core.codes import Code
from core.ledger import Stats
from core.loop import EdgeLoop
from tests.core import wire
from tests.core.edge_harness import DEADLINE_S, EPOCH, ERROR, FIN, OPTIONS, REPLY, Edge, frame_of, wait_for

RINGS_MAX, RING_MS = 32, 4  # of core/edge.pxd


def fan(edge: Edge, handle: int, first: int, count: int) -> None:
    """`count` messages of one channel in one batch."""
    offsets = range(first, first + count)
    edge.router.send(*(wire.message(handle, EPOCH, offset, frame_of("group:a", offset, "x")) for offset in offsets))


def test_the_gil_is_not_taken_on_the_path_of_a_message(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    handle = edge.join(alice, "group:a")
    edge.join_known(bob, "group:a")
    before = edge.counter("gil_takes")
    for number in range(100):
        alice.send([8, 0, "group:a", number])
        edge.router.expect(records.PUBLISH)
        fan(edge, handle, number + 1, 1)
        assert bob.frame()[3] == "x"
        alice.frame()
    assert edge.counter("messages_delivered") == 200
    assert edge.counter("gil_takes") == before
    edge.ask(alice, 11, notes.HISTORY, "group:a")  # the counter does move for a control frame
    assert edge.counter("gil_takes") > before


def test_in_a_rush_the_control_thread_is_woken_for_many_frames_at_a_time(edge: Edge) -> None:
    alice = edge.open("alice")
    before, began = edge.counter("gil_takes"), time.monotonic()
    for _ in range(150):
        alice.request(12, "group:a")
        edge.note(notes.FRAME)
    assert edge.counter("gil_takes") - before <= RINGS_MAX + (time.monotonic() - began) * 1000 / RING_MS + 2
    for _ in range(150):
        alice.request(12, "group:a")
    for _ in range(150):
        edge.note(notes.FRAME)  # late, but none is left lying


def test_stopping_closes_everything(edge: Edge) -> None:
    clients = [edge.open(f"user{number}") for number in range(5)]
    edge.join(clients[0], "group:a")
    half_open = edge.client()
    half_open.socket.sendall(b"\0\0\0\x10ab")
    wait_for(lambda: edge.live("connection") == 6, "all are connected")
    edge.put(notes.STOP)
    edge.thread.join(DEADLINE_S)
    assert not edge.thread.is_alive()
    assert [client.frame()[:2] for client in clients] == [[FIN, Code.DRAINING]] * 5, "even then they are told"
    assert [client.frame() for client in clients] == [None] * 5
    edge.wait_empty()
    said = [edge.router.take() for _ in range(5)]
    while said[-1]["kind"] != records.BYE:
        said.append(edge.router.take())
    assert sum(one["kind"] == records.CLOSE for one in said) == 5


def test_draining_tells_everybody_when_to_come_back_and_takes_nobody_new(edge: Edge) -> None:
    clients = [edge.open(f"user{number}") for number in range(3)]
    edge.put(notes.DRAIN)
    edge.put(notes.DRAIN_STEP, first=10, second=1_000_000)
    assert edge.note(notes.DRAIN_SENT)[4] == 3
    for client in clients:
        code, _, options = client.frame()[1:]
        assert (code, options["class"]) == (Code.DRAINING, "resume")
        assert 0 <= options["after"] < 5000
        client.send([15])
        client.close()
    edge.note(notes.STOPPED)
    with pytest.raises(ConnectionRefusedError):
        edge.client()
    assert edge.live("fd") == 0


def test_the_ledger_returns_to_zero_however_connections_end(edge: Edge) -> None:
    for round_number in range(3):
        clients = [edge.open(f"user{number}") for number in range(8)]
        handle = edge.join(clients[0], "group:a")
        for client in clients[1:]:
            edge.join_known(client, "group:a")
        clients[1].socket.sendall(b"\0\0\1\0half a frame")
        fan(edge, handle, 1, 20)
        for number, client in enumerate(clients):
            if number % 4 == 0:
                client.send([FIN, 0, "bye", {}])
            (client.reset if number % 2 else client.close)()
        edge.wait_empty()
        wait_for(lambda: edge.counter("entered_closed") == 8 * (round_number + 1), "all are closed")  # noqa: B023 - called here


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50), st.integers(0, 2**64 - 1)), max_size=30))
@settings(max_examples=1, deadline=None)
def test_put_takes_any_numbers(entries: list[tuple[int, bytes, int]]) -> None:
    edge = Edge()
    try:
        for kind, text, number in entries:
            if kind not in (notes.STOP, notes.DRAIN):
                edge.put(kind, number, number, first=number, second=number, text=text)
        edge.open("alice")
    finally:
        edge.close()


def test_notes_for_connections_that_are_gone_are_passed_over(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.reset()
    edge.wait_empty()
    for kind in (notes.OPEN, notes.SEND, notes.FIN, notes.HISTORY, notes.PRESENCE):
        for conn in (alice.conn, 0, 2**64 - 1):
            edge.put(kind, conn, 1, text=b"group:a", extra=b"\x90")
    edge.open("bob")


def test_what_the_control_thread_answers_is_counted_as_reply_or_error(edge: Edge) -> None:
    alice = edge.open("alice")
    assert edge.counter("replies_sent") == 1  # WELCOME
    for frame in ([REPLY, 5, {}], [ERROR, 6, int(Code.TOO_LARGE), "x", {}], [ERROR, 7, int(Code.TOO_LARGE), "x", {}]):
        edge.put(notes.SEND, alice.conn, text=msgpack.packb(frame))
        assert alice.frame() == frame
    assert (edge.counter("replies_sent"), edge.counter("errors_sent")) == (2, 2)
    assert edge.stats.read()["errors"]["too_large"] == 2


def test_options_that_are_refused_leave_nothing_behind() -> None:
    stats = Stats()
    with pytest.raises(ValueError, match="ws_path"):
        EdgeLoop(
            stats,
            endpoint="tcp://127.0.0.1:9",
            identity="x",
            tcp_fd=-1,
            ws_fd=-1,
            connections_max=1,
            **{**OPTIONS, "ws_path": "/" * 300},
        )
    with pytest.raises(OSError, match="cannot open the bus"):
        EdgeLoop(stats, endpoint="nonsense", identity="x", tcp_fd=-1, ws_fd=-1, connections_max=1, **OPTIONS)
    ledger = stats.read()["ledger"]
    assert not any(ledger.values())
