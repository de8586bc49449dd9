"""Forgetting: what a router had of a shard that is another's goes, and nothing else."""

from collections.abc import Callable

import msgpack
import pytest

from core import notes, records, shards
from tests.core.edge_harness import wait_for
from tests.core.presence_harness import NAMESPACES
from tests.core.router_harness import Sequencer, Worker
from tests.core.test_leading import FIRST, LOG, SECOND, hold, lead, positions, publish, put, shard_of, told

Make = Callable[..., Sequencer]
MINE = "held:a"
OTHER = next(f"held:{number}" for number in range(999) if shard_of(f"held:{number}") != shard_of(MINE))
# A session that another router leads, unless a test says so.
SESSIONS = next(number for number in range(shards.COUNT_MAX) if number not in (shard_of(MINE), shard_of(OTHER)))
CONN = 5


def session_in(shard: int) -> bytes:
    return bytes([shard]) + b"s" * 15


def forget(router: Sequencer, shard: int) -> None:
    put(router, notes.FORGET, request=shard)
    assert router.note(notes.FORGOTTEN)[0] == shard


def subscribe(worker: Worker, name: str, handle: int) -> None:
    worker.say.channel(records.SUBSCRIBE, name.encode(), handle, shard=shard_of(name))
    worker.flush()


def test_streams_routes_and_history_go(routers: Make) -> None:
    router = routers(channels_max=4_000)
    names = [f"group:{number}" for number in range(3_000)]
    for shard in range(shards.COUNT_MAX):
        lead(router, shard)
    worker = router.worker()
    for number, name in enumerate(names):
        worker.say.channel(records.SUBSCRIBE, name.encode(), number + 1, shard=shard_of(name))
        worker.say.publish(0, name.encode(), msgpack.packb(1), b"a", b"", shard=shard_of(name))
    worker.flush()
    wait_for(lambda: (worker.rest(), router.live("history"))[1] == len(names), "the messages")
    gone = shard_of(names[0])
    left = sum(shard_of(name) != gone for name in names)
    forget(router, gone)
    assert (router.live("channel"), router.live("subscription"), router.live("history")) == (left, left, left)
    publish(worker, 1, names[0])
    assert worker.rest() == []


def test_what_is_on_its_way_to_the_log_stays_until_it_is_there(routers: Make) -> None:
    router = routers(**LOG)
    shard = shard_of("group:a")
    lead(router, shard)
    worker = router.worker()
    publish(worker, 1, "group:a")
    number, _ = router.batch()
    put(router, notes.FORGET, request=shard)
    assert worker.rest() == []
    assert router.live("channel") == 1
    router.commit(number)
    assert positions([worker.take()]) == [(1, FIRST, 1)]
    assert router.note(notes.FORGOTTEN)[0] == shard
    assert router.live("channel") == 0


def test_a_shard_that_comes_back_begins_with_nothing(routers: Make) -> None:
    router = routers()
    shard = shard_of("group:a")
    lead(router, shard)
    worker = router.worker()
    publish(worker, 1, "group:a")
    worker.rest()
    put(router, notes.FORGET, request=shard)
    worker.leads.clear()
    lead(router, shard, SECOND)
    assert told(worker, shard) == SECOND
    hold(worker, shard)
    publish(worker, 2, "group:a")
    assert positions(worker.rest()) == [(2, SECOND, 1)]


@pytest.fixture
def presence(routers: Make) -> tuple[Sequencer, Worker]:
    router = routers(namespaces=NAMESPACES)
    for name in (MINE, OTHER):
        lead(router, shard_of(name))
    return router, router.worker()


def attend(
    worker: Worker, name: str, session: bytes, what: int = records.JOINED, *, conn: int = CONN, fence: int = 0
) -> None:
    shard = shard_of(name)
    worker.say.state(session, what, name.encode(), 1, 0, b"alice", conn, fence=fence, kind=records.ATTEND, shard=shard)
    worker.flush()


def close(worker: Worker, session: bytes, conn: int = CONN) -> None:
    worker.say.session(records.CLOSE, session, conn)
    worker.flush()


