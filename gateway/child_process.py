"""One process of a place, from its start until it is reaped: configuration, readiness, counters, signals, end.

It gets its configuration as JSON on standard input, and descriptors: shared memory for its counters (a memfd, so that
nothing is left behind however it dies), a socket for what it is asked and tells (`core.commands`), first of all that it
is ready, and, if its place has them, listening sockets. It comes from the zygote (`gateway.spawner`) and is watched
through a pidfd.
"""

import asyncio
import mmap
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core import descriptors, ledger
from core.commands import CommandClient
from core.owned import ACCOUNT, Held
from gateway.spawner import Spawner
from gateway.zygote import COMMANDS_FD, STATS_FD

# What a pipe takes without a reader (pipe(7)); the configuration is about a kilobyte.
CONFIG_BYTES_MAX = 65_536
_PARTS = ("ledger", "counters", "gauges", "errors", "times")
NOTES_BYTES_MAX = 1 << 20
# For what a process told before its end and its socket's end.
LAST_WORDS_S = 1.0


class ChildProcess:
    """A process and all that the supervisor holds for it; `end` is done when both are gone.

    Args:
        name: of its place, for people.
        changed: called, with the process, once it is ready and once it has ended, before `end` is done.
        on_event: called with anything else that it tells unasked.

    """

    def __init__(
        self,
        name: str,
        changed: Callable[["ChildProcess"], None],
        on_event: Callable[["ChildProcess", str, dict[str, Any]], None],
    ) -> None:
        self.name = name
        self.pid: int | None = None
        self.is_ready = False
        self.waits = ""
        """What it says it waits for before it is ready."""
        self.lease_until = 0.0
        """By `router.directory.port.now`, until when its lease in the directory certainly lives, as it told last."""
        self.regions: Mapping[str, Any] = {}
        """Of a router, how far other regions are, as it told last: see `router.loads.others_of`."""
        self._changed = changed
        self._on_event = on_event
        self._ready = asyncio.Event()
        self._memory: mmap.mmap | None = None
        self._stats_fd = -1
        self._commands: CommandClient | None = None
        self._held: list[Held] = []
        self._end: asyncio.Task[int] | None = None

    async def start(
        self, spawner: Spawner, command: Sequence[str], config: Callable[[int, int], bytes], fds: Sequence[int]
    ) -> None:
        """Starts it.

        Args:
            spawner: where it comes from.
            command: a module that the zygote has imported, or a program with its arguments.
            config: (stats_fd, commands_fd) to the JSON that it gets on its standard input.
            fds: further descriptors, which become TCP_FD and the next; they stay the caller's.

        Raises:
            OSError: the system cannot start it; nothing is left of it.

        """
        self._stats_fd = stats_fd = os.memfd_create(f"holdfast-{self.name}")
        ours, theirs = socket.socketpair()
        self._commands = CommandClient(ours, self._hear)
        try:
            os.ftruncate(stats_fd, ledger.STATS_BYTES)
            self._map(stats_fd)
            handed = (stats_fd, theirs.fileno(), *fds)
            with ACCOUNT.hold("control_fd", f"commands for {self.name}", fd=theirs.fileno()):
                self.pid = await self._spawn(spawner, command, config(STATS_FD, COMMANDS_FD), handed)
            await self._commands.start()
        except BaseException:
            await self._commands.close()
            self._release()
            if self.pid is not None:
                self.send(signal.SIGKILL)
                _reap(self.pid)
                self.pid = None
            raise
        finally:
            theirs.close()
        self._end = asyncio.create_task(self._until_end(self.pid), name=f"end of {self.name}")

    async def end(self) -> int:
        """Its exit code, once it has ended; negative: the signal that killed it.

        This has no deadline: a process may live for months. `send` is how to make it end.
        """
        assert self._end is not None
        return await asyncio.shield(self._end)  # no deadline: see above

    async def until_ready(self, deadline_s: float) -> bool:
        """Whether it says within that time that it is ready; no longer waited for when it ends before."""
        assert self._end is not None
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._end}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        return self.is_ready and self.pid is not None

    async def until_end(self, deadline_s: float) -> bool:
        """Whether it ends within that time."""
        assert self._end is not None
        await asyncio.wait({self._end}, timeout=deadline_s)
        return self._end.done()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if it has not ended."""
        if self.pid is not None:
            os.kill(self.pid, number)  # ours until it is reaped, so nobody else can have got the number

    def kill(self) -> None:
        """SIGKILL: what hangs or stands still hears nothing else."""
        self.send(signal.SIGKILL)

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        """What it answers to a command: see `core.commands.CommandClient.ask`, also for what it raises."""
        if self._commands is None:
            raise ConnectionResetError(f"{self.name} is not running")
        return await self._commands.ask(method, deadline_s=deadline_s, **arguments)

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        """What it has counted so far, as `core.ledger.read` gives it; nothing before its start and after its end."""
        return {part: {} for part in _PARTS} if self._memory is None else ledger.read(self._memory)

    def turn_ms(self) -> int:
        """When the data plane's last turn began, as CLOCK_MONOTONIC counts; 0: there was none yet, or it has ended."""
        return 0 if self._memory is None else ledger.turn_ms(self._memory)

    def notes(self) -> bytes:
        """What its signal handlers wrote so far (see `core/stacks.pyx`): behind the counters in the same memory."""
        return b"" if self._stats_fd < 0 else os.pread(self._stats_fd, NOTES_BYTES_MAX, ledger.STATS_BYTES)

    async def _spawn(self, spawner: Spawner, command: Sequence[str], config: bytes, fds: Sequence[int]) -> int:
        """Starts the process, then gives it its configuration, all of it, on its standard input."""
        assert len(config) <= CONFIG_BYTES_MAX
        config_read, config_write = os.pipe2(os.O_CLOEXEC)
        try:
            with (
                os.fdopen(config_read, "rb"),
                ACCOUNT.hold("control_fd", f"configuration for {self.name}", fd=config_read),
                ACCOUNT.hold("control_fd", f"configuration for {self.name}", fd=config_write),
            ):
                pid = await spawner.start(self.name, command, config_read, *fds)
                # Written while this end can read it too: a process that is dead already must not cost us a SIGPIPE.
                os.write(config_write, config)
                return pid
        finally:
            os.close(config_write)

    def _map(self, stats_fd: int) -> None:
        """Maps the counters; the map keeps a descriptor of its own."""
        self._memory = mmap.mmap(stats_fd, ledger.STATS_BYTES)
        self._held = [
            ACCOUNT.hold("control_fd", f"counters of {self.name}", fd=fd)
            for fd in (stats_fd, *descriptors.others_of(stats_fd))
        ]

    def _hear(self, event: str, fields: dict[str, Any]) -> None:
        if event == "ready":
            self.is_ready = True
            self._ready.set()
            self._changed(self)
        else:
            self._on_event(self, event, fields)

    async def _until_end(self, pid: int) -> int:
        try:
            return await _ended(pid)
        finally:
            self.pid = None
            assert self._commands is not None
            await self._commands.close(linger_s=LAST_WORDS_S)
            self._commands = None
            self.is_ready = False
            self._changed(self)
            self._release()

    def _release(self) -> None:
        os.close(self._stats_fd)
        self._stats_fd = -1
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        for held in self._held:
            held.close()


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
        with ACCOUNT.hold("control_fd", f"the life of process {pid}", fd=pidfd):
            await ended.wait()  # no deadline: a process may live for months; `send` is how to make it end
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return _reap(pid)


def _reap(pid: int) -> int:
    """The exit code of a process that has ended or was just killed."""
    # no deadline: what has ended is reaped at once, and what was killed ends
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
