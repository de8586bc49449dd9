"""A worker's drain against a data plane that answers by the book: who is told when, and when it is over."""

import asyncio
import itertools
import time
from typing import Any

import pytest

from core import notes
from gateway.drain import GRACE_S, Drain
from gateway.pacer import TICK_S
from tests.gateway.test_supervisor import until

WINDOW_S = 2.0


class Plane:
    """Stands for the data plane: tells its clients as asked; `stuck` ones never leave, a `deaf` one answers nothing."""

    def __init__(self, clients: int, *, stuck: bool = False, deaf: bool = False) -> None:
        self.left, self.live, self.stuck, self.deaf = clients, clients, stuck, deaf
        self.drain: Drain | None = None
        self.said: list[tuple[int, dict[str, Any]]] = []
        self.told: list[int] = []
        self.longest_s = 0.0
        """Between two steps, beyond a tick."""
        self._stepped = 0.0

    def put(self, kind: int, **fields: Any) -> None:
        self.said.append((kind, fields))

    def flush(self) -> None:
        loop = asyncio.get_running_loop()
        for kind, fields in self.said:
            if kind == notes.DRAIN_STEP and not self.deaf:
                loop.call_soon(self._step, fields.get("first", 0))
        self.steps = [fields for kind, fields in self.said if kind == notes.DRAIN_STEP]
        self.said = [one for one in self.said if one[0] == notes.DRAIN]

    def _step(self, count: int) -> None:
        assert self.drain is not None
        now = time.monotonic()
        if self._stepped:
            self.longest_s = max(self.longest_s, now - self._stepped - TICK_S)
        self._stepped = now
        told = min(count, self.left)
        self.left -= told
        self.told.append(told)
        self.drain.on_note(notes.DRAIN_SENT, self.live, told, int(count > told))
        self.live -= 0 if self.stuck else told
        if self.live == 0:
            self.drain.on_note(notes.STOPPED, 0, 0, 0)


class Clock:
    """Goes on by a tick whenever it is looked at long enough after; the loop's own timers run on real time."""

    def __init__(self, step_s: float) -> None:
        self._ticks = itertools.count()
        self._step_s = step_s

    def __call__(self) -> float:
        return next(self._ticks) * self._step_s


def drained(run_in_loop: Any, plane: Plane, window_s: float, clock: Any = None, *, leaves: bool = False) -> float:
    """Runs one to its end; how long it took by the loop's clock."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        plane.drain = Drain(plane, window_s, leaves=leaves, **({} if clock is None else {"clock": clock}))  # type: ignore[arg-type]
        await plane.drain.run()
        return loop.time() - began

    return float(run_in_loop(scenario()))


@pytest.mark.parametrize("leaves", [False, True])
def test_everybody_is_told_within_the_window_and_it_is_over_when_they_are_gone(run_in_loop: Any, leaves: bool) -> None:
    plane = Plane(100)
    took_s = drained(run_in_loop, plane, 1.0, leaves=leaves)
    assert sum(plane.told) == 100
    assert plane.left == 0
    # A tick's share, not a rush; a tick that a busy machine holds up has that of those it stands for.
    assert max(plane.told) <= 12 + 100 * plane.longest_s
    assert 0.8 < took_s < 1.0 + GRACE_S
    assert plane.said == [(notes.DRAIN, {"flags": int(leaves)})]


def test_without_clients_it_is_over_at_once(run_in_loop: Any) -> None:
    assert drained(run_in_loop, Plane(0), 10.0) < 1.0


def test_without_a_window_all_are_told_at_once_in_steps_that_the_data_plane_takes(run_in_loop: Any) -> None:
    plane = Plane(10_000)
    assert drained(run_in_loop, plane, 0.0) < 1.0
    assert plane.told[1:] == [4096, 4096, 1808]


def test_who_does_not_go_is_waited_for_until_the_grace_time_is_over(run_in_loop: Any) -> None:
    plane = Plane(10, stuck=True)
    drained(run_in_loop, plane, WINDOW_S, Clock(0.25))
    assert plane.left == 0
    assert plane.live == 10


def test_a_data_plane_that_does_not_answer_does_not_hold_it_up_for_ever(run_in_loop: Any) -> None:
    drained(run_in_loop, Plane(5, deaf=True), 0.5, Clock(0.5))


def test_what_the_router_says_reaches_the_pace(run_in_loop: Any) -> None:
    async def scenario() -> None:
        plane = Plane(1000)
        plane.drain = drain = Drain(plane, 60.0, leaves=False)  # type: ignore[arg-type]
        running = asyncio.create_task(drain.run())
        await until(lambda: drain.pacer is not None, "it has begun")
        drain.on_note(notes.TAKEN, 0, 3, 2)
        assert drain.pacer is not None
        assert drain.pacer._others == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_in_loop(scenario())
