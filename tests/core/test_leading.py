"""A router that leads some shards: what belongs to others is told once and then passed over, until it is said anew."""

from collections.abc import Callable

import msgpack

from core import notes, records
from core.shards import SHARD_COUNT, led_by, shard
from tests.core.presence_harness import expected, present, say, session_of
from tests.core.router_harness import EPOCH, Sequencer

HALF = led_by(0, 2)


def name_of(of: int, kind: str = "group") -> str:
    """A channel of a shard of router 0 or 1."""
    return next(name for name in (f"{kind}:{at}" for at in range(100)) if shard(name.encode()) % 2 == of)


def sessions_of(of: int) -> list[bytes]:
    return [one for one in map(session_of, range(1, 100)) if shard(one) % 2 == of]


def test_what_is_anothers_is_told_once_and_its_own_is_served(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    worker = router.worker()
    own, other = name_of(0), name_of(1)
    worker.say.channel(records.SUBSCRIBE, other.encode(), 7)
    worker.say.publish(1, other.encode(), msgpack.packb("x"), b"alice")
    worker.say.history(records.HISTORY, 2, other.encode())
    worker.say.catchup(3, other.encode(), 7, EPOCH, 0)
    (one,) = worker.rest()
    assert (one["kind"], one["shard"]) == (records.MOVED, shard(other.encode()))
    assert worker.subscribe(own, 8) == (EPOCH, 0)
    assert worker.publish(own, "x")["offset"] == 1
    assert router.counter("moved_said") == 1


def test_nothing_of_a_shard_is_taken_before_it_is_said_anew(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    worker = router.worker()
    name = name_of(1)
    worker.say.publish(1, name.encode(), msgpack.packb("first"), b"alice")
    assert [one["kind"] for one in worker.rest()] == [records.MOVED]
    assert router.loop is not None
    router.loop.put(notes.LEAD, first=2, text=bytes([1]) * SHARD_COUNT)
    worker.say.publish(2, name.encode(), msgpack.packb("second"), b"alice")  # it was under way: it must not overtake
    assert worker.rest() == []
    worker.say.shard(shard(name.encode()), 2)
    for seq, data in ((1, "first"), (2, "second")):
        worker.say.publish(seq, name.encode(), msgpack.packb(data), b"alice", again=True)
    assert [(one["kind"], one["seq"], one["offset"]) for one in worker.rest()] == [
        (records.PUBLISHED, 1, 1),
        (records.PUBLISHED, 2, 2),
    ]


def test_what_was_said_before_a_shard_was_led_is_not_taken(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    worker = router.worker()
    assert router.loop is not None
    router.loop.put(notes.LEAD, first=2, text=bytes([1]) * SHARD_COUNT)
    name = name_of(1)
    while not (said := worker.rest()):  # it may be from a time when the shard was led before, and ordered elsewhere
        worker.say.publish(1, name.encode(), msgpack.packb("x"), b"alice")
    assert [one["kind"] for one in said] == [records.MOVED]
    worker.say.shard(shard(name.encode()), 1)  # neither is this: by that map, it may have been
    assert [one["kind"] for one in worker.rest()] == [records.MOVED]
    worker.say.shard(shard(name.encode()), 2)
    worker.say.publish(1, name.encode(), msgpack.packb("x"), b"alice", again=True)
    assert [one["kind"] for one in worker.rest()] == [records.PUBLISHED]


def test_a_shard_that_is_said_to_the_wrong_router_is_told_again(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    worker = router.worker()
    for _ in range(2):
        worker.say.shard(1)
        (one,) = worker.rest()
        assert (one["kind"], one["shard"]) == (records.MOVED, 1)
    worker.tell([])  # says everything anew
    worker.rest()
    worker.say.shard(0)
    assert worker.rest() == []


def test_a_session_of_anothers_is_present_without_a_claim_here(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    one, two = router.worker(0), router.worker(1)
    name, session = name_of(0), sessions_of(1)[0]
    say(one, records.JOINED, session, name, "alice")
    assert present(one, name) == expected((session, "alice"))
    two.say.state(session, records.HERE, name.encode(), EPOCH, 0, b"alice", 9, fence=2)
    assert present(two, name) == expected((session, "alice"))
    one.say.session(records.GONE, session, 5, fence=1)  # late: another connection has it by now
    assert present(one, name) == expected((session, "alice"))
    one.say.state(session, records.JOINED, name.encode(), EPOCH, 0, b"alice", 5, fence=1)  # and so is this
    one.rest()
    two.say.session(records.GONE, session, 9, fence=2)
    assert present(two, name) == expected()


def test_the_end_of_a_worker_ends_who_was_present_by_it(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    one, two = router.worker(0), router.worker(1)
    name = name_of(0)
    first, second = sessions_of(1)[:2]
    say(one, records.JOINED, first, name, "alice")
    say(two, records.JOINED, second, name, "bob")
    one.rest()
    assert present(two, name) == expected((first, "alice"), (second, "bob"))
    one.say.link(records.BYE, 1, 0)
    one.flush()
    while present(two, name) != expected((second, "bob")):
        pass


def test_a_position_goes_to_the_sessions_router_by_way_of_the_worker(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF, sessions_kept=True)
    worker = router.worker()
    name, session = name_of(0, "user"), sessions_of(1)[0]
    worker.publish(name, "x")
    worker.say.state(session, records.ACKED, name.encode(), 0, 9, conn=5)
    (one,) = worker.rest()
    assert (one["kind"], one["session"], one["name"]) == (records.ACKED_AT, session, name.encode())
    assert (one["position"], one["conn"]) == ((EPOCH, 1), 5)
    _, said = router.note(notes.SESSION_STATE)  # the cursor of the channel's user is kept here
    assert int.from_bytes(said[40:42], "little") == records.CURSOR


def test_a_session_of_anothers_is_not_claimed_here(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    worker = router.worker()
    mine, other = sessions_of(0)[0], sessions_of(1)[0]
    worker.say.session(records.OPEN, other, 5, 1)
    worker.say.session(records.OPEN, mine, 6, 2)
    said = worker.rest()
    assert [one["kind"] for one in said] == [records.MOVED, records.OPENED]
    assert said[0]["shard"] == shard(other)
    fences = [said[1]["fence"]]
    for conn in (7, 8):
        worker.say.session(records.OPEN, mine, conn, conn)
        fences.append(next(one["fence"] for one in worker.rest() if one["kind"] == records.OPENED))
    assert sorted(set(fences)) == fences


def test_a_global_message_goes_to_workers_whose_sessions_are_anothers(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(leads=HALF)
    one, two = router.worker(0), router.worker(1)
    one.publish(name_of(0, "global"), "x")
    for worker in (one, two):
        assert [said["kind"] for said in worker.rest()] == [records.MESSAGE]
