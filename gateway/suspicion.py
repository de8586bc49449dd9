"""When growth is held for a leak, and when that is taken back: a decision over the fits of one resource, with memory.

It takes RAISE_AFTER fits in a row to suspect, and CLEAR_AFTER to take it back; in between lies a band (between half
the threshold and all of it) in which nothing changes, so that a borderline case does not flap.
"""

from dataclasses import dataclass
from typing import Literal

from gateway.growth import DAY_S, Growth

RAISE_AFTER = 2
CLEAR_AFTER = 3


@dataclass
class Suspicion:
    """What is thought of one resource of one process.

    Args:
        threshold: share of its level a day, such as 0.01, that it must surely grow, and that it must have grown
            within the time that was seen: 1 % an hour is not yet 24 % a day.

    """

    threshold: float
    suspected: bool = False
    _in_a_row: int = 0

    def see(self, growth: Growth) -> Literal["raised", "cleared"] | None:
        """The next fit; what it changes, if anything."""
        speaks = self._clears(growth) if self.suspected else self._raises(growth)
        self._in_a_row = self._in_a_row + 1 if speaks else 0
        if self._in_a_row < (CLEAR_AFTER if self.suspected else RAISE_AFTER):
            return None
        self.suspected = not self.suspected
        self._in_a_row = 0
        return "raised" if self.suspected else "cleared"

    def _raises(self, growth: Growth) -> bool:
        grown = growth.relative_per_day * growth.span_s / DAY_S
        return growth.growing and growth.relative_low >= self.threshold and grown >= self.threshold

    def _clears(self, growth: Growth) -> bool:
        return not growth.growing or growth.relative_per_day < self.threshold / 2
