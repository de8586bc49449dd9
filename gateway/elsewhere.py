"""Tells the workers that leave how the others of this node are doing, so that they do not send clients too quickly.

What the others show is in shared memory: how many connections wait for their WELCOME, and what it took lately.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from core.commands import CommandError
from gateway.child import Child
from gateway.child_process import ChildProcess

LOOK_S = 0.25
TELL_DEADLINE_S = 1.0


@dataclass(frozen=True)
class Load:
    """What one worker shows, or the busiest of several."""

    handshakes: int = 0
    """Connections that wait for their WELCOME."""
    welcome_s: float = 0.0
    """Mean time from accept to WELCOME of those that were welcomed since the last look."""

    def busier(self, other: "Load") -> "Load":
        """The worse of both in each respect."""
        return Load(max(self.handshakes, other.handshakes), max(self.welcome_s, other.welcome_s))


class Elsewhere:
    """Looks at the workers in these places while one of them has a process that leaves."""

    def __init__(self, children: Callable[[], list[Child]], look_s: float = LOOK_S) -> None:
        self._children = children
        self._look_s = look_s
        self._counted: dict[ChildProcess, tuple[int, int]] = {}  # (welcomed, their time in ms) at the last look

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            leaving = [process for child in self._children() for process in child.leaving]
            if leaving:
                load = self.look()
                await asyncio.gather(*(_tell(process, load) for process in leaving))
            else:
                # Nothing is read for nobody: four looks a second would be a third of what an idle node costs.
                self._counted = {}

    def look(self) -> Load:
        """The busiest of the current processes since the last look."""
        busiest, counted = Load(), {}
        for child in self._children():
            process = child.current
            if process is None or not process.is_ready:
                continue
            stats = process.stats()
            welcomed, took_ms = stats["counters"]["entered_open"], stats["times"]["welcome_sum"]
            before, before_ms = self._counted.get(process, (welcomed, took_ms))
            counted[process] = (welcomed, took_ms)
            mean_s = (took_ms - before_ms) / 1000 / (welcomed - before) if welcomed > before else 0.0
            busiest = busiest.busier(Load(stats["gauges"]["handshakes"], mean_s))
        self._counted = counted
        return busiest


async def _tell(process: ChildProcess, load: Load) -> None:
    try:
        await process.ask("pace", deadline_s=TELL_DEADLINE_S, handshakes=load.handshakes, welcome_s=load.welcome_s)
    except (CommandError, ConnectionError, TimeoutError):
        return  # it has ended, or is older than this question: then its pace goes by the router's word alone
