"""Keeps the node's processes alive: starts them in order, restarts what dies, stops all of it within a deadline.

Order at the start: the router, then the workers, each step once the one before is ready. Order at the end: the workers
first (they say FIN to their clients), then the router. What dies in between is started again after a pause that doubles
from 100 ms to 10 s, and the others notice nothing. Three things end the node instead: a port that is taken, a process
that ends again and again before it was ready once, which trying for ever would only hide, and a log that another node
took over, since two that take it from each other serve nobody. A router whose log is away is waited for: it says so,
and the node is not ready meanwhile.
"""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from core.process import has_terminal
from gateway import logs
from gateway.child import Child, ChildSpec, said
from gateway.errors import HoldfastError, LogTakenError, PortTakenError, StartError
from gateway.spawner import Spawner

# A worker ends with this code when another program listens on its port (EX_CONFIG of sysexits.h).
EXIT_PORT_TAKEN = 78
# A router ends with this one (EX_TEMPFAIL) when its log went away while it read it, or when other routers lead what it
# led: it is tried for ever.
EXIT_UNAVAILABLE = 75
# A router ends with this one when another router took its log over.
EXIT_DEPOSED = 70
_KILLED_TIMEOUT_S = 5.0

_TAKEN = (
    "another node has the log now (who, says the router's message above): this one has sent its clients away and ended."
    " A log is one node's: stop the other one before you start this again, or give them logs of their own"
)

_log = logs.get("supervisor")


@dataclass(frozen=True)
class Timing:
    """How long the supervisor waits for what; all in seconds."""

    drain_s: float = 10.0
    """What the workers have for saying FIN to their clients."""
    grace_s: float = 5.0
    """How long after `drain_s` a process that still runs is killed."""
    router_stop_s: float = 2.0
    """What the router has at least, also when the workers took all the time there was."""
    router_leave_s: float = 0.0
    """What it has in addition, for giving its shards to other routers."""
    start_s: float = 30.0
    """From the start of a process until it has to be ready."""
    backoff_first_s: float = 0.1
    backoff_max_s: float = 10.0
    again_s: float = 1.0
    """A router that lived so long and wants to be started anew (EXIT_UNAVAILABLE) is, without a pause."""
    steady_s: float = 30.0
    """A process that lived this long died of something new: its pause starts from the first again."""
    crash_loop_ends: int = 5
    crash_loop_s: float = 60.0
    """So many ends of one place's process within that time are called a crash loop."""
    start_attempts_max: int = 5
    """How often a process may end before it was ready once."""


class Epochs:
    """Numbers for starts: each higher than all before it, also those of an earlier supervisor (hence the clock).

    They are milliseconds, not seconds: whoever removes a log and starts again within a second would get the number of
    the one before, and what clients hold of the old log would pass for the new one's. Below 2^53, so that JavaScript
    can count in them.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last = 0

    def next(self) -> int:
        """The next number: the clock's millisecond, or one more than the last number if that is not higher."""
        self._last = max(self._last + 1, int(self._clock() * 1000))
        return self._last


