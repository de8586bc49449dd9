"""The log in Redis that several routers write: each what it leads, and nothing of what it led before."""

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from core import log_records
from core.shards import byte_of
from router.log.port import Changes, LogBroken, LogDeposed, Position, SessionChange
from router.log.redis import RedisLog
from router.log.redis_shared import SharedRedisLog
from tests.router.log.conftest import again, append, run
from tests.router.log.redis_records import NOW_MS, message, now_ms, offsets
from tests.servers.redis import Server

SHARDS = 8
SHARD_AT = 7
"""Where a log record has its shard."""
CHANNEL = "group:a"
SHARD = byte_of(CHANNEL.encode()) % SHARDS
OTHER = next(one for one in range(SHARDS) if one not in (SHARD, 0))
OTHER_CHANNEL = next(one for one in (f"group:{n}" for n in range(999)) if byte_of(one.encode()) % SHARDS == OTHER)


def ordered(channel: str, epoch: int, offset: int, **fields: Any) -> bytes:
    """A record as the leader of its shard makes it."""
    record = bytearray(message(channel, epoch << 24, offset, b"%d" % offset, **fields))
    record[SHARD_AT] = byte_of(channel.encode()) % SHARDS
    return bytes(record)


async def joined(server: Server, prefix: str, shards: int = SHARDS) -> SharedRedisLog:
    log = SharedRedisLog(server.url, shards=shards, prefix=prefix, clock_ms=now_ms)
    await log.open(1)
    return log


async def recovered(log: SharedRedisLog, shards: Collection[int]) -> list[tuple[bytes, int, tuple[int, int], int]]:
    batches = [batch async for batch in log.recover_shards(shards)]
    return [
        (one.channel, one.offset, one.key, one.record[SHARD_AT])
        for batch in batches
        for one in log_records.entries(batch)
    ]


