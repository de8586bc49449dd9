"""Copies of whole shards."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from router.log.bridge_copy import TOGETHER_S, copy_shards
from router.log.bridge_follow import catch_up
from router.log.bridge_source import Source
from router.log.bridge_store import Followed
from router.log.port import Changes, LogDeposed, LogUnavailable, Position, SessionChange
from tests.router.log.conftest import run
from tests.router.log.redis_records import NOW_MS
from tests.router.log.regions import CHANNEL, SHARD, SHARDS, Region, close, ordered, regions
from tests.servers.redis import Server, running


def test_a_shard_is_as_it_is_there_and_what_was_here_is_gone(
    redis_server: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix, start=False)
        await there.lead(9)
        session = bytes([SHARD]) + b"x" * 15
        for offset in range(1, 70):
            await there.say(ordered(9, offset, key=(3, offset)))
        await there.log.save(Changes({session: SessionChange(b"o", NOW_MS + 9_999, {CHANNEL: (1, 1)})}))
        other = next(f"group:x{n}" for n in range(999) if here.log.keys.shard_of(b"group:x%d" % n) == SHARD)
        untouched = next(f"group:x{n}" for n in range(999) if here.log.keys.shard_of(b"group:x%d" % n) != SHARD)
        # As if the two had been apart: what is here now, nobody has there.
        here.log.bridge = None
        await here.log.open_shards(dict.fromkeys(range(SHARDS), 10))
        await here.log.append(ordered(10, 1, channel=other) + ordered(10, 1, channel=untouched))
        await here.log.append(ordered(10, 3) + ordered(10, 4))
        await there.log._fence_shards({SHARD: 11})
        source = Source("eu", servers[1].url, here.log.keys)
        sizes: list[int] = []

        async def pace(size: int) -> None:
            sizes.append(size)

        one = Followed(SHARD, 11)
        await copy_shards(source, here.bridge.store, [one], pace)
        assert sum(sizes) > 0
        assert here.ear.lost == [(SHARD, 3)]
        said = f"{CHANNEL} {10 << 24}-3, {CHANNEL} {10 << 24}-4, {other} {10 << 24}-1"
        assert f"shard {SHARD}: 3 messages that only this region had were dropped, since another" in caplog.text
        assert caplog.text.count(said) == 1
        assert one.at == Position(9, 69)
        assert await here.at() == Position(9, 69)
        assert await here.history() == await there.history()
        assert (await here.history(other)).position == Position(0, 0)
        assert (await here.history(untouched)).position == Position(10 << 24, 1)
        assert await here.log.sessions([session]) == await there.log.sessions([session])
        assert [one async for one in here.log.recover_shards([SHARD])] == [
            one async for one in there.log.recover_shards([SHARD])
        ]
        later = Followed(SHARD, 12)
        assert await copy_shards(source, here.bridge.store, [later], pace) == 0, "nobody has opened it there yet"
        await source.close()
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def joined(channels: dict[str, tuple[int, int] | None], session: bytes) -> Changes:
    return Changes({session: SessionChange(b"o", NOW_MS + 99_999_999, channels)})


class Interrupted(Source):
    """Between what is read and what is made of it, something happens."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def dump(self, names: Sequence[bytes]) -> list[tuple[bytes, int, bytes]]:
        found = await super().dump(names)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return found


@pytest.mark.parametrize("who", ["follower", "leader"])
def test_what_another_router_did_meanwhile_is_not_put_back(redis_server: Server, prefix: str, who: str) -> None:
    """Two routers of a region follow a shard for a moment, or one copies what the other takes over."""
    session = bytes([SHARD]) + b"x" * 15

    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix, start=False)
        await there.lead(9)
        await there.say(ordered(9, 1))
        await there.log.save(joined({CHANNEL: (1, 1), "group:left": (1, 1)}, session))
        source = Interrupted("eu", servers[1].url, here.log.keys)
        store = here.bridge.store

        async def follower() -> None:
            await there.log.save(joined({"group:left": None}, session))
            await there.say(ordered(9, 2))
            one = Followed(SHARD, 9)
            await store.load([one], "eu")
            assert one.at is not None
            page = (await source.pages({SHARD: (one.at, one.states_at)}, 9))[SHARD]
            await store.repeat([(one, entry) for entry in page.entries])
            await store.repeat_states("eu", [(one, state) for state in page.states])

        async def leader() -> None:
            here.log.bridge = None
            await here.log.open_shards({SHARD: 10})
            await here.log.append(ordered(10, 1))
            await here.log.save(joined({CHANNEL: (1, 1)}, session))

        source.meanwhile = follower if who == "follower" else leader
        one = Followed(SHARD, 9)
        assert await copy_shards(source, store, [one], _at_once) == 0
        assert one.at is None
        [stored] = await here.log.sessions([session])
        assert stored is not None
        assert set(stored.channels) == {CHANNEL}
        assert (await here.history()).position == (Position(9 << 24, 2) if who == "follower" else Position(10 << 24, 1))
        if who == "follower":
            assert await copy_shards(source, store, [one], _at_once) > 0
            assert one.at == Position(9, 2)
            assert await here.history() == await there.history()
            assert await here.log.sessions([session]) == await there.log.sessions([session])
        await source.close()
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


