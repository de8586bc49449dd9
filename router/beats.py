"""Routers that have fallen silent: their lives are ended by the others, whatever the directory knows of their leases.

etcd gives all leases their time anew, and an election's more, when it has another leader. Where the leader was in the
region that is lost, its shards would wait for that. So routers of several regions write their renewals down, and the
others, who hear of them, keep the time by their own clocks.

# Why nobody's life is ended too early

A router counts its bound from before its beat was sent, and only if it knows that the beat was written, by a
transaction that wants its key to be there (router/directory/etcd_lease.py). Who hears of a beat does so after it was
written. He ends the life when its time and what clocks may go apart have passed since, by a transaction that wants that
same beat to be the last. So either a later beat was written before, and nothing ends; or none can be written any more,
and the bound of the last one is over.

# Why those who live are not ended with those who do not

While the directory answers nobody, all are silent. Who has not heard his own beats for some time waits, once he hears
them again, until the others had time to be heard as well.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NamedTuple, NoReturn, Protocol

from router.directory.port import (
    BEATS,
    CLOCK_ALLOWANCE,
    Changes,
    NodeEpoch,
    NotAllowed,
    Snapshot,
    Unavailable,
    now,
)

LOOK_S = 0.1
RETRY_S = 0.5
GAP = 0.6
"""Of the time to live: who hears nothing of himself for so long does not hear others either. Beats come each third."""
GRACE = 1 / 3
"""Of the time to live, what the others have to be heard again after such a gap."""
_log = logging.getLogger("holdfast.shards")


class Ending(Protocol):
    """What is needed of a directory: see `router.directory.etcd.EtcdDirectory`."""

    async def read(self, prefix: str) -> Snapshot: ...

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes | Snapshot, None]: ...

    async def end(self, silent: NodeEpoch, revision: int) -> bool: ...


class _Beat(NamedTuple):
    epoch: int
    ttl_s: int
    revision: int
    heard: float


class Beats:
    """What one router hears of the others.

    Args:
        node: its own name.
        directory: where beats are.
        alive: the nodes that live, by epoch.
        clock: seconds, of one that goes on while the machine is suspended.

    """

    def __init__(
        self,
        node: str,
        directory: Ending,
        alive: Callable[[], Mapping[int, str]],
        clock: Callable[[], float] = now,
    ) -> None:
        self._node = node
        self._directory = directory
        self._alive = alive
        self._clock = clock
        self._beats: dict[str, _Beat] = {}
        self._since = clock()
        """Since when our own beats come without a gap."""
        self._not_before: dict[str, float] = {}
        """When it is tried again to end a life."""

    # ---------------------------------------------------------------------------------------------------- what is heard

    def hear(self, node: str, value: bytes | None, revision: int) -> None:
        """A beat was written, or (None) went with its lease."""
        before = self._beats.get(node)
        if value is None:
            self._beats.pop(node, None)
        elif before is None or revision > before.revision:
            heard = self._clock()
            epoch, ttl_s = _numbers(value)
            self._beats[node] = _Beat(epoch, ttl_s, revision, heard)
            if node == self._node and (before is None or heard - before.heard > GAP * ttl_s):
                self._since = heard

    def silent(self) -> list[tuple[NodeEpoch, int]]:
        """The lives that are over, with the revisions of their last beats."""
        time, own = self._clock(), self._beats.get(self._node)
        if own is None or time - own.heard > GAP * own.ttl_s or time - self._since < GRACE * own.ttl_s:
            return []
        alive = self._alive()
        return [
            (NodeEpoch(node, beat.epoch), beat.revision)
            for node, beat in self._beats.items()
            if node != self._node
            and alive.get(beat.epoch) == node
            and time - beat.heard >= beat.ttl_s * (1 + CLOCK_ALLOWANCE)
            and time >= self._not_before.get(node, 0.0)
        ]

    # ----------------------------------------------------------------------------------------------------------- tasks

    async def listen(self) -> NoReturn:
        """Hear what is written."""
        while True:
            try:
                snapshot = await self._directory.read(BEATS)
                self._hear_all(snapshot)
                # deadline: of its end, which waits for nobody
                async with contextlib.aclosing(self._directory.watch(BEATS, snapshot.revision)) as changes:
                    # no deadline: for as long as nothing changes
                    async for one in changes:
                        if isinstance(one, Snapshot):
                            self._hear_all(one)
                        else:
                            for key, value, revision in one.changes:
                                self.hear(key.removeprefix(BEATS), value, revision)
            except (Unavailable, NotAllowed) as error:
                _log.warning("%s cannot be watched now: %s", BEATS, error)
            await asyncio.sleep(RETRY_S)

    def _hear_all(self, snapshot: Snapshot) -> None:
        there = {key.removeprefix(BEATS): item for key, item in snapshot.items.items()}
        for node in self._beats.keys() - there.keys():
            self.hear(node, None, snapshot.revision)
        for node, item in there.items():
            self.hear(node, item.value, item.revision)

    async def end_silent(self) -> NoReturn:
        """End the lives of those that have fallen silent."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.gather(*(self._end(*one) for one in self.silent()))

    async def _end(self, silent: NodeEpoch, revision: int) -> None:
        self._not_before[silent.node] = self._clock() + RETRY_S
        try:
            if await self._directory.end(silent, revision):
                _log.warning("%s, epoch %d, has fallen silent: its life is over", *silent)
        except (Unavailable, NotAllowed) as error:
            _log.warning("whether the life of %s is over is not known: %s", silent.node, error)


def _numbers(value: bytes) -> tuple[int, int]:
    """Epoch and time to live; of what cannot be read, an epoch that nobody has."""
    try:
        epoch, ttl_s = map(int, value.split())
    except ValueError:
        return 0, 1
    return epoch, ttl_s
