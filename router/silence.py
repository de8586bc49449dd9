"""Notices that somebody who was asked says nothing, whatever the deadline of each question by itself is."""

from collections.abc import Callable

LOOKED_S = 1.0
"""Whoever looks less often than that stood still himself meanwhile."""


class Silence:
    """Since when nothing is heard, while something is asked.

    Args:
        limit_s: how long nobody is to wait.
        clock: seconds.

    """

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._asked = 0
        self._since = self._looked = clock()

    def asked(self) -> None:
        """There is a question more."""
        if not self._asked:
            self._since = self._clock()
        self._asked += 1

    def ended(self, *, heard: bool) -> None:
        """A question has its end; `heard`: by an answer."""
        self._asked -= 1
        if heard:
            self._since = self._clock()

    def is_long(self) -> bool:
        """Whether it has lasted as long as anybody is to wait; to be asked a few times a second."""
        clock = self._clock()
        stood_still = max(0.0, clock - self._looked - LOOKED_S)
        self._since = min(clock, self._since + stood_still)
        self._looked = clock
        return self._asked > 0 and clock - self._since >= self._limit_s
