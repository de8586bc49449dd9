"""Sessions, cursors and bans in Redis; what every log promises of them is in tests/contract/."""

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest

from router.log import redis, redis_sessions
from router.log.opening import open_log
from router.log.port import (
    ENDED_KEPT_MS,
    Ban,
    Changes,
    LogBroken,
    LogDeposed,
    LogUnavailable,
    Position,
    Session,
    SessionChange,
)
from router.log.redis import RedisLog
from router.log.redis_keys import SHARDS, Keys
from router.log.redis_sessions import CHUNK, wall_ms
from tests.conftest import stand_still, wait_until
from tests.router.log.conftest import again, append, run, until
from tests.router.log.redis_records import message, now_ms
from tests.servers.redis import (
    FLEETING,
    LASTING,
    WHOLE_DEADLINE_S,
    Cluster,
    Sentinels,
    Server,
    running,
    running_cluster,
    running_sentinels,
)

ID = bytes(range(16))
OTHER_ID = bytes(16)
HOUR_MS = 3_600_000


def _id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_session_goes_when_redis_forgets_it(
    make_log: Callable[..., RedisLog], redis_server: Server, prefix: str
) -> None:
    async def work() -> None:
        log = make_log()
        await log.open(1)
        expires_ms = wall_ms() + HOUR_MS
        await log.save(Changes({ID: SessionChange(b"said", expires_ms, {"group:a": Position(1, 2)})}))
        key, _ = Keys(prefix).session(ID)
        assert abs(redis_server.do("PTTL", key) - HOUR_MS) < 60_000
        redis_server.do("PEXPIRE", key, 1)
        while (await log.sessions([ID]))[0] is not None:
            assert wall_ms() < expires_ms
        await log.close()

    run(work())


def test_when_a_session_ended_is_forgotten_and_a_new_one_is_not(
    make_log: Callable[..., RedisLog], redis_server: Server, prefix: str
) -> None:
    async def work() -> None:
        log = make_log()
        await log.open(1)
        key, _ = Keys(prefix).session(ID)
        await log.save(Changes({ID: SessionChange(ended=True, date=b"order--a1")}))
        assert ENDED_KEPT_MS - 60_000 < redis_server.do("PTTL", key) <= ENDED_KEPT_MS
        await log.save(Changes({ID: SessionChange(b"said")}))
        assert redis_server.do("PTTL", key) == -1
        await log.close()

    run(work())


def test_what_is_over_by_our_clock_is_not_told_even_if_redis_still_has_it(make_log: Callable[..., RedisLog]) -> None:
    now_ms = wall_ms()

    async def work() -> None:
        nonlocal now_ms
        log = make_log(clock_ms=lambda: now_ms)
        await log.open(1)
        await log.save(Changes({ID: SessionChange(b"said", wall_ms() + HOUR_MS)}))
        await log.ban(Ban("eve", now_ms + HOUR_MS))
        assert (await log.sessions([ID]))[0] is not None
        assert [one.user for one in await log.bans()] == ["eve"]
        now_ms += 2 * HOUR_MS
        assert await log.sessions([ID]) == [None]
        assert await log.bans() == []
        now_ms -= 2 * HOUR_MS
        assert await log.bans() == []  # it went when it was seen to be over
        await log.close()

    run(work())


def test_more_than_one_chunk_is_saved_and_read(make_log: Callable[..., RedisLog]) -> None:
    ids = [_id(number) for number in range(CHUNK + 200)]

    async def work() -> None:
        log = make_log()
        await log.open(1)
        expires_ms = wall_ms() + HOUR_MS
        changes = {id_: SessionChange(id_[-2:], expires_ms, {"group:a": Position(1, 2)}) for id_ in ids}
        await log.save(Changes(changes, {f"user:{id_.hex()}": Position(1, id_[-1] + 1) for id_ in ids}))
        found = await log.sessions(ids)
        assert [one.opened for one in found if one] == [id_[-2:] for id_ in ids]
        cursors = await log.cursors([f"user:{id_.hex()}" for id_ in ids])
        assert cursors == [Position(1, id_[-1] + 1) for id_ in ids]
        await log.close()

    run(work())


