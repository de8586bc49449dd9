"""One place in the node that a worker or router process fills: who is in it, its readiness, its counters.

Most of the time a place has one process. While that is replaced it has two, the successor beside it, and then one that
leaves: it serves the clients that it still has until all were told to go. The counters of all processes that were ever
in a place are added up, so that what the metrics count never goes back.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.process import LEAVE
from gateway import logs
from gateway.child_process import ChildProcess
from gateway.errors import ReloadError
from gateway.spawner import Spawner

_log = logs.get("supervisor")


@dataclass(frozen=True)
class ChildSpec:
    """What a place is for."""

    name: str
    command: tuple[str, ...]
    """A module that the zygote has imported, or a program with its arguments."""
    config: Callable[[int, int, int], bytes]
    """(epoch, stats_fd, commands_fd) to the JSON that the process gets on its standard input."""
    fds: Callable[[], Sequence[int]] = tuple
    """Further descriptors for each process of the place, asked for at its start: TCP_FD and the next."""


@dataclass
class Totals:
    """What one or more processes have counted. opened = closed + lost + live, kind by kind."""

    opened: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    """Resources that were open when their process ended; the kernel released them."""
    live: Counter[str] = field(default_factory=Counter)
    counters: Counter[str] = field(default_factory=Counter)
    gauges: dict[str, int] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    """Requests answered by ERROR, by the code's name."""
    times: Counter[str] = field(default_factory=Counter)
    """How long things took, in the buckets of `core.ledger.read`."""

    @classmethod
    def of(cls, stats: Mapping[str, Mapping[str, int]]) -> "Totals":
        """The totals of one living process, from what `core.ledger.read` gives."""
        totals = cls(
            counters=Counter(stats["counters"]),
            gauges=dict(stats["gauges"]),
            errors=Counter(stats["errors"]),
            times=Counter(stats["times"]),
        )
        for name, count in stats["ledger"].items():
            kind, _, what = name.rpartition("_")
            (totals.opened if what == "opened" else totals.closed)[kind] = count
        for kind, opened in totals.opened.items():
            totals.live[kind] = opened - totals.closed[kind]
        return totals

    def plus(self, other: "Totals") -> "Totals":
        """These totals and those of another process of the same place."""
        return Totals(
            _sum(self.opened, other.opened),
            _sum(self.closed, other.closed),
            _sum(self.lost, other.lost),
            _sum(self.live, other.live),
            _sum(self.counters, other.counters),
            {name: self.gauges.get(name, 0) + other.gauges.get(name, 0) for name in {**self.gauges, **other.gauges}},
            _sum(self.errors, other.errors),
            _sum(self.times, other.times),
        )

    def ended(self) -> "Totals":
        """These totals once their process is gone."""
        lost = _sum(self.lost, self.live)
        return Totals(self.opened, self.closed, lost, Counter(), self.counters, {}, self.errors, self.times)


def _sum(one: Counter[str], other: Counter[str]) -> Counter[str]:
    """Like `+`, which would drop the names that stand at zero and so make series come and go."""
    result = Counter(one)
    result.update(other)
    return result


