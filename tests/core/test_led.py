"""A worker and several routers: what is about a shard goes to whoever leads it, and follows it when it moves."""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack
import pytest

from core import notes, records, shards
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import (
    CLIENTS_KINDS,
    EPOCH,
    ERROR,
    EVENT,
    FIN,
    JOIN,
    LEAVE,
    MESSAGE,
    PUBLISH,
    REPLY,
    Client,
    Edge,
    Router,
    frame_of,
    wait_for,
)
from tests.core.test_opening import hello

GROUP = "group:a"
SHARD = shards.byte_of(GROUP.encode())
ALICE = ord("a")  # the shard of her session: the first byte of its id
UNLED_WAIT_S = 2.5


@pytest.fixture
def another(edge: Edge, bus: str) -> Iterator[Callable[[int], Router]]:
    """Open links to further routers, which lead nothing yet; they end after the worker."""
    made: list[Router] = []

    def open_one(place: int) -> Router:
        router = Router(bus, shards=True)
        made.append(router)
        edge.loop.link_open(place, router.endpoint)
        edge.put(notes.LINK_OPEN, request=place)
        router.heartbeat()
        assert link(edge, router, place, EPOCH) == [("shards", set(), 0), ("shards", set(), records.SAID)]
        return router

    yield open_one
    edge.stop()
    for one in made:
        one.close()


def short(one: wire.Record) -> tuple[Any, ...]:
    """A record as these tests look at it."""
    kind = one["kind"]
    if kind == records.SHARDS:
        return ("shards", one["which"], one["aux"] & records.SAID)
    if kind in (records.STATE, records.ATTEND):
        return ("attend" if kind == records.ATTEND else "state", one["name"].decode(), one["what"], one["shard"])
    if kind == records.SUBSCRIBE:
        return ("subscribe", one["name"].decode(), one["epoch"], one["offset"], one["shard"])
    if kind == records.OPEN:
        return ("open", one["session"], one["aux"], one["shard"])
    if kind == records.PUBLISH:
        return ("publish", msgpack.unpackb(one["data"]), one["again"], one["shard"])
    return (kind, one["shard"])


def link(edge: Edge, router: Router, place: int, epoch: int, led: Iterable[int] = ()) -> list[tuple[Any, ...]]:
    """A router asks for everything and says what it leads; what it is told of that."""
    router.send(wire.linked(epoch, ask=True), wire.leads(epoch, led))
    router.expect(records.BEGIN)
    said = until(router, records.END)
    assert edge.note(notes.LINKED)[3:5] == (place, epoch)
    return said


def until(router: Router, kind: int, aux: int | None = None) -> list[tuple[Any, ...]]:
    """What a router is told up to a record of this kind."""
    said: list[tuple[Any, ...]] = []
    while True:
        one = router.take()
        if one["kind"] == kind and aux in (None, one["aux"] & records.SAID):
            return said
        said.append(short(one))


def lead(router: Router, epoch: int, led: Iterable[int]) -> list[tuple[Any, ...]]:
    """A router begins to lead; what it is told between two SHARDS, but for what sessions did lately."""
    led = list(led)
    router.send(wire.leads(epoch, led))
    one = router.expect(records.SHARDS)
    assert (one["which"], one["aux"]) == (set(led), 0)
    said = until(router, records.SHARDS, records.SAID)
    return said + [("told", short(router.states.popleft())) for _ in range(len(router.states))]


def publish(client: Client, router: Router, text: Any, channel: str = GROUP) -> tuple[int, wire.Record]:
    """Publish, and take the record from the router that is to have it."""
    number = client.request(PUBLISH, channel, text)
    one = router.expect(records.PUBLISH)
    assert (msgpack.unpackb(one["data"]), one["again"]) == (text, False)
    return number, one


