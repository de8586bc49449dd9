"""JOIN and HELLO wait for the router, and are answered locally where the channel is known."""

import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import EPOCH, ERROR, FIN, JOIN, LEAVE, REPLY, WELCOME, Edge, frame_of, wait_for


def test_a_join_is_answered_by_subscribed_and_not_before(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    first = alice.request(JOIN, "group:a")
    one = edge.router.expect(records.SUBSCRIBE)
    second = bob.request(JOIN, "group:a")
    wait_for(lambda: edge.live("pending") == 2, "both wait")
    assert edge.live("membership") == 2  # each in its own channel only
    edge.router.send(wire.subscribed(one["channel"], EPOCH, 9))
    position = {"epoch": EPOCH, "offset": 9, "outcome": "live"}
    assert alice.frame() == [REPLY, first, position]
    assert bob.frame() == [REPLY, second, position]
    assert edge.live("pending") == 0


def test_a_second_join_is_answered_here_and_twice_is_one_membership(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    edge.join(alice, "group:a")
    edge.join_known(bob, "group:a")
    edge.join_known(bob, "group:a")
    assert edge.live("membership") == 4
    edge.join(bob, "group:b")  # the router heard of nothing in between
    assert edge.counter("errors_sent") == 0


def test_since_tells_the_outcome(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a", offset=5)
    answers: list[Any] = []
    alice.request(JOIN, "group:a", {"since": [EPOCH, 5]})
    answers.append(alice.frame())  # the channel's own position: the router is not asked
    for since, outcome in (((EPOCH, 6), "reset"), ((EPOCH - 1, 5), "live"), ((EPOCH, 4), "replayed")):
        alice.request(JOIN, "group:a", {"since": list(since)})
        one = edge.router.expect(records.CATCHUP)
        assert (one["since"], one["flags"]) == (since, 1)
        edge.router.send(wire.caught(one, (EPOCH, 5), outcome=outcome))
        answers.append(alice.frame())
    assert [answer[2] for answer in answers] == [
        {"epoch": EPOCH, "offset": 5, "outcome": outcome} for outcome in ("live", "reset", "live", "replayed")
    ]


def test_a_refused_subscription_is_told_to_all_who_wait_for_it_at_once(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    first = alice.request(JOIN, "group:a")
    handle = edge.router.expect(records.SUBSCRIBE)["channel"]
    second = bob.request(JOIN, "group:a")
    wait_for(lambda: edge.live("pending") == 2, "both wait")
    edge.router.send(wire.subscribed(handle, 0, 0, code=Code.OVERLOADED))
    for client, number in ((alice, first), (bob, second)):
        kind, answered, code, reason, options = client.frame()
        assert (kind, answered, code) == (ERROR, number, Code.OVERLOADED)
        assert (reason, options) == ("the router has no room for one more channel", {"retry_after": 1000})
    assert edge.router.expect(records.UNSUBSCRIBE)["channel"] == handle
    assert (edge.live("pending"), edge.live("request"), edge.counter("subscriptions_refused")) == (0, 0, 1)
    edge.join(alice, "group:a")  # it is asked for anew


@pytest.mark.parametrize(("code", "told"), [(Code.OVERLOADED, Code.OVERLOADED), (401, Code.UNAVAILABLE)])
def test_a_hello_whose_channel_is_refused_is_told_to_come_back(edge: Edge, code: int, told: int) -> None:
    alice = edge.client()
    alice.send([0, 1, {}])
    alice.conn = edge.note(notes.FRAME)[2]
    channels = msgpack.packb([["user:alice"], ["group:a", EPOCH, 3]])
    edge.put(notes.OPEN, alice.conn, 1, session=b"s" * 16, text=b"\x90", extra=channels)
    refused, other = (edge.router.expect(records.SUBSCRIBE)["channel"] for _ in range(2))
    edge.router.send(wire.subscribed(refused, 0, 0, code=code), wire.subscribed(other, EPOCH, 0))
    kind, said, _, options = alice.frame()
    assert (kind, said, options["class"]) == (FIN, told, "resume")
    assert options["after"] >= 1000
    alice.close()
    edge.wait_empty()


def test_no_more_groups_than_the_limit(edges: Callable[..., Edge]) -> None:
    edge = edges(channels_max=2)
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    handle = edge.join(alice, "group:b")
    # Looked at when the join would be done, so that joins under way cannot pass the limit together.
    alice.request(JOIN, "group:c")
    unwanted = edge.router.expect(records.SUBSCRIBE)["channel"]
    edge.router.send(wire.subscribed(unwanted, EPOCH, 0))
    assert alice.frame()[2] == Code.TOO_MANY_CHANNELS
    assert edge.router.expect(records.UNSUBSCRIBE)["channel"] == unwanted
    edge.join_known(alice, "group:b")
    alice.send([LEAVE, 5, "group:b"])
    assert alice.frame() == [REPLY, 5, {}]
    assert edge.router.expect(records.UNSUBSCRIBE)["channel"] == handle
    edge.join(alice, "group:c")


def test_of_global_channels_that_are_joined_none_is_stored_but_those_that_everybody_is_told_of(edge: Edge) -> None:
    alice = edge.open("alice")
    assert edge.router.state()["name"] == b"user:alice"
    edge.router.send(wire.everybody("global:news", EPOCH, 3))
    for number in range(20):
        edge.join(alice, f"global:{number}", offset=number)
        assert edge.router.expect(records.UNSUBSCRIBE)["name"] == f"global:{number}".encode()
    alice.send([10, {f"global:{number}": 1 for number in range(20)}])
    edge.join_known(alice, "global:news")
    one = edge.router.state()
    assert (one["what"], one["name"], one["position"]) == (records.JOINED, b"global:news", (EPOCH, 3))
    assert (edge.live("channel"), edge.live("pending")) == (2, 0)


def test_being_caught_up_in_global_channels_that_are_over_is_bounded_like_groups(edges: Callable[..., Edge]) -> None:
    edge = edges(channels_max=2)
    alice = edge.open("alice")

    def behind(channel: str) -> Any:
        alice.request(JOIN, channel, {"since": [EPOCH, 2]})
        one = edge.router.expect(records.SUBSCRIBE)
        edge.router.send(wire.subscribed(one["channel"], EPOCH, 5))
        edge.router.send(wire.caught(edge.router.expect(records.CATCHUP), (EPOCH, 5)))
        return alice.frame()

    for number in range(2):
        assert behind(f"global:{number}")[2]["outcome"] == "replayed"
        edge.router.expect(records.CATCHUP)  # its messages, which do not come
    answer = behind("global:more")
    assert (answer[0], answer[2]) == (ERROR, Code.TOO_MANY_CHANNELS)
    assert edge.live("membership") == 3


def test_leaving_what_was_not_joined_is_refused(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.send([LEAVE, 6, "group:a"])
    assert alice.frame()[:3] == [ERROR, 6, Code.NOT_JOINED]


def test_hello_waits_for_its_session_and_all_its_channels(edge: Edge) -> None:
    alice = edge.client()
    alice.send([0, 1, {}])
    alice.conn = edge.note(notes.FRAME)[2]
    channels = [["user:alice"], ["group:a", EPOCH, 3], ["group:b", 1, 3]]
    text = b"\x93\x01\x01\x81" + msgpack.packb("channels")
    edge.put(notes.OPEN, alice.conn, 1, session=b"s" * 16, text=text, extra=msgpack.packb(channels))
    asked = {one["name"]: one["channel"] for one in (edge.router.expect(records.SUBSCRIBE) for _ in range(3))}
    one = edge.router.expect(records.OPEN)
    edge.router.send(wire.opened(alice.conn, one["seq"]), wire.subscribed(asked[b"user:alice"], EPOCH, 0))
    edge.router.send(wire.subscribed(asked[b"group:a"], EPOCH, 3))
    wait_for(lambda: edge.live("pending") == 4, "it waits for the last")
    assert edge.counter("entered_open") == 0
    edge.router.send(wire.subscribed(asked[b"group:b"], EPOCH, 3))
    catchup = edge.router.expect(records.CATCHUP)
    assert (catchup["channel"], catchup["since"], catchup["flags"]) == (asked[b"group:b"], (1, 3), 1)
    edge.router.send(wire.caught(catchup, (EPOCH, 3), outcome="reset"))
    kind, _, told = alice.frame()
    assert kind == WELCOME
    assert told["channels"] == {
        "user:alice": [EPOCH, 0, "live"],
        "group:a": [EPOCH, 3, "live"],
        "group:b": [EPOCH, 3, "reset"],
    }
    assert (edge.live("pending"), edge.live("membership")) == (0, 3)


def test_what_is_said_between_a_reset_and_welcome_comes_behind_it(edge: Edge) -> None:
    """Other channels still wait: the channel moves on, and the client begins where it is told to."""
    alice = edge.client()
    one = edge.hello(alice, "alice", [["group:a", 1, 3], ["group:b", 1, 3]])
    asked = {each["name"]: each for each in (edge.router.expect(records.CATCHUP) for _ in range(2))}
    edge.router.send(wire.opened(alice.conn, one["seq"]))
    first, second = (frame_of("group:a", offset, offset) for offset in (1, 2))
    edge.router.send(
        wire.caught(asked[b"group:a"], (EPOCH, 0), outcome="reset"),
        wire.message(asked[b"group:a"]["channel"], EPOCH, 1, first),
        wire.caught(asked[b"group:b"], (EPOCH, 0), outcome="reset"),
    )
    told = alice.frame()[2]["channels"]
    assert (told["group:a"], told["group:b"]) == ([EPOCH, 0, "reset"], [EPOCH, 0, "reset"])
    catchup = edge.router.expect(records.CATCHUP)
    assert (catchup["name"], catchup["since"], catchup["flags"]) == (b"group:a", (EPOCH, 0), 0)
    edge.router.send(
        wire.caught(catchup, (EPOCH, 1), [(EPOCH, 1, first)]),
        wire.message(catchup["channel"], EPOCH, 2, second),
    )
    assert [frame[2] for frame in alice.frames(2)] == [1, 2]
    assert edge.live("pending") == 0


def test_the_time_from_accept_to_welcome_is_counted(edge: Edge) -> None:
    began = time.monotonic()
    alice = edge.client()
    wait_for(lambda: edge.live("connection") == 1, "it is accepted")
    accepted = time.monotonic()
    wait_for(lambda: time.monotonic() - accepted > 0.03, "a while passes")
    one = edge.hello(alice, "alice")
    said = time.monotonic()
    edge.router.send(wire.opened(alice.conn, one["seq"]))
    assert alice.frame()[0] == WELCOME
    times = edge.stats.read()["times"]
    # Milliseconds, read once a turn.
    assert 1000 * (said - accepted) - 2 <= times["welcome_sum"] <= 1000 * (time.monotonic() - began) + 2
    assert sum(count for name, count in times.items() if name.startswith("welcome") and name != "welcome_sum") == 1
    assert edge.counter("replies_sent") == 1


def test_a_hello_that_the_router_never_answers_is_unavailable(edges: Callable[..., Edge]) -> None:
    edge = edges(request_timeout_ms=100)
    alice = edge.client()
    edge.hello(alice, "alice")
    code, _, options = alice.frame()[1:]
    assert (code, options["class"]) == (Code.UNAVAILABLE, "resume")
    assert options["after"] > 0
    alice.close()
    edge.wait_empty()


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(edge: Edge, answered: bool) -> None:
    alice, bob = edge.open("alice"), edge.client()
    alice.request(JOIN, "group:a")
    channel = edge.router.expect(records.SUBSCRIBE)["channel"]
    one = edge.hello(bob, "bob")
    alice.reset()
    bob.reset()
    wait_for(lambda: edge.live("connection") == 0, "both are gone")
    if answered:
        edge.router.send(wire.subscribed(channel, EPOCH, 0), wire.opened(bob.conn, one["seq"]))
        edge.wait_empty()
    else:
        edge.stop()


def test_frames_before_welcome_wait_their_turn_or_are_refused(edge: Edge) -> None:
    alice = edge.client()
    edge.hello(alice, "alice")
    alice.send([JOIN, 2, "group:a"])
    assert alice.frame()[:2] == [FIN, Code.BAD_FRAME]


def test_what_waits_for_the_router_ends_with_the_loop(edge: Edge) -> None:
    member = edge.open("m")
    member.request(JOIN, "group:a")
    edge.router.expect(records.SUBSCRIBE)
    edge.hello(edge.client(), "u")
    assert (edge.live("pending"), edge.live("request")) == (3, 2)
    edge.stop()
    assert [edge.live(kind) for kind in ("pending", "request", "channel", "membership")] == [0, 0, 0, 0]
