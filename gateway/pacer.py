"""How quickly a drain tells clients to go: as evenly as its window allows, and more slowly while the others lag.

Each client has its own slot, the time at which it is to be back. The pace is how many come back within any second at
most; slots follow each other at a share of it (PUNCTUAL_SHARE), since who is late comes together with those after it.
At its fastest they fill the window evenly. Two things tell that those who take the clients lag: the other workers of
this node (connections that wait for their WELCOME, and how long that took lately), and the router, which counts the
drained sessions that were taken over. The pace then falls and rises as in congestion control (AIMD, Chiu and Jain
1989), but never below what is needed to tell everybody within the grace period: to hold back longer would only cut
clients off at its end.

No clock, no I/O: the time is an argument everywhere.
"""

import math
from collections import deque
from dataclasses import dataclass

TICK_S = 0.1
PUNCTUAL_SHARE = 0.8
"""Measured: 10,000 clients on two busy processors came back up to 1.19 times as densely as their slots stood."""
LATE_SHARE = 0.65
"""Of a pace that was set, which no second may exceed: a machine that stands still for half a second, theirs or ours,
has those of one second and a half come back within one."""
SLOWEST_PACE = 20.0
"""With few clients a drain is done before its window is over."""
LAG_S = 0.5
"""A handshake elsewhere that takes longer than this is a sign of too many."""
RETURN_S = 1.0
"""So long after its slot a client is expected to have been taken over."""
RETURNS_S = 2.0
"""Returns are held against slots over this time."""
RETURNED_SHARE_MIN = 0.5
"""Some clients never come back. When less than this share of them does, the others do not keep up."""
DECREASE, DECREASE_PERIOD_S = 0.7, 0.5
INCREASE_SHARE = 0.1
"""Of the fastest pace, a second."""


@dataclass(frozen=True)
class Step:
    """What to tell the data plane for the next TICK_S."""

    count: int
    """Clients to tell."""
    first_s: float
    """When the first of them is to be back, from now."""
    spacing_s: float
    """And each of the others after the one before."""
    pace: float
    """Clients that come back within a second, at most."""


class Pacer:
    """The pace of one drain.

    Args:
        clients: how many there are to tell.
        window_s: in which time, if the others keep up; 0: at once.
        limit_s: by when all must have been told.
        now: the time at the beginning.
        pace: clients a second that may come back at most, instead of what fills the window; 0: as the window says.

    """

    def __init__(self, clients: int, window_s: float, limit_s: float, now: float, pace: float = 0.0) -> None:
        self.fastest = max(clients / window_s / PUNCTUAL_SHARE, SLOWEST_PACE) if window_s > 0 else math.inf
        self.fastest = pace or self.fastest
        self._share = LATE_SHARE if pace else PUNCTUAL_SHARE
        self.pace = self.fastest
        self.left = clients
        self._limit = now + limit_s
        self._slot = now
        self._last = now
        self._decreased = -math.inf
        self._lags_here = False
        self._others: int | None = None  # workers that can take clients, as far as the router told
        self._slots: deque[tuple[float, int]] = deque()  # (when the last is to be back, how many)
        self._returns: deque[tuple[float, int]] = deque()

    def elsewhere(self, handshakes: int, welcome_s: float) -> None:
        """What the busiest of the node's other workers shows.

        Args:
            handshakes: connections that wait for their WELCOME.
            welcome_s: mean time from accept to WELCOME, lately.

        """
        # Little's law: what waits, over what arrives, is how long it waits.
        self._lags_here = max(welcome_s, handshakes / max(self.pace, SLOWEST_PACE)) > LAG_S

    def taken(self, now: float, count: int, others: int) -> None:
        """The router's word: so many of the clients were taken over, and so many workers are there to do it."""
        self._others = others
        self._returns.append((now, count))

    def told(self, count: int) -> None:
        """So many clients were told."""
        self.left = max(0, self.left - count)

    def lags(self, now: float) -> str:
        """What shows that those who take the clients do not keep up: `handshakes`, `returns`, or nothing."""
        if self._lags_here:
            return "handshakes"
        return "returns" if self._returns_lag(now) else ""

    def step(self, now: float) -> Step:
        """What to do until `now` + TICK_S. To be called about that often; a late call catches nothing up."""
        self._adapt(now)
        if math.isinf(self.pace):
            return Step(self.left, 0.0, 0.0, self.pace)
        self._slot = max(self._slot, now)
        slots_a_s = self.pace * self._share
        count = max(0, math.ceil((now + TICK_S - self._slot) * slots_a_s - 1e-9))
        step = Step(count, self._slot - now, 1 / slots_a_s, self.pace)
        self._slot += count / slots_a_s
        self._slots.append((self._slot, count))
        return step

    def slot(self, now: float, within_s: float) -> float | None:
        """One more client's slot, in seconds from now: of who is told beside the steps. None: the next is later."""
        if math.isinf(self.pace):
            return 0.0
        wait_s = max(0.0, self._slot - now)
        if wait_s >= within_s:
            return None
        self._slot = now + wait_s + 1 / (self.pace * self._share)
        return wait_s

    def _adapt(self, now: float) -> None:
        passed_s, self._last = now - self._last, now
        if math.isinf(self.fastest):
            return
        if not self.lags(now):
            self.pace += INCREASE_SHARE * self.fastest * passed_s
        elif now - self._decreased >= DECREASE_PERIOD_S:
            self.pace *= DECREASE
            self._decreased = now
        remaining_s = self._limit - now
        needed = self.left / remaining_s / self._share if remaining_s > TICK_S else self.fastest
        self.pace = min(self.fastest, max(self.pace, needed, SLOWEST_PACE))

    def _returns_lag(self, now: float) -> bool:
        """Whether too few of those came back whose slots were lately, as far as there is anybody to come back to."""
        since, until = now - RETURN_S - RETURNS_S, now - RETURN_S
        while self._slots and self._slots[0][0] < since:
            self._slots.popleft()
        while self._returns and self._returns[0][0] < now - RETURNS_S:
            self._returns.popleft()
        if not self._others:
            return False
        due = sum(count for slot, count in self._slots if slot <= until)
        returned = sum(count for _, count in self._returns)
        return returned < RETURNED_SHARE_MIN * due
