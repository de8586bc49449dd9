"""Another region's log, as it is read."""

import asyncio

import pytest

from router.log.bridge_source import PAGES_BYTES, Entry, Source, entry_of, pushed_entry
from router.log.port import Changes, LogBroken, LogUnavailable, Position, SessionChange
from router.log.redis_keys import Keys
from router.log.redis_shared import SharedRedisLog
from tests.router.log.conftest import run
from tests.router.log.redis_records import NOW_MS
from tests.router.log.regions import SHARD, SHARDS, ordered, region
from tests.servers.redis import Server


def test_an_entry_names_the_one_before_it_if_it_is_not_the_number_before() -> None:
    assert entry_of(b"5-3", [b"a", b"x"]) == Entry(Position(5, 3), Position(5, 2), b"x")
    assert entry_of(b"5-1", [b"a", b"x", b"b", b"4-9"]) == Entry(Position(5, 1), Position(4, 9), b"x")
    assert pushed_entry(b"5-1 4-9 x y") == Entry(Position(5, 1), Position(4, 9), b"x y")


def test_a_cluster_is_refused() -> None:
    async def work() -> None:
        with pytest.raises(ValueError, match="region `eu` is in a Redis cluster"):
            Source("eu", "redis+cluster://127.0.0.1:1", Keys("t:"))

    run(work())


def test_the_log_of_another_region_than_was_named_is_refused(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        log = SharedRedisLog(redis_server.url, shards=SHARDS, prefix=prefix, region="asia")
        unnamed = Source("eu", redis_server.url, log.keys)
        await unnamed.where([SHARD])  # a log of before regions were written down is anybody's
        await log.open(1)
        named, misnamed = Source("asia", redis_server.url, log.keys), Source("eu", redis_server.url, log.keys)
        await named.where([SHARD])
        with pytest.raises(LogUnavailable, match="has the log of region `asia`, and not that of `eu`: see log"):
            await misnamed.where([SHARD])
        for one in (unnamed, named, misnamed, log):
            await one.close()

    run(work())


def test_what_is_appended_is_read_in_pages_and_told(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        one = await region(("asia",), [redis_server], 0, prefix)
        told: list[tuple[bytes, bytes]] = []
        came = asyncio.Event()

        def on_push(channel: bytes, text: bytes) -> None:
            told.append((channel, text))
            came.set()

        source = Source("asia", redis_server.url, one.log.keys, on_push)
        await one.lead(3)
        for offset in range(1, 6):
            await one.say(ordered(3, offset))
        session = bytes([SHARD]) + b"x" * 15
        await one.log.save(Changes({session: SessionChange(b"o", NOW_MS + 9_999)}))
        [page] = (await source.pages({SHARD: (Position(3, 2), b"0-0")}, 2)).values()
        assert (page.fence, page.at) == (3, Position(3, 5))
        assert [one.id for one in page.entries] == [Position(3, 3), Position(3, 4)]
        [(id_, kind, _)] = page.states
        assert (kind, id_) == (b"s", page.oldest_state)
        assert await source.newest_states([SHARD, 0]) == [id_, b"0-0"]
        link = await source.link()
        source.subscribe(link, [SHARD])
        await source.where([SHARD])
        await one.say(ordered(3, 6))
        while not told:
            came.clear()
            await came.wait()
        assert pushed_entry(told[0][1]).id == Position(3, 6)
        assert told[0][0].endswith(b"bridge")
        source.unsubscribe(link, [SHARD])
        await source.where([SHARD])
        await one.say(ordered(3, 7))
        await source.where([SHARD])
        assert len(told) == 1
        await source.close()
        await one.close()

    run(work())


def test_a_shards_keys_are_found_and_those_of_others_are_not(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        one = await region(("asia",), [redis_server], 0, prefix)
        source = Source("asia", redis_server.url, one.log.keys)
        await one.lead(3, *range(SHARDS))
        await one.say(ordered(3, 1), ordered(3, 1, channel="group:b"), ordered(3, 1, channel="group:c"))
        found = await source.names([SHARD])
        start = one.log.keys.shards[SHARD]
        assert start + b"c:group:a" in found[SHARD]
        assert start + b"tail" in found[SHARD]
        assert all(name.startswith(start) for name in found[SHARD])
        assert not [name for name in found[SHARD] if name.endswith((b":epoch", b":bridge"))]
        dumped = await source.dump([start + b"c:group:a", start + b"c:nothing"])
        assert [name for name, *_ in dumped] == [start + b"c:group:a"]
        await source.close()
        await one.close()

    run(work())


def test_a_server_that_is_away_or_refuses_is_unavailable(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        source = Source("asia", "redis://127.0.0.1:1", Keys(prefix, shards=8))
        with pytest.raises(LogUnavailable):
            await source.where([1])
        source.confirm("eu", {1: Position(1, 1)})  # nothing to wait for, nothing happens
        assert not source.say({1: b"x"})
        await source.close()
        keys = Keys(prefix, shards=8)
        source = Source("asia", redis_server.url, keys)
        redis_server.do("SET", keys.shards[1] + b"epoch", "x")
        with pytest.raises((LogUnavailable, LogBroken)):
            await source.where([1])
        assert await source.ask([]) == []
        await source.close()

    run(work())


def test_what_pages_have_together_is_bounded(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        one = await region(("asia",), [redis_server], 0, prefix)
        await one.lead(3, *range(SHARDS))
        channels = {one.log.keys.shard_of(b"group:x%d" % n): f"group:x{n}" for n in range(999)}
        for shard in range(SHARDS):
            await one.say(ordered(3, 1, b"x" * 50_000, channels[shard]))
        source = Source("asia", redis_server.url, one.log.keys)
        asked = {shard: (Position(0, 0), b"0-0") for shard in range(SHARDS)}
        assert len(await source.pages(asked, 2)) == SHARDS
        source._page_bytes = PAGES_BYTES // 2
        assert list(await source.pages(asked, 2)) == [0, 1]
        assert list(await source.pages(asked, 2)) == [0, 1, 2, 3], "they have less than was thought"
        assert await source.pages({}, 2) == {}
        await source.close()
        source._page_bytes = PAGES_BYTES // 8
        for expected in (PAGES_BYTES // 2, PAGES_BYTES, PAGES_BYTES):
            with pytest.raises(LogUnavailable):
                await source.pages(asked, 2)
            assert source._page_bytes == expected
        await one.close()

    run(work())
