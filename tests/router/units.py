"""Routers for tests of who leads what: the real keeper and membership, over a directory; planes only listen."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from core import notes
from router.cluster import Cluster
from router.config import DirectoryConfig
from router.directory.port import Directory, now
from router.loads import Other
from router.log.port import LogUnavailable, Position, Standing
from router.shard_keeper import EPOCH_BITS, ShardKeeper, ShardLog
from router.shards.leadership import Leadership
from router.shards.roles import Settings

DEADLINE_S = 30.0
POLL_S = 0.002
SHARDS = 8
QUICK = Settings(shards=SHARDS, settle_s=0.05, patience_s=0.02, take_s=0.4, retry_s=0.05)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until something is so."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110  what is waited for tells nobody
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"it did not come about: {what}") from None


class Logs:
    """What the logs of several routers share: by shard the epoch, and records."""

    def __init__(self) -> None:
        self.epochs: dict[int, int] = {}
        self.records: dict[int, bytes] = {}
        self.globals: list[Standing] = []


class MemoryLog:
    """A log of one router."""

    def __init__(self, logs: Logs) -> None:
        self.logs = logs
        self.opened: list[dict[int, int]] = []
        self.closed: list[int] = []
        self.away = False
        self.reads = asyncio.Event()
        """Cleared: what is being read takes long, of all shards or of `slow` ones."""
        self.slow: set[int] | None = None
        self.reads.set()

    async def open_shards(self, epochs: Mapping[int, int]) -> dict[int, int | None]:
        if self.away:
            raise LogUnavailable("away")
        self.opened.append(dict(epochs))
        found: dict[int, int | None] = {}
        for shard, epoch in epochs.items():
            known = self.logs.epochs.get(shard, 0)
            found[shard] = known if known > epoch else None
            self.logs.epochs[shard] = max(known, epoch)
        return found

    async def recover_shards(self, shards: Collection[int]) -> AsyncIterator[bytes]:
        for shard in shards:
            if self.slow is None or shard in self.slow:
                await self.reads.wait()
            if shard in self.logs.records:
                yield self.logs.records[shard]

    async def standing(self, namespaces: Sequence[str]) -> list[Standing]:
        assert tuple(namespaces) == ("global",)
        return self.logs.globals

    async def close_shards(self, shards: Collection[int]) -> None:
        self.closed += shards


def standing(name: bytes) -> Standing:
    return Standing(name, Position(1, 1), 1)


class Plane:
    """A data plane that notes what it is told, and answers at once unless told otherwise."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, dict[str, Any]]] = []
        self.led: dict[int, int] = {}
        self.paused: set[int] = set()
        self.hold = 0.0
        self.forgets = True
        self.counts = [0] * SHARDS
        self.keeper: ShardKeeper | None = None
        self.others: list[Plane] = []

    def put(self, kind: int, **fields: Any) -> None:
        self.notes.append((kind, fields))
        shard = fields.get("request", 0)
        if kind == notes.LEAD:
            self.led[shard] = fields["first"] >> EPOCH_BITS
            self.paused.discard(shard)
            others = [one for one in self.others if one is not self and one.leads(shard)]
            assert not others, f"shard {shard} is led twice"
        elif kind == notes.PAUSE:
            self.paused.add(shard)
        elif kind == notes.SHARD_DRAIN:
            asyncio.get_running_loop().call_soon(self._drained, shard, fields["first"])
        elif kind == notes.FORGET:
            self.led.pop(shard, None)
            if self.forgets:
                asyncio.get_running_loop().call_soon(self.forgotten, shard)
        elif kind == notes.HOLD:
            self.hold = fields["first"] / 1000

    def leads(self, shard: int) -> bool:
        return shard in self.led and shard not in self.paused and now() < self.hold

    def leads_now(self) -> list[int]:
        return [shard for shard in sorted(self.led) if self.leads(shard)]

    def forgotten(self, shard: int) -> None:
        assert self.keeper is not None
        self.keeper.on_forgotten(shard)

    def _drained(self, shard: int, ticket: int) -> None:
        assert self.keeper is not None
        self.keeper.on_drained(shard, ticket)

    def told(self, *kinds: int) -> list[tuple[int, int]]:
        """Of these kinds, (kind, shard) in order."""
        return [(kind, fields.get("request", 0)) for kind, fields in self.notes if kind in kinds]


class Unit:
    """One router."""

    def __init__(
        self,
        node: str,
        directory: Directory,
        log: ShardLog | None = None,
        *,
        settings: Settings = QUICK,
        ttl_s: int = 5,
        weight: int = 1,
        region: str = "",
        address: str = "",
        publishers: Callable[[], Mapping[str, Sequence[int]]] = dict,
        able: Callable[[int], Awaitable[str]] | None = None,
        others: Callable[[], Mapping[str, Other]] = dict,
    ) -> None:
        self.plane = Plane()
        self.follows: list[dict[int, tuple[str, int]]] = []
        self.flushed: list[float] = []
        self.led: list[tuple[int, int]] = []
        self.stopped: list[int] = []
        self.flushes = True
        self.directory = directory
        config = DirectoryConfig(
            endpoints=(),
            shards=settings.shards,
            ttl_s=ttl_s,
            weight=weight,
            address=address or f"at {node}",
            region=region,
        )
        self.keeper = ShardKeeper(
            Leadership(node, settings),
            directory,
            log,
            self.plane.put,
            flush=self._flush,
            led=lambda shard, epoch: self.led.append((shard, epoch)),
            stopped=self.stopped.append,
            follow=self._follow,
            able=able,
        )
        self.plane.keeper = self.keeper
        self.cluster = Cluster(
            node, config, directory, self.keeper, lambda: self.plane.counts, publishers, others=others
        )
        self.running: asyncio.Task[Any] | None = None

    def _follow(self, shards: frozenset[int], leaders: Mapping[int, tuple[str, int]]) -> None:
        assert shards == leaders.keys()
        assert not shards & self.plane.led.keys(), "what is led here is not followed"
        self.follows.append(dict(leaders))

    async def _flush(self, deadline_s: float) -> bool:
        self.flushed.append(deadline_s)
        return self.flushes

    async def start(self) -> "Unit":
        await self.cluster.open()
        self.running = asyncio.create_task(self.cluster.run())
        return self

    async def end(self, *, give_back: bool = True) -> None:
        """End it, with its lease or, as if killed, without."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait({self.running})
        await self.keeper.close()
        await self.cluster.close(give_back=give_back)


def know_each_other(*units: Unit) -> None:
    """Have each of them look that nobody else leads what it comes to lead."""
    for unit in units:
        unit.plane.others = [one.plane for one in units]


def share(units: Sequence[Unit]) -> list[int]:
    """How many shards each leads, if all are led and each once; else nothing."""
    led = [shard for unit in units for shard in unit.plane.leads_now()]
    return [len(unit.plane.leads_now()) for unit in units] if sorted(led) == list(range(SHARDS)) else []
