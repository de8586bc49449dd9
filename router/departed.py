"""Workers that died on a node that lives: the keys of the sessions that they had are given back.

A worker that died says nothing of it, but its next start does, to every router, when it links (BEGIN): the supervisor
starts it when the former has ended. So the one who leads a shard, and has who is on which worker in his table, knows
that what names an earlier start is nobody's. Nobody needs these keys: who resumes finds his channels and positions in
the log (router/sessions.py), and a key that is not there is claimed like one that names a connection that is gone. They
are given back only after a while, since most clients come back at once, and then take their keys over by one claim.
While two starts of a worker run side by side (a reload) nothing is given back; what is left then goes with the next
start, or with the node's life.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from router.shards.claims import SessionClaims
from router.shards.owners import Owner

WAIT_S = 5.0
"""From a worker's next start until what it had is given back."""
BUSY_S = 0.05
NUMBER = 0xFF
"""The bits of `Owner.worker` that say which worker of a node it is; above them its start, of which a later one is
higher."""
_log = logging.getLogger("holdfast.claims")


class Departed:
    """Gives back what workers left.

    Args:
        machines: of the shards that are led here.
        give_back: called with a session that its owner does not have any more.
        is_busy: whether that had better wait.
        spawn: begins a task that ends with whoever owns this.

    """

    def __init__(
        self,
        machines: Mapping[int, SessionClaims],
        give_back: Callable[[SessionClaims, Owner], None],
        is_busy: Callable[[], bool],
        spawn: "Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]",
    ) -> None:
        self._machines = machines
        self._give_back = give_back
        self._is_busy = is_busy
        self._spawn = spawn
        self._begun: dict[tuple[str, int], int] = {}
        """By node and number there, the start of a worker beside which no earlier one runs."""
        self._task: asyncio.Task[None] | None = None
        self._more = False

    def began(self, node: str, worker: int) -> None:
        """A worker (as in `Owner`) began, and no earlier start of it runs."""
        place = (node, worker & NUMBER)
        if worker > self._begun.get(place, 0):
            self._begun[place] = worker
            self.look()

    def is_gone(self, owner: Owner) -> bool:
        """Whether a later start runs at its worker's place."""
        return owner.worker < self._begun.get((owner.node, owner.worker & NUMBER), 0)

    def look(self) -> None:
        """There may be something to give back: a worker began, or a shard is led."""
        self._more = bool(self._begun)
        if self._more and self._task is None:
            self._task = self._spawn(self._run(), "sessions of workers that died")

    def forget(self, epoch_of: Callable[[str], int]) -> None:
        """Let go of nodes that are not there any more."""
        self._begun = {place: worker for place, worker in self._begun.items() if epoch_of(place[0])}

    async def _run(self) -> None:
        try:
            while self._more:
                self._more = False
                await asyncio.sleep(WAIT_S)
                for shard in list(self._machines):
                    await self._give_all(shard)
        finally:
            self._task = None

    async def _give_all(self, shard: int) -> None:
        one = self._machines.get(shard)
        left = [owner for owner in one.owners() if self.is_gone(owner)] if one is not None else []
        for owner in left:
            while self._is_busy():  # noqa: ASYNC110  nobody is told of the end of a burst
                await asyncio.sleep(BUSY_S)
            if one is None or self._machines.get(shard) is not one:
                return
            self._give_back(one, owner)
        if left:
            _log.info("%d sessions of workers that died are given back in shard %d", len(left), shard)
        await asyncio.sleep(0)  # each shard's owners were looked through: others have their turn
