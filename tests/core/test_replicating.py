"""Replicating: who publishes is answered when another region has the message, who listens hears it before."""

from collections.abc import Callable
from typing import Any

import msgpack
import msgspec

from core import log_records, notes, records, shards
from core.codes import Code
from core.namespace_spec import BUILT_IN
from tests.core.edge_harness import wait_for
from tests.core.router_harness import HISTORY, Sequencer, Worker

Make = Callable[..., Sequencer]
FIRST, SECOND = 7 << 24, 8 << 24
GROUP = "group:a"
SHARD = shards.byte_of(GROUP.encode())
SPECS = [msgspec.structs.replace(spec, ack="replicated", **HISTORY) for spec in BUILT_IN]
OPTIONS: dict[str, Any] = {"log_under_way_max": 4, "bridged": True, "namespaces": SPECS, "seeds": bytes(48)}


def put(router: Sequencer, kind: int, **fields: Any) -> None:
    assert router.loop is not None
    router.loop.put(kind, **fields)


def leading(router: Sequencer, epoch: int = FIRST, *, confirmed: bool = True) -> Worker:
    """A router that leads the shard, whose log is read and some other region confirms, and a linked worker."""
    put(router, notes.LEAD, request=SHARD, first=epoch)
    if confirmed:
        put(router, notes.REPLICATED, request=0, first=1)
    worker = router.worker()
    wait_for(lambda: worker.rest() is not None and worker.leads, "LEADS")
    return worker


def publish(worker: Worker, seq: int, *, key: bytes = b"") -> None:
    worker.say.publish(seq, GROUP.encode(), msgpack.packb(seq), b"alice", key, shard=SHARD)
    worker.flush()


def subscribe(worker: Worker) -> None:
    worker.say.channel(records.SUBSCRIBE, GROUP.encode(), 5, shard=SHARD)
    worker.flush()
    worker.expect(records.SUBSCRIBED)


def replicated(router: Sequencer, number: int) -> None:
    put(router, notes.REPLICATED, request=number, first=1)


def answers(said: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [(one["seq"], one["aux"], one["offset"]) for one in said if one["kind"] == records.PUBLISHED]


def test_members_hear_it_when_it_is_logged_and_its_publisher_when_it_is_replicated(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = leading(router)
    subscribe(worker)
    publish(worker, 1)
    number, (entry,) = router.batch()
    assert entry.flags & log_records.REPLICATED
    assert worker.rest() == []
    router.commit(number)
    assert worker.expect(records.MESSAGE)["offset"] == 1
    assert worker.rest() == []
    replicated(router, number)
    assert answers([worker.take()]) == [(1, 0, 1)]


def test_another_region_may_be_told_of_before_our_own_log(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = leading(router)
    publish(worker, 1)
    number, _ = router.batch()
    replicated(router, number)
    assert worker.rest() == []
    router.commit(number)
    assert answers([worker.take()]) == [(1, 0, 1)]


def test_answers_come_in_the_order_of_the_batches(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = leading(router)
    numbers = []
    for seq in (1, 2, 3):
        publish(worker, seq)
        number, _ = router.batch()
        router.commit(number)
        numbers.append(number)
    assert worker.rest() == []
    replicated(router, numbers[1])
    assert answers([worker.take(), worker.take()]) == [(1, 0, 1), (2, 0, 2)]
    assert worker.rest() == []
    replicated(router, numbers[2])
    assert answers([worker.take()]) == [(3, 0, 3)]


def test_a_repeated_publish_is_not_answered_sooner_than_the_first(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = leading(router)
    publish(worker, 1, key=b"k")
    number, _ = router.batch()
    publish(worker, 2, key=b"k")
    router.commit(number)
    publish(worker, 3, key=b"k")
    assert worker.rest() == []
    replicated(router, number)
    assert sorted(answers([worker.take() for _ in range(3)])) == [(1, 0, 1), (2, 0, 1), (3, 0, 1)]
    publish(worker, 4, key=b"k")
    assert answers([worker.take()]) == [(4, 0, 1)]


def test_without_another_region_that_confirms_nothing_is_taken(routers: Make) -> None:
    router = routers(**OPTIONS)
    worker = leading(router, confirmed=False)
    publish(worker, 1)
    assert answers(worker.rest()) == [(1, Code.UNAVAILABLE, 0)]
    put(router, notes.REPLICATED, request=0, first=1)
    publish(worker, 2)
    router.commit(router.batch()[0])
    put(router, notes.REPLICATED, request=0, first=0)
    publish(worker, 3)
    assert answers(worker.rest()) == [(3, Code.UNAVAILABLE, 0)]


def test_what_an_earlier_leader_logged_counts_once_it_is_confirmed(routers: Make) -> None:
    one = routers(**OPTIONS)
    first = leading(one)
    publish(first, 1, key=b"k")
    number, batch = one.batch()
    one.commit(number)
    two = routers(**{**OPTIONS, "log_complete": False})
    put(two, notes.LOG_RECOVER, text=b"".join(entry.record for entry in batch))
    second = leading(two, SECOND)
    publish(second, 7, key=b"k")
    request, _ = two.note(notes.LOG_LOAD)
    put(two, notes.LOG_LOADED, request=request, first=FIRST, second=1)
    assert answers([second.take()]) == [(7, Code.UNAVAILABLE, 0)]
    put(two, notes.REPLICATED, request=SHARD, second=1)
    publish(second, 8, key=b"k")
    assert answers([second.take()]) == [(8, 0, 1)]


def test_without_other_regions_it_is_answered_when_it_is_logged(routers: Make) -> None:
    router = routers(**{**OPTIONS, "bridged": False})
    worker = leading(router, confirmed=False)
    publish(worker, 1)
    router.commit(router.batch()[0])
    assert answers([worker.take()]) == [(1, 0, 1)]


def test_what_waits_when_its_shard_is_given_up_is_left_to_its_next_leader(routers: Make) -> None:
    """Whoever gave it up hears of no confirmation any more, and has no say in what becomes of it."""
    router = routers(**OPTIONS)
    worker = leading(router)
    publish(worker, 1, key=b"k")
    number, _ = router.batch()
    publish(worker, 2, key=b"k")
    router.commit(number)
    put(router, notes.FORGET, request=SHARD)
    assert router.note(notes.FORGOTTEN)[0] == SHARD
    replicated(router, number)
    assert answers(worker.rest()) == []
    put(router, notes.LEAD, request=SHARD, first=SECOND)
    replicated(router, number)
    assert answers(worker.rest()) == []
