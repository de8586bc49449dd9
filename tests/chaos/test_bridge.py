"""The bridge between three regions by chance: connections, Redises and leaders come and go, and no process is needed.

What a region confirmed to a leader is in every region's history in the end, each message is told once and in order to
each follower's data plane, and all histories are the same. What became of a session at one leader, the next one knows
that it gives the shard to. A seed is a run but for what the kernel makes of it.
"""

import asyncio
import random
from collections.abc import Iterator

import pytest

from core import log_records
from router.log.port import Changes, LogUnavailable, Position, SessionChange
from tests.chaos.rounds import FULL, SEED
from tests.router.log.conftest import again, until
from tests.router.log.redis_records import NOW_MS
from tests.router.log.regions import SHARD, Ear, Region, close, ordered, regions
from tests.servers.redis import ALWAYS, Server, running

SEEDS = 300 if FULL else 4
DEADLINE_S = 120.0
OPERATIONS = (
    *["say"] * 3,
    *["act"] * 3,
    *["disconnect"] * 2,
    "move",
    "leave",
    "back",
    "cut",
    "restart",
    "empty",
    "pause",
)
Entry = tuple[int, int]
SESSION = bytes([SHARD]) + b"x" * 15


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    """Three, which have all again that they answered."""
    with running(*ALWAYS) as first, running(*ALWAYS) as second, running(*ALWAYS) as third:
        yield [first, second, third]


class DataPlane(Ear):
    """Hears of a shard from when all of it is there, as router/bridging.py has it, and begins anew where it has to."""

    def __init__(self) -> None:
        super().__init__()
        self.follows = False

    def begin_anew(self) -> None:
        self.follows = False
        self.offsets.clear()

    def records(self, shard: int, records: bytes) -> None:
        if self.follows:
            super().records(shard, records)

    def live(self, shard: int) -> None:
        self.follows = True

    def copied(self, shard: int) -> None:
        self.begin_anew()

    def dropped(self, shard: int, count: int) -> None:
        self.begin_anew()


