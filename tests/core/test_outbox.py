"""Outbox: what is queued arrives whole and in order, within its bound, and a slow reader pins no shared buffer."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core._testing import Members
from core.ledger import Stats

SENT, BLOCKED, BROKEN, OVERFULL = 0, 1, -1, -2
SETTLE = 2048
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, theirs:
        yield ours, theirs


def read_all(peer: socket.socket) -> bytes:
    parts: list[bytes] = []
    while True:
        try:
            part = peer.recv(1 << 20)
        except BlockingIOError:
            return b"".join(parts)
        if not part:
            return b"".join(parts)
        parts.append(part)


def live(stats: Stats, kind: str) -> int:
    ledger = stats.read()["ledger"]
    return ledger[f"{kind}_opened"] - ledger[f"{kind}_closed"]


def test_everything_queued_in_a_turn_leaves_in_one_system_call(pair: Pair) -> None:
    stats = Stats()
    tables = Members(stats)
    conn = tables.connect(pair[0].fileno())
    for number in range(50):
        assert tables.queue(conn, b"%02d" % number) == SENT
    # They stand behind each other in the arena, so they are one piece.
    assert tables.queued(conn) == (100, [100])
    assert tables.send(conn) == SENT
    assert read_all(pair[1]) == b"".join(b"%02d" % number for number in range(50))
    assert stats.read()["counters"]["sends"] == 1
    tables.disconnect(conn)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("queue"), st.sampled_from([1, 100, SETTLE - 1, SETTLE, 5000, 70_000])),
            st.tuples(st.sampled_from(["turn", "read"]), st.integers(1, 30_000)),
        ),
        max_size=40,
    )
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_arrive_in_order_however_the_socket_takes_them(steps: list[tuple[str, int]]) -> None:
    stats = Stats()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        tables = Members(stats)
        conn, other = tables.connect(ours.fileno()), tables.connect(-1)
        said, heard, number = b"", b"", 0
        for verb, size in steps:
            if verb == "queue":
                number += 1
                data = bytes([number]) * size
                tables.queue(other, b"for somebody else")  # so that pieces of two connections alternate
                if tables.queue(conn, data) == SENT:
                    said += data
            elif verb == "turn":
                if tables.send(conn) == BLOCKED:
                    tables.settle(conn)
                tables.rest()
            else:
                with contextlib.suppress(BlockingIOError):
                    heard += theirs.recv(size)
            count, lengths = tables.queued(conn)
            assert count == sum(lengths)
        while tables.send(conn) != SENT:
            heard += read_all(theirs)
        heard += read_all(theirs)
        assert heard == said
        tables.disconnect(conn)
        tables.disconnect(other)
        tables.rest()
        del tables
        assert live(stats, "segment") == live(stats, "buffer") == 0


def test_a_blocked_queue_of_small_pieces_is_copied_together_and_lets_go_of_the_arena(pair: Pair) -> None:
    stats = Stats()
    tables = Members(stats)
    conn, other = tables.connect(pair[0].fileno()), tables.connect(-1)
    assert tables.queue(conn, b"x" * 30_000) == SENT
    assert tables.send(conn) == BLOCKED
    first = tables.queued(conn)[0]
    for _ in range(20):
        tables.queue(other, b"between")
        tables.queue(conn, b"y" * 100)
    tables.disconnect(other)
    assert len(tables.queued(conn)[1]) == 21
    tables.settle(conn)
    # A long rest keeps its reference; twenty small pieces share one private buffer.
    assert tables.queued(conn) == (first + 2000, [first, 2000])
    heard = b""
    while tables.send(conn) == BLOCKED:
        heard += read_all(pair[1])
    heard += read_all(pair[1])
    assert heard.endswith(b"x" + b"y" * 2000)
    tables.rest()
    assert live(stats, "segment") == 0
    assert live(stats, "buffer") == 1  # the arena's own, empty again
    tables.disconnect(conn)


def test_nothing_passes_the_bound_and_the_rest_stays_whole(pair: Pair) -> None:
    tables = Members(Stats(), queue_bytes_max=10_000)
    conn = tables.connect(-1)
    assert tables.queue(conn, b"a" * 10_000) == SENT
    assert tables.queue(conn, b"b") == OVERFULL
    assert tables.queued(conn) == (10_000, [10_000])
    tables.disconnect(conn)


def test_a_full_queue_is_sent_early_when_the_socket_takes_it(pair: Pair) -> None:
    tables = Members(Stats(), queue_bytes_max=1000)
    conn = tables.connect(pair[0].fileno())
    for _ in range(3):
        assert tables.queue(conn, b"a" * 900) == SENT
    assert tables.queued(conn) == (900, [900])
    assert read_all(pair[1]) == b"a" * 1800
    assert tables.queue(conn, b"a" * 1001) == OVERFULL
    tables.disconnect(conn)


def test_a_peer_that_is_gone_is_told_apart_from_a_slow_one(pair: Pair) -> None:
    tables = Members(Stats())
    conn = tables.connect(pair[0].fileno())
    pair[1].close()
    tables.queue(conn, b"to nobody")
    assert tables.send(conn) == BROKEN
    tables.disconnect(conn)
