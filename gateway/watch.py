"""Sees to it that no process of the node hangs unnoticed: one that does is looked at, killed, and so replaced.

A process shows in two ways that it lives: its data plane notes each turn in shared memory (it wakes up once a second at
least), and its control thread answers `ping`. Each look counts what has not moved since the one before; a process that
did not move for `stuck_after_s` is stuck, and one that has not been ready yet, for `start_s`. Looks are counted, not
seconds: after the whole machine slept, or when this process itself got no processor, nobody is accused.
"""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from core.commands import CommandError
from gateway import autopsy, logs
from gateway.child import Child
from gateway.child_process import ChildProcess

LOOK_S = 1.0
START_S = 30.0

_log = logs.get("supervisor")


@dataclass
class Health:
    """What is known of one process."""

    turn_ms: int = 0
    turns_missed: int = 0
    """Looks in a row at which its data plane had not begun another turn."""
    pings_missed: int = 0
    """Looks in a row at which the last ping was not answered."""
    ping: asyncio.Task[bool] | None = None

    def look(self, turn_ms: int, ask: Callable[[], Awaitable[bool]]) -> None:
        """Counts what did not move; asks again once it is known whether the last question was answered."""
        self.turns_missed = self.turns_missed + 1 if turn_ms and turn_ms == self.turn_ms else 0
        self.turn_ms = turn_ms
        answered = self.ping is None or (self.ping.done() and self.ping.result())
        self.pings_missed = 0 if answered else self.pings_missed + 1
        if self.ping is None or self.ping.done():
            self.ping = asyncio.ensure_future(ask())

    def stuck(self, looks: int) -> str:
        """What hangs, when it has not moved for so many looks; empty: nothing."""
        if self.turns_missed >= looks:
            return "its data plane makes no turns"
        return "its control thread does not answer" if self.pings_missed >= looks else ""

    def forget(self) -> None:
        """Nobody waits for its answer any more."""
        if self.ping is not None:
            self.ping.cancel()


class Watch:
    """Watches the processes of these places.

    Args:
        children: gives the places.
        stuck_after_s: how long a process may not move.
        folder: where reports are written.
        start_s: how long a process that has not been ready yet may not move.
        look_s: the time between two looks.
        each_look: also called at each look.

    """

    def __init__(
        self,
        children: Callable[[], list[Child]],
        stuck_after_s: float,
        folder: Path,
        *,
        start_s: float = START_S,
        look_s: float = LOOK_S,
        each_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._children = children
        self._looks = max(2, math.ceil(stuck_after_s / look_s))
        self._looks_first = max(self._looks, math.ceil(start_s / look_s))
        self._folder = folder
        self._look_s = look_s
        self._each_look = each_look
        self._stuck_after_s = stuck_after_s
        self._health: dict[ChildProcess, Health] = {}
        self._examined: dict[ChildProcess, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._look_s)
                self._each_look()
                self._look_at_all()
        finally:
            for task in self._examined.values():
                task.cancel()
            for health in self._health.values():
                health.forget()

    def _look_at_all(self) -> None:
        living = {process: child for child in self._children() for process in child.processes if process.pid}
        for process in [process for process in self._health if process not in living]:
            self._health.pop(process).forget()
            self._examined.pop(process, None)
        for process, child in living.items():
            health = self._health.setdefault(process, Health())
            health.look(process.turn_ms(), functools.partial(self._ping, process))
            why = health.stuck(self._looks if process.is_ready else self._looks_first)
            if why and process not in self._examined:
                child.stuck += 1
                self._examined[process] = asyncio.create_task(self._replace(process, why), name=f"stuck {process.name}")

    async def _ping(self, process: ChildProcess) -> bool:
        """Whether it answers, at whatever time: each look counts how long there is no answer."""
        try:
            await process.ask("ping", deadline_s=self._stuck_after_s * 10)
        except OSError:  # no answer in time, or no socket
            return False  # it has ended, or lives and can be asked nothing any more
        except CommandError:
            pass  # older than this question
        return True

    async def _replace(self, process: ChildProcess, why: str) -> None:
        """Writes down what it is doing and kills it; whoever keeps the place starts another."""
        said = f"{why} for {(self._looks if process.is_ready else self._looks_first) * self._look_s:g} s"
        try:
            report = await autopsy.examine(process, said)  # deadline: THREAD_DEADLINE_S for each thread
            path = autopsy.keep(self._folder, process.name, report)
            _log.error("child_stuck", child=process.name, pid=process.pid, why=said, report=str(path), stacks=report)
        except OSError as error:
            _log.error("child_stuck", child=process.name, pid=process.pid, why=said, not_written=str(error))
        finally:
            process.kill()