class Chance:
    """One run.

    Args:
        seed: of what happens.
        servers: one a region.
        some: the regions.

    """

    def __init__(self, seed: int, servers: list[Server], some: list[Region]) -> None:
        self.chance = random.Random(f"bridge/{seed}")
        self.servers = servers
        self.some = some
        self.leader = some[0]
        self.epoch = 1
        self.offset = 0
        self.away: Region | None = None
        self.story: list[str] = []
        self.waits: dict[int, list[Entry]] = {}
        """What the leader's chunks have, until they are replicated."""
        self.replicated: set[Entry] = set()
        self.channels: dict[str, tuple[int, int]] | None = None
        """Where the session is, as was stored; None: it begins anew, since a leader began without what was there."""

    def others(self) -> list[Region]:
        return [one for one in self.some if one is not self.leader]

    async def run(self) -> None:
        await self.lead(self.leader)
        for _ in range(self.chance.randint(10, 40)):
            operation = self.chance.choice(OPERATIONS)
            self.story.append(f"{operation} {self.leader.name} {self.epoch} {self.offset}")
            await getattr(self, operation)()
        if self.away is not None:
            await self.back()
        number = await self.say_some(1)
        await until(self.are_in_step)
        await self.leader.ear.until(lambda: any(one >= number for one, _ in self.leader.ear.numbers))
        self.harvest()
        await self.check()

    async def check(self) -> None:
        found = []
        for one in self.some:
            loaded = await again(one.history)
            found.append([(entry.epoch >> 24, entry.offset) for entry in log_records.entries(loaded.records)])
            told = one.ear.offsets
            assert told == sorted(set(told)), "each once and in order"
        assert found[0] == found[1] == found[2]
        assert found[0] == sorted(set(found[0]))
        assert self.replicated <= set(found[0])
        assert self.replicated
        for one in self.some:
            await until(lambda one=one: self.has_session(one))  # type: ignore[misc]

    async def are_in_step(self) -> bool:
        where = [await again(one.at) for one in self.some]
        return where[0] == where[1] == where[2] != Position(0, 0)

    def harvest(self) -> None:
        """What was told to be replicated by now."""
        newest = max((number for number, _ in self.leader.ear.numbers), default=0)
        for number in [number for number in self.waits if number <= newest]:
            self.replicated.update(self.waits.pop(number))

    # ---- leaders

    async def has_session(self, one: Region) -> bool:
        """Whether a region has the session as it is."""
        if self.channels is None:
            return True
        [found] = await again(lambda: one.log.sessions([SESSION]))
        return found is not None and found.channels == self.channels

    async def lead(self, one: Region) -> None:
        one.bridge.follow({})
        one.ear.begin_anew()  # type: ignore[attr-defined]
        while True:
            try:
                assert await one.lead(self.epoch) == {SHARD: None}
                break
            except LogUnavailable:
                await asyncio.sleep(0.05)
        self.leader = one
        for other in self.others():
            other.follow(one, self.epoch)

    async def give_up(self, one: Region) -> None:
        """What waits then is left to the next leader (core/replicating)."""
        self.harvest()
        self.waits.clear()
        await one.log.close_shards([SHARD])

    async def move(self) -> None:
        if self.away is None:
            await self.give_up(self.leader)
            self.epoch += 1
            await self.lead(self.chance.choice(self.some))
            assert await self.has_session(self.leader), f"epoch {self.epoch}: {self.channels}"

    async def cut(self) -> None:
        """The leader's region is heard of by nobody, and goes on for a while; another one leads."""
        if self.away is not None:
            return
        former, heir = self.leader, self.chance.choice(self.others())
        for one in self.others():
            one.bridge.follow({})
            one.ear.begin_anew()  # type: ignore[attr-defined]
        source = heir.bridge._sources[former.name]
        living, fence = heir.bridge._living, source.fence

        async def cut(epochs: object) -> object:
            raise LogUnavailable("cut")

        source.fence = cut  # type: ignore[method-assign,assignment]
        heir.bridge._living = lambda: {one.name for one in self.some if one is not former}
        for _ in range(self.chance.choice((0, 1, 5))):
            await self.say_some(1)
        self.harvest()
        self.waits.clear()
        self.epoch += 1
        self.channels = None
        await self.lead(heir)
        source.fence, heir.bridge._living = fence, living  # type: ignore[method-assign]
        loaded = await again(heir.history)
        self.offset = max((one.offset for one in log_records.entries(loaded.records)), default=0)
        if self.chance.random() < 0.5:
            await self.say_some(1)
        await former.log.close_shards([SHARD])

    # ---- everything else

    async def say(self) -> None:
        for _ in range(self.chance.choice((1, 1, 5, 40))):
            await self.say_some(self.chance.choice((1, 1, 3)))

    async def say_some(self, count: int) -> int:
        said = [(self.epoch, self.offset + more) for more in range(1, count + 1)]
        self.offset += count
        self.waits[self.leader.number + 1] = said
        return await self.leader.say(*(ordered(*one, b"%d-%d" % one, key=one) for one in said))

    async def act(self) -> None:
        """Joins, leaves and acknowledgements, each stored."""
        for _ in range(self.chance.choice((1, 1, 5, 40))):
            change = SessionChange()
            if self.channels is None:
                change = SessionChange(b"o", NOW_MS + 9_999_999, ended=True)
                self.channels = {}
            name = f"group:{self.chance.randint(1, 4)}"
            at = self.channels.get(name)
            if at is not None and self.chance.random() < 0.4:
                change.put(name, None)
                del self.channels[name]
            else:
                self.channels[name] = (1, self.chance.randint(1, 99)) if at is None else (1, at[1] + 1)
                change.put(name, self.channels[name], joined=at is None)
            leader, changes = self.leader, Changes({SESSION: change})
            await again(lambda leader=leader, changes=changes: leader.log.save(changes))  # type: ignore[misc]

    async def pause(self) -> None:
        await asyncio.sleep(self.chance.random() * 0.1)

    async def disconnect(self) -> None:
        kind = self.chance.choice(("pubsub", "normal"))
        self.chance.choice(self.servers).do("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def restart(self) -> None:
        server = self.chance.choice(self.servers)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    async def empty(self) -> None:
        """A Redis comes back with nothing, while the others have it all."""
        if self.away is not None or self.offset == 0:
            return
        await until(self.are_in_step)
        self.channels = None
        one = self.chance.choice(self.some)
        if one is not self.leader:
            one.ear.begin_anew()  # type: ignore[attr-defined]
        for key in one.server.do("KEYS", one.log.keys.root.decode().partition("log")[0] + "*"):
            one.server.do("DEL", key)
        for kind in ("pubsub", "normal"):
            one.server.do("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def leave(self) -> None:
        if self.away is None:
            self.away = self.chance.choice(self.others())
            self.away.bridge.follow({})
            self.away.ear.begin_anew()  # type: ignore[attr-defined]

    async def back(self) -> None:
        if self.away is not None:
            self.away.follow(self.leader, self.epoch)
            self.away = None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS))
def test_what_was_confirmed_stays_and_all_regions_have_the_same(seed: int, servers: list[Server]) -> None:
    async def work() -> None:
        some = await regions(servers, f"chance{seed}:", ear=DataPlane)
        one = Chance(seed, servers, some)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await one.run()
        except BaseException as error:
            error.add_note(f"seed {seed}: {'; '.join(one.story)}")
            raise
        await close(some)

    asyncio.run(work())
