"""Following: what another region's leader ordered is heard here as it was ordered, and nothing is given here."""

from collections.abc import Callable
from typing import Any

import msgpack
import msgspec

from core import log_records, notes, records, shards
from core.codes import Code
from core.namespace_spec import BUILT_IN
from tests.core.edge_harness import wait_for
from tests.core.router_harness import Sequencer, Worker, now_ms

Make = Callable[..., Sequencer]
FIRST, SECOND = 7 << 24, 8 << 24
OPTIONS: dict[str, Any] = {"log_under_way_max": 1, "log_complete": False, "bridged": True}
GROUP = "group:a"
SHARD = shards.byte_of(GROUP.encode())
LIVE, REPLAYED, GAP, RESET = range(4)
HANDLE = 5
EVENT = 2
"""`aux` of a MESSAGE that is an EVENT frame."""


def put(router: Sequencer, kind: int, **fields: Any) -> None:
    assert router.loop is not None
    router.loop.put(kind, **fields)


def follow(router: Sequencer, worker: Worker, shard: int = SHARD, epoch: int = FIRST) -> None:
    """The router follows a shard, and the worker has said what it holds of it."""
    put(router, notes.FOLLOW, request=shard, first=epoch)
    wait_for(lambda: worker.rest() is not None and shard in worker.feeds, "LEADS of one who feeds")
    hold(worker, shard)


def hold(worker: Worker, *which: int) -> None:
    worker.say.shards(which)
    worker.say.shards(which, said=True)
    worker.flush()


def body(name: str, offset: int, epoch: int) -> bytes:
    frame: bytes = msgpack.packb([9, name, offset, offset * 10, {"from": "alice", "time": 1, "epoch": epoch}])
    return frame


def entry(offset: int, epoch: int = FIRST, name: str = GROUP, shard: int = SHARD) -> bytes:
    return log_records.pack(
        log_records.MESSAGE,
        name.encode(),
        epoch,
        offset,
        time_ms=now_ms(),
        body=body(name, offset, epoch),
        shard=shard,
    )


def followed(router: Sequencer, *offsets: int, epoch: int = FIRST, name: str = GROUP, shard: int = SHARD) -> None:
    put(router, notes.FOLLOWED, text=b"".join(entry(offset, epoch, name, shard) for offset in offsets))


def subscribe(worker: Worker, epoch: int = 0, offset: int = 0) -> None:
    worker.say.channel(records.SUBSCRIBE, GROUP.encode(), HANDLE, epoch, offset, shard=SHARD)
    worker.flush()


def subscribed(router: Sequencer, worker: Worker, epoch: int = FIRST, offset: int = 3) -> None:
    """The worker has members, and the log of this region has the channel up to a position."""
    subscribe(worker)
    loaded(router, epoch, offset)
    one = worker.expect(records.SUBSCRIBED)
    assert (one["epoch"], one["offset"]) == (max(epoch, FIRST), offset)


def loaded(router: Sequencer, epoch: int, offset: int, *offsets: int) -> None:
    request, _ = router.note(notes.LOG_LOAD)
    text = b"".join(entry(one) for one in offsets)
    put(router, notes.LOG_LOADED, request=request, first=epoch, second=offset, text=text)


def heard(said: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(one["epoch"], one["offset"]) for one in said if one["kind"] == records.MESSAGE]


def catchup(worker: Worker, seq: int, epoch: int, offset: int) -> None:
    worker.say.catchup(seq, GROUP.encode(), HANDLE, epoch, offset, flags=records.OUTCOME_ALONE, shard=SHARD)
    worker.flush()


