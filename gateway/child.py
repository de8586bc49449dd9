"""One place in the node that a worker or router process fills: starting it, its readiness, its counters, its end.

The process gets its configuration as JSON on standard input, and two descriptors: shared memory for its counters (a
memfd, so that nothing is left behind however it dies) and a socket for what it is asked and tells (`core.commands`),
first of all that it is ready. The counters of a process that has ended are added to the place's totals, so that what
the metrics count never goes back.

Processes come from the zygote (`gateway.spawner`) and are watched through a pidfd.
"""

import asyncio
import mmap
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core import ledger
from core.commands import CommandClient
from gateway import logs
from gateway.spawner import Spawner
from gateway.zygote import COMMANDS_FD, STATS_FD

# What a pipe takes without a reader (pipe(7)); the configuration is about a kilobyte.
CONFIG_BYTES_MAX = 65_536
# For what a process told before its end and its socket's end.
LAST_WORDS_S = 1.0

_log = logs.get("supervisor")


@dataclass(frozen=True)
class ChildSpec:
    """What a place is for."""

    name: str
    command: tuple[str, ...]
    """A module that the zygote has imported, or a program with its arguments."""
    config: Callable[[int, int, int], bytes]
    """(epoch, stats_fd, commands_fd) to the JSON that the process gets on its standard input."""


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

    def plus(self, living: "Totals") -> "Totals":
        """These totals of ended processes and those of the living one; only the latter has live resources."""
        return Totals(
            _sum(self.opened, living.opened),
            _sum(self.closed, living.closed),
            _sum(self.lost, living.lost),
            living.live,
            _sum(self.counters, living.counters),
            living.gauges,
            _sum(self.errors, living.errors),
            _sum(self.times, living.times),
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
        self._spawner = spawner
        self.starts = 0
        self.ready = asyncio.Event()
        self.was_ready = False
        self._pid: int | None = None
        self._signal: signal.Signals | None = None  # sent as soon as there is a process to send it to
        self._memory: mmap.mmap | None = None
        self._commands: CommandClient | None = None
        self._ended = Totals()
        self.on_event: Callable[[Child, str, dict[str, Any]], None] | None = None
        """What to call with anything else that the process tells unasked."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The living process, if there is one."""
        return self._pid

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)

    def totals(self) -> Totals:
        """All that the processes in this place have counted so far."""
        return self._ended if self._memory is None else self._ended.plus(self._read())

    async def run_once(self, epoch: int) -> int:
        """Starts the process and returns its exit code when it has ended; negative: the signal that killed it.

        Waiting for its end has no deadline: a process may live for months. `send` is how to make it end.

        Raises:
            OSError: the system cannot start it.

        """
        self.starts += 1
        ours, theirs = socket.socketpair()
        stats_fd = os.memfd_create(f"holdfast-{self.name}")
        self._commands = CommandClient(ours, self._on_event)
        try:
            try:
                os.ftruncate(stats_fd, ledger.STATS_BYTES)
                self._memory = mmap.mmap(stats_fd, ledger.STATS_BYTES)
                await self._spawn(self.spec.config(epoch, STATS_FD, COMMANDS_FD), stats_fd, theirs.fileno())
            finally:
                os.close(stats_fd)
                theirs.close()
            await self._commands.start()
            if self._signal is not None:
                self.send(self._signal)
            assert self._pid is not None
            return await _ended(self._pid)
        finally:
            await self._end()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, and to any that is started in this place from now on."""
        self._signal = number
        if self._pid is not None:
            os.kill(self._pid, number)  # ours until it is reaped, so nobody else can have got the number

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        """What the process answers to a command: see `core.commands.CommandClient.ask`, also for what it raises."""
        if self._commands is None:
            raise ConnectionResetError(f"{self.name} is not running")
        return await self._commands.ask(method, deadline_s=deadline_s, **arguments)

    async def _spawn(self, config: bytes, stats_fd: int, commands_fd: int) -> None:
        """Starts the process, then gives it its configuration, all of it, on its standard input."""
        assert len(config) <= CONFIG_BYTES_MAX
        config_read, config_write = os.pipe2(os.O_CLOEXEC)
        try:
            with os.fdopen(config_read, "rb"):
                self._pid = await self._spawner.start(self.name, self.spec.command, config_read, stats_fd, commands_fd)
                # Written while this end can read it too: a process that is dead already must not cost us a SIGPIPE.
                os.write(config_write, config)
        finally:
            os.close(config_write)

    def _on_event(self, event: str, fields: dict[str, Any]) -> None:
        if event == "ready":
            self.was_ready = True
            self.ready.set()
            if self.restarts:
                _log.info("child_is_back", child=self.name, pid=self.pid, restarts=self.restarts)
        elif self.on_event is not None:
            self.on_event(self, event, fields)

    def _read(self) -> Totals:
        assert self._memory is not None
        return Totals.of(ledger.read(self._memory))

    async def _end(self) -> None:
        """Keeps what the process counted and gives back what it held."""
        assert self._commands is not None
        self._pid = None
        await self._commands.close(linger_s=LAST_WORDS_S)
        self._commands = None
        self.ready.clear()
        if self._memory is not None:
            self._ended = self._ended.plus(self._read()).ended()
            self._memory.close()
            self._memory = None


async def _ended(pid: int) -> int:
    """The exit code, once the process has ended; it is reaped then."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        # Out of descriptors: a process that nobody watches must not stay.
        os.kill(pid, signal.SIGKILL)
        _reap(pid)
        raise
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()  # no deadline: a process may live for months; `send` is how to make it end
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return _reap(pid)


def _reap(pid: int) -> int:
    """The exit code of a process that has ended or was just killed."""
    # no deadline: what has ended is reaped at once, and what was killed ends
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
