"""A world without time of its own: events in a queue, one source of chance, a trace. One seed, one run."""

import heapq
import random
from collections.abc import Callable
from typing import Any


class Violation(Exception):
    """Something happened that must never happen."""


class World:
    """Virtual time. Everything that happens is a call at a time; equal times go in the order of their making."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.trace: list[tuple[float, tuple[Any, ...]]] = []
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, delay: float, call: Callable[..., object], *args: Any) -> None:
        """Have something happen later."""
        self.at(self.now + delay, call, *args)

    def at(self, time: float, call: Callable[..., object], *args: Any) -> None:
        """Have something happen at a time, after what is to happen then already."""
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, call, args))

    def run(self, until: float) -> None:
        """Let everything happen up to a time."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= until:
            self.now, _, call, args = pop(queue)
            call(*args)
        self.now = until

    def note(self, *what: Any) -> None:
        """Remember for the trace of a failed run. Values only: they are turned into text when it is printed."""
        self.trace.append((self.now, what))

    def story(self, lines: int = 200) -> str:
        """The end of the trace."""
        return "\n".join(f"{time:9.4f}  " + " ".join(str(one) for one in what) for time, what in self.trace[-lines:])
