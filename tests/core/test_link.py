"""The worker's link: positions and gaps, silence, overdue requests, and resynchronisation with everything it holds."""

from collections.abc import Callable

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import (
    EPOCH,
    ERROR,
    EVENT,
    FIN,
    JOIN,
    LEAVE,
    MESSAGE,
    PUBLISH,
    REPLY,
    Edge,
    frame_of,
    wait_for,
)


@pytest.fixture(params=["ipc", "tcp"])
def bus(request: pytest.FixtureRequest) -> str:
    """Both sides of the port: our own streams, and libzmq's."""
    side: str = request.param
    return side


def test_messages_between_arrive_once_and_in_order(edge: Edge) -> None:
    alice = edge.open("alice")
    handle = edge.join(alice, "group:a", offset=4)
    said = [wire.message(handle, EPOCH, offset, frame_of("group:a", offset, offset)) for offset in range(5, 25)]
    edge.router.send(*said[:10])
    edge.router.send(*said[5:15])  # some again, as after a lost answer
    edge.router.send(*said[15:])
    assert [frame[2] for frame in alice.frames(20)] == list(range(5, 25))
    assert edge.counter("gaps_router_lost") == 0
    number = alice.request(PUBLISH, "group:a", "x")
    one = edge.router.expect(records.PUBLISH)
    edge.router.send(wire.published(one["seq"], EPOCH, 25))
    assert alice.frame() == [REPLY, number, {"epoch": EPOCH, "offset": 25}]  # nothing came twice in between


