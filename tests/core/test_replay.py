"""A member that missed messages gets them part by part and then joins the live traffic: no gap, nothing twice."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core import audit, notes, records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import (
    EPOCH,
    EVENT,
    FIN,
    JOIN,
    LEAVE,
    MESSAGE,
    PUBLISH,
    REPLY,
    WELCOME,
    Client,
    Edge,
    frame_of,
    wait_for,
)
from tests.core.ws_client import WsClient, masked


class TextClient(WsClient):
    """A session in JSON."""

    def pack(self, frame: list[Any]) -> bytes:
        return masked(1, json.dumps(frame).encode())

    def frame(self) -> Any:
        one = self._next()
        assert one is not None
        assert one[0] == 1
        return json.loads(one[1])


def of(channel: str, *offsets: int) -> list[tuple[int, int, bytes]]:
    return [(EPOCH, offset, frame_of(channel, offset, offset)) for offset in offsets]


def live(handle: int, channel: str, *offsets: int) -> bytes:
    return b"".join(wire.message(handle, EPOCH, offset, frame_of(channel, offset, offset)) for offset in offsets)


def missed(edge: Edge, client: Client, channel: str, since: int, position: int) -> tuple[int, wire.Record]:
    """A client that joined and missed what came after `since`: the channel's handle, and the CATCHUP for its replay."""
    number = client.request(JOIN, channel, {"since": [EPOCH, since]})
    one = edge.router.take()
    if one["kind"] == records.SUBSCRIBE:
        edge.router.send(wire.subscribed(one["channel"], EPOCH, position))
        one = edge.router.take()
    assert (one["kind"], one["flags"], one["since"]) == (records.CATCHUP, 1, (EPOCH, since))
    edge.router.send(wire.caught(one, (EPOCH, position)))
    assert client.frame() == [REPLY, number, {"epoch": EPOCH, "offset": position, "outcome": "replayed"}]
    again = edge.router.expect(records.CATCHUP)
    assert (again["flags"], again["since"], again["name"]) == (0, (EPOCH, since), channel.encode())
    return again["channel"], again


def offsets(frames: list[Any]) -> list[int]:
    assert all(frame[0] == MESSAGE for frame in frames)
    return [frame[2] for frame in frames]