@pytest.mark.parametrize("what", ["message", "session"])
def test_nothing_is_taken_from_a_leader_of_before_while_a_shard_is_copied(
    redis_server: Server, prefix: str, what: str
) -> None:
    """Its region was cut off when another took the shard: nobody has told its Redis."""
    session = bytes([SHARD]) + b"x" * 15

    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix, start=False)
        await there.lead(9)
        await there.say(ordered(9, 1))
        here.log.bridge = None
        await here.log.open_shards({SHARD: 10})
        await there.log._fence_shards({SHARD: 11})
        source = Interrupted("eu", servers[1].url, here.log.keys)
        met: list[type[BaseException]] = []

        async def deposed() -> None:
            try:
                if what == "message":
                    await here.log.append(ordered(10, 1))
                else:
                    await here.log.save(joined({CHANNEL: (1, 1)}, session))
            except LogDeposed as error:
                met.append(type(error))

        source.meanwhile = deposed
        assert await copy_shards(source, here.bridge.store, [Followed(SHARD, 11)], _at_once) > 0
        assert met == ([LogDeposed] if what == "message" else [])
        assert await here.at() == Position(9, 1)
        assert await here.history() == await there.history()
        assert await here.log.sessions([session]) == [None]
        await source.close()
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


def test_a_redis_that_was_connected_to_anew_may_have_lost_what_a_copy_brought(
    redis_server: Server, prefix: str
) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix, start=False)
        await there.lead(9)
        await there.say(ordered(9, 1))
        source = Interrupted("eu", servers[1].url, here.log.keys)
        store = here.bridge.store

        async def connects() -> None:
            (await store._nodes.link(0)).drop("its server begins anew")

        source.meanwhile = connects
        one = Followed(SHARD, 9)
        assert await copy_shards(source, store, [one], _at_once) == 0
        assert (one.at, await here.at()) == (None, Position(0, 0))
        assert await store.partial([SHARD]) == {SHARD}
        assert await copy_shards(source, store, [one], _at_once) > 0
        assert await here.history() == await there.history()
        await source.close()
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


async def ends_early(source: Interrupted, here: Region, one: Followed) -> None:
    """A copy brings the channel, and then the other region is lost."""

    async def is_away() -> None:
        if (await here.history()).position == Position(9 << 24, 3):
            raise LogUnavailable("the region is lost")
        source.meanwhile = is_away

    source.meanwhile = is_away
    with pytest.raises(LogUnavailable, match="the region is lost"):
        await copy_shards(source, here.bridge.store, [one], _at_once)


@pytest.mark.parametrize("then", ["follows", "leads"])
def test_a_copy_that_did_not_come_to_its_end_is_made_again(redis_server: Server, prefix: str, then: str) -> None:
    """Else what it brought stays here, though whoever leads next has dropped it."""
    session = bytes([SHARD]) + b"x" * 15

    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix, start=False)
        await there.lead(9)
        await there.say(ordered(9, 1), ordered(9, 2))
        source = Interrupted("eu", servers[1].url, here.log.keys)
        store = here.bridge.store
        one = Followed(SHARD, 9)
        await store.load([one], "eu")
        assert (await catch_up(source, store, [one], 99))[2] == []
        assert one.at == Position(9, 1)
        await there.say(ordered(9, 3))
        await there.log.save(joined({CHANNEL: (1, 1)}, session))
        await ends_early(source, here, one)
        assert await here.bridge.able(SHARD) == "a copy of it from another region has not come to its end here"
        # What stands for a third region, which leads without the last of these.
        assert await there.bridge.store.undo(Followed(SHARD, 10), Position(9, 1), 10)
        if then == "follows":
            one = Followed(SHARD, 10)
            await store.load([one], "eu")
            assert one.partial
            _, _, whole = await catch_up(source, store, [one], 99)
            assert whole == [one]
            assert await copy_shards(source, store, whole, _at_once) > 0
            assert (one.at, one.partial) == (Position(9, 1), False)
        else:
            assert await here.lead(11) == {SHARD: None}
        assert await here.history() == await there.history()
        assert (await here.history()).position == Position(9 << 24, 2)
        assert await store.partial([SHARD]) == set()
        await source.close()
        await close(some)

    with running() as second:
        run(work([redis_server, second]))


async def _at_once(size: int) -> None:
    """No pace."""


def test_who_would_be_copied_late_is_left_for_another_time(redis_server: Server, prefix: str) -> None:
    async def work(servers: list[Server]) -> None:
        here, there = some = await regions(servers, prefix, start=False)
        shards = [0, 1, 2]
        await there.lead(9, *shards)
        source = Source("eu", servers[1].url, here.log.keys)
        channels = {here.log.keys.shard_of(b"group:x%d" % n): f"group:x{n}" for n in range(999)}
        await there.say(*(ordered(9, 1, channel=channels[shard]) for shard in shards))
        now = 0.0

        async def slow(size: int) -> None:
            nonlocal now
            now += TOGETHER_S / 2

        followed = [Followed(shard, 9) for shard in shards]
        await copy_shards(source, here.bridge.store, followed, slow, lambda: now)
        assert [one.at for one in followed] == [Position(9, 1), Position(9, 1), None]
        await source.close()
        await close(some)

    with running() as second:
        run(work([redis_server, second]))
