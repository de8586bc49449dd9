"""What follows one region: its pace, and what it does with what comes out of order."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from core import log_records
from router.log.bridge_copy import copy_shards
from router.log.bridge_follow import Follower, Throttle, Told
from router.log.bridge_source import PAGES_BYTES, Entry, Source
from router.log.bridge_store import Followed
from router.log.port import Ban, Changes, LogUnavailable, Position, SessionChange
from tests.router.log.conftest import again, run, until
from tests.router.log.redis_records import NOW_MS
from tests.router.log.regions import CHANNEL, SHARD, SHARDS, Region, close, ordered, regions
from tests.servers.redis import FLEETING, Server, running


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
        assert there.ear.offsets[:60] == [(1, offset) for offset in range(1, 61)]
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


def test_that_it_is_there_is_said_while_something_comes_all_the_time(redis_server: Server, prefix: str) -> None:
    """States of sessions, say, of which nothing is confirmed."""

    async def work() -> None:
        [one] = await regions([redis_server], prefix, start=False)
        source = Source("eu", redis_server.url, one.log.keys)
        follower = Follower("asia", source, one.bridge.store, one.log.keys, Told())
        beats = []
        source.confirm = lambda region, positions: beats.append(region)  # type: ignore[method-assign]
        follower.start()
        while len(beats) < 2:
            follower.on_push(b"something", b"that nobody follows")
            await asyncio.sleep(0)
        assert set(beats) == {"asia"}
        await follower.close()
        await close([one])

    run(work())


def test_what_was_in_flight_when_another_region_led_is_told_all_the_same(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        asia, eu, us = some = await regions(servers, prefix)
        await asia.lead(1)
        for one in (eu, us):
            one.follow(asia, 1)
        await asia.say(ordered(1, 1))
        await us.ear.until(lambda: (1, 1) in us.ear.offsets)
        repeat = us.bridge.store.repeat

        async def moved(entries: Sequence[tuple[Followed, Entry]]) -> list[bool]:
            done = await repeat(entries)
            if entries:
                us.bridge.store.repeat = repeat  # type: ignore[method-assign]
                us.follow(eu, 2)
            return done

        us.bridge.store.repeat = moved  # type: ignore[method-assign]
        await asia.say(ordered(1, 2))
        eu.bridge.follow({})
        await eu.lead(2)
        await eu.say(ordered(2, 3))
        await us.ear.until(lambda: (2, 3) in us.ear.offsets)
        assert us.ear.offsets == [(1, 1), (1, 2), (2, 3)]
        epochs = [epoch for _, epoch in us.ear.epochs]
        assert epochs == sorted(epochs)
        await close(some)

    with running() as second, running() as third:
        run(work([redis_server, second, third]))


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


def test_what_our_redis_lost_is_there_again_though_nothing_new_comes(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        for offset in range(1, 6):
            await here.say(ordered(1, offset))
        await there.ear.until(lambda: (1, 5) in there.ear.offsets)
        await asyncio.to_thread(servers[1].kill)
        await asyncio.to_thread(servers[1].start)  # it keeps nothing

        async def is_back() -> bool:
            return await again(there.at) == Position(1, 5)

        await until(is_back)
        assert await there.history() == await here.history()
        await here.say(ordered(1, 6))
        await there.ear.until(lambda: (1, 6) in there.ear.offsets)
        assert there.ear.offsets == [(1, offset) for offset in range(1, 7)], "each is told once"
        assert there.ear.copies == []
        await close(some)

    with running(*FLEETING) as second:
        run(work([redis_server, second]))


def test_a_ban_that_could_not_be_stored_is_stored_later(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        await there.ear.until(lambda: (SHARD, 1) in there.ear.epochs)
        merge = there.bridge.store.merge_bans

        async def away(bans: Mapping[bytes, bytes]) -> int:
            there.bridge.store.merge_bans = merge  # type: ignore[method-assign]
            raise LogUnavailable("for a moment")

        there.bridge.store.merge_bans = away  # type: ignore[method-assign]
        await here.log.ban(Ban("bob", NOW_MS + 9_999, "spam", NOW_MS))
        await there.ear.until(lambda: there.ear.banned > 0)
        assert await here.log.bans() == await there.log.bans() != []
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_what_was_held_of_a_shard_that_is_let_go_counts_no_more(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        [one] = await regions([redis_server], prefix, start=False)
        source = Source("eu", redis_server.url, one.log.keys)
        follower = Follower("asia", source, one.bridge.store, one.log.keys, Told())
        follower.follow({SHARD: 1})
        follower.shards[SHARD].subscribed = True
        await follower._take([(one.log.keys.shards[SHARD] + b"bridge", b"1-1 0-0 entry")])
        assert follower._held_bytes > 0
        follower.follow({})
        assert follower._held_bytes == 0
        await follower.close()
        await close([one])

    run(work())


def test_a_shard_that_is_led_there_again_after_long_is_not_copied_for_its_states(
    redis_server: Server, prefix: str
) -> None:
    """Its states of meanwhile came from where it was led meanwhile."""

    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        sessions = [bytes([SHARD, one]) + b"x" * 14 for one in range(200)]

        async def save(leader: Region, times: int) -> None:
            for time in range(times):
                change = SessionChange(b"o%d" % time, NOW_MS + 9_999)
                await leader.log.save(Changes(dict.fromkeys(sessions, change)))

        async def alike(*ids: bytes) -> bool:
            return await here.log.sessions(ids) == await there.log.sessions(ids)

        await here.lead(1)
        there.follow(here, 1)
        await there.ear.until(lambda: (SHARD, 1) in there.ear.epochs)
        await here.say(ordered(1, 1))
        await save(here, 1)
        await until(lambda: alike(*sessions))
        there.bridge.follow({})
        await there.lead(2)
        here.follow(there, 2)
        await save(there, 10)
        await until(lambda: alike(*sessions))
        here.bridge.follow({})
        await here.lead(3)
        there.follow(here, 3)
        await save(here, 1)
        await there.ear.until(lambda: (SHARD, 3) in there.ear.epochs)
        await until(lambda: alike(*sessions))
        assert there.ear.copies == []
        assert here.ear.copies == []
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_what_a_former_leader_still_says_is_not_taken(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await here.log.close_shards([SHARD])
        await here.lead(2)
        there.follow(here, 2)
        await there.ear.until(lambda: (SHARD, 2) in there.ear.epochs)
        follower = there.bridge.followers["asia"]
        taken: list[Entry] = []
        repeat = there.bridge.store.repeat

        async def noted(entries: Sequence[tuple[Followed, Entry]]) -> list[bool]:
            taken.extend(entry for _, entry in entries)
            return await repeat(entries)

        there.bridge.store.repeat = noted  # type: ignore[method-assign]
        await follower._take([(there.log.keys.shards[SHARD] + b"bridge", b"1-2 1-1 what only it has")])
        assert taken == []
        await here.say(ordered(2, 2))
        await there.ear.until(lambda: (2, 2) in there.ear.offsets)
        assert [entry.id for entry in taken] == [Position(2, 1)]
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_all_are_caught_up_though_few_are_read_at_once(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1, *range(SHARDS))
        channels = {here.log.keys.shard_of(b"group:x%d" % n): f"group:x{n}" for n in range(999)}
        for shard in range(SHARDS):
            await here.say(ordered(1, 1, b"x" * 50_000, channels[shard]))
        follower = there.bridge.followers["asia"]
        follower._source._page_bytes = PAGES_BYTES
        # Of the first, nothing may be taken yet.
        there.bridge.follow({shard: ("asia", 9 if shard < 2 else 1) for shard in range(SHARDS)})
        await there.ear.until(lambda: len(there.ear.offsets) == SHARDS - 2)

        async def are_live() -> bool:
            return follower.behind() == 2

        await until(are_live)
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_what_somebody_else_copied_meanwhile_is_read_anew(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await there.ear.until(lambda: (1, 1) in there.ear.offsets)
        follower = there.bridge.followers["asia"]
        follower.on_push = lambda channel, text: None  # type: ignore[method-assign]
        await here.say(ordered(1, 2))
        await copy_shards(follower._source, there.bridge.store, [Followed(SHARD, 1)], follower._pace)
        follower._drop_queue()
        await there.ear.until(lambda: there.ear.copies == [SHARD])
        assert await there.at() == Position(1, 2)
        await close(some)

    with running() as second:
        run(work([redis_server, second]))