def test_live_messages_wait_for_those_that_were_missed_and_none_comes_twice(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    handle, one = missed(edge, alice, "group:a", 2, 5)
    edge.join_known(bob, "group:a")
    edge.router.send(live(handle, "group:a", 6))  # bob has it live; alice by the replay alone
    assert bob.frame()[2] == 6
    edge.router.send(wire.caught(one, (EPOCH, 6), of("group:a", 3, 4)))
    one = edge.router.expect(records.CATCHUP)
    assert one["since"] == (EPOCH, 4)
    edge.router.send(live(handle, "group:a", 7), wire.caught(one, (EPOCH, 7), of("group:a", 5, 6, 7)))
    edge.router.send(live(handle, "group:a", 8))
    assert offsets(alice.frames(6)) == [3, 4, 5, 6, 7, 8]
    assert offsets(bob.frames(2)) == [7, 8]
    assert edge.live("pending") == 0
    assert edge.counter("replayed") == 5


def test_a_join_without_a_position_is_answered_where_the_replay_stands(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    handle, one = missed(edge, alice, "group:a", 2, 5)
    edge.join_known(bob, "group:a")

    def stands(client: Client, offset: int) -> bool:
        number = client.request(JOIN, "group:a")
        frame: list[Any] = client.frame()
        return frame == [REPLY, number, {"epoch": EPOCH, "offset": offset, "outcome": "live"}]

    assert stands(alice, 2)
    assert stands(bob, 5)
    edge.router.send(wire.caught(one, (EPOCH, 5), of("group:a", 3)))
    assert alice.frame()[2] == 3
    assert stands(alice, 3)
    edge.router.send(wire.caught(edge.router.expect(records.CATCHUP), (EPOCH, 5), of("group:a", 4, 5)))
    assert offsets(alice.frames(2)) == [4, 5]
    assert stands(alice, 5)
    edge.router.send(live(handle, "group:a", 6))
    assert alice.frame()[2] == bob.frame()[2] == 6


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_interleaving_of_parts_and_live_traffic(data: st.DataObject) -> None:
    """The router keeps on publishing while it answers, in parts of any size, cut into batches anywhere."""
    edge = Edge()
    try:
        _interleave(edge, data)
    finally:
        edge.close()


def _interleave(edge: Edge, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, 5), label="position")
    since = data.draw(st.integers(0, at - 1), label="since")
    alice = edge.open("alice")
    handle, one = missed(edge, alice, "group:a", since, at)

    def publish(what: str) -> list[bytes]:
        nonlocal at
        count = data.draw(st.integers(0, 3), label=what)
        at += count
        return [live(handle, "group:a", offset) for offset in range(at - count + 1, at + 1)]

    reached, parts = since, 0
    while True:
        batch = publish("before")
        parts += 1
        position, part = at, data.draw(st.integers(1, 4), label="part") if parts < 12 else at
        first, reached = reached + 1, min(reached + part, position)
        batch.append(wire.caught(one, (EPOCH, position), of("group:a", *range(first, reached + 1))))
        batch += publish("after")
        for said in [b"".join(batch)] if data.draw(st.booleans(), label="one batch") else batch:
            edge.router.send(said)
        if reached == position:
            break
        one = edge.router.expect(records.CATCHUP)
        assert one["since"] == (EPOCH, reached)
    edge.router.send(live(handle, "group:a", at + 1))
    assert offsets(alice.frames(at + 1 - since)) == list(range(since + 1, at + 2))


def test_a_gap_is_told_with_its_reason_before_what_is_left(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.request(JOIN, "group:a", {"since": [EPOCH, 2]})
    edge.router.send(wire.subscribed(edge.router.expect(records.SUBSCRIBE)["channel"], EPOCH, 9))
    told = edge.router.expect(records.CATCHUP)
    edge.router.send(wire.caught(told, (EPOCH, 9), outcome="gap", gap=(3, 7), reason=1))
    assert alice.frame()[2]["outcome"] == "gap"
    one = edge.router.expect(records.CATCHUP)
    edge.router.send(wire.caught(one, (EPOCH, 9), of("group:a", 8), outcome="gap", gap=(3, 7), reason=1))
    assert alice.frame() == [EVENT, "group:a", "gap", {"from": 3, "to": 7, "reason": "trimmed"}]
    assert alice.frame()[2] == 8
    one = edge.router.expect(records.CATCHUP)
    edge.router.send(wire.caught(one, (EPOCH, 9), outcome="gap", gap=(9, 9), reason=2))
    assert alice.frame() == [EVENT, "group:a", "gap", {"from": 9, "to": 9, "reason": "lost"}]
    wait_for(lambda: edge.live("pending") == 0, "it is a live member")


def test_a_resumed_session_gets_each_channel_from_where_it_stood(edge: Edge) -> None:
    alice = edge.client()
    one = edge.hello(alice, "alice", [["group:a", EPOCH, 4], ["group:b", EPOCH, 0], ["group:c", EPOCH, 3]])
    # The harness answered SUBSCRIBE with position 0: b is live at once, the others have their outcome asked for.
    asked = {each["name"]: each for each in (edge.router.expect(records.CATCHUP) for _ in range(2))}
    assert set(asked) == {b"group:a", b"group:c"}
    edge.router.send(wire.opened(alice.conn, one["seq"]))
    edge.router.send(
        wire.caught(asked[b"group:a"], (EPOCH, 0), outcome="reset"),
        live(asked[b"group:c"]["channel"], "group:c", 1, 2, 3, 4, 5),
        wire.caught(asked[b"group:c"], (EPOCH, 5), outcome="replayed"),
    )
    assert alice.frame() == [
        WELCOME,
        1,
        {
            "channels": {
                "user:alice": [EPOCH, 0, "live"],
                "group:a": [EPOCH, 0, "reset"],
                "group:b": [EPOCH, 0, "live"],
                "group:c": [EPOCH, 5, "replayed"],
            }
        },
    ]
    catchup = edge.router.expect(records.CATCHUP)
    assert (catchup["name"], catchup["since"]) == (b"group:c", (EPOCH, 3))
    edge.router.send(wire.caught(catchup, (EPOCH, 5), of("group:c", 4, 5)))
    assert offsets(alice.frames(2)) == [4, 5]
    assert (edge.live("membership"), edge.live("pending")) == (4, 0)


def test_what_moved_on_while_the_hello_waited_is_replayed_though_it_was_live(edge: Edge) -> None:
    other = edge.open("other")
    handle = edge.join(other, "group:a", offset=7)
    alice = edge.client()
    one = edge.hello(alice, "alice", [["group:a", EPOCH, 7]])
    edge.router.send(live(handle, "group:a", 8))
    assert other.frame()[2] == 8
    edge.router.send(wire.opened(alice.conn, one["seq"]))
    assert alice.frame()[2]["channels"]["group:a"] == [EPOCH, 8, "replayed"]
    catchup = edge.router.expect(records.CATCHUP)
    edge.router.send(wire.caught(catchup, (EPOCH, 8), of("group:a", 8)), live(handle, "group:a", 9))
    assert offsets(alice.frames(2)) == [8, 9]


def test_a_session_that_is_caught_up_may_publish_leave_and_join_again(edge: Edge) -> None:
    alice = edge.open("alice")
    handle, one = missed(edge, alice, "group:a", 2, 5)
    alice.send([PUBLISH, 3, "group:a", 1])
    said = edge.router.expect(records.PUBLISH)
    edge.router.send(wire.published(said["seq"], EPOCH, 6))
    assert alice.frame() == [REPLY, 3, {"epoch": EPOCH, "offset": 6}]
    alice.send([LEAVE, 4, "group:a"])
    assert alice.frame() == [REPLY, 4, {}]
    assert edge.router.expect(records.UNSUBSCRIBE)["channel"] == handle
    edge.router.send(wire.caught(one, (EPOCH, 6), of("group:a", 3, 4, 5, 6)))  # nobody waits for it any more
    handle, one = missed(edge, alice, "group:a", 5, 6)
    handle, again = missed(edge, alice, "group:a", 4, 6)  # joined again from elsewhere: that counts
    edge.router.send(wire.caught(one, (EPOCH, 6), of("group:a", 6)))
    edge.router.send(wire.caught(again, (EPOCH, 6), of("group:a", 5, 6)))
    assert offsets(alice.frames(2)) == [5, 6]
    # A live member that asks for older messages gets them, and goes on from there.
    handle, one = missed(edge, alice, "group:a", 5, 6)
    edge.router.send(live(handle, "group:a", 7), wire.caught(one, (EPOCH, 7), of("group:a", 6, 7)))
    assert offsets(alice.frames(2)) == [6, 7]
    assert edge.live("membership") == 2


def test_joining_again_from_the_end_gives_up_what_was_being_replayed(edge: Edge) -> None:
    """Its answer is a position, and what follows is everything after that: nothing from before it."""
    alice = edge.open("alice")
    for since, outcome in (((EPOCH, 5), "live"), ((EPOCH + 9, 9), "reset")):
        handle, one = missed(edge, alice, "group:a", 2, 5)
        number = alice.request(JOIN, "group:a", {"since": list(since)})
        if outcome == "reset":
            asked = edge.router.expect(records.CATCHUP)
            edge.router.send(wire.caught(asked, (EPOCH, 5), outcome="reset"))
        assert alice.frame() == [REPLY, number, {"epoch": EPOCH, "offset": 5, "outcome": outcome}]
        edge.router.send(wire.caught(one, (EPOCH, 5), of("group:a", 3, 4, 5)), live(handle, "group:a", 6))
        assert alice.frame()[2] == 6
        assert edge.live("pending") == 0
        number = alice.request(LEAVE, "group:a")
        assert alice.frame() == [REPLY, number, {}]
        edge.router.expect(records.UNSUBSCRIBE)


def test_the_own_channel_stays_the_first_membership_while_it_is_caught_up(edge: Edge) -> None:
    alice = edge.client()
    alice.send([0, 1, {}])
    alice.conn = edge.note(notes.FRAME)[2]
    text = b"\x93\x01\x01\x81\xa8channels"
    edge.put(notes.OPEN, alice.conn, 1, session=b"s" * 16, text=text, extra=wire.packed([["user:alice", EPOCH, 1]]))
    one = edge.router.expect(records.SUBSCRIBE)
    edge.router.send(wire.subscribed(one["channel"], EPOCH, 2))
    edge.router.send(wire.opened(alice.conn, edge.router.expect(records.OPEN)["seq"]))
    edge.router.send(wire.caught(edge.router.expect(records.CATCHUP), (EPOCH, 2)))
    assert alice.frame()[2]["channels"] == {"user:alice": [EPOCH, 2, "replayed"]}
    catchup = edge.router.expect(records.CATCHUP)
    edge.join(alice, "group:a")
    alice.send([PUBLISH, 0, "group:a", 1])
    assert edge.router.expect(records.PUBLISH)["sender"] == b"alice"
    edge.router.send(wire.caught(catchup, (EPOCH, 2), of("user:alice", 2)), live(catchup["channel"], "user:alice", 3))
    assert offsets(alice.frames(2)) == [2, 3]


def test_global_messages_wait_for_the_missed_ones_of_their_channel_alone(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    one = missed(edge, alice, "global:news", 1, 2)[1]
    said = {name: frame_of(name, 3, 0) for name in ("global:news", "global:other")}
    edge.router.send(*(wire.message(0, EPOCH, 3, frame, everybody=True) for frame in said.values()))
    assert [frame[1] for frame in bob.frames(2)] == list(said)
    assert alice.frame()[1] == "global:other"
    edge.router.send(wire.caught(one, (EPOCH, 3), of("global:news", 2, 3)))
    edge.router.send(wire.message(0, EPOCH, 4, frame_of("global:news", 4, 0), everybody=True))
    assert offsets(alice.frames(3)) == [2, 3, 4]
    assert bob.frame()[2] == 4
    assert (edge.live("membership"), edge.live("channel")) == (2, 4)  # nobody joined; the worker knows both


def test_only_so_many_channels_of_a_session_are_asked_for_at_once(edge: Edge) -> None:
    alice = edge.open("alice")
    asked: list[wire.Record] = []
    for number in range(6):
        alice.request(JOIN, f"group:{number}", {"since": [EPOCH, 1]})
        edge.router.send(wire.subscribed(edge.router.expect(records.SUBSCRIBE)["channel"], EPOCH, 2))
        edge.router.send(wire.caught(edge.router.expect(records.CATCHUP), (EPOCH, 2)))
        assert alice.frame()[0] == REPLY
        if number < 4:
            asked.append(edge.router.expect(records.CATCHUP))
    edge.router.send(wire.caught(asked[0], (EPOCH, 2), of("group:0", 2)))
    assert alice.frame()[1] == "group:0"
    assert edge.router.expect(records.CATCHUP)["name"] == b"group:4"  # and not the sixth one yet
    edge.router.send(wire.caught(asked[1], (EPOCH, 2), of("group:1", 2)))
    assert edge.router.expect(records.CATCHUP)["name"] == b"group:5"


def test_a_reader_that_takes_nothing_is_not_given_more_than_its_queue_has_room_for(edges: Callable[..., Edge]) -> None:
    edge = edges(queue_bytes_max=1 << 20, max_frame=65_536)
    alice = edge.open("alice", receive_bytes=4096)
    handle, one = missed(edge, alice, "group:a", 0, 1000)
    frame = frame_of("group:a", 1, "x" * 30_000)
    parts = 0
    # The kernel takes some megabytes; then the queue fills to its quarter and no part is asked for any more.
    while edge.stats.read()["gauges"]["queued_bytes"] <= (1 << 20) // 4:
        parts += 1
        edge.router.send(wire.caught(one, (EPOCH, 1000), [(EPOCH, parts, frame)]))
        if edge.router.socket.poll(100):
            one = edge.router.expect(records.CATCHUP)
        else:
            break
    assert parts < 900
    assert edge.counter("slow_consumers") == 0
    got = alice.frames(parts)  # it reads again: the next part is asked for
    assert len(got) == parts
    assert edge.router.expect(records.CATCHUP)["since"] == (EPOCH, parts)
    assert handle


def test_a_new_router_is_asked_again_and_a_silent_one_later(edges: Callable[..., Edge]) -> None:
    edge = edges(request_timeout_ms=200)
    alice, bob = edge.open("alice"), edge.open("bob")
    _, one = missed(edge, alice, "group:a", 2, 5)
    again = edge.router.expect(records.CATCHUP)  # nothing came in time
    assert (again["since"], again["seq"] != one["seq"]) == ((EPOCH, 2), True)
    edge.router.send(wire.caught(again, (EPOCH, 5), of("group:a", 3)))
    one = edge.router.expect(records.CATCHUP)
    bob.request(JOIN, "group:a", {"since": [EPOCH, 1]})
    outcome = edge.router.expect(records.CATCHUP)
    handles = {each["name"]: each["channel"] for each in edge.link(EPOCH + 1) if each["kind"] == records.SUBSCRIBE}
    asked = [edge.router.expect(records.CATCHUP) for _ in range(2)]
    assert {(each["seq"], each["flags"]) for each in asked} == {(one["seq"], 0), (outcome["seq"], 1)}
    edge.router.send(wire.subscribed(handles[b"group:a"], EPOCH + 1, 5))
    edge.router.send(
        *(wire.caught(each, (EPOCH + 1, 5), of("group:a", 4, 5)[: 2 * (not each["flags"])]) for each in asked)
    )
    assert offsets(alice.frames(3)) == [3, 4, 5]
    assert bob.frame()[2]["outcome"] == "replayed"


def test_history_that_is_lost_during_its_replay_ends_the_connection_to_be_resumed(edge: Edge) -> None:
    alice = edge.open("alice")
    _, one = missed(edge, alice, "group:a", 2, 5)
    edge.router.send(wire.caught(one, (EPOCH + 3, 0), outcome="reset"))
    assert alice.frame()[:2] == [FIN, Code.UNAVAILABLE]
    alice.close()
    edge.wait_empty()


def test_a_replay_ends_with_its_connection(edge: Edge) -> None:
    alice = edge.open("alice")
    _, one = missed(edge, alice, "group:a", 2, 5)
    alice.reset()
    edge.wait_empty()
    edge.router.send(wire.caught(one, (EPOCH, 5), of("group:a", 3, 4, 5)))
    bob = edge.open("bob")
    missed(edge, bob, "group:a", 2, 5)
    edge.stop()
    assert [edge.live(kind) for kind in ("pending", "request", "channel", "membership", "aside")] == [0] * 5


def test_an_audit_finds_replays_where_their_memberships_name_them(edge: Edge) -> None:
    alice = edge.open("alice")
    for name in ("group:a", "global:news"):
        missed(edge, alice, name, 2, 5)
    alice.request(JOIN, "group:b", {"since": [EPOCH, 2]})
    edge.router.send(wire.subscribed(edge.router.expect(records.SUBSCRIBE)["channel"], EPOCH, 5))
    edge.router.expect(records.CATCHUP)  # its outcome waits
    edge.put(notes.AUDIT, request=7)
    note = edge.note(notes.AUDITED)
    report = audit.unpack(note[7], note[8])
    assert report["findings"] == []
    found = {kind: one["found"] for kind, one in report["kinds"].items()}
    assert (found["membership"], found["pending"], found["channel"]) == (3, 3, 4)
    assert all(one["opened"] - one["closed"] == one["found"] for one in report["kinds"].values())


def test_a_replay_reaches_a_json_session_as_json(edge: Edge) -> None:
    alice = edge.open("alice", TextClient)
    _, one = missed(edge, alice, "group:a", 2, 3)
    edge.router.send(wire.caught(one, (EPOCH, 3), of("group:a", 3)))
    assert alice.frame() == [MESSAGE, "group:a", 3, 3, {"from": "x", "time": 1, "epoch": EPOCH}]