class Supervisor:
    """The processes of one node.

    Args:
        router: what to run as the router; None when the workers use one that runs elsewhere.
        workers: what to run as workers; empty for a router alone.
        timing: how long to wait for what.
        must_be_ready: whether a part that is not ready in time is an error; otherwise (a router elsewhere may come
            later) it is said and waited for.

    """

    def __init__(
        self,
        router: ChildSpec | None,
        workers: Sequence[ChildSpec],
        timing: Timing | None = None,
        *,
        must_be_ready: bool = True,
    ) -> None:
        commands = [spec.command for spec in (*([router] if router else []), *workers)]
        self._modules = sorted({command[0] for command in commands if len(command) == 1})
        spawner = self.new_spawner()
        self.router = Child(router, spawner) if router else None
        self.workers = [Child(spec, spawner) for spec in workers]
        self.stopping = False
        self.killed = False
        self.timing = timing or Timing()
        self.epochs = Epochs()
        self.on_hangup: Callable[[], None] = self.stop
        """What SIGHUP does: a rolling restart, where there is one."""
        self.on_stop: Sequence[Callable[[], None]] = ()
        """Called at the beginning of the end, before any process is told."""
        self._spawners = [spawner]
        self._must_be_ready = must_be_ready
        self._keepers: dict[Child, asyncio.Task[None]] = {}
        self._end = asyncio.Event()
        self._had_terminal = False
        self._failure: HoldfastError | None = None

    @property
    def children(self) -> list[Child]:
        """All places, the router first."""
        return [*([self.router] if self.router else []), *self.workers]

    def new_spawner(self) -> Spawner:
        """One whose zygote has not imported anything yet: what it starts runs the code that is installed now."""
        return Spawner(self._modules)

    def keep_spawners(self, *further: Spawner) -> None:
        """Ends the zygotes that no place gets its processes from any more."""
        used = {child.spawner for child in self.children}
        for spawner in {*self._spawners, *further} - used:
            spawner.close()
        self._spawners = list(used)

    @property
    def zygotes(self) -> list[int]:
        """Their pids; more than one only during a rolling restart and after one that was called off."""
        spawners = dict.fromkeys([*self._spawners, *(child.spawner for child in self.children)])
        return [spawner.pid for spawner in spawners if spawner.pid is not None]

    def bury_orphans(self) -> None:
        """What zygotes that died had half started has ended by now, or soon will have."""
        for spawner in {*self._spawners, *(child.spawner for child in self.children)}:
            spawner.reap()

    def missing(self) -> list[str]:
        """What is not ready, by name; while the node stops, that it does."""
        if self.stopping:
            return ["stopping"]
        late = [child for child in self.children if not child.ready.is_set()]
        return [f"{child.name}: {child.waits}" if child.waits else child.name for child in late]

    async def run(self, announce: Callable[[], None]) -> None:
        """Runs the node until `stop` or a signal; calls `announce` once all of it is ready.

        Raises:
            StartError: the node could not be started; all of it is stopped again.
            LogTakenError: another node took the log over; all of it is stopped, and its clients were sent away.

        """
        try:
            await self._or_end(self._start())
            if not self._end.is_set():
                announce()
            await self._end.wait()  # no deadline: for as long as the node lives
        finally:
            await self._stop_all()
            for spawner in {*self._spawners, *(child.spawner for child in self.children)}:
                spawner.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Asks `run` to end, from within the loop."""
        self.stopping = True
        self._end.set()

    def kill(self) -> None:
        """Kills all processes at once: what the second Ctrl-C asks for."""
        self.killed = True
        self.stop()
        for child in self.children:
            child.send(signal.SIGKILL)

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT stop the node, and so does the end of its terminal; a second SIGINT kills it.

        SIGHUP otherwise: see `on_hangup`.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        self._had_terminal = has_terminal()
        loop.add_signal_handler(signal.SIGHUP, self._hang_up, signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGINT, lambda: self.kill() if self.stopping else self.stop())

    def _hang_up(self, was_ignored: bool) -> None:
        """SIGHUP says two things: that somebody wants a rolling restart, or that the terminal was closed.

        Args:
            was_ignored: at the start, as nohup does it, for whom the end of the terminal means nothing.

        """
        if not self._had_terminal or has_terminal():
            self.on_hangup()
            return
        self._had_terminal = False
        if not was_ignored:
            self.stop()

    # ------------------------------------------------------------------------------------------------------ starting

    async def _start(self) -> None:
        for step in ([self.router] if self.router else [], self.workers):
            for child in step:
                keeper = asyncio.create_task(self._keep(child), name=f"keep {child.name}")
                keeper.add_done_callback(self._check_keeper)
                self._keepers[child] = keeper
            await self._until_ready(step)

    async def _until_ready(self, step: Sequence[Child]) -> None:
        while True:
            try:
                async with asyncio.timeout(self.timing.start_s):
                    for child in step:
                        await child.ready.wait()
                return
            except TimeoutError:
                late = [child.name for child in step if not child.ready.is_set()]
                # Who says what it waits for is waited for: a log that is away may come back.
                if self._must_be_ready and not all(child.waits for child in step if not child.ready.is_set()):
                    names = ", ".join(late)
                    message = f"not ready after {self.timing.start_s:g} s: {names}. What it said is above; stopped all"
                    self._fail(StartError(message))
                    return
                _log.warning("not_ready_yet", children=late)

    async def _or_end(self, work: Awaitable[None]) -> None:
        """Awaits `work`, but not beyond the node's end."""
        working, ending = asyncio.ensure_future(work), asyncio.ensure_future(self._end.wait())
        try:
            # deadline: that of the work, as each step of the start has; the node's end comes first
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            working.cancel()
            await asyncio.wait({working, ending}, timeout=_KILLED_TIMEOUT_S)
        if working.done() and not working.cancelled():
            working.result()

    def _fail(self, failure: HoldfastError) -> None:
        if self._failure is None:
            self._failure = failure
        self.stop()

    # ------------------------------------------------------------------------------------------------- keeping alive

    async def _keep(self, child: Child) -> None:
        """Runs one process after another in a place until the node stops."""
        failures = 0
        ends: deque[float] = deque(maxlen=self.timing.crash_loop_ends)
        while not self.stopping:
            began = time.monotonic()
            code = await self._run_once(child)
            if self.stopping:
                break
            lived_s = time.monotonic() - began
            if code != EXIT_UNAVAILABLE:
                self._note_crash_loop(child, ends)
            failures = 1 if lived_s >= self.timing.steady_s else failures + 1
            if self._gives_up(child, code):
                return
            pause_s = min(self.timing.backoff_max_s, self.timing.backoff_first_s * 2 ** min(failures - 1, 16))
            if code == EXIT_UNAVAILABLE and child.was_ready and lived_s >= self.timing.again_s:
                failures, pause_s = 0, 0.0
            _log.warning("child_ended", child=child.name, code=code, lived_s=round(lived_s, 3), restart_in_s=pause_s)
            await self._pause(pause_s)
        await child.until_empty()

    def _note_crash_loop(self, child: Child, ends: deque[float]) -> None:
        """Says it once when a process has ended so often within a short time, and once when that is over."""
        ends.append(time.monotonic())
        looping = len(ends) == ends.maxlen and ends[-1] - ends[0] <= self.timing.crash_loop_s
        if looping and not child.crash_loop:
            _log.error("crash_loop", child=child.name, ends=len(ends), within_s=round(ends[-1] - ends[0], 1))
        child.crash_loop = looping

    def _check_keeper(self, keeper: asyncio.Task[None]) -> None:
        """A keeper that fails is our own mistake; a node that no longer restarts its processes has to say so."""
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None:
            _log.error("keeper_failed", keeper=keeper.get_name(), exc_info=error)
            self._fail(StartError(f"the supervisor failed ({keeper.get_name()}): {error!r}"))

    async def _run_once(self, child: Child) -> int | None:
        """The exit code, or None when the system could not start the process (no memory, no descriptors)."""
        try:
            return await child.run_once(self.epochs.next())
        except OSError as error:
            _log.error("child_not_started", child=child.name, error=str(error))
            return None

    def _gives_up(self, child: Child, code: int | None) -> bool:
        if child is self.router and code == EXIT_DEPOSED:
            _log.error("log_taken", code=code, why="another node has the log: this one ends, and its clients come back")
            self._fail(LogTakenError(_TAKEN))
            return True
        if child.was_ready:
            return False
        if code == EXIT_PORT_TAKEN:
            message = (
                f"{child.name} cannot listen, or use its log or directory: its message is above. Stopped all of it"
            )
            self._fail(PortTakenError(message))
            return True
        if code == EXIT_UNAVAILABLE:
            child.waits = child.waits or "its log is away"
            return False
        if child.starts >= self.timing.start_attempts_max:
            self._fail(
                StartError(
                    f"{child.name} ended {child.starts} times before it was ready, the last time"
                    f" {said(code)}: its own message is above. Stopped all of it"
                )
            )
            return True
        return False

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._end.wait()
        except TimeoutError:
            pass

    # ------------------------------------------------------------------------------------------------------ stopping

    async def _stop_all(self) -> None:
        self.stop()
        for act in self.on_stop:
            act()
        deadline = time.monotonic() + self.timing.drain_s + self.timing.grace_s
        await self._stop_children(self.workers, deadline)
        if self.router:
            least_s = self.timing.router_stop_s + self.timing.router_leave_s
            await self._stop_children([self.router], max(deadline, time.monotonic() + least_s))

    async def _stop_children(self, children: Sequence[Child], deadline: float) -> None:
        """SIGTERM, then SIGKILL at the deadline (of `time.monotonic`)."""
        keepers = {self._keepers[child] for child in children if child in self._keepers}
        if not keepers:
            return
        for child in children:
            child.send(signal.SIGKILL if self.killed else signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=max(0.0, deadline - time.monotonic()))
        if not late:
            return
        for child in children:
            if child.processes:
                _log.error("child_killed", child=child.name, why="it did not stop in time")
                child.send(signal.SIGKILL)
        await asyncio.wait(keepers, timeout=_KILLED_TIMEOUT_S)