def present(worker: Worker, name: str) -> int:
    worker.say.history(records.PRESENCE, 77, name.encode(), shard=shard_of(name))
    worker.flush()
    (answer,) = [one for one in worker.rest() if one["kind"] == records.REPLY]
    count: int = msgpack.unpackb(answer["body"])["count"]
    return count


def test_a_session_of_another_router_is_a_guest_where_it_is_in_rooms(presence: tuple[Sequencer, Worker]) -> None:
    router, worker = presence
    session = session_in(SESSIONS)
    attend(worker, MINE, session)
    attend(worker, OTHER, session)
    assert (present(worker, MINE), present(worker, OTHER), router.live("session")) == (1, 1, 1)
    attend(worker, MINE, session, records.LEFT)
    assert (present(worker, MINE), present(worker, OTHER), router.live("session")) == (0, 1, 1)
    attend(worker, OTHER, session, records.LEFT)
    assert (present(worker, OTHER), router.live("session")) == (0, 0)
    attend(worker, MINE, session)
    close(worker, session)
    assert (present(worker, MINE), router.live("session")) == (0, 0)


def test_a_guest_whose_shard_is_gained_stays_in_its_rooms(presence: tuple[Sequencer, Worker]) -> None:
    router, worker = presence
    session, conn = session_in(SESSIONS), 9 << 32 | CONN
    attend(worker, MINE, session)
    assert present(worker, MINE) == 1
    lead(router, SESSIONS)
    told(worker, SESSIONS)
    worker.say.shards([SESSIONS])
    worker.say.session(records.OPEN, session, conn, 0, records.AGAIN, fence=12)
    worker.say.shards([SESSIONS], said=True)
    worker.flush()
    assert present(worker, MINE) == 1
    put(router, notes.EVICT, conn=conn, first=640, text=session + b"why")
    (evicted,) = [one for one in worker.rest() if one["kind"] == records.EVICT]
    assert (evicted["conn"], evicted["aux"]) == (conn, 640)
    close(worker, session, conn)
    assert (present(worker, MINE), router.live("session")) == (0, 0)


def test_a_session_whose_shard_is_forgotten_stays_as_a_guest(presence: tuple[Sequencer, Worker]) -> None:
    router, worker = presence
    session = session_in(SESSIONS)
    lead(router, SESSIONS)
    told(worker, SESSIONS)
    hold(worker, SESSIONS)
    worker.say.session(records.OPEN, session, CONN, 1)
    for name in (MINE, OTHER):
        worker.say.state(session, records.JOINED, name.encode(), 1, 0, b"alice", CONN)
    worker.flush()
    assert (present(worker, MINE), present(worker, OTHER)) == (1, 1)
    forget(router, SESSIONS)
    assert (present(worker, MINE), present(worker, OTHER), router.live("session")) == (1, 1, 1)
    put(router, notes.EVICT, conn=CONN, first=640, text=session + b"why")
    assert worker.rest() == [], "its leader says so"
    forget(router, shard_of(MINE))
    assert (present(worker, OTHER), router.live("session")) == (1, 1)
    forget(router, shard_of(OTHER))
    assert router.live("session") == 0


def test_of_two_connections_the_one_with_the_later_claim_is_the_guest(presence: tuple[Sequencer, Worker]) -> None:
    """The former one may tell what it did before it hears that it has lost the session."""
    router, worker = presence
    session, other = session_in(SESSIONS), router.worker(1)
    attend(worker, MINE, session, fence=10)
    assert present(worker, MINE) == 1
    attend(other, MINE, session, records.HERE, conn=6, fence=20)
    assert present(other, MINE) == 1
    (evicted,) = [one for one in worker.rest() if one["kind"] == records.EVICT]
    assert (evicted["conn"], evicted["session"], evicted["fence"]) == (CONN, session, 20), (
        "it may hear it from here alone"
    )
    attend(worker, MINE, session, fence=10)
    close(worker, session)
    assert present(worker, MINE) == 1
    close(other, session, 6)
    assert (present(other, MINE), router.live("session")) == (0, 0)
