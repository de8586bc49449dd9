"""One log in several regions: real Redis servers, one a region."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence

import pytest

from core import log_records
from router.log.port import Changes, LogUnavailable, Position, SessionChange
from router.log.redis_shared import SharedRedisLog
from tests.router.log.conftest import again, run, until
from tests.router.log.redis_records import NOW_MS, now_ms
from tests.router.log.regions import CHANNEL, SEEDS, SHARD, SHARDS, Region, close, is_of, ordered, region, regions
from tests.servers.redis import ALWAYS, FLEETING, Server, running


@contextlib.contextmanager
def lasting(count: int) -> Iterator[list[Server]]:
    """Servers that may be killed, and have all again that they answered."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(*ALWAYS)) for _ in range(count)]


async def same(some: Sequence[Region], channel: str = CHANNEL) -> list[tuple[int, int]]:
    """The history, which has to be the same in all regions, id for id and byte for byte."""
    found = [await one.history(channel) for one in some]
    assert all(one == found[0] for one in found), [one.position for one in found]
    return [(one.epoch >> 24, one.offset) for one in log_records.entries(found[0].records)]


async def in_step(leader: Region, *followers: Region) -> None:
    """Wait until these are where the leader is."""

    async def is_so() -> bool:
        where = await leader.at()
        return all([await one.at() == where for one in followers])

    await until(is_so)


def test_a_follower_has_the_same_under_the_same_ids_and_its_confirmation_replicates(
    servers: list[Server], prefix: str
) -> None:
    async def work() -> None:
        here, there, far = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        far.follow(here, 1)
        for offset in range(1, 6):
            await here.say(ordered(1, offset, key=(7, offset)))
        await here.ear.until(lambda: (5, True) in here.ear.numbers)
        for one in (there, far):
            await one.ear.until(lambda one=one: len(one.ear.offsets) == 5)  # type: ignore[misc]
            assert one.ear.offsets == [(1, offset) for offset in range(1, 6)]
            assert one.ear.epochs[-1] == (SHARD, 1)
        await in_step(here, there, far)
        assert await same(some) == [(1, offset) for offset in range(1, 6)]
        keys = [one async for batch in far.log.recover_shards([SHARD]) for one in log_records.entries(batch)]
        assert [one.key for one in keys] == [(7, offset) for offset in range(1, 6)]
        assert here.ear.led == [SHARD]
        assert [number for number, _ in here.ear.numbers] == sorted(number for number, _ in here.ear.numbers)
        await close(some)

    run(work())


def test_what_was_appended_before_a_region_followed_is_caught_up(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        await here.lead(1)
        for offset in range(1, 300):
            await here.say(ordered(1, offset))
        there.follow(here, 1)
        await there.ear.until(lambda: len(there.ear.offsets) == 299)
        await here.ear.until(lambda: bool(here.ear.numbers) and here.ear.numbers[-1:] == [(299, True)])
        await here.say(ordered(1, 300))
        await there.ear.until(lambda: len(there.ear.offsets) == 300)
        assert there.ear.offsets == [(1, offset) for offset in range(1, 301)]
        await in_step(here, there)
        await same(some)
        await close(some)

    run(work())


def test_two_followers_of_one_region_do_no_harm_and_a_lost_connection_is_caught_up(
    servers: list[Server], prefix: str
) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        twin = await region(("asia", "eu"), servers[:2], 1, prefix)
        await here.lead(1)
        there.follow(here, 1)
        twin.follow(here, 1)
        for offset in range(1, 40):
            await here.say(ordered(1, offset))
            if offset % 8 == 0:
                servers[0].do("CLIENT", "KILL", "TYPE", "pubsub")
            if offset % 13 == 0:
                servers[1].do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await again(lambda: in_step(here, there))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(39, True)])
        await there.ear.until(lambda: (1, 39) in there.ear.offsets)
        for one in (there, twin):
            assert one.ear.offsets == sorted(set(one.ear.offsets)), "each batch is told and counted once"
        assert await same(some) == [(1, offset) for offset in range(1, 40)]
        assert not there.ear.lost
        assert not twin.ear.lost
        await close([*some, twin])

    run(work())


