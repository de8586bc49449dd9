"""A node with workers as a member of the cluster: it is registered, and its workers know which routers there are.

`nodes/<node>.gw` lives from before the first worker starts until the last one has sent its clients away, so that what
is claimed for connections of this node ends with it. When the lease is lost all the same, the node registers anew: its
claims are over, its connections are not, and are claimed again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

import msgspec

from core.commands import CommandError
from core.owned import ACCOUNT
from gateway import logs
from gateway.child import Child
from gateway.child_process import ChildProcess
from gateway.cluster_config import GATEWAY_UNIT, RouterLink
from gateway.cluster_view import ClusterView
from gateway.evacuation import Away
from gateway.regions import away_from
from router.agreement import agree, obstacle
from router.directory.port import DirectoryError, Registration, Unavailable, now
from router.shards.records import NODES, NodeRecord, encode

TELL_PERIOD_S = 1.0
TELL_DEADLINE_S = 2.0
RETRY_S = 1.0
STOP_DEADLINE_S = 6.0

_log = logs.get("supervisor")


class Membership:
    """Registers a node's workers, and tells them of routers.

    Args:
        cluster: what is known of the cluster.
        node: name of the node.
        address: what others are told of it.
        ttl_s: of the lease.
        workers: the places of its workers.
        bus_key: public key of the bus that they have; empty: none.
        region: where it is; empty: there are no regions.

    """

    def __init__(
        self,
        cluster: ClusterView,
        node: str,
        address: str,
        ttl_s: int,
        workers: Callable[[], Iterable[Child]],
        bus_key: str = "",
        *,
        region: str = "",
    ) -> None:
        self.unit = node + GATEWAY_UNIT
        self._cluster = cluster
        self._address = address
        self._waits = ""
        self._region = region
        self._ttl_s = ttl_s
        self._workers = workers
        self._bus_key = bus_key
        self._agreed = False
        self._strangers: tuple[str, ...] = ()
        self._registration: Registration | None = None
        self._changed = asyncio.Event()
        self._told: WeakKeyDictionary[ChildProcess, tuple[RouterLink, ...]] = WeakKeyDictionary()
        self._ordered: WeakKeyDictionary[ChildProcess, Away | None] = WeakKeyDictionary()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def epoch(self) -> int:
        """Of this life in the directory; 0: there is none now."""
        registration = self._registration
        return 0 if registration is None or registration.lost.is_set() else registration.identity.epoch

    def lease_s(self) -> float:
        """For how long the lease certainly lives on; 0: there is none, or that is not known."""
        registration = self._registration
        if registration is None or registration.lost.is_set():
            return 0.0
        return max(0.0, registration.held_until() - now())

    def linked(self, process: ChildProcess) -> int | None:
        """How many routers a process was told of; None: it has not heard yet."""
        told = self._told.get(process)
        return None if told is None else len(told)

    def start(self) -> None:
        """Register, and tell the workers, from now on."""
        self._cluster.on_change.append(self._changed.set)
        self._tasks = [
            ACCOUNT.task(self._keep(), f"registration of {self.unit}"),
            ACCOUNT.task(self._tell(), "telling workers of routers"),
        ]

    async def close(self) -> None:
        """Give the lease back; the workers have ended."""
        self._cluster.on_change.remove(self._changed.set)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_DEADLINE_S)
        if self._registration is not None:
            with contextlib.suppress(DirectoryError, TimeoutError):
                async with asyncio.timeout(STOP_DEADLINE_S):
                    await self._registration.close()
            self._registration = None

    async def _keep(self) -> None:
        """One registration after another; what ends one is said."""
        while True:
            try:
                registration = await self._register()
            except DirectoryError as error:
                if str(error) != self._waits:
                    self._waits = str(error)
                    _log.warning("not_registered", unit=self.unit, error=self._waits)
                await asyncio.sleep(RETRY_S)
                continue
            self._waits = ""
            self._registration = registration
            _log.info("registered", unit=self.unit, epoch=registration.identity.epoch)
            await registration.lost.wait()  # no deadline: for as long as it is kept
            _log.error("lease_lost", unit=self.unit, epoch=registration.identity.epoch, why=await self._why_lost())
            self._registration = None
            with contextlib.suppress(DirectoryError):
                await registration.close()
            await asyncio.sleep(RETRY_S)  # another node of this name would take it back at once, and so on

    async def _register(self) -> Registration:
        directory = self._cluster.directory
        await agree(directory, self._cluster.shards)
        if why := await obstacle(directory, self.unit, self._address, leads=False):
            raise Unavailable(why)
        self._agreed = True
        self._changed.set()
        return await directory.register(self.unit, encode(NodeRecord(0, self._address, self._region)), self._ttl_s)

    async def _why_lost(self) -> str:
        """What the directory has in place of the lease."""
        with contextlib.suppress(DirectoryError):
            found = await self._cluster.directory.read(NODES + self.unit)
            if NODES + self.unit in found.items:
                return "another node of this name is registered: node.name is each node's own"
            return "it ended before it was renewed"
        return "the directory does not answer"

    def _ours(self) -> tuple[RouterLink, ...]:
        """The routers with our key of the bus: workers do not reach any others."""
        routers = self._cluster.routers()
        strangers = tuple(link.name for link in routers if link.key != self._bus_key)
        if strangers and strangers != self._strangers:
            _log.error("other_bus_key", routers=",".join(strangers), why="bus.public_key is the same on all nodes")
        self._strangers = strangers
        return tuple(link for link in routers if link.name not in strangers)

    def missing(self) -> list[str]:
        """What the node's workers are not ready without."""
        why = f": {self._waits}" if self._waits else ""
        found = [] if self.epoch else [f"directory: {self.unit} is not registered{why}"]
        if self._strangers and len(self._strangers) == len(self._cluster.routers()):
            found.append("routers: all have another bus.public_key than this node")
        return found

    async def _tell(self) -> None:
        """Tell each process of each worker, also one that is just starting or leaving, as often as it takes."""
        while True:
            self._changed.clear()
            if self._agreed and self._cluster.view.nodes.reached >= 0:
                routers = self._ours()
                late = [
                    process
                    for child in self._workers()
                    for process in child.processes
                    if process.pid is not None and self._told.get(process) != routers
                ]
                await asyncio.gather(*(self._tell_one(process, routers) for process in late))
                await self._send_away()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_PERIOD_S):
                    await self._changed.wait()

    async def _send_away(self) -> None:
        """Have the workers send their clients to other regions, or no more, as far as they do not know it yet."""
        workers = list(self._workers())
        order = away_from(self._cluster.view, self._region, len(workers))
        late = [
            process
            for child in workers
            for process in child.processes
            if process.is_ready and self._ordered.get(process) != order
        ]
        await asyncio.gather(*(self._order_one(process, order) for process in late))

    async def _order_one(self, process: ChildProcess, order: Away | None) -> None:
        told = msgspec.to_builtins(order) if order is not None else None
        try:
            await process.ask("away", deadline_s=TELL_DEADLINE_S, order=told)
        except (CommandError, ConnectionError, TimeoutError) as error:
            _log.warning("evacuation_not_told", process=process.name, error=str(error) or "no answer")
            return
        self._ordered[process] = order

    async def _tell_one(self, process: ChildProcess, routers: tuple[RouterLink, ...]) -> None:
        told = [msgspec.to_builtins(link) for link in routers]
        try:
            await process.ask("routers", deadline_s=TELL_DEADLINE_S, routers=told)
        except (CommandError, ConnectionError, TimeoutError) as error:
            if process.is_ready:  # one that starts may not listen yet
                _log.warning("routers_not_told", process=process.name, error=str(error) or "no answer")
            return
        self._told[process] = routers