def test_members_hear_what_was_ordered_elsewhere_with_its_positions(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    assert (worker.feeds, worker.leads) == ({SHARD: FIRST}, {})
    subscribed(router, worker)
    followed(router, 4, 5)
    first, second = worker.expect(records.MESSAGE), worker.expect(records.MESSAGE)
    assert heard([first, second]) == [(FIRST, 4), (FIRST, 5)]
    assert (first["channel"], msgpack.unpackb(first["body"])[3]) == (HANDLE, 40)
    followed(router, 4, 5)
    assert worker.rest() == [], "what came again is not told again"


def test_a_channel_without_members_costs_nothing(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    followed(router, 1, 2, 3)
    assert worker.rest() == []
    assert router.live("channel") == router.live("history") == 0


def test_nothing_is_ordered_or_claimed_where_a_shard_is_fed_alone(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    worker.say.publish(1, GROUP.encode(), msgpack.packb(1), b"alice", shard=SHARD)
    worker.say.session(records.OPEN, bytes([SHARD]) + bytes(15), 4, 10)
    assert worker.rest() == []
    assert router.live("session") == 0


def test_a_message_that_comes_while_the_log_is_read_is_not_missed(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribe(worker)
    request, _ = router.note(notes.LOG_LOAD)
    followed(router, 4, 5)
    put(router, notes.LOG_LOADED, request=request, first=FIRST, second=3)
    one = worker.expect(records.SUBSCRIBED)
    assert (one["epoch"], one["offset"]) == (FIRST, 5)
    followed(router, 6)
    assert heard([worker.expect(records.MESSAGE)]) == [(FIRST, 6)]


def test_what_a_load_found_itself_is_not_told_again(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribe(worker)
    request, _ = router.note(notes.LOG_LOAD)
    followed(router, 4)
    put(router, notes.LOG_LOADED, request=request, first=FIRST, second=6)
    assert worker.expect(records.SUBSCRIBED)["offset"] == 6
    followed(router, 5, 6, 7)
    assert heard([worker.expect(records.MESSAGE)]) == [(FIRST, 7)]
    assert worker.rest() == []


def test_a_worker_that_heard_more_elsewhere_is_not_set_back(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribe(worker, FIRST, 5)
    loaded(router, FIRST, 3)
    one = worker.expect(records.SUBSCRIBED)
    assert (one["epoch"], one["offset"]) == (FIRST, 5)


def test_a_worker_that_heard_less_gets_what_it_missed(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribe(worker, FIRST, 1)
    loaded(router, FIRST, 3, 1, 2, 3)
    loaded(router, FIRST, 3, 1, 2, 3)
    said = [worker.take() for _ in range(3)]
    assert heard(said) == [(FIRST, 2), (FIRST, 3)]
    assert said[-1]["offset"] == 3


def test_a_client_from_where_more_was_heard_waits_until_it_is_here(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    catchup(worker, 9, FIRST, 5)
    loaded(router, FIRST, 3, 1, 2, 3)
    assert worker.rest() == []
    followed(router, 4)
    assert heard(worker.rest()) in ([], [(FIRST, 4)])
    followed(router, 5)
    caught = next(one for one in iter(worker.take, None) if one["kind"] == records.CAUGHT)
    assert (caught["seq"], caught["outcome"], caught["position"][1]) == (9, LIVE, 5)


def test_a_client_whose_position_is_not_here_in_time_is_to_come_again(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    catchup(worker, 9, FIRST, 5)
    loaded(router, FIRST, 3, 1, 2, 3)
    caught = worker.expect(records.CAUGHT)
    assert (caught["seq"], caught["aux"]) == (9, Code.UNAVAILABLE)


def test_a_position_that_was_dropped_with_its_region_has_nothing_in_common(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    put(router, notes.FOLLOW, request=SHARD, first=SECOND)
    followed(router, 4, epoch=SECOND)
    worker.expect(records.MESSAGE)
    catchup(worker, 9, FIRST, 6)
    loaded(router, SECOND, 4, 1, 2, 3)
    caught = worker.expect(records.CAUGHT)
    assert (caught["seq"], caught["outcome"], caught["position"]) == (9, RESET, (SECOND, 4))


def test_a_position_under_the_next_leaders_epoch_counts_once_that_epoch_is_here(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    catchup(worker, 9, SECOND, 3)
    assert worker.rest() == []
    put(router, notes.FOLLOW, request=SHARD, first=SECOND)
    caught = worker.expect(records.CAUGHT)
    assert (caught["outcome"], caught["position"]) == (LIVE, (SECOND, 3))
    followed(router, 4, epoch=SECOND)
    assert heard([worker.expect(records.MESSAGE)]) == [(SECOND, 4)]


def test_a_channel_that_was_made_anew_is_heard_as_such(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    followed(router, 1, 2, epoch=FIRST + 1)
    assert heard([worker.expect(records.MESSAGE), worker.expect(records.MESSAGE)]) == [(FIRST + 1, 1), (FIRST + 1, 2)]


def test_a_shard_that_is_led_after_it_was_followed_goes_on_above_what_was_heard(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    followed(router, 4)
    assert heard([worker.expect(records.MESSAGE)]) == [(FIRST, 4)]
    put(router, notes.FORGET, request=SHARD)
    assert router.note(notes.FORGOTTEN)[0] == SHARD
    wait_for(lambda: worker.rest() is not None and worker.feeds == {}, "the end of it")
    put(router, notes.LEAD, request=SHARD, first=SECOND)
    wait_for(lambda: worker.rest() is not None and worker.leads == {SHARD: SECOND}, "LEADS")
    worker.say.shards([SHARD])
    subscribe(worker, FIRST, 4)
    worker.say.shards([SHARD], said=True)
    worker.flush()
    loaded(router, FIRST, 4)
    one = worker.expect(records.SUBSCRIBED)
    assert (one["epoch"], one["offset"]) == (SECOND, 4)


def test_global_channels_are_heard_too(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker, shards.OF_GLOBALS)
    assert worker.rest() == []
    followed(router, 1, name="global:news", shard=shards.OF_GLOBALS)
    told, message = worker.expect(records.GLOBAL), worker.expect(records.MESSAGE)
    assert (told["name"], told["offset"]) == (b"global:news", 0)
    assert (message["channel"], message["offset"]) == (0, 1)


def test_who_hears_global_channels_elsewhere_is_not_sent_them(routers: Make) -> None:
    router = routers()
    put(router, notes.LEAD, request=shards.OF_GLOBALS, first=FIRST)
    near, far = router.worker(0), router.worker(1)
    for worker in (near, far):
        wait_for(lambda one=worker: one.rest() is not None and one.leads, "LEADS")  # type: ignore[misc]
        hold(worker, shards.OF_GLOBALS)
        worker.rest()
    near.publish("global:news", 1)
    assert [one["kind"] for one in far.rest()] == [records.GLOBAL, records.MESSAGE]
    far.say.shards([shards.OF_GLOBALS], said=True, elsewhere=True)
    assert far.rest() == []
    near.publish("global:news", 2)
    near.publish("global:more", 1)
    assert far.rest() == []


def test_who_heard_all_under_the_leader_before_has_it_in_common_with_the_next(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    follow(router, worker)
    subscribed(router, worker)
    followed(router, 4)
    worker.expect(records.MESSAGE)
    put(router, notes.FOLLOW, request=SHARD, first=SECOND)
    catchup(worker, 9, FIRST, 4)
    caught = worker.expect(records.CAUGHT)
    assert (caught["outcome"], caught["position"]) == (LIVE, (SECOND, 4))
    followed(router, 5, epoch=SECOND)
    worker.expect(records.MESSAGE)
    catchup(worker, 10, FIRST, 4)
    loaded(router, SECOND, 5, 1, 2, 3, 4)
    assert worker.expect(records.CAUGHT)["outcome"] == REPLAYED


def test_an_event_reaches_who_is_a_member_and_is_not_kept(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = router.worker()
    event = log_records.pack(log_records.EVENT, GROUP.encode(), 0, 0, body=b"an EVENT frame", shard=SHARD)
    put(router, notes.FOLLOWED, text=event)
    follow(router, worker)
    put(router, notes.FOLLOWED, text=event)
    assert worker.rest() == [], "nobody is a member"
    assert router.live("channel") == 0
    subscribed(router, worker)
    put(router, notes.FOLLOWED, text=event + entry(4) + event)
    said = [worker.take() for _ in range(3)]
    assert [(one["channel"], one["aux"], one["offset"]) for one in said] == [
        (HANDLE, EVENT, 0),
        (HANDLE, 0, 4),
        (HANDLE, EVENT, 0),
    ]
    assert said[0]["body"] == b"an EVENT frame"
    assert router.live("history") == 1


def test_a_global_channel_that_keeps_nothing_is_heard_from_where_it_is(routers: Make) -> None:
    brief = msgspec.structs.replace(BUILT_IN[2], name="brief", history_messages=0, history_bytes=0, ack="sequenced")
    router = routers(namespaces=(*BUILT_IN, brief), **OPTIONS)
    worker = router.worker()
    follow(router, worker, shards.OF_GLOBALS)
    assert worker.rest() == []
    followed(router, 57, 58, name="brief:news", shard=shards.OF_GLOBALS)
    said = [worker.expect(kind)["offset"] for kind in (records.GLOBAL, records.MESSAGE, records.MESSAGE)]
    assert said == [56, 57, 58]
    followed(router, 60, name="brief:news", shard=shards.OF_GLOBALS)
    assert worker.expect(records.MESSAGE)["offset"] == 60, "its members are told of the gap where they are"