def test_a_position_that_is_none_is_named(make_log: Callable[..., RedisLog], redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        log = make_log()
        await log.open(1)
        redis_server.do("SET", Keys(prefix).cursor("user:a")[0], "something")
        with pytest.raises(LogBroken, match="`something` in Redis is no position"):
            await log.cursors(["user:a"])
        await log.close()

    run(work())


def test_what_a_server_came_back_without_is_given_again_in_its_order() -> None:
    async def work(server: Server) -> None:
        log = RedisLog(server.url)
        await log.open(1)
        expires_ms = wall_ms() + HOUR_MS
        joined = SessionChange(b"said", expires_ms, {"group:a": Position(1, 2), "group:b": Position(1, 3)})
        await log.save(Changes({ID: joined, OTHER_ID: SessionChange(b"other", expires_ms)}, {"user:a": Position(1, 4)}))
        await log.save(Changes({ID: SessionChange(channels={"group:a": None, "group:b": Position(1, 9)})}))
        await log.save(Changes({OTHER_ID: SessionChange(ended=True)}, {"user:a": Position(1, 7)}))
        await log.ban(Ban("eve", expires_ms))
        await log.ban(Ban("mallory", expires_ms))
        await log.ban(Ban("eve", 0))
        server.kill()
        server.start()
        assert server.do("DBSIZE") == 0
        found = await again(lambda: log.sessions([ID, OTHER_ID]))
        assert found == [Session(b"said", expires_ms, {"group:b": Position(1, 9)}), None]
        assert await log.cursors(["user:a"]) == [Position(1, 7)]
        assert [one.user for one in await log.bans()] == ["mallory"]
        await log.close()

    with running(*FLEETING) as server:
        run(work(server))


def test_what_a_server_came_back_without_is_given_again_before_the_end() -> None:
    async def work(server: Server) -> None:
        log = RedisLog(server.url)
        await log.open(1)
        await log.ban(Ban("mallory", wall_ms() + HOUR_MS))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await log.close()
        log = RedisLog(server.url)
        await log.open(1)
        assert [one.user for one in await log.bans()] == ["mallory"]
        await log.close()

    with running(*FLEETING) as server:
        run(work(server))


def test_more_than_one_chunk_is_given_again(own_server: Server) -> None:
    users = [f"user:{number}" for number in range(2 * CHUNK + 200)]

    async def work() -> None:
        log = RedisLog(own_server.url)
        await log.open(1)
        await log.save(Changes(cursors=dict.fromkeys(users, Position(1, 2))))
        own_server.do("FLUSHALL")
        own_server.do("CLIENT", "KILL", "TYPE", "normal")
        assert await again(lambda: log.cursors(users)) == [Position(1, 2)] * len(users)
        await log.close()

    run(work())


def test_no_more_is_kept_than_there_is_room_for_and_no_longer_than_a_minute(
    make_log: Callable[..., RedisLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        log = make_log()
        await log.open(1)
        kept = log._sessions
        for number in range(20):
            await log.ban(Ban(f"user{number}", wall_ms() + HOUR_MS))
        each = kept.kept_bytes // 20
        monkeypatch.setattr(redis_sessions, "KEPT_BYTES_MAX", 5 * each)
        await log.ban(Ban("eve", wall_ms() + HOUR_MS))
        assert 3 * each < kept.kept_bytes <= 5 * each
        monkeypatch.setattr(redis_sessions, "KEPT_S", 0.0)
        await log.ban(Ban("eve", wall_ms() + HOUR_MS))
        assert kept.kept_bytes < 2 * each
        monkeypatch.setattr(redis_sessions, "KEPT_BYTES_MAX", 0)
        await log.ban(Ban("eve", wall_ms() + HOUR_MS))
        assert kept.kept_bytes == 0
        await log.close()

    run(work())


def test_a_router_that_was_replaced_says_nothing_again(own_server: Server) -> None:
    async def work() -> None:
        first, second = RedisLog(own_server.url), RedisLog(own_server.url)
        await first.open(1)
        expires_ms = wall_ms() + HOUR_MS
        await first.save(Changes({ID: SessionChange(b"said", expires_ms, {"group:a": Position(1, 2)})}))
        await second.open(1)
        await second.save(Changes({ID: SessionChange(channels={"group:a": None})}))
        own_server.do("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(LogDeposed):
            await again(lambda: first.sessions([ID]))
        assert await again(lambda: second.sessions([ID])) == [Session(b"said", expires_ms, {})]
        await second.close()
        await first.close()

    run(work())


def test_claims_of_a_router_that_was_replaced_take_no_epochs_and_store_nothing(
    make_log: Callable[..., RedisLog],
) -> None:
    async def work() -> None:
        first, second = make_log(), make_log()
        await first.open(1)
        await second.open(1)
        with pytest.raises(LogDeposed, match=f"this one has to end: process {os.getpid()} on .* has it"):
            await first.save(Changes({ID: SessionChange(b"said")}, claims=7))
        assert await second.sessions([ID]) == [None]
        await first.close()
        await second.close()
        third = make_log()
        assert (await third.open(1)).epoch == 3
        await third.close()

    run(work())


def test_a_server_that_has_forgotten_all_is_told_of_claims_again(own_server: Server) -> None:
    async def work() -> None:
        log = RedisLog(own_server.url)
        await log.open(1)
        await log.save(Changes({ID: SessionChange(b"said")}, claims=7))
        own_server.do("FLUSHALL")
        own_server.do("CLIENT", "KILL", "TYPE", "normal")
        await again(lambda: log.append(message("group:a", 1, 1)))

        async def told() -> bool:
            return bool(own_server.do("HEXISTS", log.keys.root, "epoch"))

        await until(told)
        await log.close()
        log = RedisLog(own_server.url)
        assert (await log.open(1)).epoch == 8
        await log.close()

    run(work())


@pytest.mark.slow
def test_a_router_that_was_replaced_says_nothing_again_where_the_root_is_not() -> None:
    """Who has the log is told by another node then; as long as that does not answer, nothing is said again."""

    async def work(cluster: Cluster) -> None:
        first, second = RedisLog(cluster.url, deadline_s=1.0), RedisLog(cluster.url)
        await first.open(1)
        root = cluster.owner(first.keys.root_slot)
        session = next(one for one in map(_id, range(100)) if cluster.owner(first.keys.session(one)[1]) is not root)
        other = cluster.owner(first.keys.session(session)[1])
        expires_ms = wall_ms() + HOUR_MS
        await first.save(Changes({session: SessionChange(b"said", expires_ms, {"group:a": Position(1, 2)})}))
        await second.open(1)
        await second.save(Changes({session: SessionChange(channels={"group:a": None})}))
        stand_still(root.pid)
        try:
            other.do("CLIENT", "KILL", "TYPE", "normal")
            with pytest.raises(LogUnavailable):
                await first.sessions([session])
        finally:
            root.signal(signal.SIGCONT)
        with pytest.raises(LogDeposed, match=f"this one has to end: process {os.getpid()} on .* has it"):
            await again(lambda: first.sessions([session]))
        assert await again(lambda: second.sessions([session])) == [Session(b"said", expires_ms, {})]
        await second.close()
        await first.close()

    with running_cluster() as cluster:
        run(work(cluster))


def test_nothing_is_stored_that_a_replica_has_not_nor_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(log: RedisLog) -> None:
        with pytest.raises(LogUnavailable, match="0 of 1 replicas"):
            await log.ban(Ban("eve", wall_ms() + HOUR_MS))
        with pytest.raises(LogUnavailable, match="0 of 1 replicas"):
            await log.save(Changes({ID: SessionChange(b"said")}))

    async def work(primary: Server, replica: Server) -> None:
        log = RedisLog(primary.url, deadline_s=1.0)
        await log.open(1)
        await log.save(Changes({ID: SessionChange(b"said")}))
        replica.kill()
        await refused(log)
        assert (await log.sessions([ID]))[0] is not None  # it is read all the same
        await refused(log)
        monkeypatch.setattr(redis_sessions, "REPLICA_MISSED_S", 0.0)
        await log.ban(Ban("eve", wall_ms() + HOUR_MS))
        await log.close()

    with running(*LASTING) as primary, running(*LASTING, "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        wait_until(lambda: Sentinels._replicas(primary) == 1, "the replica follows")
        run(work(primary, replica))


@pytest.mark.slow
def test_a_primary_that_stood_still_and_was_replaced_loses_nothing_of_what_is_told_to_it() -> None:
    """It goes on as a primary beside the new one for some seconds, and our connections to it are as good as before."""

    async def work(sentinels: Sentinels) -> None:
        log = RedisLog(sentinels.url, deadline_s=1.0)
        await log.open(1)
        expires_ms = wall_ms() + HOUR_MS
        await log.save(Changes({ID: SessionChange(b"said", expires_ms, {"group:a": Position(1, 2)})}))
        old = sentinels.primary
        stand_still(old.pid)
        await asyncio.to_thread(wait_until, lambda: sentinels.primary is not old, "it is replaced", WHOLE_DEADLINE_S)
        old.signal(signal.SIGCONT)
        left = Changes({ID: SessionChange(channels={"group:a": None, "group:b": Position(1, 3)})})
        await again(lambda: log.save(left))
        await again(lambda: log.ban(Ban("eve", expires_ms)))
        await asyncio.to_thread(sentinels.wait_whole)
        assert await again(lambda: log.sessions([ID])) == [Session(b"said", expires_ms, {"group:b": Position(1, 3)})]
        await log.close()
        log = RedisLog(sentinels.url)
        await again(lambda: log.open(1))
        assert [one.user for one in await log.bans()] == ["eve"]
        assert await log.sessions([ID]) == [Session(b"said", expires_ms, {"group:b": Position(1, 3)})]
        await log.close()

    with running_sentinels() as sentinels:
        run(work(sentinels))


def test_the_wall_clock_is_in_milliseconds() -> None:
    assert abs(wall_ms() - time.time() * 1000) < 1000


def test_what_a_primary_without_its_replica_is_told_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be one that another has replaced, and throw away what it alone has."""
    changes = Changes({ID: SessionChange(b"said", wall_ms() + HOUR_MS)}, {"user:ann": Position(1, 2)})

    async def work(primary: Server, replica: Server) -> None:
        log = RedisLog(primary.url, clock_ms=now_ms)
        epoch = (await open_log(log, 1)).epoch
        await log.save(changes)
        await append(log, b"".join(message(f"group:{number}", epoch, 1, b"1") for number in range(4 * SHARDS)))
        await log.save(changes)
        replica.kill()
        wait_until(lambda: Sentinels._replicas(primary) == 0, "the replica is missed")
        with pytest.raises(LogUnavailable, match="0 of 1 replicas"):
            await log.save(changes)
        assert await log.cursors(["user:ann"]) == [Position(1, 2)]
        monkeypatch.setattr(redis_sessions, "REPLICA_MISSED_S", 0.0)
        await log.save(changes)
        await log.close()

    with running(*LASTING) as primary, running(*LASTING, "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        wait_until(lambda: Sentinels._replicas(primary) == 1, "the replica follows")
        run(work(primary, replica))


@pytest.mark.slow
def test_only_those_primaries_of_a_cluster_wait_for_a_replica_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a start, and after a connection was lost, a server that had replicas is not trusted alone for a minute."""
    monkeypatch.setattr(redis, "REPLICA_MISSED_S", 0.0)  # they run for some seconds
    changes = Changes({_id(number): SessionChange(b"said") for number in range(4 * SHARDS)})

    async def work(cluster: Cluster) -> None:
        log = RedisLog(cluster.url)
        epoch = (await open_log(log, 1)).epoch
        await append(log, b"".join(message(f"group:{number}", epoch, 1, b"1") for number in range(4 * SHARDS)))
        await log.save(changes)
        await log.close()
        log = RedisLog(cluster.url)
        await open_log(log, 1)
        await log.save(changes)
        replicated = cluster.servers[0]
        replicated.do("CLIENT", "KILL", "TYPE", "normal")
        await again(lambda: log.sessions(list(changes.sessions)))
        await again(lambda: log.save(changes))
        replica = cluster.servers[Cluster.SIZE]
        replica.kill()
        wait_until(lambda: Sentinels._replicas(replicated) == 0, "the replica is missed")
        why = set()
        for _ in range(3):  # the first of them may be that a connection was lost
            with pytest.raises(LogUnavailable) as refused:
                await log.save(changes)
            why.add(str(refused.value).partition(":")[0])
        assert "0 of 1 replicas of Redis at 127.0.0.1" in why
        await log.close()

    with running_cluster(replicas=1, replicated=1) as cluster:
        run(work(cluster))
