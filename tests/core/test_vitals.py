"""Vitals: round trips are measured from our own PINGs only, losses are counted in both directions."""

import time as clock
from collections.abc import Callable

import pytest

from core import vitals
from tests.core import registry_views
from tests.core.edge_harness import Edge, wait_for

PING, PONG = 4, 5
PING_MS = 500


@pytest.fixture
def edge(edges: Callable[..., Edge]) -> Edge:
    """A data plane that soon asks, and does not soon give up."""
    return edges(ping_ms=PING_MS, misses=100)


def test_they_cost_twenty_four_bytes_beside_the_connection() -> None:
    assert vitals.VITAL_BYTES == 32


def test_a_connection_that_was_never_asked_has_no_round_trip(edge: Edge) -> None:
    alice = edge.open("alice")
    record = registry_views.vitals(edge, alice.conn)
    assert (record["rtt_ms"], record["lost_heartbeats"]) == (None, 0)
    assert record["created"] <= record["heard"]


def test_the_echo_of_our_ping_measures_the_round_trip(edge: Edge) -> None:
    alice = edge.open("alice")
    kind, seq, time = alice.frame()
    assert kind == PING
    before_ms = edge.counter("round_trip_ms")
    # The clock of the gateway is the machine's monotonic one: let it move on by 30 ms before the echo.
    wait_for(lambda: clock.monotonic() * 1000 >= time + 30, "30 ms")
    alice.send([PONG, seq, time])
    wait_for(lambda: edge.counter("round_trips") == 1, "a round trip")
    record = registry_views.vitals(edge, alice.conn)
    assert 30 <= record["rtt_ms"] < 10_000
    assert edge.counter("round_trip_ms") - before_ms == record["rtt_ms"]
    assert record["lost_heartbeats"] == 0
    assert edge.counter("heartbeats_strange") == 0


@pytest.mark.parametrize(
    ("seq", "time"),
    [(0, -1), (0, 1), (0, 2**32), (1, 0), (2**32, 0), (-1, 0)],
    ids=["earlier", "later", "the low half is right", "not sent yet", "the low half is right, too", "number 0"],
)
def test_a_wrong_echo_is_not_believed(edge: Edge, seq: int, time: int) -> None:
    alice = edge.open("alice")
    _, sent_seq, sent_time = alice.frame()
    alice.send([PONG, sent_seq + seq, sent_time + time])
    wait_for(lambda: edge.counter("heartbeats_strange") == 1, "it is counted")
    assert edge.counter("round_trips") == 0
    assert registry_views.vitals(edge, alice.conn)["rtt_ms"] is None


def test_after_a_wrong_echo_the_right_one_still_counts(edge: Edge) -> None:
    alice = edge.open("alice")
    _, seq, time = alice.frame()
    alice.send([PONG, seq, time + 1], [PONG, seq, time])
    wait_for(lambda: edge.counter("round_trips") == 1, "a round trip")
    assert edge.counter("heartbeats_strange") == 1


def test_an_echo_counts_once(edge: Edge) -> None:
    alice = edge.open("alice")
    _, seq, time = alice.frame()
    alice.send([PONG, seq, time], [PONG, seq, time])
    wait_for(lambda: edge.counter("heartbeats_strange") == 1, "the second is strange")
    assert edge.counter("round_trips") == 1


def test_another_connections_echo_is_not_believed(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    pings = {client: client.frame() for client in (alice, bob)}
    wrong = [PONG, pings[alice][1], pings[alice][2]]
    if pings[alice][2] == pings[bob][2]:  # asked in the same millisecond: the two cannot be told apart
        wrong[2] += 1
    bob.send(wrong)
    wait_for(lambda: edge.counter("heartbeats_strange") == 1, "it is counted")
    assert edge.counter("round_trips") == 0


def test_a_ping_that_is_not_answered_when_the_next_is_due_is_lost(edge: Edge) -> None:
    alice = edge.open("alice")
    first, second = alice.frame(), alice.frame()
    assert (first[:2], second[:2]) == ([PING, 1], [PING, 2])
    assert registry_views.vitals(edge, alice.conn)["lost_heartbeats"] == edge.counter("pings_lost") == 1
    alice.send([PONG, *first[1:]], [PONG, *second[1:]])  # late, and in time
    wait_for(lambda: edge.counter("round_trips") == 1, "the second one's round trip")
    assert edge.counter("heartbeats_strange") == 0
    third = alice.frame()
    alice.send([PONG, *third[1:]])
    wait_for(lambda: edge.counter("round_trips") == 2, "the third one's round trip")
    assert edge.counter("pings_lost") == 1


@pytest.mark.parametrize(
    ("numbers", "lost", "strange"),
    [
        ([1, 2, 3], 0, 0),
        ([0, 1, 2], 0, 0),
        ([7, 8], 0, 0),
        ([1, 3], 1, 0),
        ([1, 2, 6, 7, 9], 4, 0),
        ([2**32 - 2, 2**32 - 1, 2**32, 2**32 + 2], 1, 0),
        ([5, 5], 0, 1),
        ([5, 3, 4, 6], 1, 1),
        ([1, 2**31], 0, 1),
    ],
)
def test_numbers_that_the_peers_pings_leave_out_are_lost(
    edges: Callable[..., Edge], numbers: list[int], lost: int, strange: int
) -> None:
    edge = edges()
    alice = edge.open("alice")
    for number in numbers:
        alice.send([PING, number, 1])
        assert alice.frame() == [PONG, number, 1]
    assert registry_views.vitals(edge, alice.conn)["lost_heartbeats"] == edge.counter("pings_lost") == lost
    assert edge.counter("heartbeats_strange") == strange


def test_losses_are_counted_up_to_a_bound(edges: Callable[..., Edge]) -> None:
    edge = edges()
    alice = edge.open("alice")
    jumps = 70
    for place in range(jumps + 1):
        alice.send([PING, 1 + place * 1001, 1])
        alice.frame()
    assert edge.counter("pings_lost") == jumps * 1000
    assert registry_views.vitals(edge, alice.conn)["lost_heartbeats"] == 0xFFFF


def test_whoever_gets_the_slot_next_starts_anew(edges: Callable[..., Edge]) -> None:
    edge = edges(ping_ms=PING_MS, misses=100)
    edge.open("carol")  # so that the table keeps its memory
    alice = edge.open("alice")
    _, seq, time = alice.frame()
    alice.send([PONG, seq, time], [PING, 1, 1], [PING, 5, 1])
    wait_for(lambda: edge.counter("pings_lost") == 3 and edge.counter("round_trips") == 1, "alice has vitals")
    alice.close()
    wait_for(lambda: edge.live("connection") == 1, "she is gone")
    edge.client()
    wait_for(lambda: edge.live("connection") == 2, "bob is there")
    [record] = registry_views.listed(edge, states=1)
    assert record["conn"] & 0xFFFFFFFF == alice.conn & 0xFFFFFFFF
    assert (record["rtt_ms"], record["lost_heartbeats"]) == (None, 0)