def test_the_log_of_another_region_is_not_opened(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        for region in ("", "eu", "eu", ""):
            log = SharedRedisLog(redis_server.url, shards=SHARDS, prefix=prefix, region=region)
            await log.open(1)
            await log.close()
        other = SharedRedisLog(redis_server.url, shards=SHARDS, prefix=prefix, region="us")
        with pytest.raises(LogBroken, match="is that of region `eu`, and this node is in `us`"):
            await other.open(1)
        await other.close()

    run(work())


def test_each_appends_to_its_own_shards(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        first, second = await joined(redis_server, prefix), await joined(redis_server, prefix)
        assert first._seeds == second._seeds
        assert await first.open_shards({SHARD: 1}) == {SHARD: None}
        assert await second.open_shards({OTHER: 5}) == {OTHER: None}
        await asyncio.gather(
            append(first, ordered(CHANNEL, 1, 1, key=(7, 8))), append(second, ordered(OTHER_CHANNEL, 5, 1))
        )
        for log in (first, second):
            one, other = await log.load([CHANNEL.encode(), OTHER_CHANNEL.encode()], messages=True)
            assert (one.position, offsets(one)) == (Position(1 << 24, 1), [1])
            assert (other.position, offsets(other)) == (Position(5 << 24, 1), [1])
        assert await recovered(second, [SHARD]) == [(CHANNEL.encode(), 1, (7, 8), SHARD)]
        await first.close()
        await second.close()

    run(work())


def test_who_led_a_shard_before_appends_nothing_to_it_and_the_rest_of_its_batch_is_there(
    redis_server: Server, prefix: str
) -> None:
    async def work() -> None:
        old, new = await joined(redis_server, prefix), await joined(redis_server, prefix)
        await old.open_shards({SHARD: 1, OTHER: 1})
        await append(old, ordered(CHANNEL, 1, 1))
        assert await new.open_shards({SHARD: 2}) == {SHARD: None}
        await append(new, ordered(CHANNEL, 2, 2))
        with pytest.raises(LogDeposed):
            await old.append(ordered(OTHER_CHANNEL, 1, 1) + ordered(CHANNEL, 1, 2))
        one, other = await new.load([CHANNEL.encode(), OTHER_CHANNEL.encode()], messages=True)
        assert (one.position, offsets(one)) == (Position(2 << 24, 2), [1, 2])
        assert offsets(other) == [1]
        await old.close()
        await new.close()

    run(work())


def test_a_lower_epoch_is_told_the_higher_one(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        old, new = await joined(redis_server, prefix), await joined(redis_server, prefix)
        await new.open_shards({SHARD: 9})
        assert await old.open_shards({SHARD: 3, OTHER: 3}) == {SHARD: 9, OTHER: None}
        assert await new.open_shards({SHARD: 9}) == {SHARD: None}, "asked again"
        await old.close()
        await new.close()

    run(work())


def test_an_epoch_that_another_router_had_is_refused(redis_server: Server, prefix: str) -> None:
    """A directory that lost its data gives them again, while who had it may not know yet."""

    async def work() -> None:
        old, new = await joined(redis_server, prefix), await joined(redis_server, prefix)
        assert await old.open_shards({SHARD: 1}) == {SHARD: None}
        await append(old, ordered(CHANNEL, 1, 1))
        assert await new.open_shards({SHARD: 1}) == {SHARD: 1}
        assert await new.open_shards({SHARD: 2}) == {SHARD: None}
        with pytest.raises(LogDeposed):
            await append(old, ordered(CHANNEL, 1, 2))
        await old.close()
        await new.close()

    run(work())


def test_a_shard_goes_away_and_comes_back(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        here, there = await joined(redis_server, prefix), await joined(redis_server, prefix)
        await here.open_shards({SHARD: 1})
        for offset in range(1, 4):
            await append(here, ordered(CHANNEL, 1, offset))
        await here.close_shards([SHARD])
        await there.open_shards({SHARD: 2})
        await append(there, ordered(CHANNEL, 2, 4))
        # What a connection that is new makes it give again is none of another's shards.
        redis_server.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await again(lambda: here.open_shards({OTHER: 1}))
        await append(here, ordered(OTHER_CHANNEL, 1, 1))
        await again(here.appender.heal)
        await there.close_shards([SHARD])
        await here.open_shards({SHARD: 3})
        await append(here, ordered(CHANNEL, 3, 5))
        [loaded] = await here.load([CHANNEL.encode()], messages=True)
        assert offsets(loaded) == [1, 2, 3, 4, 5]
        assert here.appender.is_whole()
        await here.close()
        await there.close()

    run(work())


def test_what_a_former_leader_says_of_a_session_changes_nothing(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        old, new = await joined(redis_server, prefix), await joined(redis_server, prefix)
        session = bytes([SHARD]) + b"x" * 15
        user = next(f"user:u{n}" for n in range(999) if byte_of(b"user:u%d" % n) % SHARDS == SHARD)
        await old.open_shards({SHARD: 1})
        await old.save(
            Changes({session: SessionChange(b"o", NOW_MS + 9_999, {"group:a": (1, 1)})}, {user: Position(1, 5)})
        )
        await new.open_shards({SHARD: 2})
        left = SessionChange(None, None, {"group:a": None})
        await new.save(Changes({session: left}, {user: Position(1, 7)}))
        late = SessionChange(b"late", NOW_MS + 9_999, {"group:a": (1, 2)}, {"group:a"})
        await old.save(Changes({session: late}, {user: Position(1, 9)}))
        [found] = await new.sessions([session])
        assert found is not None
        assert (found.opened, found.channels) == (b"o", {})
        assert await new.cursors([user]) == [Position(1, 7)]
        await old.close()
        await new.close()

    run(work())


def test_a_log_of_one_router_is_refused_and_stays(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        alone = RedisLog(redis_server.url, prefix=prefix, clock_ms=now_ms)
        await alone.open(1)
        await append(alone, message(CHANNEL, 1, 1))
        several = SharedRedisLog(redis_server.url, shards=SHARDS, prefix=prefix, clock_ms=now_ms)
        with pytest.raises(LogBroken, match="of one router alone"):
            await several.open(1)
        await several.close()
        [loaded] = await alone.load([CHANNEL.encode()], messages=True)
        assert offsets(loaded) == [1]
        await alone.close()

    run(work())


def test_a_log_of_several_is_refused_by_one_that_is_alone(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        several = await joined(redis_server, prefix)
        alone = RedisLog(redis_server.url, prefix=prefix, clock_ms=now_ms)
        with pytest.raises(LogBroken, match="format 2"):
            await alone.open(1)
        await alone.close()
        await several.close()

    run(work())


def test_a_server_that_forgot_everything_is_told_again(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        log = await joined(redis_server, prefix)
        seeds = log._seeds
        await log.open_shards({SHARD: 4})
        await append(log, ordered(CHANNEL, 4, 1))
        for key in redis_server.do("KEYS", prefix + "*"):
            redis_server.do("DEL", key)
        redis_server.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await append(log, ordered(CHANNEL, 4, 2))
        await again(log._tell_again)
        [loaded] = await again(lambda: log.load([CHANNEL.encode()], messages=True))
        assert offsets(loaded) == [1, 2]
        later = await joined(redis_server, prefix)
        assert later._seeds == seeds
        await later.close()
        await log.close()

    run(work())