class Child:
    """A place and, most of the time, the process in it."""

    def __init__(self, spec: ChildSpec, spawner: Spawner) -> None:
        self.spec = spec
        self.spawner = spawner
        self.starts = 0
        self.ready = asyncio.Event()
        self.was_ready = False
        self.crash_loop = False
        self.waits = ""
        """What its process says it waits for before it is ready."""
        self.stuck = 0
        """Processes that hung and were killed for it."""
        self._current: ChildProcess | None = None
        self._last: ChildProcess | None = None  # the current one, or the one that ended as such
        self._successor: ChildProcess | None = None
        self._start_turn = asyncio.Lock()
        """Held while a process is started, until it can be seen here: the place must not get two at once."""
        self._leaving: list[ChildProcess] = []
        self._signal: signal.Signals | None = None  # sent as soon as there is a process to send it to
        self._ended = Totals()
        self._emptied = asyncio.Event()
        self._beside: ChildSpec | None = None  # what to run here while a process leaves
        self._wanted = False  # the next start is because of `restart`
        self._uncounted = 0  # starts because of `restart`
        self.on_event: Callable[[Child, str, dict[str, Any]], None] | None = None
        """What to call with anything that a process tells unasked, but that it is ready."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The living process, if there is one; not those beside it."""
        return None if self._current is None else self._current.pid

    @property
    def processes(self) -> list[ChildProcess]:
        """All that have not ended: the current one, its successor, those that leave."""
        return [one for one in (self._current, self._successor, *self._leaving) if one is not None]

    @property
    def current(self) -> ChildProcess | None:
        """The process in the place."""
        return self._current

    @property
    def leaving(self) -> list[ChildProcess]:
        """Those that were told to leave and have not ended."""
        return list(self._leaving)

    @property
    def restarts(self) -> int:
        """Starts after the first, but for those that were asked for."""
        return max(0, self.starts - 1 - self._uncounted)

    def totals(self) -> Totals:
        """All that the processes in this place have counted so far."""
        totals = self._ended
        for process in self.processes:
            totals = totals.plus(Totals.of(process.stats()))
        return totals

    async def run_once(self, epoch: int) -> int:
        """Starts a process and returns, when the place is empty again, the exit code of the last one in it.

        That may be one that replaced it. Those that leave are not waited for: see `until_empty`. Waiting for its end
        has no deadline: a process may live for months. `send` is how to make it end.

        Raises:
            OSError: the system cannot start it.

        """
        async with self._start_turn:  # deadline: that of a start, ANSWER_DEADLINE_S of the spawner above all
            if self._current is None:  # no successor came before
                await self._fill(epoch)
        while self._current is not None:
            await self._emptied.wait()  # no deadline: see above
        assert self._last is not None
        return await self._last.end()

    async def _fill(self, epoch: int) -> None:
        self.starts += 1
        self._uncounted, self._wanted = self._uncounted + self._wanted, False
        self._current = self._last = process = self._made()
        spec = self._beside if self._leaving and self._beside is not None else self.spec
        try:
            await self._start(process, spec, self.spawner, epoch)
        except BaseException:
            self._current = None
            raise
        self._update()

    async def replace(self, beside: ChildSpec, spec: ChildSpec, spawner: Spawner, epoch: int, ready_s: float) -> None:
        """Starts a successor and, once it is ready, lets the process in this place leave.

        Args:
            beside: what to run as the successor, which shares the place for a while.
            spec: what to run here from then on, whenever the successor ends.
            spawner: where they come from.
            epoch: of the successor.
            ready_s: how long it may take to get ready.

        Raises:
            ReloadError: it was not ready in time, or ended before; the process in this place stays.

        """
        async with self._start_turn:  # deadline: as in `run_once`
            successor = None if self._current is None else await self._started_beside(beside, spawner, epoch)
        if successor is None:  # it died and is about to be started: as the new one, then
            before = self.spec, self.spawner, self._beside
            self.spec, self.spawner, self._beside = spec, spawner, beside
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ready_s):
                    await self.ready.wait()
                    return
            self.spec, self.spawner, self._beside = before
            why = f": {self.waits}" if self.waits else ""
            raise ReloadError(
                f"{self.name} was not running, and its new process was not ready after {ready_s:g} s{why}"
            )
        ready = await successor.until_ready(ready_s)  # deadline: the caller's, ready_s
        if self._successor is successor:
            self._successor = None
            if successor.pid is not None and not ready:
                self._leaving.append(successor)
        if not ready:
            raise ReloadError(f"the new process of {self.name} {await _fate(successor, ready_s)}")
        self.spec, self.spawner, self._beside = spec, spawner, beside
        self._take_over(successor)

    async def _started_beside(self, spec: ChildSpec, spawner: Spawner, epoch: int) -> ChildProcess:
        """A successor under way; at once in the place, if who was there died meanwhile."""
        successor = self._made()
        try:
            await self._start(successor, spec, spawner, epoch)
        except OSError as error:
            raise ReloadError(f"the new process of {self.name} could not be started: {error}") from error
        self._successor = successor
        self._promote()
        self._update()
        return successor

    async def until_left(self, deadline_s: float) -> int:
        """Waits for the processes that leave, and kills them after that time; how many those were."""
        late = [process for process in self.leaving if not await process.until_end(deadline_s)]
        for process in late:
            _log.error("child_killed", child=self.name, pid=process.pid, why="it did not leave in time")
            process.send(signal.SIGKILL)
        return len(late)

    async def until_empty(self) -> None:
        """Waits, without a deadline of its own, for the end of every process of the place."""
        while self.processes:
            await self.processes[0].end()

    async def restart(self, end_s: float) -> None:
        """Ends the process in this place, which whoever keeps it then starts again; that is not counted in `restarts`.

        Args:
            end_s: how long it may take to end before it is killed.

        """
        process = self._current
        if process is None or process.pid is None:
            return
        self._wanted = True
        process.send(signal.SIGTERM)
        if not await process.until_end(end_s):
            _log.error("child_killed", child=self.name, pid=process.pid, why="it did not stop in time")
            process.kill()
            await process.until_end(end_s)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all processes in this place, and to any that is started in it from now on."""
        self._signal = number
        for process in self.processes:
            process.send(number)

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        """What the current process answers to a command: see `core.commands.CommandClient.ask`, also for its errors."""
        if self._current is None:
            raise ConnectionResetError(f"{self.name} is not running")
        return await self._current.ask(method, deadline_s=deadline_s, **arguments)

    def _made(self) -> ChildProcess:
        return ChildProcess(self.name, self._on_change, self._on_told)

    def _on_told(self, process: ChildProcess, event: str, fields: dict[str, Any]) -> None:
        if event == "waits":
            process.waits = str(fields["why"])
            if process is self._current:
                self.waits = process.waits
        elif event == "lease":
            process.lease_until = float(fields["until"])
        elif event == "regions":
            process.regions = fields["regions"]
        elif self.on_event is not None:
            self.on_event(self, event, fields)

    async def _start(self, process: ChildProcess, spec: ChildSpec, spawner: Spawner, epoch: int) -> None:
        def config(stats_fd: int, commands_fd: int) -> bytes:
            return spec.config(epoch, stats_fd, commands_fd)

        await process.start(spawner, spec.command, config, spec.fds())
        if self._signal is not None:
            process.send(self._signal)

    def _take_over(self, successor: ChildProcess) -> None:
        """Puts a successor that is ready into the place; the process that is there, if it still is, leaves."""
        old = self._current
        if old is not None and old is not successor:
            self._leaving.append(old)
            old.send(LEAVE)
        self._current = self._last = successor
        self._update()

    def _on_change(self, process: ChildProcess) -> None:
        """A process has got ready, or has ended."""
        if process.pid is None:
            self._ended = self._ended.plus(Totals.of(process.stats())).ended()
            if process in self._leaving:
                self._leaving.remove(process)
            elif process is self._successor:
                self._successor = None
            elif process is self._current:
                self._current = None
                self._promote()
        elif self.restarts and process is self._current:
            _log.info("child_is_back", child=self.name, pid=self.pid, restarts=self.restarts)
        self._update()

    def _promote(self) -> None:
        """A successor under way takes a place where nobody is, ready or not."""
        if self._current is None and self._successor is not None:
            self._current = self._last = self._successor
            self._successor = None

    def _update(self) -> None:
        if self._current is None:
            self._emptied.set()
        else:
            self._emptied.clear()
        if self._current is not None and self._current.is_ready:
            self.was_ready = True
            self.waits = ""
            self.ready.set()
        else:
            self.ready.clear()


async def _fate(successor: ChildProcess, waited_s: float) -> str:
    """Ends a successor that is not ready, if it has not ended, and says what became of it."""
    if successor.pid is None:
        return f"ended before it was ready, {said(await successor.end())}; its own message is in the log"
    successor.send(signal.SIGKILL)
    return f"was not ready after {waited_s:g} s" + (f": {successor.waits}" if successor.waits else "")


def said(code: int | None) -> str:
    """An exit code in words, to stand behind "ended"; None: it was never started."""
    if code is None:
        return "because the system could not start it"
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"
