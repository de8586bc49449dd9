"""A directory as etcd is one: linearizable, with revisions, leases, compare-and-set, and watches that come late.

Its answers and requests get lost, late and (of watches) told again; leases end at the first moment that they may.
"""

from collections.abc import Callable
from typing import Any, Protocol

from router.shards.events import Changed, Claim, Lost, Snapshot, Won
from router.shards.owners import SESSIONS
from router.shards.records import NODES, PREFIXES
from tests.simulation.world import World

# Of all clocks: half of the allowance for each of two.
RATE_ERROR = 0.005


class Listener(Protocol):
    """Who watches."""

    def reachable(self) -> bool: ...
    def delay(self) -> float: ...
    def take(self, call: Callable[..., None], *args: Any) -> None: ...
    def hear(self, event: Changed | Snapshot) -> None: ...


class Watch:
    """One prefix for one listener: what it was told up to."""

    def __init__(self, directory: "Directory", listener: Listener, prefix: str) -> None:
        self.directory = directory
        self.listener = listener
        self.prefix = prefix
        self.told = 0
        """How many of the prefix's changes."""
        self.on_its_way = False
        self.ended = False
        self.stalled_until = 0.0

    def start(self) -> None:
        """Read everything, and go on from there."""
        items = self.directory.under(self.prefix)
        self.told = len(self.directory.history[self.prefix])
        self.listener.take(self.listener.hear, Snapshot(self.prefix, self.directory.revision, items))

    def changed(self) -> None:
        """There is something to be told."""
        if not self.on_its_way and not self.ended:
            self.on_its_way = True
            world = self.directory.world
            world.at(max(world.now + self.listener.delay(), self.stalled_until), self._tell)

    def connect_again(self) -> None:
        """Go on after the last that was told; now and then with what was told before, or with all there is."""
        self.on_its_way = False
        chance = self.directory.world.chance
        if chance.random() < 0.3 and self.listener.reachable():
            self.start()
        elif chance.random() < 0.3:
            self.told = max(0, self.told - chance.randrange(4))
        self.changed()

    def _tell(self) -> None:
        self.on_its_way = False
        if self.ended or not self.listener.reachable():
            return
        changes = self.directory.history[self.prefix]
        up_to = len(changes)
        if up_to == self.told:
            return
        if up_to - self.told > 1 and self.directory.world.chance.random() < 0.5:
            up_to = self.directory.world.chance.randint(self.told + 1, up_to)
        told = tuple(changes[self.told : up_to])
        self.told = up_to
        self.listener.take(self.listener.hear, Changed(self.prefix, told[-1][2], told))
        if up_to < len(changes):
            self.changed()


class Directory:
    """The store itself. Every method is one atomic step at the time at which it is called."""

    watch_type = Watch

    def __init__(self, world: World, ttl: float) -> None:
        self.world = world
        self.ttl = ttl
        self.rate = 1 + world.chance.uniform(-RATE_ERROR, RATE_ERROR)
        self.up = True
        self.revision = 1
        self.items: dict[str, tuple[bytes, int]] = {}
        everything = (*PREFIXES, SESSIONS)
        self.history: dict[str, list[tuple[str, bytes | None, int]]] = {prefix: [] for prefix in everything}
        self.watches: dict[str, list[Watch]] = {prefix: [] for prefix in everything}
        self.leases: dict[int, tuple[str, float]] = {}
        """By epoch: the node, and when the lease ends."""

    def under(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        """All items of a prefix."""
        return {key: item for key, item in self.items.items() if key.startswith(prefix)}

    def watch(self, listener: Listener, prefixes: tuple[str, ...] = PREFIXES) -> list[Watch]:
        """Watches of prefixes; to be started."""
        made = [self.watch_type(self, listener, prefix) for prefix in prefixes]
        for watch in made:
            self.watches[watch.prefix].append(watch)
        return made

    def forget(self, watches: list[Watch]) -> None:
        """Their process is gone."""
        for watch in watches:
            watch.ended = True
            self.watches[watch.prefix].remove(watch)

    def register(self, node: str, value: bytes, dead: set[int]) -> int | None:
        """A lease and its key; None: the name is taken by a life that may be going on."""
        item = self.items.get(NODES + node)
        if item is not None:
            if item[1] not in dead:
                return None
            self.end(item[1])
        self._put(NODES + node, value)
        epoch = self.revision
        self.leases[epoch] = (node, 0.0)
        self._renew(epoch)
        self.world.after(self.leases[epoch][1] - self.world.now, self._expire, epoch)
        return epoch

    def keep_alive(self, epoch: int) -> bool:
        """Whether the lease was there, and goes on."""
        if epoch not in self.leases:
            return False
        self._renew(epoch)
        return True

    def end(self, epoch: int) -> None:
        """A lease is over, and its key goes."""
        node, _ = self.leases.pop(epoch)
        self.world.note("directory ends", node, epoch)
        self._put(NODES + node, None)

    def claim(self, claim: Claim) -> Won | Lost:
        """Compare and set."""
        value, revision = self.items.get(claim.key, (None, 0))
        if revision != claim.expected_revision:
            return Lost(revision, value)
        if claim.alive is not None and self.items.get(NODES + claim.alive.node, (b"", 0))[1] != claim.alive.epoch:
            return Lost(revision, value, alive=False)
        self._put(claim.key, claim.value)
        return Won(self.revision)

    def _put(self, key: str, value: bytes | None) -> None:
        self.revision += 1
        if value is None:
            del self.items[key]
        else:
            self.items[key] = (value, self.revision)
        prefix = key[: key.index("/") + 1]
        self.history[prefix].append((key, value, self.revision))
        for watch in self.watches[prefix]:
            watch.changed()

    def _renew(self, epoch: int) -> None:
        late = self.world.chance.random()
        late = 0.0 if late < 0.7 else late
        self.leases[epoch] = (self.leases[epoch][0], self.world.now + self.ttl / self.rate + late)

    def _expire(self, epoch: int) -> None:
        if epoch not in self.leases:
            return
        left = self.leases[epoch][1] - self.world.now
        if left > 0:
            self.world.after(left, self._expire, epoch)
        elif not self.up:
            # Nothing ends while it is away; all that is due ends as soon as it is back.
            self.world.after(0.05, self._expire, epoch)
        else:
            self.end(epoch)
