"""Getting a connection to one of several gateways: a race of openings, of which one is kept and all others are closed.

HELLO is said on the winner alone, so a session never has two connections. One that opened and then does not answer
HELLO is left, and the pass goes on with the others.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .codes import RESUMED_ELSEWHERE, CloseClass
from .endpoints import Endpoints, Start
from .errors import Closed, ConnectFailed, ProtocolViolation
from .reconnect import Plan
from .transport import Transport

log = logging.getLogger("holdfast_client")

ENDPOINT_TIMEOUT_S = 5.0
"""For one of several endpoints to open."""
GHOST_S = 300.0
"""For so long a HELLO that we gave up may still be taken by a gateway that stood still."""
_SETTLE_S = 5.0

Open = Callable[[str, float], Awaitable[Transport]]


@dataclass(frozen=True)
class Dialed:
    """The winner of a race."""

    url: str
    transport: Transport
    began: float


class Dialer:
    """What one session knows of its endpoints, and its way through them.

    Args:
        urls: the application's.
        open_: opens a transport to a URL within so many seconds, or raises ConnectFailed.
        clock: seconds.
        timeout_s: for opening a single endpoint.

    """

    def __init__(self, urls: Sequence[str], open_: Open, clock: Callable[[], float], timeout_s: float) -> None:
        self.endpoints = Endpoints(urls)
        self._open = open_
        self._clock = clock
        self._timeout_s = timeout_s
        self._tried: set[str] = set()
        self._target: str | None = None
        self._now_at: Dialed | None = None
        self._welcomed = False
        self._raced = False
        self._ghost_until = float("-inf")

    @property
    def url(self) -> str:
        """Of the connection that there is or was last; before, the first endpoint's."""
        return self._now_at.url if self._now_at is not None else self.endpoints.urls[0]

    async def dial(self) -> Dialed:
        """The connection that is open first.

        Raises:
            ConnectFailed: none of those that are left in this pass can be reached.
        """
        self._welcomed = False
        starts = self.endpoints.starts(self._clock(), self._target, self._tried)
        self._raced = not self.endpoints.is_measured(self._clock())
        timeout_s = min(self._timeout_s, ENDPOINT_TIMEOUT_S) if len(starts) > 1 else self._timeout_s
        race = _Race(self._open, self._clock, timeout_s)
        try:
            self._now_at = await race.run(starts)
        finally:
            for url in race.failed:
                self._target = None if url == self._target else self._target
                self._tried.add(url)
                self.endpoints.failed(url, self._clock())
        return self._now_at

    def welcomed(self) -> None:
        """The connection of now is the session's: the pass is over."""
        if self._now_at is None or self._welcomed:
            return
        now = self._clock()
        self._welcomed = True
        self.endpoints.answered(self._now_at.url, now - self._now_at.began, now, raced=self._raced)
        self._tried.clear()
        self._target = None

    def ended(self, closed: Closed, *, dialed: bool) -> Closed:
        """A connection, or a pass in which there was none, is over; what that means for us.

        Args:
            closed: why.
            dialed: there was a connection.

        Returns:
            `closed`, or an end that is resumed from: our own abandoned HELLO took the session over, or what
            answered in the place of one of several gateways is none.
        """
        now = self._clock()
        if closed.code == RESUMED_ELSEWHERE and now < self._ghost_until:
            self._ghost_until = float("-inf")
            return Closed(closed.code, "an earlier HELLO of our own arrived late", CloseClass.RESUME)
        if not dialed or self._now_at is None:
            return closed
        here = self._now_at.url
        if isinstance(closed, ProtocolViolation) and not self._welcomed and len(self.endpoints) > 1:
            closed = Closed(None, closed.reason, CloseClass.RESUME)
        if not self._welcomed and closed.class_ is not CloseClass.STOP:
            self._tried.add(here)
            self.endpoints.failed(here, now)
            if closed.code is None:
                self._ghost_until = now + GHOST_S
        self._target = self.endpoints.target(closed.target, here)
        if self._target is not None and self._target != here:
            self.endpoints.sent_away(here, now)
            self._tried.discard(self._target)
        return closed

    def next_in_pass(self, closed: Closed) -> Plan | None:
        """Go on at once with those that were not tried yet in this pass; None: it is over, or we are told to wait."""
        goes_on = not self._welcomed and closed.class_ is not CloseClass.STOP and closed.after_ms is None
        if goes_on and self._tried and set(self.endpoints.urls) - self._tried:
            return Plan(closed.class_, 0.0, counts=False)
        self._tried.clear()
        return None


class _Race:
    """One race; `failed` are those that could not be opened."""

    def __init__(self, open_: Open, clock: Callable[[], float], timeout_s: float) -> None:
        self._open = open_
        self._clock = clock
        self._timeout_s = timeout_s
        self._running: dict[asyncio.Task[Transport], tuple[str, float]] = {}
        self.failed: dict[str, str] = {}

    async def run(self, starts: Sequence[Start]) -> Dialed:
        """The first that opens; all others are closed when this returns.

        Raises:
            ConnectFailed: none opens; says why of each.
        """
        waiting = list(starts)
        try:
            while waiting or self._running:
                if waiting and not self._running:
                    self._begin(waiting.pop(0))
                head_start_s = waiting[0].after_s if waiting else None
                # Without one more to begin there is no time to look at: each opening ends by itself.
                done, _ = await asyncio.wait(self._running, timeout=head_start_s, return_when=asyncio.FIRST_COMPLETED)
                winner = self._winner(done)
                if winner is not None:
                    return winner
                if waiting:  # the head start is over, or the one before has failed
                    self._begin(waiting.pop(0))
            why = "; ".join(dict.fromkeys(self.failed.values()))
            raise ConnectFailed(why or "there is no endpoint")
        finally:
            await self._end_others()

    def _begin(self, start: Start) -> None:
        opening = asyncio.ensure_future(self._open(start.url, self._timeout_s))
        self._running[opening] = (start.url, self._clock())

    def _winner(self, done: set[asyncio.Task[Transport]]) -> Dialed | None:
        """Of those that are done, the one that began first and is open; the others that are stay for `_end_others`."""
        for opening, (url, began) in list(self._running.items()):
            if opening not in done:
                continue
            error = opening.exception()
            if error is None:
                del self._running[opening]
                return Dialed(url, opening.result(), began)
            del self._running[opening]
            if not isinstance(error, ConnectFailed):
                raise error
            self.failed[url] = str(error)
            log.info("%s", error)
        return None

    async def _end_others(self) -> None:
        """Nothing of those that lost may stay, also not what opens in this very moment."""
        losers = list(self._running)
        self._running.clear()
        for opening in losers:
            opening.cancel()
        if losers:
            await asyncio.wait(losers, timeout=_SETTLE_S)
        for opening in losers:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                await opening.result().close(None, "")  # deadline: that of Transport.close, which every transport keeps
