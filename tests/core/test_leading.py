"""Leading: a router takes part in a shard while it is told to lead it, before its hold is over, and no longer."""

import time
from collections.abc import Callable
from typing import Any

import msgpack

from core import log_records, notes, records, shards
from tests.core.edge_harness import wait_for
from tests.core.router_harness import Sequencer, Worker, now_ms

Make = Callable[..., Sequencer]
LOG: dict[str, Any] = {"log_under_way_max": 1}
FIRST, SECOND = 7 << 24, 8 << 24


def shard_of(name: str) -> int:
    return shards.byte_of(name.encode())


GROUP = "group:a"
SHARD = shard_of(GROUP)


def boot_ms(more: int = 0) -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + more


def put(router: Sequencer, kind: int, **fields: Any) -> None:
    assert router.loop is not None
    router.loop.put(kind, **fields)


def lead(router: Sequencer, shard: int = SHARD, epoch: int = FIRST, fence: int = 0) -> None:
    put(router, notes.LEAD, request=shard, first=epoch, second=fence)


def told(worker: Worker, shard: int = SHARD) -> int:
    """The epoch under which the router says to lead a shard, once it does."""
    wait_for(lambda: worker.rest() is not None and shard in worker.leads, "LEADS")
    return worker.leads[shard]


def hold(worker: Worker, *which: int) -> None:
    """Say that this worker holds nothing of some shards."""
    worker.say.shards(which)
    worker.say.shards(which, said=True)
    worker.flush()


def publish(worker: Worker, seq: int, name: str = GROUP, *, key: bytes = b"", again: bool = False) -> None:
    worker.say.publish(seq, name.encode(), msgpack.packb(seq), b"alice", key, again=again, shard=shard_of(name))
    worker.flush()


def passed_over(worker: Worker, seq: int) -> bool:
    publish(worker, seq)
    return worker.rest() == []


