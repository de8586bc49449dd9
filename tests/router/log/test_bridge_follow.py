"""What follows one region: its pace, and what it does with what comes out of order."""

import asyncio
from collections.abc import Sequence

import pytest

from core import log_records
from router.log.bridge_follow import Follower, Throttle, Told
from router.log.bridge_source import Entry, Source
from router.log.bridge_store import Followed
from router.log.port import LogUnavailable, Position
from tests.router.log.conftest import run, until
from tests.router.log.regions import CHANNEL, SHARD, close, ordered, regions
from tests.servers.redis import Server, running


def test_so_many_bytes_a_second_are_let_through() -> None:
    now = 10.0
    throttle = Throttle(1000, lambda: now)
    assert throttle.wait_s(200) == 0
    assert throttle.wait_s(250) == pytest.approx(0.2)
    now += 5
    assert throttle.wait_s(250) == 0
    assert throttle.wait_s(1000) == pytest.approx(1)
    assert Throttle(0).wait_s(10**9) == 0


def test_repeated_late_and_lost_pushes_change_nothing(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        follower = there.bridge.followers["asia"]
        take = follower.on_push
        count = 0
        late: list[tuple[bytes, bytes]] = []

        def unreliable(channel: bytes, text: bytes) -> None:
            nonlocal count
            count += 1
            if count % 5 == 1:
                return
            take(channel, text)
            if count % 5 == 2:
                take(channel, text)
            if count % 5 == 3:
                late.append((channel, text))
            if count % 5 == 0 and late:
                take(*late.pop())

        follower.on_push = unreliable  # type: ignore[method-assign]
        await here.lead(1)
        there.follow(here, 1)
        await there.ear.until(lambda: (SHARD, 1) in there.ear.epochs)
        for offset in range(1, 61):
            await here.say(ordered(1, offset))
        # Nothing tells a follower of the last one if that is lost, but the next one.
        while (1, 60) not in there.ear.offsets:
            await here.say(ordered(1, 60 + here.number))
            await asyncio.sleep(0)
        # Of what may not have been told it tells again; the data plane passes over what it has.
        assert list(dict.fromkeys(there.ear.offsets))[:60] == [(1, offset) for offset in range(1, 61)]
        assert count > 20
        assert not there.ear.lost
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_what_comes_too_fast_is_read_in_pages_instead(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        follower = there.bridge.followers["asia"]
        await here.lead(1)
        there.follow(here, 1)
        await there.ear.until(lambda: (SHARD, 1) in there.ear.epochs)
        await here.say(ordered(1, 1))
        await there.ear.until(lambda: (1, 1) in there.ear.offsets)
        follower._drop_queue()
        assert follower.behind() == 1
        for offset in range(2, 12):
            await here.say(ordered(1, offset))
        await there.ear.until(lambda: (1, 11) in there.ear.offsets)

        async def is_live() -> bool:
            return follower.behind() == 0

        await until(is_live)
        assert there.ear.offsets == [(1, offset) for offset in range(1, 12)]
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_a_shard_that_is_not_followed_any_more_is_told_nothing_of(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await there.ear.until(lambda: (1, 1) in there.ear.offsets)
        there.bridge.follow({})
        assert there.bridge.followed() == set()
        await here.say(ordered(1, 2))
        await there.bridge.store.where([SHARD])
        assert there.ear.offsets == [(1, 1)]
        there.follow(here, 1)
        await there.ear.until(lambda: (1, 2) in there.ear.offsets)
        assert await there.at() == Position(1, 2)
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_one_that_never_began_is_closed(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        [one] = await regions([redis_server], prefix, start=False)
        source = Source("eu", redis_server.url, one.log.keys)
        follower = Follower("asia", source, one.bridge.store, one.log.keys, Told())
        follower.follow({1: 1})
        assert follower.behind() == 1
        await follower.close()
        await close([one])

    run(work())


def test_what_our_log_got_without_an_answer_is_told_all_the_same(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        await there.ear.until(lambda: (SHARD, 1) in there.ear.epochs)
        repeat = there.bridge.store.repeat

        async def unanswered(entries: Sequence[tuple[Followed, Entry]]) -> list[bool]:
            there.bridge.store.repeat = repeat  # type: ignore[method-assign]
            await repeat(entries)
            raise LogUnavailable("the answer is lost")

        await here.say(ordered(1, 1))
        await there.ear.until(lambda: (1, 1) in there.ear.offsets)
        there.bridge.store.repeat = unanswered  # type: ignore[method-assign]
        await here.say(ordered(1, 2))
        await there.ear.until(lambda: (1, 2) in there.ear.offsets)
        await here.say(ordered(1, 3))
        await there.ear.until(lambda: (1, 3) in there.ear.offsets)
        assert there.ear.offsets == [(1, 1), (1, 2), (1, 3)]
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(3, True)])
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_what_is_in_no_log_is_told_to_each_region_once_and_kept_nowhere(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there, far = some = await regions(servers, prefix)
        event = log_records.pack(log_records.EVENT, CHANNEL.encode(), 0, 0, body=b"x", shard=SHARD)
        await here.lead(1)
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(0, True)])
        assert here.bridge.say({SHARD: event}), "nobody follows yet: it is told to nobody"
        for one in (there, far):
            one.follow(here, 1)
            await one.ear.until(lambda one=one: (SHARD, 1) in one.ear.epochs)  # type: ignore[misc]
        await here.say(ordered(1, 1))

        async def are_live() -> bool:
            return all(not one.bridge.followers["asia"].behind() and one.ear.offsets for one in (there, far))

        await until(are_live)
        before = [await one.at() for one in some]
        assert here.bridge.say({SHARD: event + event, SHARD ^ 1: event})
        for one in (there, far):
            await one.ear.until(lambda one=one: len(one.ear.offsets) == 3)  # type: ignore[misc]
            assert one.ear.offsets == [(1, 1), (0, 0), (0, 0)], "and nothing of a shard that is not followed"
        assert [await one.at() for one in some] == before
        await close(some)

    with running() as second, running() as third:
        run(work([redis_server, second, third]))
