"""Regions for tests of the bridge: each a Redis, a log and a bridge, and what the data plane would hear."""

import asyncio
from collections.abc import Callable, Sequence

from core import log_records
from core.shards import byte_of
from router.log.bridge import Bridge, Heard
from router.log.port import Loaded, Position
from router.log.redis_shared import SharedRedisLog
from tests.router.log.conftest import append
from tests.router.log.redis_records import message, now_ms
from tests.servers.redis import Server

SHARDS = 8
SHARD_AT = 7
CHANNEL = "group:a"
SHARD = byte_of(CHANNEL.encode()) % SHARDS
NAMES = ("asia", "eu", "us")
SEEDS = b"s" * 48


def ordered(epoch: int, offset: int, body: bytes = b"", channel: str = CHANNEL, **fields: object) -> bytes:
    """A record as the leader of its shard makes it."""
    record = bytearray(message(channel, epoch << 24, offset, body or b"%d" % offset, **fields))
    record[SHARD_AT] = byte_of(channel.encode()) % SHARDS
    return bytes(record)


def is_of(channel: str, shard: int) -> bool:
    return byte_of(channel.encode()) % SHARDS == shard


class Ear(Heard):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.offsets: list[tuple[int, int]] = []
        """Epoch and offset of each record of a followed shard."""
        self.epochs: list[tuple[int, int]] = []
        self.numbers: list[tuple[int, bool]] = []
        self.led: list[int] = []
        self.lost: list[tuple[int, int]] = []
        self.banned = 0
        self.copies: list[int] = []
        self.something = asyncio.Event()

    def records(self, shard: int, records: bytes) -> None:
        self.offsets += [(one.epoch >> 24, one.offset) for one in log_records.entries(records)]
        self.something.set()

    abroad = records

    def epoch(self, shard: int, epoch: int) -> None:
        self.epochs.append((shard, epoch))
        self.something.set()

    def replicated(self, number: int, confirming: bool) -> None:
        self.numbers.append((number, confirming))
        self.something.set()

    def led_replicated(self, shard: int) -> None:
        self.led.append(shard)
        self.something.set()

    def dropped(self, shard: int, count: int) -> None:
        self.lost.append((shard, count))
        self.something.set()

    def copied(self, shard: int) -> None:
        self.copies.append(shard)
        self.something.set()

    def bans(self) -> None:
        self.banned += 1
        self.something.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until what was heard makes it so; the test's deadline ends it else."""
        while not is_so():
            self.something.clear()
            await self.something.wait()


class Region:
    """One of some: its log is open, its bridge runs."""

    def __init__(self, name: str, server: Server, log: SharedRedisLog, bridge: Bridge, ear: Ear) -> None:
        self.name = name
        self.server = server
        self.log = log
        self.bridge = bridge
        self.ear = ear
        self.number = 0
        self.before: dict[int, tuple[str, int]] = {}
        """Where shards were led last, as the directory would say."""

    async def lead(self, epoch: int, *shards: int) -> dict[int, int | None]:
        """Lead these shards."""
        found = await self.log.open_shards(dict.fromkeys(shards or [SHARD], epoch))
        for shard in shards or [SHARD]:
            self.bridge.replicated.led(shard)
            self.before[shard] = (self.name, epoch)
        return found

    async def say(self, *records: bytes) -> int:
        """Append a chunk, as the router does it; its number."""
        self.number += 1
        data = b"".join(records)
        self.bridge.replicated.on_batch(self.number, data)
        await append(self.log, data)
        return self.number

    def follow(self, leader: "Region", epoch: int, *shards: int) -> None:
        led = dict.fromkeys(shards or [SHARD], (leader.name, epoch))
        self.before |= led
        self.bridge.follow(led)

    async def history(self, channel: str = CHANNEL) -> Loaded:
        [loaded] = await self.log.load([channel.encode()], messages=True)
        return loaded

    async def at(self, shard: int = SHARD) -> Position:
        [(_, position)] = await self.bridge.store.where([shard])
        return position

    async def close(self) -> None:
        await self.bridge.close()
        await self.log.close()


async def region(
    names: Sequence[str],
    servers: Sequence[Server],
    place: int,
    prefix: str,
    *,
    living: Callable[[], set[str]] | None = None,
    entries: int = 1024,
    catchup_bytes_s: int = 0,
    start: bool = True,
    ear: Callable[[], Ear] = Ear,
) -> Region:
    """One of these regions."""
    hears = ear()
    log = SharedRedisLog(
        servers[place].url, shards=SHARDS, prefix=prefix, clock_ms=now_ms, bridge_entries=entries, seeds=SEEDS
    )
    await log.open(1)
    others = {name: server.url for name, server in zip(names, servers, strict=True) if name != names[place]}
    bridge = Bridge(
        log,
        names[place],
        servers[place].url,
        others,
        hears,
        living=living or (lambda: set(names)),
        catchup_bytes_s=catchup_bytes_s,
    )
    if start:
        bridge.start()
    made = Region(names[place], servers[place], log, bridge, hears)
    bridge._before = made.before.get
    return made


async def regions(servers: Sequence[Server], prefix: str, **options: object) -> list[Region]:
    """As many regions as there are servers."""
    names = NAMES[: len(servers)]
    return [await region(names, servers, place, prefix, **options) for place in range(len(servers))]  # type: ignore[arg-type]


async def close(some: Sequence[Region]) -> None:
    for one in some:
        await one.close()