def test_a_shard_moves_with_publishes_under_way_which_are_answered_once(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    alice, other = edge.open("alice"), another(1)
    edge.join(alice, GROUP, 3)
    asked = [publish(alice, edge.router, n) for n in range(3)]
    elsewhere, left = publish(alice, edge.router, "elsewhere", "user:alice")
    edge.router.send(wire.published(asked[0][1]["seq"], EPOCH, 4))
    assert alice.frame()[:2] == [REPLY, asked[0][0]]
    assert lead(other, EPOCH + 1, [SHARD]) == [
        ("attend", GROUP, records.HERE, SHARD),
        ("subscribe", GROUP, EPOCH, 3, SHARD),
    ]
    again = [other.expect(records.PUBLISH) for _ in range(2)]
    assert [short(one) for one in again] == [("publish", n, True, SHARD) for n in (1, 2)]
    new = publish(alice, other, 3)
    other.send(*(wire.published(one["seq"], EPOCH + 1, one["seq"]) for one in (*again, new[1])))
    assert [frame[:2] for frame in alice.frames(3)] == [[REPLY, number] for number, _ in (*asked[1:], new)]
    # What the one before answers late is nobody's, and what it leads still it still answers.
    edge.router.send(*(wire.published(one["seq"], EPOCH, 9) for _, one in asked), wire.published(left["seq"], EPOCH, 1))
    assert alice.frame() == [REPLY, elsewhere, {"epoch": EPOCH, "offset": 1}]
    assert edge.live("request") == edge.live("kept") == 0


def test_members_go_on_behind_what_they_had_and_hear_nothing_of_a_deposed_router(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    alice, other = edge.open("alice"), another(1)
    handle = edge.join(alice, GROUP, 3)
    edge.router.send(wire.message(handle, EPOCH, 4, frame_of(GROUP, 4, "x")))
    assert alice.frame()[:3] == [MESSAGE, GROUP, 4]
    assert ("subscribe", GROUP, EPOCH, 4, SHARD) in lead(other, EPOCH + 1, [SHARD])
    # On its way from the one before: it still counts until the new one has told where the channel stands.
    edge.router.send(wire.message(handle, EPOCH, 5, frame_of(GROUP, 5, "x")))
    assert alice.frame()[:3] == [MESSAGE, GROUP, 5]
    other.send(
        wire.subscribed(handle, EPOCH + 1, 7), wire.message(handle, EPOCH + 1, 8, frame_of(GROUP, 8, "y", EPOCH + 1))
    )
    assert alice.frame() == [EVENT, GROUP, "gap", {"from": 6, "to": 7, "reason": "router_lost"}]
    assert alice.frame()[:3] == [MESSAGE, GROUP, 8]
    edge.router.send(
        wire.message(handle, EPOCH, 9, frame_of(GROUP, 9, "deposed")),
        wire.subscribed(handle, EPOCH, 20),
        wire.leads(EPOCH, [SHARD]),
        wire.everybody("global:x", EPOCH, 0),
        wire.message(0, EPOCH, 1, frame_of("global:x", 1, "all"), everybody=True),
    )
    assert alice.frame()[:3] == [MESSAGE, "global:x", 1]
    other.send(wire.message(handle, EPOCH + 1, 9, frame_of(GROUP, 9, "z", EPOCH + 1)))
    assert alice.frame()[:3] == [MESSAGE, GROUP, 9]
    _, one = publish(alice, other, "and on")
    assert one["shard"] == SHARD


def test_a_session_moves_alone_and_leaves_the_channels_that_others_lead(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    alice, other = edge.open("alice"), another(1)
    edge.join(alice, GROUP)
    here = [("attend", GROUP, records.HERE, SHARD), ("subscribe", GROUP, EPOCH, 0, SHARD)]
    assert lead(other, EPOCH + 1, [SHARD]) == here
    third = another(2)
    opens = ("open", alice.session, records.AGAIN, ALICE)
    said = lead(third, EPOCH + 1, [ALICE])
    assert opens in said
    assert ("told", ("state", GROUP, records.JOINED | records.STATES_TOLD, ALICE)) in said
    assert not [one for one in said if one[0] in ("attend", "subscribe")]
    # Where a router leads both, nothing of it is a guest's.
    said = lead(third, EPOCH + 2, [SHARD])
    assert said == [here[1], ("told", ("state", GROUP, records.HERE, ALICE))]
    alice.send([LEAVE, 9, GROUP])
    assert alice.frame() == [REPLY, 9, {}]
    third.expect(records.UNSUBSCRIBE)
    alice.close()
    assert short(third.expect(records.CLOSE)) == short(other.expect(records.CLOSE)) == (records.CLOSE, ALICE)
    while edge.router.take()["kind"] != records.CLOSE:
        continue


def test_who_joins_what_another_router_leads_is_told_to_both(edge: Edge, another: Callable[[int], Router]) -> None:
    alice, other = edge.open("alice"), another(1)
    lead(other, EPOCH + 1, [SHARD])
    edge.router.states.clear()
    number = alice.request(JOIN, GROUP)
    one = other.expect(records.SUBSCRIBE)
    other.send(wire.subscribed(one["channel"], EPOCH + 1, 2))
    assert alice.frame() == [REPLY, number, {"epoch": EPOCH + 1, "offset": 2, "outcome": "live"}]
    attends = other.expect(records.ATTEND)
    stored = edge.router.state()
    while stored["name"] != GROUP.encode():
        stored = edge.router.state()
    assert (attends["what"], attends["user"], attends["shard"]) == (records.JOINED, b"alice", SHARD)
    same = ("session", "conn", "what", "user", "position", "fence")
    assert [attends[field] for field in same] == [stored[field] for field in same]
    alice.send([LEAVE, 9, GROUP])
    assert other.expect(records.ATTEND)["what"] == records.LEFT
    assert edge.router.state()["what"] == records.LEFT


def test_who_resumes_is_there_under_the_number_of_its_claim(edge: Edge, another: Callable[[int], Router]) -> None:
    """By which the channel's leader tells it from the former connection of its session."""
    other = another(1)
    lead(other, EPOCH + 1, [SHARD])
    client = hello(edge, [["user:alice"], [GROUP, EPOCH + 1, 2]], resumes=True)
    other.send(wire.subscribed(other.expect(records.SUBSCRIBE)["channel"], EPOCH + 1, 2))
    edge.router.send(wire.subscribed(edge.router.expect(records.SUBSCRIBE)["channel"], EPOCH, 0))
    stored = [["user:alice", EPOCH, 0], [GROUP, EPOCH + 1, 2]]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored, fence=55))
    assert GROUP in client.frame()[2]["channels"]
    attends = other.expect(records.ATTEND)
    assert (attends["what"], attends["session"], attends["fence"]) == (records.HERE, client.session, 55)


def test_what_is_kept_for_a_link_that_is_closed_goes_to_the_next_leader(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    alice, other = edge.open("alice"), another(1)
    edge.join(alice, GROUP)
    lead(other, EPOCH + 1, [SHARD])
    first = publish(alice, other, "said")
    edge.put(notes.LINK_CLOSE, request=1)
    assert edge.note(notes.LINK_CLOSED)[3] == 1
    edge.loop.link_close(1)
    second = alice.request(PUBLISH, GROUP, "kept")
    assert publish(alice, edge.router, "elsewhere", "user:alice")[1]["data"] == msgpack.packb("elsewhere")
    edge.router.send(wire.leads(EPOCH + 2, [SHARD]))
    assert edge.router.expect(records.SUBSCRIBE)["name"] == GROUP.encode()
    said = [edge.router.expect(records.PUBLISH) for _ in range(2)]
    assert [(one["data"], one["again"]) for one in said] == [
        (msgpack.packb("said"), True),
        (msgpack.packb("kept"), False),
    ]
    edge.router.send(*(wire.published(one["seq"], EPOCH + 2, one["seq"]) for one in said))
    assert [frame[:2] for frame in alice.frames(2)] == [[REPLY, first[0]], [REPLY, second]]


def test_what_nobody_leads_is_unavailable_at_its_deadline(edges: Callable[..., Edge]) -> None:
    edge = edges(request_timeout_ms=100)
    alice = edge.open("alice")
    edge.put(notes.LINK_CLOSE, request=0)
    assert edge.note(notes.LINK_CLOSED)[3] == 0
    number = alice.request(PUBLISH, "user:bob", "x")
    assert alice.frame()[:3] == [ERROR, number, Code.UNAVAILABLE]
    edge.loop.link_close(0)
    wait_for(lambda: edge.live("kept") == 0, "nothing is kept any more")


def test_a_hello_waits_for_a_leader_for_a_while_and_not_at_all_once_there_was_none_for_as_long(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    other = another(1)
    waiting = edge.client()
    edge.hello(waiting, "amy")
    edge.router.send(wire.leads(0, [ALICE]))
    kind, code, why, options = waiting.frame()
    assert (kind, code, options["class"]) == (FIN, Code.UNAVAILABLE, "resume")
    assert "no router leads its shard" in why
    assert options["after"] >= 1000
    began = time.monotonic()
    late = edge.client()
    edge.greet(late, "ann")  # in the same shard
    assert late.frame()[:3] == [FIN, Code.UNAVAILABLE, why]
    assert time.monotonic() - began < UNLED_WAIT_S, "it waited once more"
    other.send(wire.leads(EPOCH + 1, [ALICE]))
    until(other, records.SHARDS, records.SAID)
    edge.greet(edge.client(), "adam")
    assert other.expect(records.OPEN)["session"].startswith(b"adam")


def test_links_that_come_and_go_leave_nothing(edge: Edge, another: Callable[[int], Router]) -> None:
    alice = edge.open("alice")
    edge.join(alice, GROUP)
    wait_for(lambda: edge.live("segment") == 0, "what was queued is sent")
    before = edge.stats.read()["ledger"]
    held = {kind: edge.live(kind) for kind in (*CLIENTS_KINDS, "fd")}
    for turn in range(5):
        other = another(1 + turn % 2)
        lead(other, EPOCH + 1 + turn, [SHARD])
        asked = publish(alice, other, turn)
        other.send(wire.published(asked[1]["seq"], EPOCH + 1 + turn, turn + 1))
        assert alice.frame()[:2] == [REPLY, asked[0]]
        with pytest.raises(ValueError, match="no free place"):
            edge.loop.link_open(1 + turn % 2, other.endpoint)
        edge.put(notes.LINK_CLOSE, request=1 + turn % 2)
        assert edge.note(notes.LINK_CLOSED)[3] == 1 + turn % 2
        edge.loop.link_close(1 + turn % 2)
    wait_for(lambda: {kind: edge.live(kind) for kind in held} == held, "what was held before, and nothing more")
    assert edge.stats.read()["ledger"].keys() == before.keys()
    edge.put(notes.AUDIT, request=7)
    note = edge.note(notes.AUDITED)
    assert (note[3], note[4]) == (7, 0)
    assert edge.stats.read()["gauges"]["linked"] == 1


@pytest.mark.parametrize("seed", range(8))
def test_wherever_shards_go_each_publish_is_answered_once_and_in_order(
    edge: Edge, another: Callable[[int], Router], seed: int
) -> None:
    """Three routers take three channels' shards from each other at random; the model knows what each has to say."""
    rng = random.Random(seed)
    alice = edge.open("alice")
    routers = [another(1), another(2), another(3)]
    channels = [name for name in ("group:a", "group:b", "group:c")]
    shard = {name: shards.byte_of(name.encode()) for name in channels}
    leader: dict[str, Router] = {}
    waiting: dict[str, list[tuple[int, int]]] = {name: [] for name in channels}  # (request, text), not answered
    epoch, answered = EPOCH, 0
    for name in channels:
        edge.join(alice, name)
    for text in range(120):
        name = rng.choice(channels)
        move = name not in leader or rng.random() < 0.2
        if move:
            epoch += 1
            leader[name] = rng.choice(routers)
            lead(leader[name], epoch, [shard[name]])
            again = [leader[name].expect(records.PUBLISH) for _ in waiting[name]]
            assert [(msgpack.unpackb(one["data"]), one["again"]) for one in again] == [
                (said, True) for _, said in waiting[name]
            ]
            seqs = [one["seq"] for one in again]
        else:
            number, one = publish(alice, leader[name], text, name)
            waiting[name].append((number, text))
            seqs = [one["seq"]] if len(waiting[name]) == 1 else []
        if seqs and rng.random() < 0.6:
            leader[name].send(*(wire.published(seq, epoch, seq) for seq in seqs * 2))
            done = [waiting[name].pop(0) for _ in seqs]
            assert [frame[:2] for frame in alice.frames(len(done))] == [[REPLY, number] for number, _ in done]
            answered += len(done)
    left = sum(len(waiting[name]) for name in channels)
    assert edge.live("request") == left
    assert answered > 0


# ------------------------------------------------------------------------------- another region leads, one nearby feeds


def feed(router: Router, epoch: int, fed: Iterable[int]) -> list[tuple[Any, ...]]:
    """A router nearby follows the leader of shards; what it is told between two SHARDS."""
    fed = list(fed)
    router.send(wire.feeds(epoch, fed))
    one = router.expect(records.SHARDS)
    assert (one["which"], one["aux"]) == (set(fed), 0)
    return until(router, records.SHARDS, records.SAID)


def test_channels_are_heard_nearby_and_all_else_is_asked_of_the_leader(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    alice, near = edge.open("alice"), another(1)
    handle = edge.join(alice, GROUP, 3)
    assert feed(near, EPOCH, [SHARD]) == [("subscribe", GROUP, EPOCH, 3, SHARD)]
    left = edge.router.expect(records.UNSUBSCRIBE)
    assert (left["channel"], left["name"]) == (handle, GROUP.encode())
    near.send(wire.subscribed(handle, EPOCH, 3))
    number, one = publish(alice, edge.router, "far")
    edge.router.send(
        wire.published(one["seq"], EPOCH, 5),
        wire.message(handle, EPOCH, 5, frame_of(GROUP, 5, "far")),  # it did not hear yet that nobody is here
    )
    assert alice.frame()[:2] == [REPLY, number]
    near.send(
        wire.message(handle, EPOCH, 4, frame_of(GROUP, 4, "near")),
        wire.message(handle, EPOCH, 5, frame_of(GROUP, 5, "far")),
    )
    assert [frame[:3] for frame in alice.frames(2)] == [[MESSAGE, GROUP, 4], [MESSAGE, GROUP, 5]]
    alice.send([LEAVE, 9, GROUP])
    assert alice.frame() == [REPLY, 9, {}]
    assert near.expect(records.UNSUBSCRIBE)["channel"] == handle


def test_what_the_leader_sent_last_is_not_heard_again_from_who_feeds(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    alice, near = edge.open("alice"), another(1)
    handle = edge.join(alice, GROUP, 3)
    assert feed(near, EPOCH, [SHARD]) == [("subscribe", GROUP, EPOCH, 3, SHARD)]
    edge.router.send(wire.message(handle, EPOCH, 4, frame_of(GROUP, 4, "x")))  # before it heard that nobody is here
    assert alice.frame()[:3] == [MESSAGE, GROUP, 4]
    near.send(
        wire.subscribed(handle, EPOCH, 3),
        wire.message(handle, EPOCH, 4, frame_of(GROUP, 4, "x")),
        wire.message(handle, EPOCH, 5, frame_of(GROUP, 5, "y")),
    )
    assert alice.frame()[:3] == [MESSAGE, GROUP, 5]


def test_who_comes_with_a_position_is_caught_up_by_who_feeds(edge: Edge, another: Callable[[int], Router]) -> None:
    alice, near = edge.open("alice"), another(1)
    assert feed(near, EPOCH, [SHARD]) == []
    number = alice.request(JOIN, GROUP, {"since": [EPOCH, 7]})
    one = near.expect(records.SUBSCRIBE)
    near.send(wire.subscribed(one["channel"], EPOCH, 7))
    assert alice.frame()[:2] == [REPLY, number]
    assert edge.router.state()["what"] in (records.JOINED, records.HEARS)


def test_without_who_feeds_channels_are_heard_from_the_leader_again(
    edge: Edge, another: Callable[[int], Router]
) -> None:
    alice, near = edge.open("alice"), another(1)
    handle = edge.join(alice, GROUP, 3)
    feed(near, EPOCH, [SHARD])
    edge.router.expect(records.UNSUBSCRIBE)
    edge.router.shards = True
    near.send(wire.feeds(0, [SHARD]))
    assert ("subscribe", GROUP, EPOCH, 3, SHARD) in until(edge.router, records.SHARDS, records.SAID)
    feed(near, EPOCH, [SHARD])
    edge.router.expect(records.UNSUBSCRIBE)
    edge.put(notes.LINK_CLOSE, request=1)
    assert edge.note(notes.LINK_CLOSED)[3] == 1
    assert ("subscribe", GROUP, EPOCH, 3, SHARD) in until(edge.router, records.SHARDS, records.SAID)
    edge.router.send(wire.subscribed(handle, EPOCH, 3), wire.message(handle, EPOCH, 4, frame_of(GROUP, 4, "x")))
    assert alice.frame()[:3] == [MESSAGE, GROUP, 4]


def test_who_feeds_another_region_is_not_listened_to(edge: Edge, bus: str) -> None:
    alice, far = edge.open("alice"), Router(bus, shards=True)
    edge.join(alice, GROUP, 3)
    edge.loop.link_open(1, far.endpoint, near=False)
    edge.put(notes.LINK_OPEN, request=1)
    far.heartbeat()
    link(edge, far, 1, EPOCH)
    far.send(wire.feeds(EPOCH, [SHARD]))
    far.heartbeat()
    assert lead(far, EPOCH + 1, [SHARD])[-1] == ("subscribe", GROUP, EPOCH, 3, SHARD)
    edge.stop()
    far.close()


def test_global_channels_are_heard_nearby(edge: Edge, another: Callable[[int], Router]) -> None:
    alice, near = edge.open("alice"), another(1)
    edge.router.shards = True
    feed(near, EPOCH, [shards.OF_GLOBALS])
    one = edge.router.take()
    while one["kind"] != records.SHARDS:
        one = edge.router.take()
    assert (one["which"], one["aux"]) == ({shards.OF_GLOBALS}, records.SAID | records.ELSEWHERE)
    near.send(
        wire.everybody("global:x", EPOCH, 0),
        wire.message(0, EPOCH, 1, frame_of("global:x", 1, "all"), everybody=True),
    )
    assert alice.frame()[:3] == [MESSAGE, "global:x", 1]
