"""A worker of an evacuated region: it sends its clients to other regions, one after another, and takes none.

Unlike a drain (gateway/drain.py) it has no end of its own: the worker goes on listening, so that who comes is told
where to go, and when the region is restored it serves again. The data plane walks its table of connections at the same
pace as in a drain, and again each second, for those that were on their way in while it began.
"""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from core import notes
from core.codes import Code
from core.owned import ACCOUNT
from gateway import logs
from gateway.drain import STEP_MAX, StepPlane
from gateway.pacer import TICK_S, Pacer

WHY = "this region is evacuated"
AGAIN_S = 1.0
FIRST_ANSWER_S = 2.0
STOP_DEADLINE_S = 1.0
REFUSED_AFTER_MS = 1_000
"""Who says HELLO to an evacuated region comes back elsewhere within it, at a random time, if no pace was set."""
REFUSED_AFTER_MAX_S = 60.0
"""Nobody is refused for longer, whatever the pace: beyond it, the time is a random one up to it."""

_log = logs.get("worker")


class Away(msgspec.Struct, frozen=True):
    """What the supervisor orders."""

    targets: tuple[tuple[str, str], ...]
    """Gateways of other regions, as URLs for WebSocket and for TCP; empty: none is known."""
    pace: float = 0.0
    """Clients a second that this worker sends at most; 0: as many as a drain."""


class Refusal(NamedTuple):
    """How HELLO is answered."""

    code: Code
    why: str
    after_ms: int
    targets: bytes
    """See `packed`."""


def packed(target: tuple[str, str]) -> bytes:
    """Where to go, as the data plane takes it: the URL for connections over WebSocket, and the one for TCP."""
    return "\0".join(target).encode() if any(target) else b""


class Evacuation:
    """The evacuations of one worker, one after another.

    Args:
        plane: the data plane.
        window_s: in which clients are told, if no pace was set.
        clock: monotonic.
        chance: from 0 to below 1.

    """

    def __init__(
        self,
        plane: StepPlane,
        window_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._plane = plane
        self._window_s = window_s
        self._clock = clock
        self._chance = chance
        self._order: Away | None = None
        self._targets: Iterator[bytes] = itertools.repeat(b"")
        self._task: asyncio.Task[None] | None = None
        self._live: asyncio.Future[int] | None = None
        self._pacer: Pacer | None = None
        self._all_told = False

    async def follow(self, order: Away | None) -> None:
        """Begin, go on under another order, or end (None)."""
        if order == self._order:
            return
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_DEADLINE_S)
            self._task = self._pacer = None
            if order is None:
                _log.info("evacuation_ends", why="the region is restored, or there is no other, or this worker stops")
        self._order = order
        if order is not None:
            targets = list(map(packed, order.targets))
            random.shuffle(targets)  # not all workers begin with the same
            self._targets = itertools.cycle(targets or [b""])
            self._task = ACCOUNT.task(self._run(order), "evacuation")

    def refusal(self) -> Refusal | None:
        """What HELLO is answered with; None: it is served."""
        if self._order is None:
            return None
        return Refusal(Code.MOVED, WHY, self._after_ms(self._order.pace), next(self._targets))

    def _after_ms(self, pace: float) -> int:
        """When who says HELLO is to come back: a pace that was set counts these as well."""
        if not pace or self._pacer is None:
            return int(self._chance() * REFUSED_AFTER_MS)
        after_s = self._pacer.slot(self._clock(), REFUSED_AFTER_MAX_S)
        return int(1000 * (self._chance() * REFUSED_AFTER_MAX_S if after_s is None else after_s))

    def on_note(self, kind: int, request: int, first: int, second: int) -> None:
        """A note from the data plane about steps."""
        if kind == notes.DRAIN_SENT:
            if self._live is not None and not self._live.done():
                self._live.set_result(request)
            self._all_told = self._all_told or bool(second)
            if self._pacer is not None:
                self._pacer.told(first)
        elif kind == notes.TAKEN and self._pacer is not None:
            self._pacer.taken(self._clock(), first, second)

    async def _run(self, order: Away) -> None:
        clients = await self._count()
        pacer = self._pacer = Pacer(clients, self._window_s, math.inf, self._clock(), order.pace)
        pace = 0 if math.isinf(pacer.fastest) else round(pacer.fastest, 1)
        _log.info("evacuation_begins", clients=clients, pace=pace, targets=[" ".join(one) for one in order.targets])
        while True:
            self._all_told = False
            while not self._all_told:
                self._step(pacer)
                await asyncio.sleep(TICK_S)
            await asyncio.sleep(AGAIN_S)

    def _step(self, pacer: Pacer) -> None:
        step = pacer.step(self._clock())
        count = step.count
        if math.isinf(step.pace):
            count = max(1, count)  # who came meanwhile is not among those that were counted
        first_s = step.first_s
        while count > 0:
            part = min(count, STEP_MAX)
            self._plane.put(
                notes.DRAIN_STEP,
                flags=1,
                request=round(first_s * 1e6),
                first=part,
                second=round(step.spacing_s * 1e6),
                third=0 if math.isinf(step.pace) else round(step.pace),
                text=next(self._targets),
            )
            first_s += part * step.spacing_s
            count -= part
        self._plane.flush()

    async def _count(self) -> int:
        """How many connections there are."""
        self._live = asyncio.get_running_loop().create_future()
        self._plane.put(notes.DRAIN_STEP)
        self._plane.flush()
        try:
            async with asyncio.timeout(FIRST_ANSWER_S):
                return await self._live
        except TimeoutError:
            _log.error("evacuation_unheard", why="the data plane does not answer")
            return 0
