"""What the supervisor knows of the cluster: which routers there are, which shards each leads, and what is to come.

It watches the directory by itself, so that every node can tell of all, also one without a router. It decides nothing:
routers do (`router.shards.leadership`), from the same keys.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from core.owned import ACCOUNT
from gateway import logs
from gateway.cluster_config import RouterLink, link_of
from router.directory.port import Directory, DirectoryError, Reach, Snapshot
from router.loads import Load, read
from router.shards.following import followers_of
from router.shards.placement import follower, place
from router.shards.records import NODES, ShardRecord
from router.shards.view import Table, View

RETRY_S = 0.5
STOP_DEADLINE_S = 5.0

_log = logs.get("supervisor")


class ClusterView:
    """The directory's keys about nodes and shards, as they are now.

    Args:
        directory: where they are.
        shards: how many there are.
        placement: see `router.shards.placement.placement_of`.
        probe_s: how often to ask it something, so that its absence is noticed.

    """

    def __init__(
        self, directory: Directory, shards: int, probe_s: float = 3.0, placement: tuple[str, ...] = ()
    ) -> None:
        self.directory = directory
        self.shards = shards
        self.view = View()
        self.on_change: list[Callable[[], None]] = []
        """Called after each change."""
        self._probe_s = probe_s
        self._placement = placement
        self._tasks: list[asyncio.Task[None]] = []
        self._watches: list[asyncio.Task[None]] = []
        self._read_once = asyncio.Event()
        self._said = ""

    def start(self) -> None:
        """Watch from now on."""
        self._watch_all()
        self._tasks.append(ACCOUNT.task(self._probe(), "probe of the directory"))

    def _watch_all(self) -> None:
        tables = self.view.tables.values()
        self._watches = [ACCOUNT.task(self._follow(table), f"watch of {table.prefix}") for table in tables]

    async def close(self) -> None:
        """Watch no more. The directory stays whose it is."""
        tasks = self._tasks + self._watches
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_DEADLINE_S)
        self._tasks, self._watches = [], []

    async def until_ready(self, deadline_s: float) -> bool:
        """Whether everything was read once within that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._read_once.wait()
        return self._read_once.is_set()

    def reachable(self) -> Reach:
        """Whether the directory answers."""
        return self.directory.reachable()

    # --------------------------------------------------------------------------------------------------- what it shows

    def routers(self) -> tuple[RouterLink, ...]:
        """The routers that live and say how they are reached, by name."""
        found = (
            link_of(name, seen.revision, seen.record.address, seen.record.region)
            for name, seen in sorted(self.view.nodes.items())
            if seen.record is not None and seen.record.weight > 0
        )
        return tuple(link for link in found if link is not None)

    def record(self, shard: int) -> ShardRecord | None:
        """What the key of a shard says, whether or not its leader lives."""
        return self.view.shards.get(str(shard)).record

    def leader(self, shard: int) -> RouterLink | None:
        """The router that leads a shard, if it lives."""
        record = self.record(shard)
        if record is None or record.node_epoch not in self.view.alive:
            return None
        node = self.view.nodes.get(record.node).record
        return None if node is None else link_of(record.node, record.node_epoch, node.address, node.region)

    def leaders(self) -> list[str | None]:
        """By shard, the name of its leader; None: nobody that lives leads it."""
        records = (self.record(shard) for shard in range(self.shards))
        return [self.view.alive.get(record.node_epoch) if record is not None else None for record in records]

    def wanted(self) -> list[str | None]:
        """By shard, the router that it is to be with in the end."""
        view = self.view
        return place(self.leaders(), view.weights(), view.pinned(), view.preferred(self._placement))

    def followers(self, loads: Mapping[str, Load]) -> list[dict[str, str | None]]:
        """By shard and region other than its leader's, the router there that follows it; None: nobody.

        Args:
            loads: the regions of which a leader told are those where its shards are followed.

        """
        there = {name: followers_of(self.view, name) for load in loads.values() for name in load.others}
        others = {name: load.others for name, load in loads.items()}
        return [
            {name: follower(shard, there[name]) for name in others.get(leader or "", ())}
            for shard, leader in enumerate(self.leaders())
        ]

    async def loads(self, deadline_s: float) -> Mapping[str, Load]:
        """What the routers that live wrote last, by name; of none, if the directory does not tell in time."""
        with contextlib.suppress(DirectoryError, TimeoutError):
            async with asyncio.timeout(deadline_s):
                return await read(self.directory, self.view.alive)
        return {}

    # ------------------------------------------------------------------------------------------------------- following

    async def _follow(self, table: Table[object]) -> None:
        while True:
            try:
                snapshot = await self.directory.read(table.prefix)
                self._said = ""
                self._take(table, snapshot)
                watch = self.directory.watch(table.prefix, snapshot.revision)
                async with contextlib.aclosing(watch):  # no deadline: its end is that of the watch, which is at once
                    async for told in watch:  # no deadline: for as long as nothing changes
                        self._take(table, told)
            except DirectoryError as error:
                if str(error) != self._said:  # once for all tables, not twice a second for each
                    self._said = str(error)
                    _log.warning("directory_not_read", prefix=table.prefix, error=self._said)
                await asyncio.sleep(RETRY_S)

    def _take(self, table: Table[object], told: object) -> None:
        if isinstance(told, Snapshot):
            table.snapshot(told.revision, told.items)
        else:
            table.change(told.revision, told.changes)  # type: ignore[attr-defined]
        if table.prefix == NODES:
            self.view.count_nodes()
        for text in self.view.complaints():
            _log.error("directory_key", why=text)
        if self.view.ready():
            self._read_once.set()
        for act in self.on_change:
            act()

    async def _probe(self) -> None:
        """Ask it something now and then: a connection that stands still tells nothing by itself."""
        while True:
            known = max(table.reached for table in self.view.tables.values())
            with contextlib.suppress(DirectoryError):
                found = await self.directory.page(NODES, "", 1)
                if found.revision < known:
                    await self._begin_anew(known, found.revision)
            await asyncio.sleep(self._probe_s)

    async def _begin_anew(self, known: int, revision: int) -> None:
        """It is another directory than it was, emptied or of a backup: what watches wait for is far ahead there."""
        _log.error("directory_went_back", known=known, revision=revision)
        for task in self._watches:
            task.cancel()
        await asyncio.wait(self._watches, timeout=STOP_DEADLINE_S)
        self.view = View()
        self._watch_all()