def positions(said: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [(one["seq"], one["epoch"], one["offset"]) for one in said if one["kind"] == records.PUBLISHED]


def test_nothing_of_a_shard_is_taken_before_it_is_led_and_the_worker_has_said_what_it_holds(routers: Make) -> None:
    router = routers()
    worker = router.worker()
    assert worker.leads == {}
    publish(worker, 1)
    assert worker.rest() == []
    lead(router)
    assert told(worker) == FIRST
    publish(worker, 1)
    assert worker.rest() == []
    hold(worker, SHARD)
    publish(worker, 1)
    assert positions(worker.rest()) == [(1, FIRST, 1)]


def test_a_worker_that_links_is_told_of_what_is_led(routers: Make) -> None:
    router = routers()
    for shard in (SHARD, 3, 255):
        lead(router, shard, FIRST + shard)
    worker = router.worker()
    assert worker.leads == {SHARD: FIRST + SHARD, 3: FIRST + 3, 255: FIRST + 255}


def test_one_router_alone_leads_everything(sequencer: Sequencer) -> None:
    assert sorted(sequencer.worker().leads) == list(range(shards.COUNT_MAX))


def test_of_other_shards_nothing_is_taken(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    other = next(f"group:{number}" for number in range(999) if shard_of(f"group:{number}") != SHARD)
    publish(worker, 1, other)
    worker.say.channel(records.SUBSCRIBE, other.encode(), 5, shard=shard_of(other))
    worker.flush()
    assert worker.rest() == []
    assert router.live("subscription") == 0


def test_a_paused_shard_takes_nothing_and_goes_on_where_it_stood(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    publish(worker, 1)
    assert positions(worker.rest()) == [(1, FIRST, 1)]
    put(router, notes.PAUSE, request=SHARD)
    wait_for(lambda: passed_over(worker, 2), "the pause")
    worker.leads.clear()
    lead(router)
    assert told(worker) == FIRST
    publish(worker, 3)
    assert worker.rest() == [], "what it said before is to come first"
    hold(worker, SHARD)
    publish(worker, 2)
    publish(worker, 3)
    assert [(epoch, offset) for _, epoch, offset in positions(worker.rest())] == [(FIRST, 2), (FIRST, 3)]


def test_a_drain_is_answered_when_the_log_has_all_of_it(routers: Make) -> None:
    router = routers(**LOG)
    lead(router)
    worker = router.worker()
    publish(worker, 1)
    number, _ = router.batch()
    put(router, notes.PAUSE, request=SHARD)
    put(router, notes.SHARD_DRAIN, request=SHARD, first=5)
    assert worker.rest() == []
    router.commit(number)
    assert positions([worker.take()]) == [(1, FIRST, 1)]
    assert (router.note(notes.DRAINED)[0], router.last_first) == (SHARD, 5)


def test_a_shard_without_anything_under_way_is_drained_at_once(routers: Make) -> None:
    router = routers()
    lead(router)
    put(router, notes.SHARD_DRAIN, request=SHARD, first=9)
    assert (router.note(notes.DRAINED)[0], router.last_first) == (SHARD, 9)


def test_when_the_hold_is_over_nothing_is_ordered_until_it_is_longer(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    publish(worker, 1)
    assert len(positions(worker.rest())) == 1
    put(router, notes.HOLD, first=boot_ms())
    worker.rest()
    publish(worker, 2)
    assert worker.rest() == []
    worker.leads.clear()
    put(router, notes.HOLD, first=boot_ms(60_000))
    assert told(worker) == FIRST
    hold(worker, SHARD)
    publish(worker, 2)
    assert positions(worker.rest()) == [(2, FIRST, 2)]


def test_a_hold_ends_by_itself(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    put(router, notes.HOLD, first=boot_ms(150))
    publish(worker, 1)
    wait_for(lambda: passed_over(worker, 2), "the end of the hold")


def test_a_new_leader_goes_on_above_what_its_workers_have_seen(routers: Make) -> None:
    one, two = routers(), routers()
    lead(one)
    first, second = one.worker(), two.worker()
    assert first.subscribe(GROUP, 5)[0] == FIRST if SHARD == 0 else True
    publish(first, 1)
    publish(first, 2)
    assert positions(first.rest())[-1] == (2, FIRST, 2)
    lead(two, epoch=SECOND)
    told(second)
    second.say.shards([SHARD])
    second.say.channel(records.SUBSCRIBE, GROUP.encode(), 5, FIRST, 2, shard=SHARD)
    second.say.shards([SHARD], said=True)
    publish(second, 3)
    said = second.rest()
    assert [(one["epoch"], one["offset"]) for one in said if one["kind"] == records.SUBSCRIBED] == [(SECOND, 2)]
    assert positions(said) == [(3, SECOND, 3)]


def test_a_repeated_key_is_known_to_a_leader_that_was_told_of_the_logs_end(routers: Make) -> None:
    one, two = routers(**LOG), routers(log_complete=False, seeds=bytes(48), **LOG)
    assert one.loop is not None
    first = routers(seeds=bytes(48), **LOG)
    lead(first)
    worker = first.worker()
    publish(worker, 1, key=b"key")
    number, batch = first.batch()
    first.commit(number)
    put(two, notes.LOG_RECOVER, text=b"".join(entry.record for entry in batch))
    lead(two, epoch=SECOND)
    second = two.worker()
    publish(second, 7, key=b"key", again=True)
    request, _ = two.note(notes.LOG_LOAD)
    put(two, notes.LOG_LOADED, request=request, first=FIRST, second=1)
    assert positions([second.take()]) == [(7, FIRST, 1)]


def test_global_channels_are_known_when_their_shard_is_gained_and_told_to_all(routers: Make) -> None:
    router = routers(log_complete=False, **LOG)
    worker = router.worker()
    stands = log_records.pack(log_records.POSITION, b"global:news", FIRST, 3, time_ms=now_ms())
    put(router, notes.LOG_RECOVER, first=1, second=SECOND, text=stands)
    lead(router, shards.OF_GLOBALS, SECOND)
    told(worker, shards.OF_GLOBALS)
    hold(worker, shards.OF_GLOBALS)
    (told_of,) = [one for one in worker.rest() if one["kind"] == records.GLOBAL]
    assert (told_of["name"], told_of["epoch"], told_of["offset"]) == (b"global:news", SECOND, 3)


def test_a_claim_in_a_shard_that_is_led_anew_waits_for_what_all_workers_hold(routers: Make) -> None:
    router = routers()
    one, two = router.worker(0), router.worker(1)
    session = bytes([SHARD]) + b"s" * 15
    lead(router)
    told(one), told(two)
    hold(one, SHARD)
    one.say.session(records.OPEN, session, 1, 10)
    one.flush()
    two.say.shards([SHARD])
    two.say.session(records.OPEN, session, 2, 0, records.AGAIN, fence=99)
    two.say.shards([SHARD], said=True)
    two.flush()
    assert two.expect(records.EVICT)["conn"] == 2
    opened = one.expect(records.OPENED)
    assert opened["seq"] == 10
    assert opened["fence"] > 99


def test_claims_that_wait_for_what_workers_hold_are_done_in_their_order(routers: Make) -> None:
    router = routers()
    one, two = router.worker(0), router.worker(1)
    session = bytes([SHARD]) + b"s" * 15
    lead(router)
    told(one), told(two)
    hold(one, SHARD)
    for conn in (1, 2, 3):
        one.say.session(records.OPEN, session, conn, 10 + conn, records.RESUMES)
        assert one.rest() == []
    hold(two, SHARD)
    said = [(one.take()["kind"], conn) for conn in (1, 1, 2, 2, 3)]
    assert [kind for kind, _ in said] == [
        records.OPENED,
        records.EVICT,
        records.OPENED,
        records.EVICT,
        records.OPENED,
    ]


def test_workers_hear_that_a_shard_is_led_no_more(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    assert told(worker) == FIRST
    put(router, notes.PAUSE, request=SHARD)
    wait_for(lambda: worker.rest() is not None and SHARD not in worker.leads, "the end of LEADS")


def test_what_a_worker_gave_up_while_a_shard_was_paused_is_not_there_when_it_is_led_again(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    session = bytes([SHARD]) + b"s" * 15
    worker.say.session(records.OPEN, session, 4, 10)
    worker.say.channel(records.SUBSCRIBE, GROUP.encode(), 5, shard=SHARD)
    worker.flush()
    worker.rest()
    assert (router.live("session"), router.live("subscription")) == (1, 1)
    put(router, notes.PAUSE, request=SHARD)
    wait_for(lambda: worker.rest() is not None and SHARD not in worker.leads, "the pause")
    worker.say.session(records.CLOSE, session, 4)
    worker.say.channel(records.UNSUBSCRIBE, GROUP.encode(), 5, shard=SHARD)
    worker.rest()
    lead(router)
    told(worker)
    hold(worker, SHARD)
    worker.rest()
    assert (router.live("session"), router.live("subscription")) == (0, 0)


def test_a_session_is_evicted_for_a_reason(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    session = bytes([SHARD]) + b"s" * 15
    worker.say.session(records.OPEN, session, 4, 10)
    worker.flush()
    worker.expect(records.OPENED)
    put(router, notes.EVICT, conn=5, first=640, text=session + b"why")
    assert worker.rest() == [], "that is another connection"
    put(router, notes.EVICT, conn=4, first=640, text=session + b"why")
    (evicted,) = worker.rest()
    assert (evicted["kind"], evicted["conn"], evicted["aux"]) == (records.EVICT, 4, 640)


def test_messages_are_counted_by_shard(routers: Make) -> None:
    router = routers()
    lead(router)
    worker = router.worker()
    for seq in (1, 2, 3):
        publish(worker, seq)
    assert len(positions(worker.rest())) == 3
    assert router.loop is not None
    counts = router.loop.shard_counts()
    assert (len(counts), counts[SHARD], sum(counts)) == (shards.COUNT_MAX, 3, 3)
    assert router.loop.published()[b"node/0/1"][SHARD] == 3
