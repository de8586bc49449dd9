"""What is in no log, for members in other regions: given away once a turn and shard, whoever is near."""

from collections.abc import Callable

import msgpack
import msgspec

from core import log_records, notes, records, shards
from core.namespace_spec import BUILT_IN
from tests.core.edge_harness import wait_for
from tests.core.presence_harness import NAMESPACES, claim, events, say, session_of
from tests.core.router_harness import EPOCH, Sequencer, Worker

Make = Callable[..., Sequencer]
ALICE, BOB = session_of(1), session_of(2)
BRIEF = msgspec.structs.replace(BUILT_IN[2], name="brief", history_messages=0, history_bytes=0, ack="sequenced")
"""Global channels of which nothing is kept."""
SHARD = shards.byte_of(b"held:a")


def router_of(make: Make, **options: object) -> Sequencer:
    settings = {"namespaces": (*NAMESPACES, BRIEF), "presence_damping_ms": 0, "presence_quiet_ms": 0, "bridged": True}
    return make(**{**settings, **options})


def joins(worker: Worker, session: bytes, user: str, channel: str = "held:a", conn: int = 5) -> None:
    claim(worker, session, conn)
    say(worker, records.JOINED, session, channel, user, conn)


def abroad(router: Sequencer) -> tuple[int, list[log_records.LogEntry]]:
    """The next note for other regions: the shard, and what is said of it."""
    shard, text = router.note(notes.ABROAD)
    return shard, log_records.entries(text)


def told(entries: list[log_records.LogEntry]) -> list[tuple[int, bytes, str, str]]:
    """Of events: kind of record, channel, kind of event, user."""
    frames = [msgpack.unpackb(one.body) for one in entries]
    return [(one.kind, one.channel, frame[2], frame[3]["user"]) for one, frame in zip(entries, frames, strict=True)]


def test_who_comes_and_goes_is_told_to_other_regions_also_where_nobody_near_hears_it(sequencers: Make) -> None:
    router = router_of(sequencers)
    far = router.worker()
    joins(far, ALICE, "alice")
    joins(far, BOB, "bob", conn=6)
    assert events(far.rest()) == [], "it hears of them where it is"
    shard, entries = abroad(router)
    assert shard == SHARD
    while len(entries) < 2:
        entries += abroad(router)[1]
    assert told(entries) == [
        (log_records.EVENT, b"held:a", "joined", "alice"),
        (log_records.EVENT, b"held:a", "joined", "bob"),
    ]
    assert {(one.epoch, one.offset) for one in entries} == {(0, 0)}
    say(far, records.LEFT, ALICE, "held:a", "alice")
    far.flush()
    assert told(abroad(router)[1]) == [(log_records.EVENT, b"held:a", "left", "alice")]


def test_members_near_the_leader_hear_it_from_the_leader(sequencers: Make) -> None:
    router = router_of(sequencers)
    near, far = router.worker(0), router.worker(1)
    near.say.channel(records.SUBSCRIBE, b"held:a", 11)
    near.rest()
    joins(far, ALICE, "alice")
    assert events(far.rest()) == []
    assert events(near.rest()) == [(11, "held:a", "joined", ALICE, "alice")]
    assert told(abroad(router)[1]) == [(log_records.EVENT, b"held:a", "joined", "alice")]


def test_of_one_shard_all_of_a_turn_is_one_note(sequencers: Make) -> None:
    router = router_of(sequencers)
    worker = router.worker()
    for number in range(1, 4):
        joins(worker, session_of(number), f"u{number}", conn=number)
    say(worker, records.JOINED, session_of(3), "held:b", "u3", conn=3)
    worker.flush()
    first, second = abroad(router), abroad(router)
    assert (first[0], len(first[1])) == (SHARD, 3)
    assert (second[0], len(second[1])) == (shards.byte_of(b"held:b"), 1)


def test_without_other_regions_nothing_is_gathered(sequencers: Make) -> None:
    router = router_of(sequencers, bridged=False)
    worker = router.worker()
    joins(worker, ALICE, "alice")
    worker.publish("brief:news", 1)
    worker.rest()
    assert router.loop is not None
    assert router.loop.take() == []


def test_what_is_not_told_near_is_not_told_far_either(sequencers: Make) -> None:
    router = router_of(sequencers, events_members_max=1)
    worker = router.worker()
    joins(worker, ALICE, "alice", "group:a")
    say(worker, records.JOINED, ALICE, "held:a", "alice")
    joins(worker, BOB, "bob", conn=6)
    worker.flush()
    assert told(abroad(router)[1]) == [(log_records.EVENT, b"held:a", "joined", "alice")]
    worker.rest()
    assert router.loop is not None
    assert router.loop.take() == []


def test_a_message_of_a_global_channel_that_keeps_nothing_goes_with_its_position(sequencers: Make) -> None:
    router = router_of(sequencers)
    worker = router.worker()
    for number in (1, 2):
        worker.publish("brief:news", number)
        shard, [one] = abroad(router)
        assert (shard, one.kind, one.channel) == (shards.OF_GLOBALS, log_records.MESSAGE, b"brief:news")
        assert (one.epoch, one.offset, msgpack.unpackb(one.body)[2:4]) == (EPOCH, number, [number, number])
    worker.publish("global:news", 1)
    worker.rest()
    assert router.loop is not None
    assert router.loop.take() == [], "what is kept is in the log, which has no other way"


def test_what_there_is_no_room_for_is_counted(sequencers: Make) -> None:
    router = router_of(sequencers)
    worker = router.worker(link=False)
    worker.link(everybody=False)
    assert worker.publish("brief:news", "x" * (5 << 20))["aux"] == 0
    assert router.counter("abroad_lost") == 1


def test_another_regions_router_tells_its_own_members_alone(sequencers: Make, routers: Make) -> None:
    """The whole way, but for Redis."""
    home, follower = router_of(sequencers), router_of(routers, log_under_way_max=1, log_complete=False)
    assert follower.loop is not None
    member, stranger = follower.worker(0), follower.worker(1)
    follower.loop.put(notes.FOLLOW, request=SHARD, first=EPOCH << 24)
    wait_for(lambda: stranger.rest() is not None and SHARD in stranger.feeds, "LEADS of one who feeds")
    for worker, name in ((member, b"held:a"), (stranger, b"held:other")):
        worker.say.shards([SHARD])
        worker.say.channel(records.SUBSCRIBE, name, 33, shard=SHARD)
        worker.say.shards([SHARD], said=True)
        worker.flush()
        request, _ = follower.note(notes.LOG_LOAD)
        follower.loop.put(notes.LOG_LOADED, request=request)
        worker.expect(records.SUBSCRIBED)
    joins(home.worker(), ALICE, "alice")
    home.workers[0].flush()
    _, text = home.note(notes.ABROAD)
    follower.loop.put(notes.FOLLOWED, text=text)
    assert events([member.take()]) == [(33, "held:a", "joined", ALICE, "alice")]
    assert stranger.rest() == []