def test_a_router_of_another_version_is_told_nothing_and_named_once(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    for epoch in (EPOCH + 1, EPOCH + 2):
        edge.router.send(wire.linked(epoch, ask=True, version=records.VERSION + 1))
    note = edge.note(notes.FOREIGN)
    assert note[4] == records.VERSION + 1
    edge.router.heartbeat()
    edge.link(EPOCH + 3)  # no BEGIN and no note before these
    edge.router.send(wire.linked(EPOCH + 4, ask=False, version=records.VERSION - 1))
    assert edge.note(notes.FOREIGN)[4] == records.VERSION - 1


def test_a_jump_in_the_offsets_is_told_exactly_before_the_message(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    handle = edge.join(alice, "group:a", offset=10)
    edge.join_known(bob, "group:a")
    edge.router.send(wire.message(handle, EPOCH, 14, frame_of("group:a", 14, "x")))
    for client in (alice, bob):
        assert client.frame() == [EVENT, "group:a", "gap", {"from": 11, "to": 13, "reason": "router_lost"}]
        assert client.frame()[2] == 14
    assert edge.counter("gaps_router_lost") == 1


def test_a_message_of_a_channel_that_is_gone_reaches_nobody(edge: Edge) -> None:
    alice = edge.open("alice")
    handle = edge.join(alice, "group:a")
    alice.send([LEAVE, 5, "group:a"])
    assert alice.frame() == [REPLY, 5, {}]
    assert edge.router.expect(records.UNSUBSCRIBE)["channel"] == handle
    edge.join(alice, "group:b")
    edge.router.send(wire.message(handle, EPOCH, 1, frame_of("group:a", 1, "late")))
    edge.router.send(wire.message(0, EPOCH, 1, frame_of("global:x", 1, "all"), everybody=True))
    assert alice.frame()[1] == "global:x"


def test_a_publish_carries_everything_to_the_router_and_the_position_back(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    number = alice.request(PUBLISH, "group:a", {"n": 1}, {"key": "k-1"})
    one = edge.router.expect(records.PUBLISH)
    assert (one["name"], one["key"], one["sender"]) == (b"group:a", b"k-1", b"alice")
    assert msgpack.unpackb(one["data"]) == {"n": 1}
    edge.router.send(wire.published(one["seq"], EPOCH, 77))
    assert alice.frame() == [REPLY, number, {"epoch": EPOCH, "offset": 77}]
    number = alice.request(PUBLISH, "group:a", 2)
    one = edge.router.expect(records.PUBLISH)
    edge.router.send(wire.published(one["seq"], 0, 0, Code.OVERLOADED), wire.published(one["seq"], EPOCH, 78))
    answer = alice.frame()
    assert answer[:3] == [ERROR, number, Code.OVERLOADED]
    assert answer[4]["retry_after"] > 0
    alice.send([PUBLISH, 0, "group:a", "no answer wanted"])
    assert edge.router.expect(records.PUBLISH)["seq"] == 0


def test_who_may_not_begin_one_more_global_channel_is_told_the_bound_and_what_to_do(edge: Edge) -> None:
    alice = edge.open("alice")
    number = alice.request(PUBLISH, "global:more", "x")
    edge.router.send(wire.published(edge.router.expect(records.PUBLISH)["seq"], 0, 0, Code.TOO_MANY_CHANNELS))
    answer = alice.frame()
    assert answer[:3] == [ERROR, number, Code.TOO_MANY_CHANNELS]
    assert "at most 128" in answer[3]
    assert "use a group" in answer[3]


@pytest.mark.parametrize("bus", ["ipc"], indirect=True)  # over tcp nothing counts before the router has asked
def test_without_the_router_a_publish_is_refused_at_its_deadline_with_a_time_to_come_back(
    edges: Callable[..., Edge],
) -> None:
    edge = edges(link=False, request_timeout_ms=100)
    alice = edge.open("alice")
    number = alice.request(PUBLISH, "user:bob", "x")
    code, _, options = alice.frame()[2:]
    assert (code, options["retry_after"] > 0) == (Code.UNAVAILABLE, True)
    edge.link(EPOCH)
    alice.send([PUBLISH, number, "user:bob", "y"])
    one = edge.router.expect(records.PUBLISH)
    assert (one["data"], one["again"]) == (msgpack.packb("y"), False)  # and what is overdue is not said any more


@pytest.mark.slow
def test_a_silent_router_is_away_and_heard_again_it_is_back(edge: Edge) -> None:
    alice = edge.open("alice")
    wait_for(lambda: edge.stats.read()["gauges"]["linked"] == 0, "the silence is noticed")
    first = alice.request(PUBLISH, "user:bob", "x")
    edge.router.send(wire.linked(EPOCH, ask=False))
    wait_for(lambda: edge.stats.read()["gauges"]["linked"] == 1, "the router is back")
    second = alice.request(PUBLISH, "user:bob", "y")
    said = [edge.router.expect(records.PUBLISH) for _ in range(2)]
    assert [(one["data"], one["again"]) for one in said] == [(msgpack.packb(text), False) for text in ("x", "y")]
    edge.router.send(*(wire.published(one["seq"], EPOCH, one["seq"]) for one in said))
    assert [frame[:2] for frame in alice.frames(2)] == [[REPLY, first], [REPLY, second]]


def test_how_long_the_router_took_for_a_publish_is_counted(edges: Callable[..., Edge]) -> None:
    edge = edges(request_timeout_ms=150)
    alice = edge.open("alice")

    def times() -> dict[str, int]:
        return {
            name: count for name, count in edge.stats.read()["times"].items() if name.startswith("publish") and count
        }

    alice.send([PUBLISH, 0, "user:alice", 1])  # nobody waits for this one
    edge.router.expect(records.PUBLISH)
    number = alice.request(PUBLISH, "user:alice", 1)
    edge.router.send(wire.published(edge.router.expect(records.PUBLISH)["seq"], EPOCH, 9))
    assert alice.frame()[:2] == [REPLY, number]
    answered = times()
    assert sum(count for name, count in answered.items() if name != "publish_sum") == 1
    assert answered.get("publish_sum", 0) < 150
    alice.request(PUBLISH, "user:alice", 1)
    assert alice.frame()[2] == Code.UNAVAILABLE
    # The wait for a router that does not answer is a time, too: else the worst would make the mean look best.
    assert times()["publish_sum"] - answered.get("publish_sum", 0) >= 150
    assert sum(count for name, count in times().items() if name != "publish_sum") == 2


def test_overdue_requests_are_unavailable(edges: Callable[..., Edge]) -> None:
    edge = edges(request_timeout_ms=100)
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    publish = alice.request(PUBLISH, "group:a", 1)
    join = alice.request(JOIN, "group:b")
    history = edge.ask(alice, 11, notes.HISTORY, "group:a", first=10)
    answers = {frame[1]: frame for frame in alice.frames(3)}
    assert {number: frame[2] for number, frame in answers.items()} == dict.fromkeys(
        (publish, join, history), Code.UNAVAILABLE
    )
    assert all(frame[4]["retry_after"] > 0 for frame in answers.values())
    late = edge.router.expect(records.PUBLISH)["seq"]
    assert edge.live("request") == edge.live("pending") == 0
    edge.router.send(wire.published(late, EPOCH, 9))
    edge.router.send(wire.message(0, EPOCH, 1, frame_of("global:x", 1, "all"), everybody=True))
    assert alice.frame()[1] == "global:x"  # the late answer is nobody's


def test_a_new_router_is_told_everything_with_the_last_positions(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    handle = edge.join(alice, "group:a", offset=3)
    edge.router.send(wire.message(handle, EPOCH, 4, frame_of("group:a", 4, "x")))
    alice.frame()
    # What an earlier router may not have stored stands before it: tests/core/test_told.py.
    said = [one for one in edge.link(EPOCH + 1) if one["aux"] != records.OPENS_TOLD]
    sessions = {(one["session"], one["conn"]) for one in said if one["kind"] == records.OPEN}
    assert sessions == {(client.session, client.conn) for client in (alice, bob)}
    held = {one["name"]: (one["epoch"], one["offset"]) for one in said if one["kind"] == records.SUBSCRIBE}
    assert held == {b"user:alice": (EPOCH, 0), b"user:bob": (EPOCH, 0), b"group:a": (EPOCH, 4)}
    assert len(said) == 5
    assert edge.counter("router_links") == 2
    # The new router goes on behind what was seen; what it knows beyond was missed here.
    edge.router.send(wire.subscribed(handle, EPOCH + 1, 6))
    assert alice.frame() == [EVENT, "group:a", "gap", {"from": 5, "to": 6, "reason": "router_lost"}]
    edge.router.send(wire.message(handle, EPOCH + 1, 7, frame_of("group:a", 7, "y")))
    assert alice.frame()[2] == 7


def test_a_subscription_that_is_refused_after_a_new_link_is_said_again_until_it_holds(edge: Edge) -> None:
    alice = edge.open("alice")
    handle = edge.join(alice, "group:a", 5)
    said = edge.link(EPOCH + 1)
    own = next(one["channel"] for one in said if one["kind"] == records.SUBSCRIBE and one["channel"] != handle)
    refusal = wire.subscribed(handle, 0, 0, code=Code.OVERLOADED)
    edge.router.send(wire.subscribed(own, EPOCH + 1, 0), refusal)
    again = edge.router.expect(records.SUBSCRIBE)
    assert (again["name"], again["channel"], again["offset"]) == (b"group:a", handle, 5)
    # Who joins meanwhile stands where the others do, and so do those who leave.
    bob = edge.open("bob")
    bob.request(JOIN, "group:a")
    assert bob.frame()[2] == {"epoch": EPOCH, "offset": 5, "outcome": "live"}
    edge.router.send(wire.subscribed(handle, EPOCH + 1, 7))
    gap = [EVENT, "group:a", "gap", {"from": 6, "to": 7, "reason": "router_lost"}]
    assert [alice.frame(), bob.frame()] == [gap, gap]
    edge.router.send(wire.message(handle, EPOCH + 1, 8, frame_of("group:a", 8, "x")))
    assert alice.frame()[2] == bob.frame()[2] == 8
    edge.router.heartbeat()
    edge.router.heartbeat()
    assert edge.counter("subscriptions_refused") == 1
    alice.send([LEAVE, 9, "group:a"])
    assert alice.frame() == [REPLY, 9, {}]
    bob.send([LEAVE, 9, "group:a"])
    assert edge.router.expect(records.UNSUBSCRIBE)["channel"] == handle  # it was not said once more


def test_a_channel_that_goes_on_from_a_lower_offset_is_told_as_recreated(edge: Edge) -> None:
    alice = edge.open("alice")
    handle = edge.join(alice, "group:a", 100)

    def recreated(epoch: int, offset: int, last: int) -> list[object]:
        told = {"from": offset + 1, "to": last, "reason": "recreated", "epoch": epoch, "offset": offset}
        return [EVENT, "group:a", "gap", told]

    edge.link(EPOCH + 1)
    edge.router.send(wire.subscribed(handle, EPOCH + 1, 89))
    assert alice.frame() == recreated(EPOCH + 1, 89, 100)
    edge.router.send(wire.message(handle, EPOCH + 1, 90, frame_of("group:a", 90, "x")))
    assert alice.frame()[:3] == [MESSAGE, "group:a", 90]
    edge.link(EPOCH + 2)  # what was said meanwhile comes before the answer
    edge.router.send(
        wire.message(handle, EPOCH + 2, 80, frame_of("group:a", 80, "y")), wire.subscribed(handle, EPOCH + 2, 80)
    )
    assert alice.frame() == recreated(EPOCH + 2, 79, 90)
    assert alice.frame()[:3] == [MESSAGE, "group:a", 80]
    edge.router.send(wire.message(handle, EPOCH + 2, 81, frame_of("group:a", 81, "z")))
    assert alice.frame()[:3] == [MESSAGE, "group:a", 81]


def test_joins_and_hellos_that_wait_are_asked_again(edge: Edge) -> None:
    alice = edge.open("alice")
    join = alice.request(JOIN, "group:a")
    edge.router.expect(records.SUBSCRIBE)
    waiting = edge.client()
    waiting.conn = edge.hello(waiting, "carol")["conn"]
    said = edge.link(EPOCH + 1)
    opens = {one["conn"]: one["seq"] for one in said if one["kind"] == records.OPEN}
    assert set(opens) == {alice.conn, waiting.conn}
    assert opens[alice.conn] == 0
    (group,) = (one for one in said if one.get("name") == b"group:a")
    edge.router.send(wire.subscribed(group["channel"], EPOCH + 1, 0), wire.opened(waiting.conn, opens[waiting.conn]))
    assert alice.frame()[:2] == [REPLY, join]
    assert waiting.frame()[0] == 1


def test_an_evicted_session_ends_and_gets_nothing_more(edges: Callable[..., Edge]) -> None:
    edge = edges(fin_timeout_ms=200)
    alice = edge.open("alice")
    handle = edge.join(alice, "group:a")
    said = [wire.message(handle, EPOCH, offset, frame_of("group:a", offset, "x")) for offset in (1, 2)]
    edge.router.send(said[0], wire.evict(alice.conn), said[1])
    assert alice.frame()[2] == 1
    assert alice.frame()[:2] == [FIN, Code.RESUMED_ELSEWHERE]
    alice.send([15])
    assert alice.frame() is None


def test_a_channels_leader_that_knows_of_a_later_claim_ends_the_former_connection_too(edge: Edge) -> None:
    """It knows the low half of the handle: the session and the claim say whether it is still that connection."""
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    place, session = alice.conn & 0xFFFFFFFF, alice.session
    strange = bytes(16)
    for conn, who, fence in (
        (place, session, wire.FENCE),
        (place, session, 0),
        (place, strange, wire.FENCE + 1),
        (place + 1, session, wire.FENCE + 1),
        (0xFFFFFFFF, session, wire.FENCE + 1),
        (alice.conn + (1 << 32), session, wire.FENCE + 1),
    ):
        edge.router.send(wire.evict(conn, who, fence))
    asked = alice.request(7, "group:nowhere")
    assert alice.frame()[:2] == [3, asked], "it has its session"
    edge.router.send(wire.evict(place, session, wire.FENCE + 1))
    assert alice.frame()[:2] == [FIN, Code.RESUMED_ELSEWHERE]


def test_history_and_presence_pass_the_numbers_on(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    number = edge.ask(alice, 11, notes.HISTORY, "group:a", flags=3, first=10, second=EPOCH, third=6)
    one = edge.router.expect(records.HISTORY)
    assert (one["name"], one["limit"], one["reverse"], one["since"]) == (b"group:a", 10, 1, (EPOCH, 6))
    edge.router.send(wire.reply(one["seq"], msgpack.packb({"offset": 9})))
    assert alice.frame() == [REPLY, number, {"offset": 9}]
    number = edge.ask(alice, 12, notes.PRESENCE, "group:a")
    seq = edge.router.expect(records.PRESENCE)["seq"]
    edge.router.send(wire.reply(seq, msgpack.packb({"count": 1})))
    assert alice.frame() == [REPLY, number, {"count": 1}]


def test_an_event_reaches_the_members_and_moves_no_position(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    handle, other = edge.join(alice, "group:a"), edge.join(bob, "group:b")
    told = [EVENT, "group:a", "joined", {"session": "5e", "user": "carol"}]
    edge.router.send(
        wire.message(handle, EPOCH, 1, frame_of("group:a", 1, "x")),
        wire.event(handle, msgpack.packb(told)),
        wire.event(2**64 - 1, msgpack.packb(told)),
        wire.message(handle, EPOCH, 2, frame_of("group:a", 2, "y")),
        wire.message(other, EPOCH, 1, frame_of("group:b", 1, "z")),
    )
    assert [frame[:3] for frame in alice.frames(3)] == [[9, "group:a", 1], told[:3], [9, "group:a", 2]]
    assert bob.frame()[:3] == [9, "group:b", 1]
    assert edge.counter("gaps_router_lost") == 0


@pytest.mark.parametrize("junk", [b"", b"x", b"\xff" * 64, wire.linked(1, ask=False)[:-8], b"\0" * 32])
def test_bytes_that_are_no_batch_are_survived(edge: Edge, junk: bytes) -> None:
    edge.router.send(junk)
    edge.open("alice")


def test_a_global_message_that_was_missed_is_told_to_everybody(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    said = {
        offset: wire.message(0, EPOCH, offset, frame_of("global:x", offset, 0), everybody=True) for offset in (5, 8)
    }
    edge.router.send(wire.everybody("global:x", EPOCH, 4), said[5], said[5], said[8])
    for client in (alice, bob):
        assert client.frame()[:3] == [MESSAGE, "global:x", 5]
        assert client.frame() == [EVENT, "global:x", "gap", {"from": 6, "to": 7, "reason": "router_lost"}]
        assert client.frame()[:3] == [MESSAGE, "global:x", 8]
    (one,) = (one for one in edge.link(EPOCH + 1) if one.get("name") == b"global:x")
    assert (one["kind"], one["epoch"], one["offset"]) == (records.SUBSCRIBE, EPOCH, 8)
    edge.router.send(wire.subscribed(one["channel"], EPOCH + 1, 9))
    assert alice.frame() == [EVENT, "global:x", "gap", {"from": 9, "to": 9, "reason": "router_lost"}]
    edge.router.send(wire.everybody("global:x", EPOCH + 2, 2))
    found = alice.frame()
    assert found[2] == "gap"
    assert (found[3]["reason"], found[3]["epoch"], found[3]["offset"]) == ("recreated", EPOCH + 2, 2)


def test_a_global_channel_that_the_router_lets_go_is_forgotten(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.router.send(wire.everybody("global:x", EPOCH, 4), wire.everybody("global:x", EPOCH, 4, gone=True))
    assert edge.router.expect(records.UNSUBSCRIBE)["name"] == b"global:x"
    edge.router.send(wire.everybody("global:x", EPOCH, 6))  # it comes again: nothing was missed in between
    edge.router.send(wire.message(0, EPOCH, 7, frame_of("global:x", 7, 0), everybody=True))
    assert alice.frame()[:3] == [MESSAGE, "global:x", 7]
