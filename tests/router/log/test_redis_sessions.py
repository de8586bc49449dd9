"""Sessions, cursors and bans in Redis; what every log promises of them is in tests/contract/."""

import time
from collections.abc import Callable

import pytest

from router.log import redis_append
from router.log.opening import open_log
from router.log.port import ENDED_KEPT_MS, Ban, Changes, LogBroken, LogUnavailable, Position, SessionChange
from router.log.redis import RedisLog
from router.log.redis_keys import SHARDS, Keys
from router.log.redis_sessions import CHUNK, wall_ms
from tests.conftest import wait_until
from tests.router.log.conftest import append, run
from tests.router.log.redis_records import message, now_ms
from tests.servers.redis import LASTING, Sentinels, Server, running

ID = bytes(range(16))
HOUR_MS = 3_600_000


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
    ids = [number.to_bytes(16, "big") for number in range(CHUNK + 200)]

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
        monkeypatch.setattr(redis_append, "REPLICA_MISSED_S", 0.0)
        await log.save(changes)
        await log.close()

    with running(*LASTING) as primary, running(*LASTING, "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        wait_until(lambda: Sentinels._replicas(primary) == 1, "the replica follows")
        run(work(primary, replica))