def test_the_next_leader_has_what_the_region_that_is_furthest_has(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there, far = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        far.follow(here, 1)
        await here.say(ordered(1, 1, key=(1, 1)))
        await in_step(here, there, far)
        there.bridge.follow({})
        for offset in range(2, 30):
            await here.say(ordered(1, offset, key=(1, offset)))
        await here.ear.until(lambda: (29, True) in here.ear.numbers)
        # The leader's region is away: what far confirmed is not lost.
        assert await there.at() == Position(1, 1)
        far.bridge.follow({})
        assert await there.lead(2) == {SHARD: None}
        assert await there.at() == Position(1, 29)
        keys = [one async for batch in there.log.recover_shards([SHARD]) for one in log_records.entries(batch)]
        assert [one.key for one in keys] == [(1, offset) for offset in range(1, 30)]
        far.follow(there, 2)
        await there.say(ordered(2, 30))
        await in_step(there, far)
        assert await same([there, far]) == [(1, offset) for offset in range(1, 30)] + [(2, 30)]
        assert far.ear.epochs[-1] == (SHARD, 2)
        assert not far.ear.lost
        await close(some)

    run(work())


def test_a_returned_leaders_surplus_is_dropped_and_counted(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there, far = some = await regions(servers, prefix, living=lambda: {"eu", "us"})
        await here.lead(1)
        there.follow(here, 1)
        for offset in range(1, 4):
            await here.say(ordered(1, offset, key=(1, offset)))
        await in_step(here, there)
        there.bridge.follow({})
        # Cut off: only this region has these, in two channels of which one is new.
        new = next(name for name in (f"group:x{n}" for n in range(999)) if name != CHANNEL and is_of(name, SHARD))
        await here.say(ordered(1, 4, key=(1, 4)), ordered(1, 1, channel=new))
        await here.say(ordered(1, 5), ordered(1, 6, key=(1, 6)))
        await cut(there, here, lambda: there.lead(2))
        await there.say(ordered(2, 4, key=(2, 4)))
        far.follow(there, 2)
        here.follow(there, 2)
        await here.ear.until(lambda: (2, 4) in here.ear.offsets)
        assert sum(count for _, count in here.ear.lost) == 4
        await in_step(there, here, far)
        assert await same(some) == [(1, 1), (1, 2), (1, 3), (2, 4)]
        assert (await here.history(new)).position == Position(0, 0)
        keys = [one async for batch in here.log.recover_shards([SHARD]) for one in log_records.entries(batch)]
        assert sorted(one.key for one in keys if any(one.key)) == [(1, 1), (1, 2), (1, 3), (2, 4)]
        await close(some)

    run(work())


def test_who_leads_next_drops_what_it_had_alone_also_where_it_lacked_what_others_had_before(
    servers: list[Server], prefix: str
) -> None:
    async def work() -> None:
        asia, eu, us = some = await regions(servers, prefix, living=set)
        await asia.lead(1)
        for one in (eu, us):
            one.follow(asia, 1)
        await asia.say(ordered(1, 1))
        await in_step(asia, eu, us)
        us.bridge.follow({})
        for offset in (2, 3):
            await asia.say(ordered(1, offset))
        await in_step(asia, eu)
        await cut(us, asia, lambda: cut(us, eu, lambda: us.lead(2)))
        for offset in (2, 3):
            await us.say(ordered(2, offset))
        eu.bridge.follow({})
        await cut(eu, us, lambda: eu.lead(3))
        await eu.say(ordered(3, 4))
        await us.log.close_shards([SHARD])
        assert await us.lead(4) == {SHARD: None}
        assert await same([eu, us]) == [(1, 1), (1, 2), (1, 3), (3, 4)]
        assert sum(count for _, count in us.ear.lost) == 2
        await close(some)

    run(work())


def test_surplus_is_dropped_though_the_new_leader_appends_nothing(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix, living=lambda: {"eu"})
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await in_step(here, there)
        there.bridge.follow({})
        await here.say(ordered(1, 2))
        await cut(there, here, lambda: there.lead(2))
        here.follow(there, 2)
        await here.ear.until(lambda: here.ear.epochs[-1:] == [(SHARD, 2)])
        assert here.ear.lost == [(SHARD, 1)]
        assert await same(some) == [(1, 1)]
        assert (await here.history()).position == Position(1 << 24, 1)
        assert await here.at() == await there.at()
        await close(some)

    run(work())


def test_a_region_that_was_away_for_longer_than_the_bridge_keeps_is_copied(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix, entries=4)
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await in_step(here, there)
        there.bridge.follow({})
        body = b"x" * 5_000  # so that a node of the stream has one entry
        for offset in range(2, 40):
            await here.say(ordered(1, offset, body))
        session = bytes([SHARD]) + b"x" * 15
        await here.log.save(Changes({session: SessionChange(b"o", NOW_MS + 9_999, {CHANNEL: (1, 1)})}))
        there.follow(here, 1)
        await in_step(here, there)
        assert len(await same(some)) == 39
        await here.say(ordered(1, 40))
        await there.ear.until(lambda: (1, 40) in there.ear.offsets)
        assert len(await same(some)) == 40
        assert await there.log.sessions([session]) == await here.log.sessions([session])
        assert not there.ear.lost
        assert there.ear.copies == [SHARD]
        await close(some)

    run(work())


def test_a_log_of_before_there_were_regions_is_copied(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        before = SharedRedisLog(servers[0].url, shards=SHARDS, prefix=prefix, clock_ms=now_ms, seeds=SEEDS)
        await before.open(1)
        await before.open_shards({SHARD: 1})
        await before.append(ordered(1, 1))
        await before.close()
        here, there = some = await regions(servers[:2], prefix)
        await here.lead(2)
        there.follow(here, 2)
        await there.ear.until(lambda: there.ear.epochs[-1:] == [(SHARD, 2)])
        assert await same(some) == [(1, 1)]
        await here.say(ordered(2, 2))
        await in_step(here, there)
        assert await same(some) == [(1, 1), (2, 2)]
        await close(some)

    run(work())


def test_a_shard_is_not_opened_without_a_region_that_is_there(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix, start=False)
        await there.bridge.close()
        gone = Server()  # nobody listens
        alone = await region(("asia", "eu"), [servers[0], gone], 0, prefix, start=False)
        with pytest.raises(LogUnavailable, match="region `eu` has routers"):
            await alone.log.open_shards({SHARD: 1})
        alone.bridge._living = lambda: {"asia"}
        assert await alone.log.open_shards({SHARD: 1}) == {SHARD: None}
        await alone.close()
        gone.destroy()
        await close(some)
        assert here.ear.lost == []

    run(work())


def test_a_region_whose_last_router_is_over_while_it_is_asked_is_waited_for_no_longer(
    servers: list[Server], prefix: str
) -> None:
    async def work() -> None:
        looks = itertools.count()
        gone = Server()  # nobody listens
        alone = await region(
            ("asia", "eu"),
            [servers[0], gone],
            0,
            prefix,
            start=False,
            living=lambda: {"asia", "eu"} if next(looks) < 4 else {"asia"},
        )
        assert await alone.log.open_shards({SHARD: 1}) == {SHARD: None}
        await alone.close()
        gone.destroy()

    run(work())


def test_who_could_not_open_a_shard_says_why(
    servers: list[Server], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.log.bridge.ABLE_BEHIND_MAX", 2)

    async def work() -> None:
        here, near = some = await regions(servers[:2], prefix)
        await here.lead(1)
        assert await near.bridge.able(SHARD) == ""
        near.follow(here, 1)
        await here.say(ordered(1, 1))
        await in_step(here, near)
        for offset in range(2, 5):
            assert await near.bridge.able(SHARD) == ""
            near.bridge.follow({})
            await here.say(ordered(1, offset))
        assert await near.bridge.able(SHARD) == f"region `{here.name}` has it up to 1-4, ours to 1-1"
        near.follow(here, 1)
        await in_step(here, near)
        assert await near.bridge.able(SHARD) == ""
        gone = Server()  # nobody listens
        alone = await region(("asia", "us"), [servers[0], gone], 0, prefix, start=False)
        assert (await alone.bridge.able(SHARD)).startswith("region `us`: Redis at ")
        await alone.close()
        gone.destroy()
        await close(some)

    run(work())


def test_who_has_a_higher_epoch_elsewhere_is_told(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        await here.lead(5)
        other = (SHARD + 1) % SHARDS
        assert await there.lead(3, SHARD, other) == {SHARD: 5, other: None}
        await close(some)

    run(work())


def test_a_leader_that_was_replaced_replicates_nothing_more(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix, living=lambda: {"eu"})
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await here.ear.until(lambda: (1, True) in here.ear.numbers)
        await cut(there, here, lambda: there.lead(2))
        await here.say(ordered(1, 2))  # it does not know yet, and its region was not told
        there.bridge.followers["asia"].follow({SHARD: 1})
        await there.say(ordered(2, 2, b"other"))
        here.follow(there, 2)
        await here.ear.until(lambda: (2, 2) in here.ear.offsets)
        assert all(number <= 1 for number, _ in here.ear.numbers)
        assert here.ear.lost == [(SHARD, 1)]
        assert await same(some) == [(1, 1), (2, 2)]
        await close(some)

    run(work())


def test_sessions_and_bans_go_over_the_bridge(servers: list[Server], prefix: str) -> None:
    from router.log.port import Ban

    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        session = bytes([SHARD]) + b"x" * 15
        user = next(f"user:u{n}" for n in range(999) if is_of(f"user:u{n}", SHARD))
        await here.lead(1)
        await here.log.save(Changes({session: SessionChange(b"o", NOW_MS + 9_999, {"group:a": (1, 1)})}))
        there.follow(here, 1)
        await there.ear.until(lambda: (SHARD, 1) in there.ear.epochs)
        await here.log.save(Changes({session: SessionChange(None, None, {"group:a": (1, 7)})}, {user: Position(1, 5)}))
        await there.log.ban(Ban("bob", NOW_MS + 9_999, "spam", NOW_MS))
        await here.ear.until(lambda: here.ear.banned > 0)
        assert await here.log.bans() == await there.log.bans() != []

        async def is_there() -> bool:
            [found] = await there.log.sessions([session])
            return found is not None and found.channels == {"group:a": (1, 7)}

        await until(is_there)

        async def has_cursor() -> bool:
            return await there.log.cursors([user]) == [Position(1, 5)]

        await until(has_cursor)
        # A ban that is lifted in the other region is lifted here.
        await here.log.ban(Ban("bob", NOW_MS - 1, "spam", NOW_MS))
        await there.ear.until(lambda: there.ear.banned > 0)
        assert await here.log.bans() == await there.log.bans()
        await close(some)

    run(work())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_redis_that_is_killed_and_comes_back_loses_nothing(victim: int, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        for offset in range(1, 30):
            if offset == 10:
                await asyncio.to_thread(servers[victim].kill)
            if offset == 10 and victim == 0:
                await asyncio.to_thread(servers[victim].start)
            if offset == 20 and victim == 1:
                await asyncio.to_thread(servers[victim].start)
            await here.say(ordered(1, offset))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(29, True)])
        assert await again(lambda: same(some)) == [(1, offset) for offset in range(1, 30)]
        assert not there.ear.lost
        assert not here.ear.lost
        await close(some)

    with lasting(2) as servers:
        run(work(servers))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_leaders_redis_that_comes_back_empty_takes_nothing_from_other_regions(epoch: int, prefix: str) -> None:
    """Under an epoch of which it has nothing (2), or with batches that its leader cannot give again (1)."""

    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        for offset in range(1, 6):
            await here.say(ordered(1, offset))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(5, True)])
        if epoch == 2:
            await here.log.close_shards([SHARD])
            await here.lead(2)
            there.follow(here, 2)
            await there.ear.until(lambda: (SHARD, 2) in there.ear.epochs)
        else:
            kept_bytes_max, here.log.appender.kept_bytes_max = here.log.appender.kept_bytes_max, 0
            here.log.appender._forget()
            here.log.appender.kept_bytes_max = kept_bytes_max
        await asyncio.to_thread(servers[0].kill)
        await asyncio.to_thread(servers[0].start)  # it keeps nothing
        await here.say(ordered(epoch, 6))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(6, True)])
        assert await again(lambda: same(some)) == [(1, offset) for offset in range(1, 6)] + [(epoch, 6)]
        assert not there.ear.lost
        await close(some)

    with running(*FLEETING) as first, running(*FLEETING) as second:
        run(work([first, second]))


