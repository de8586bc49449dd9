"""One router among others: its place in the directory, what the others say there, and how it leaves.

The lease comes first: `open` registers the node, then `run` watches what everybody wrote, feeds the keeper of shards,
and tidies up. `run` ends only by an exception, and with it the process: a lease that ended is a life that ended, and
whoever starts the process anew begins another one. What is led outlives a directory that is away, until the lease's
bound (router/shards/leadership.py).

Beside the prefixes of the machine there is `loads/<node>` (router/loads.py), written every LOADS_S. What nodes that are
over left behind is removed by whoever sees it, and what sessions left behind by the leader of their shard, slowly.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NoReturn

from core.owned import ACCOUNT
from core.shards import COUNT_MAX
from router import agreement, loads
from router.beats import Beats
from router.config import DirectoryConfig
from router.directory import sweep
from router.directory.port import (
    Changes,
    Claim,
    Directory,
    NodeEpoch,
    NotAllowed,
    Registration,
    Snapshot,
    Unavailable,
)
from router.loads import LOADS, Other
from router.publishers import Publishers
from router.shard_keeper import ShardKeeper
from router.shards import events as ev
from router.shards.owners import Owner, prefix_of
from router.shards.records import (
    CORDONS,
    MOVES,
    PREFIXES,
    PUBLISHERS,
    NodeRecord,
    PublishersRecord,
    Unreadable,
    decode,
    encode,
    taker_of,
)

LOADS_S = 5.0
LOOK_S = 0.1
"""How often the lease's bound is looked at; a lease that is known to be lost is noticed at once."""
RETRY_S = 0.5
TIDY_S = 30.0
SWEEP_S = 10.0
"""From one shard of which sessions are swept to the next."""
SWEPT_A_SECOND = 500.0
TAKERS_S = 0.25
"""How often one that leaves looks whether there is anybody left to give to."""
STOP_DEADLINE_S = 5.0
_log = logging.getLogger("holdfast.shards")


class LeaseOver(Exception):
    """The directory says that this life of the node is over: nothing that is led here counts any more."""


