"""When and how to come back: the gateway's word first, exponential back-off with full jitter where it is silent."""

import random
from dataclasses import dataclass

from .codes import CloseClass
from .errors import Closed


@dataclass(frozen=True)
class Backoff:
    """Bounds of the waiting before each attempt.

    Attributes:
        base_s: the first attempt waits a random time up to this.
        cap_s: no wait of ours is longer; a gateway may ask for more.
    """

    base_s: float = 0.5
    cap_s: float = 30.0

    def delay_s(self, attempt: int, source: random.Random) -> float:
        """Full jitter: anywhere between nothing and the bound, which doubles with each attempt (0, 1, 2 …)."""
        # 2.0 ** 1024 would overflow; the cap is reached long before.
        return source.uniform(0.0, min(self.cap_s, self.base_s * 2.0 ** min(attempt, 64)))


@dataclass(frozen=True)
class Plan:
    """What to do next: wait, then connect and resume or start afresh.

    Attributes:
        class_: resume, start afresh, or stop.
        delay_s: how long to wait first.
        counts: whether it is an attempt more, on which the next wait depends; not so within a pass over the endpoints.
    """

    class_: CloseClass
    delay_s: float
    counts: bool = True


def plan(closed: Closed, attempt: int, backoff: Backoff, source: random.Random) -> Plan:
    """The next step after an end.

    `after` is already jittered by the gateway, so that the first attempt waits exactly this; attempts that failed since
    add their back-off.
    """
    if closed.class_ is CloseClass.STOP:
        return Plan(CloseClass.STOP, 0.0)
    if closed.after_ms is None:
        return Plan(closed.class_, backoff.delay_s(attempt, source))
    extra_s = backoff.delay_s(attempt - 1, source) if attempt > 0 else 0.0
    return Plan(closed.class_, closed.after_ms / 1000 + extra_s)