def test_a_leaders_redis_gets_back_what_it_lost_though_nothing_is_appended(prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(1, True)])
        await here.log.close_shards([SHARD])
        await here.lead(2)
        there.follow(here, 2)
        await asyncio.to_thread(servers[0].kill)
        await asyncio.to_thread(servers[0].start)  # it keeps nothing

        async def is_back() -> bool:
            return await again(here.at) == Position(1, 1)

        await until(is_back)
        assert await again(lambda: same(some)) == [(1, 1)]
        await close(some)

    with running(*FLEETING) as first, running(*FLEETING) as second:
        run(work([first, second]))


def test_what_no_region_that_is_there_has_is_given_up(prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix, living=set)
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(1, True)])
        await here.log.close_shards([SHARD])
        await here.lead(2)
        for server in servers:
            await asyncio.to_thread(server.kill)
        await asyncio.to_thread(servers[0].start)
        await here.say(ordered(2, 2))
        loaded = await again(here.history)
        assert [one.offset for one in log_records.entries(loaded.records)] == [2]
        await asyncio.to_thread(servers[1].start)
        await close(some)

    with running(*FLEETING) as first, running(*FLEETING) as second:
        run(work([first, second]))


def test_a_region_that_does_not_confirm_is_said_to_be_away_and_back(prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix)
        await here.lead(1)
        there.follow(here, 1)
        await here.say(ordered(1, 1))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(1, True)])
        await asyncio.to_thread(servers[1].kill)
        await here.say(ordered(1, 2))
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(1, False)])
        assert here.bridge.replicated.breakers() == {"eu": True}
        entries, seconds = here.bridge.replicated.lags()[SHARD, "eu"]
        assert entries == 1
        assert seconds > 0
        await asyncio.to_thread(servers[1].start)
        await here.ear.until(lambda: here.ear.numbers[-1:] == [(2, True)])
        assert here.bridge.replicated.lags()[SHARD, "eu"][0] == 0
        await close(some)

    with lasting(2) as servers:
        run(work(servers))


async def cut(one: Region, other: Region, work: object) -> None:
    """Do something in one region while the other's Redis does not answer it."""
    fence = one.bridge._sources[other.name].fence

    async def away(epochs: object) -> object:
        raise LogUnavailable("cut")

    one.bridge._sources[other.name].fence = away  # type: ignore[assignment,method-assign]
    await work()  # type: ignore[operator]
    one.bridge._sources[other.name].fence = fence  # type: ignore[method-assign]