class Cluster:
    """One router's membership.

    Args:
        node: its name.
        config: of the directory.
        directory: used by this alone, and closed with it.
        keeper: of its shards.
        counts: how many messages were ordered so far, by shard.
        publishers: the same by region of those who published them; of what is not counted, nothing.
        told: called with the time by `directory.port.now` until which the lease certainly lives, whenever that grows.
        beats: ends the lives of routers that have fallen silent; None: the directory alone does.
        others: how far other regions are.

    """

    def __init__(
        self,
        node: str,
        config: DirectoryConfig,
        directory: Directory,
        keeper: ShardKeeper,
        counts: Callable[[], Sequence[int]],
        publishers: Callable[[], Mapping[str, Sequence[int]]] = dict,
        told: Callable[[float], None] = lambda until: None,
        beats: Beats | None = None,
        others: Callable[[], Mapping[str, Other]] = dict,
    ) -> None:
        self.node = node
        self._config = config
        self._directory = directory
        self._keeper = keeper
        self._counts = counts
        self._published = publishers
        self._publishers = Publishers()
        self._told = told
        self._beats = beats
        self._others = others
        self._placements: dict[str, str] = {}
        """Of routers that have another one than this."""
        self._registration: Registration | None = None
        self._held = ACCOUNT.hold("handle", "the membership of a cluster", object_=self)
        self._tasks: list[asyncio.Task[NoReturn]] = []

    # ------------------------------------------------------------------------------------------------------- the lease

    async def open(self, waits: Callable[[str], None] = lambda why: None) -> None:
        """Register; `waits` hears why that takes long.

        Raises:
            NotAllowed, Misused: it will never be.
        """
        record = NodeRecord(self._config.weight, self._config.address, self._config.region)
        said = ""
        while self._registration is None:
            try:
                await agreement.agree(self._directory, self._config.shards)  # deadline: the directory's own
                # deadline: the directory's own
                why = await agreement.obstacle(self._directory, self.node, self._config.address)
                if not why:
                    self._registration = await self._directory.register(self.node, encode(record), self._config.ttl_s)
                    break
            except Unavailable as error:
                why = f"its directory is away: {error}"
            if why != said:
                said = why
                waits(why)
            await asyncio.sleep(RETRY_S)
        assert self._registration is not None
        epoch = self._registration.identity.epoch
        _log.info("registered as %s, epoch %d", self.node, epoch)
        self._keeper.feed(ev.Registered(epoch), ev.LeaseHeld(epoch, self._registration.held_until()))

    async def run(self) -> NoReturn:
        """Take part until something ends it.

        Raises:
            LeaseOver: this life of the node is over.
            LogDeposed: another router has a shard that was led here.
        """
        parts = [self._keep_lease(), self._tell_loads(), self._tidy(), self._sweep(), *map(self._watch, PREFIXES)]
        names = ["the lease's bound", "loads", "tidying", "sweeping", *(f"the watch of {one}" for one in PREFIXES)]
        if self._beats is not None:
            parts += [self._beats.listen(), self._beats.end_silent()]
            names += ["beats", "lives that are over"]
        self._tasks = [ACCOUNT.task(part, name, owner=self._held) for part, name in zip(parts, names, strict=True)]
        ends: set[asyncio.Future[Any]] = {self._keeper.broken, *self._tasks}
        # no deadline: while the process lives
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
        raise AssertionError("these end only by an exception")

    async def close(self, *, give_back: bool = True) -> None:
        """Give the lease back: nothing may be led or on its way to the log any more. Or let it run out."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_DEADLINE_S)
        if self._registration is not None and give_back:
            await self._registration.close()
        await self._directory.close()  # deadline: likewise
        self._held.close()

    async def _keep_lease(self) -> NoReturn:
        registration = self._registration
        assert registration is not None
        epoch = registration.identity.epoch
        told, away = 0.0, False
        while not registration.lost.is_set():
            until = registration.held_until()
            if until > told:
                told = until
                self._keeper.feed(ev.LeaseHeld(epoch, until))
                self._told(until)
            if self._directory.reachable().answers == away:
                away = not away
                _log.warning("the directory %s", "is away: what is led stays" if away else "is back")
                self._keeper.feed(ev.DirectoryAway() if away else ev.DirectoryBack())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await registration.lost.wait()
        self._keeper.feed(ev.LeaseLost(epoch))
        raise LeaseOver(f"the lease of {self.node}, epoch {epoch}, has ended: what it led is others' now")

    # ----------------------------------------------------------------------------------------------- what others write

    async def _watch(self, prefix: str) -> NoReturn:
        while True:
            try:
                snapshot = await self._directory.read(prefix)
                self._keeper.feed(ev.Snapshot(prefix, snapshot.revision, snapshot.items))
                # deadline: of its end, which waits for nobody
                async with contextlib.aclosing(self._directory.watch(prefix, snapshot.revision)) as changes:
                    await self._follow(prefix, changes)
            except (Unavailable, NotAllowed) as error:
                _log.warning("%s cannot be watched now: %s", prefix, error)
            await asyncio.sleep(RETRY_S)

    async def _follow(self, prefix: str, changes: AsyncIterator[Changes | Snapshot]) -> None:
        async for one in changes:  # no deadline: for as long as nothing changes
            if isinstance(one, Snapshot):
                self._keeper.feed(ev.Snapshot(prefix, one.revision, one.items))
            else:
                self._keeper.feed(ev.Changed(prefix, one.revision, one.changes))

    # --------------------------------------------------------------------------------------------------------- leaving

    async def leave(self, deadline_s: float) -> bool:
        """Hand all shards over, as far as there are others to take them; whether none is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                if not self._takers():
                    return False
                problem = ""
                if self._keeper.machine.view.weights().get(self.node):  # else an operator cordoned it already
                    problem = await self._keeper.cordon(self.node, on=True, leaving=True)
                if problem:
                    _log.warning("this router ends without handing over: %s", problem)
                    return False
                while self._takers() and not self._keeper.idle.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(TAKERS_S):
                            await self._keeper.idle.wait()
        return self._keeper.idle.is_set()

    def _takers(self) -> list[str]:
        weights = self._keeper.machine.view.weights()
        return [name for name, weight in weights.items() if weight and name != self.node]

    # ----------------------------------------------------------------------------------------------------------- loads

    async def _tell_loads(self) -> NoReturn:
        assert self._registration is not None
        identity = self._registration.identity
        before, revision = list(self._counts()), 0
        while True:
            await asyncio.sleep(LOADS_S)
            counts = list(self._counts())
            rates = {shard: (counts[shard] - before[shard]) / LOADS_S for shard in self._keeper.held()}
            before = counts
            value = loads.pack(identity.epoch, rates, self._others())
            for _ in range(2):  # one of an earlier life stands there
                result = await self._try_claim(Claim(LOADS + self.node, revision, value, identity))
                revision = getattr(result, "revision", 0)
                if not revision or getattr(result, "value", value) is value:
                    break
            await self._tell_publishers(identity)
            self._compare_placements()

    def _compare_placements(self) -> None:
        """Say which routers go by another placement, as some do while it is changed on one node after the other."""
        ours = agreement.placement_of(self._config.address)
        nodes = self._keeper.machine.view.nodes.items()
        routers = {name: seen.record.address for name, seen in nodes if seen.record is not None and seen.record.weight}
        told = {name: agreement.placement_of(address) for name, address in sorted(routers.items())}
        placements = {name: placement for name, placement in told.items() if placement != ours}
        if placements and placements != self._placements:
            theirs = ", ".join(f"{placement or 'none'} at {name}" for name, placement in placements.items())
            _log.warning(
                "directory.placement is %s here, and %s: a shard on which routers do not agree stays where it is led;"
                " give all nodes the same",
                ours or "none",
                theirs,
            )
        self._placements = placements

    async def _tell_publishers(self, identity: NodeEpoch) -> None:
        """Write down which shards belong to another region than is written: seldom any."""
        table = self._keeper.machine.view.publishers
        homes = {int(name): seen.record.region for name, seen in table.items() if seen.record and name.isdecimal()}
        for shard, region in self._publishers.look(self._published(), self._keeper.held(), homes).items():
            key, value = f"{PUBLISHERS}{shard}", encode(PublishersRecord(region))
            # One that is lost is found again at the next look.
            await self._try_claim(Claim(key, table.get(str(shard)).revision, value, identity))

    async def _try_claim(self, claim: Claim) -> Any:
        """The result, None if it is not known."""
        try:
            return (await self._directory.transact([claim]))[0]
        except (Unavailable, NotAllowed) as error:
            _log.debug("%s is not written: %s", claim.key, error)
            return None

    async def loads(self) -> dict[int, float]:
        """Messages a second, by shard, as their leaders wrote last."""
        found: dict[int, float] = {}
        told = await loads.read(self._directory, self._keeper.machine.view.alive)  # deadline: the directory's own
        for load in told.values():
            found |= load.rates
        return found

    # ---------------------------------------------------------------------------------------------------------- tidying

    async def _tidy(self) -> NoReturn:
        while True:
            await asyncio.sleep(TIDY_S * random.uniform(0.8, 1.2))
            with contextlib.suppress(Unavailable, NotAllowed):  # another time, or another router
                await self.tidy()

    async def tidy(self) -> int:
        """Remove what lives of nodes that are over left here; how many keys that were."""
        view = self._keeper.machine.view
        if not view.ready():
            return 0
        gone = [
            Claim(LOADS + key.removeprefix(LOADS), item.revision, None)
            for key, item in (await self._directory.read(LOADS)).items.items()
            if view.over(loads.unpack(item.value).epoch)
        ]
        for name, move in view.moves.items():
            if move.record is not None and view.over(move.record.node_epoch):
                gone.append(Claim(MOVES + name, move.revision, None))
        for name, cordon in view.cordons.items():
            if cordon.record is not None and cordon.record.epoch and view.over(cordon.record.epoch):
                gone.append(Claim(CORDONS + name, cordon.revision, None))
        if gone:
            await self._directory.transact(gone)
        return len(gone)

    async def _sweep(self) -> NoReturn:
        """Sessions of nodes that are over, shard by shard of those that are led here."""
        shard = -1
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(0.8, 1.2))
            led = self._keeper.held()
            if not led:
                continue
            shard = next((one for one in led if one > shard), led[0])
            with contextlib.suppress(Unavailable, NotAllowed):  # another time
                # deadline: the directory's own, of each of its calls
                swept = await sweep.sweep(self._directory, prefix_of(shard), _owner, SWEPT_A_SECOND)
                if swept.removed:
                    _log.info("%d sessions of nodes that are over are removed from shard %d", swept.removed, shard)

    # ------------------------------------------------------------------------------------------------------- operators

    async def view(self) -> dict[str, Any]:
        """Who leads what, as this router sees it: for JSON."""
        machine = self._keeper.machine
        view = machine.view
        rates: dict[int, float] = {}
        with contextlib.suppress(Unavailable, NotAllowed):  # without loads, then
            rates = await self.loads()
        shards = []
        for shard, wanted in enumerate(machine.plan()):
            record = view.shards.get(str(shard)).record
            shards.append(
                {
                    "shard": shard,
                    "leader": view.alive.get(record.node_epoch) if record else None,
                    "epoch": record.epoch if record else 0,
                    "how": record.how if record else "",
                    "wanted": wanted,
                    "load": round(rates.get(shard, 0.0), 1),
                }
            )
        reach = self._directory.reachable()
        return {
            "node": self.node,
            "shards": shards,
            "routers": self._routers(shards),
            "pins": {str(shard): node for shard, node in sorted(view.pinned().items())},
            "moves": [
                {"shard": seen.record.shard, "to": taker_of(name), "epoch": seen.record.epoch}
                for name, seen in view.moves.items()
                if seen.record
                and getattr(view.shards.get(str(seen.record.shard)).record, "epoch", 0) == seen.record.epoch
            ],
            "regions": {
                name: {"by": seen.record.by, "since_ms": seen.record.since_ms, "pace": seen.record.pace}
                for name, seen in sorted(view.regions.items())
                if seen.record
            },
            "directory": {"answers": reach.answers},
        }

    def _routers(self, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        view = self._keeper.machine.view
        found = []
        for name, seen in sorted(view.nodes.items()):
            assert seen.record is not None
            if not seen.record.weight:
                continue
            cordon = view.cordons.get(name)
            leaving = cordon.record is not None and cordon.record.epoch == seen.revision
            mine = [one for one in shards if one["leader"] == name]
            found.append(
                {
                    "name": name,
                    "epoch": seen.revision,
                    "weight": seen.record.weight,
                    "address": seen.record.address,
                    "region": seen.record.region,
                    "cordoned": view.weights().get(name) == 0,
                    "leaving": leaving,
                    "shards": len(mine),
                    "load": round(sum(one["load"] for one in mine), 1),
                }
            )
        return found


def _owner(key: str, value: bytes) -> NodeEpoch | None:
    """Whose a session is; what cannot be read is nobody's, and stays."""
    try:
        record = decode(Owner, value)
    except Unreadable:
        return None
    return NodeEpoch(record.node, record.node_epoch)


def view_alone(node: str, epoch: int) -> dict[str, Any]:
    """What `Cluster.view` gives, of a router that is alone."""
    shard = {"leader": node, "epoch": epoch, "how": "alone", "wanted": node, "load": 0.0}
    router = {"name": node, "epoch": epoch, "weight": 1, "address": "", "region": "", "cordoned": False}
    return {
        "node": node,
        "shards": [{"shard": number, **shard} for number in range(COUNT_MAX)],
        "routers": [{**router, "leaving": False, "shards": COUNT_MAX, "load": 0.0}],
        "pins": {},
        "moves": [],
        "regions": {},
        "directory": None,
    }
