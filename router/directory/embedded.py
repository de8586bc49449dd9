"""The directory in one process: what etcd does for many nodes, in memory, for those that share one store.

A node alone has nobody to agree with, but the code above the port does not ask. Leases end here by the same rules, so
that a process that stood still finds its lease gone.
"""

import asyncio
import bisect
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import NamedTuple

from core.owned import ACCOUNT
from router.directory.port import (
    Change,
    Changes,
    Claim,
    Item,
    Lost,
    NodeEpoch,
    Reach,
    Result,
    Snapshot,
    Unavailable,
    Won,
    checked_claim,
    checked_registration,
    now,
    safe_bound,
)

KEPT_A_TTL = 3
AWAY_S = 0.05
"""How often those who wait for a store that is away look whether it is back."""
HISTORY_MAX = 10_000
"""Changes that are kept for watches that fell behind; whoever is further behind gets a Snapshot."""


class _Entry(NamedTuple):
    value: bytes
    created: int
    revision: int
    lease: int


class Store:
    """What several directories of one process share.

    Args:
        clock: seconds.
        history_max: changes that are kept.

    """

    def __init__(self, clock: Callable[[], float] = now, history_max: int = HISTORY_MAX) -> None:
        self.clock = clock
        self.revision = 1
        self.here = asyncio.Event()
        """Cleared: nobody is answered, as if etcd were away."""
        self.here.set()
        self.reach = Reach(True, clock())
        self._entries: dict[str, _Entry] = {}
        self._keys: list[str] = []
        self._leases: dict[int, float] = {}
        self._last_lease = 0
        self._history: deque[Change] = deque()
        self._history_max = history_max
        self._forgotten = 0
        """The revision up to which changes may be forgotten."""
        self._changed = asyncio.Event()

    # --------------------------------------------------------------------------------------------------------- leases

    def grant(self, ttl_s: float) -> int:
        """A new lease."""
        self._last_lease += 1
        self._leases[self._last_lease] = self.clock() + ttl_s
        return self._last_lease

    def keep_alive(self, lease: int, ttl_s: float) -> bool:
        """Renew a lease; False: it has ended."""
        self.expire()
        if lease not in self._leases:
            return False
        self._leases[lease] = self.clock() + ttl_s
        return True

    def revoke(self, lease: int) -> None:
        """End a lease, with what is on it."""
        if self._leases.pop(lease, None) is not None:
            gone = [key for key, entry in self._entries.items() if entry.lease == lease]
            if gone:
                self._apply({key: None for key in gone}, 0)

    def expire(self) -> float:
        """End the leases whose time is over; until when the next one lasts."""
        clock = self.clock()
        for lease in [one for one, ends in self._leases.items() if ends <= clock]:
            self.revoke(lease)
        return min(self._leases.values(), default=float("inf"))

    # ----------------------------------------------------------------------------------------------------------- keys

    def get(self, key: str) -> _Entry | None:
        return self._entries.get(key)

    def put(self, key: str, value: bytes, lease: int) -> int:
        """Put a key on a lease; its revision."""
        self._apply({key: value}, lease)
        return self.revision

    def remove(self, key: str) -> None:
        self._apply({key: None}, 0)

    def settle(self, claims: Sequence[Claim]) -> list[Result]:
        """Try claims, of which all that win and name different keys have one revision."""
        results: list[Result] = []
        for claim in claims:
            there = self._entries.get(claim.key)
            revision = there.revision if there else 0
            if revision == claim.expected_revision and self._lives(claim.alive):
                self._apply({claim.key: claim.value}, 0)
                results.append(Won(self.revision))
            else:
                results.append(Lost(revision, there.value if there else None, revision != claim.expected_revision))
        return results

    def select(self, prefix: str, after: str = "", count: int = 0) -> Snapshot:
        """What is there."""
        first = max(bisect.bisect_left(self._keys, prefix), bisect.bisect_right(self._keys, after) if after else 0)
        items: dict[str, Item] = {}
        for key in self._keys[first:]:
            if not key.startswith(prefix) or (count and len(items) == count):
                break
            entry = self._entries[key]
            items[key] = Item(entry.value, entry.revision)
        return Snapshot(self.revision, items)

    def compact(self, revision: int) -> None:
        """Forget all changes until a revision."""
        while self._history and self._history[0].revision <= revision:
            self._history.popleft()
        self._forgotten = max(self._forgotten, revision)

    def since(self, revision: int, prefix: str) -> list[Change] | None:
        """The changes after a revision; None: some are forgotten."""
        if revision < self._forgotten:
            return None
        return [one for one in self._newer(revision) if one.key.startswith(prefix)]

    def wake(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seconds: float) -> None:
        """Wait for a change, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()

    def _lives(self, node: NodeEpoch | None) -> bool:
        if node is None:
            return True
        there = self._entries.get(f"nodes/{node.node}")
        return there is not None and there.created == node.epoch

    def _newer(self, revision: int) -> Iterator[Change]:
        newest = []
        for one in reversed(self._history):
            if one.revision <= revision:
                break
            newest.append(one)
        return reversed(newest)

    def _apply(self, wanted: dict[str, bytes | None], lease: int) -> None:
        """Change keys, all under the next revision."""
        self.revision += 1
        for key, value in wanted.items():
            there = self._entries.get(key)
            if value is None:
                del self._entries[key]
                del self._keys[bisect.bisect_left(self._keys, key)]
            else:
                if there is None:
                    bisect.insort(self._keys, key)
                self._entries[key] = _Entry(value, there.created if there else self.revision, self.revision, lease)
            self._history.append(Change(key, value, self.revision))
        while len(self._history) > self._history_max:
            self._forgotten = self._history.popleft().revision
        self.wake()


class EmbeddedRegistration:
    """See `port.Registration`."""

    def __init__(self, store: Store, identity: NodeEpoch, lease: int, ttl_s: int, sent: float) -> None:
        self.identity = identity
        self.lost = asyncio.Event()
        self._store = store
        self._lease = lease
        self._ttl_s = ttl_s
        self._until = safe_bound(sent, ttl_s)
        self._closed = False
        self._held = ACCOUNT.hold("lease", f"nodes/{identity.node}", object_=self, depth=2)
        self._keeper = ACCOUNT.task(self._keep(), f"lease of {identity.node}", owner=self._held)

    def held_until(self) -> float:
        """See `port.Registration`."""
        return 0.0 if self.lost.is_set() or self._closed else self._until

    async def close(self) -> None:
        """See `port.Registration`."""
        if self._closed:
            return
        self._closed = True
        self._keeper.cancel()
        await asyncio.wait([self._keeper])  # deadline: it is cancelled
        self._held.close()
        if self._store.here.is_set():
            self._store.revoke(self._lease)
        self.lost.set()

    async def _keep(self) -> None:
        """Renew until it is lost; whoever revoked it woke us."""
        while not self.lost.is_set():
            if self._store.here.is_set() and self._is_gone():
                self._until = 0.0
                self.lost.set()
                return
            due = self._until - self._ttl_s * (1 - 1 / KEPT_A_TTL) - self._store.clock()
            if due > 0 or not self._store.here.is_set():
                await self._store.change(max(due, AWAY_S))
                continue
            sent = self._store.clock()
            if self._store.keep_alive(self._lease, self._ttl_s):
                self._until = safe_bound(sent, self._ttl_s)

    def _is_gone(self) -> bool:
        self._store.expire()
        there = self._store.get(f"nodes/{self.identity.node}")
        return there is None or there.created != self.identity.epoch


class EmbeddedDirectory:
    """See `port.Directory`.

    Args:
        store: what it shares with others; a new one unless given.
        deadline_s: for whatever is asked.

    """

    def __init__(self, store: Store | None = None, *, deadline_s: float = 5.0) -> None:
        self.store = store or Store()
        self._deadline_s = deadline_s
        self._closed = False

    async def register(self, node: str, value: bytes, ttl_s: int) -> EmbeddedRegistration:
        """See `port.Directory`."""
        key = checked_registration(node, value, ttl_s)
        await self._answered()
        if (former := self.store.get(key)) is not None:
            self.store.revoke(former.lease)
        sent = self.store.clock()
        lease = self.store.grant(ttl_s)
        identity = NodeEpoch(node, self.store.put(key, value, lease))
        return EmbeddedRegistration(self.store, identity, lease, ttl_s, sent)

    async def transact(self, claims: Sequence[Claim]) -> list[Result]:
        """See `port.Directory`."""
        for claim in claims:
            checked_claim(claim)
        await self._answered()
        return self.store.settle(claims)

    async def read(self, prefix: str) -> Snapshot:
        """See `port.Directory`."""
        await self._answered()
        return self.store.select(prefix)

    async def page(self, prefix: str, after: str, count: int) -> Snapshot:
        """See `port.Directory`."""
        await self._answered()
        return self.store.select(prefix, after, count)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes | Snapshot, None]:
        """See `port.Directory`."""
        while True:
            if self._closed:
                raise Unavailable("the directory is closed here")
            if not self.store.here.is_set():
                await self.store.change(AWAY_S)  # deadline: its argument
                continue
            ends = self.store.expire()
            found = self.store.since(revision, prefix)
            if found is None:
                snapshot = self.store.select(prefix)
                revision = snapshot.revision
                yield snapshot
            elif found:
                revision = found[-1].revision
                yield Changes(revision, tuple(found))
            else:
                # deadline: its argument
                await self.store.change(min(ends - self.store.clock(), 1.0))

    def reachable(self) -> Reach:
        """See `port.Directory`."""
        if self.store.reach.answers != self.store.here.is_set():
            self.store.reach = Reach(self.store.here.is_set(), self.store.clock())
        return self.store.reach

    async def close(self) -> None:
        """See `port.Directory`."""
        self._closed = True
        self.store.wake()

    async def _answered(self) -> None:
        """As soon as the store is here.

        Raises:
            Unavailable: it is not, for too long.
        """
        if self._closed:
            raise Unavailable("the directory is closed here", nothing_done=True)
        try:
            async with asyncio.timeout(self._deadline_s):
                await self.store.here.wait()
        except TimeoutError:
            raise Unavailable("the directory is away", nothing_done=True) from None
        self.store.expire()
