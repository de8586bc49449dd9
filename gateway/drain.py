"""The end of a worker: nothing new, every client told to go in its turn, and what the time did not suffice for is said.

This thread decides the pace ten times a second (`gateway.pacer`); the data plane tells the clients (`core/drain.pyx`).
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol

from core import notes
from gateway import logs
from gateway.pacer import TICK_S, Pacer

GRACE_S = 4.0
"""After the window, for a pace that was held back and for FIN_ACKs; a second less than the supervisor waits."""
ACKS_S = 1.0
"""Of these, for the FIN_ACKs of those who were told last."""
_FIRST_ANSWER_S = 2.0
STEP_MAX = 4096  # DRAIN_STEP_MAX of core/drain.pxd

_log = logs.get("worker")


class StepPlane(Protocol):
    """What is needed of core.loop.EdgeLoop."""

    def put(
        self,
        kind: int,
        conn: int = 0,
        request: int = 0,
        *,
        flags: int = 0,
        first: int = 0,
        second: int = 0,
        third: int = 0,
        text: bytes = b"",
    ) -> None: ...

    def flush(self) -> None: ...


class Drain:
    """One drain of one worker.

    Args:
        plane: the data plane.
        window_s: in which to tell the clients.
        leaves: a successor has the listening sockets.
        clock: monotonic.

    """

    def __init__(
        self, plane: StepPlane, window_s: float, *, leaves: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.pacer: Pacer | None = None
        self._plane = plane
        self._window_s = window_s
        self._leaves = leaves
        self._clock = clock
        self._live: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._all_told = False
        self._over = asyncio.Event()

    def on_note(self, kind: int, request: int, first: int, second: int) -> None:
        """A note from the data plane that is about the drain."""
        if kind == notes.DRAIN_SENT:
            self.on_sent(first, bool(second), request)
        elif kind == notes.TAKEN:
            self.on_taken(first, second)
        elif kind == notes.STOPPED:
            self._over.set()

    def on_sent(self, sent: int, finished: bool, live: int) -> None:
        """The data plane's answer to a step."""
        self._all_told = self._all_told or finished
        if not self._live.done():
            self._live.set_result(live)
        if self.pacer is not None:
            self.pacer.told(sent)

    def on_taken(self, count: int, others: int) -> None:
        """The router's word about drained sessions."""
        if self.pacer is not None:
            self.pacer.taken(self._clock(), count, others)

    def on_elsewhere(self, handshakes: int, welcome_s: float) -> None:
        """The supervisor's word about the busiest of the node's other workers."""
        if self.pacer is not None:
            self.pacer.elsewhere(handshakes, welcome_s)

    async def run(self) -> None:
        """Tells all clients and waits until they are gone, at most for the window and the grace time."""
        began = self._clock()
        self._plane.put(notes.DRAIN, flags=int(self._leaves))
        clients = await self._count()
        self.pacer = Pacer(clients, self._window_s, self._window_s + GRACE_S - ACKS_S, self._clock())
        _log.info("drain_begins", clients=clients, pace=_shown(self.pacer.fastest), window_s=self._window_s)
        end = began + self._window_s + GRACE_S
        shown = self.pacer.pace
        while not self._over.is_set() and self._clock() < end:
            if not self._all_told:
                shown = self._step(self.pacer, shown)
            await self._wait(min(TICK_S, max(0.0, end - self._clock())))
        told = clients - self.pacer.left
        _log.info("drain_ends", told=told, left=self.pacer.left, took_s=round(self._clock() - began, 2))

    def _step(self, pacer: Pacer, shown: float) -> float:
        """One step; the pace that was logged last."""
        step = pacer.step(self._clock())
        count = step.count
        while count > 0:
            part = min(count, STEP_MAX)
            first_s = step.first_s + (step.count - count) * step.spacing_s
            self._plane.put(
                notes.DRAIN_STEP,
                request=round(first_s * 1e6),
                first=part,
                second=round(step.spacing_s * 1e6),
                third=_shown(step.pace),
            )
            count -= part
        self._plane.flush()
        if abs(step.pace - shown) <= 0.2 * shown or math.isinf(step.pace):
            return shown
        lag = pacer.lags(self._clock()) or "none"
        _log.info("drain_pace", pace=_shown(step.pace), fastest=_shown(pacer.fastest), left=pacer.left, lag=lag)
        return step.pace

    async def _count(self) -> int:
        """How many connections there are, once the data plane accepts no more."""
        self._plane.put(notes.DRAIN_STEP)
        self._plane.flush()
        try:
            async with asyncio.timeout(_FIRST_ANSWER_S):
                return await self._live
        except TimeoutError:
            _log.error("drain_unheard", why="the data plane does not answer")
            return 0

    async def _wait(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._over.wait()
        except TimeoutError:
            pass


def _shown(pace: float) -> int:
    return 0 if math.isinf(pace) else round(pace)
