"""The rolling restart: every worker is replaced by one with the code, certificates and settings of now, one at a time.

A place's listening sockets stay open: for a moment both processes accept from them, then the old one leaves the queue
to the new one and sends its clients away, paced. The next place's turn comes when it has ended, so that only one
place's clients are on the way at a time. What fails calls the rest off: the places before have the new processes, the
others keep the old ones, and none is without.

The router runs on unless it is asked for: while it restarts, publishes are refused and history in memory is lost.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from gateway import logs
from gateway.child import Child, ChildSpec
from gateway.errors import HoldfastError, ReloadError, RequestError
from gateway.spawner import Spawner
from gateway.supervisor import Supervisor, Timing

_RETRY_AFTER_S = 5

_log = logs.get("supervisor")


@dataclass(frozen=True)
class Plan:
    """What to run from now on."""

    workers: Sequence[tuple[ChildSpec, ChildSpec]]
    """For each place what to run beside the process that leaves, and what at later starts."""
    router: ChildSpec | None
    timing: Timing
    done: Callable[[], None] = lambda: None
    """Called when all of it runs."""


@dataclass(frozen=True)
class Progress:
    """How far a rolling restart has come."""

    number: int = 0
    """Counts them from 1; 0: there was none yet."""
    state: str = "none"
    """`none`, `running`, `done` or `called_off`."""
    replaced: int = 0
    places: int = 0
    cut: int = 0
    """Processes that did not leave in time and were killed."""
    why: str = ""


class Reload:
    """Rolling restarts of one node, one at a time.

    Args:
        supervisor: whose processes to replace.
        plan: reads the configuration again; called with whether the router is to be restarted too.

    """

    def __init__(self, supervisor: Supervisor, plan: Callable[[bool], Plan]) -> None:
        self._supervisor = supervisor
        self._plan = plan
        self._task: asyncio.Task[None] | None = None
        self.progress = Progress()

    def begin(self, *, router: bool = False) -> Progress:
        """Starts one; `progress` tells how it goes.

        Raises:
            RequestError: one is under way, the node is starting or stopping, or the settings cannot be used.

        """
        if self._task is not None and not self._task.done():
            raise RequestError(409, "busy", "a rolling restart is under way", _RETRY_AFTER_S)
        missing = self._missing()
        if missing:
            raise RequestError(409, "not_ready", f"the node is not ready: {', '.join(missing)}", _RETRY_AFTER_S)
        try:
            plan = self._plan(router)
        except HoldfastError as error:
            _log.error("reload_refused", why=str(error))
            raise RequestError(400, "bad_request", str(error)) from error
        self.progress = Progress(self.progress.number + 1, "running", places=len(plan.workers))
        _log.info("reload_begins", places=len(plan.workers), router=router)
        self._task = asyncio.create_task(self._run(plan), name="reload")
        return self.progress

    def _missing(self) -> list[str]:
        """What a rolling restart cannot do without; workers that ended, and may do so again, it is to cure."""
        supervisor = self._supervisor
        waiting = {child.name for child in supervisor.workers if child.was_ready}
        return [name for name in supervisor.missing() if name not in waiting]

    def begin_quietly(self) -> None:
        """For SIGHUP, where nobody waits for an answer: what is wrong is in the log."""
        try:
            self.begin()
        except RequestError as error:
            _log.error("reload_not_begun", why=error.message)

    def cancel(self) -> None:
        """Calls off what is under way; what has been started gets the signals of its place."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, plan: Plan) -> None:
        began = time.monotonic()
        spawner = self._supervisor.new_spawner()
        timing = self._supervisor.timing
        # Until all are replaced, those of before and those of now have each its own time for a drain.
        self._supervisor.timing = replace(timing, drain_s=max(timing.drain_s, plan.timing.drain_s))
        begun: dict[Child, int | None] = {}
        places = list(zip(self._supervisor.workers, plan.workers, strict=True))
        places.sort(key=lambda place: place[0].ready.is_set())  # where there is nobody, first
        missing = {child for child, _ in places if not child.ready.is_set()}
        try:
            for child, (beside, spec) in places:
                await self._check_goes_on(begun, missing)
                # deadline: start_s, in which it must be ready
                await child.replace(beside, spec, spawner, self._supervisor.epochs.next(), timing.start_s)
                begun[child] = child.pid
                missing.discard(child)
                # deadline: that of a drain, after which it is killed
                cut = await child.until_left(timing.drain_s + timing.grace_s)
                self._step(replaced=self.progress.replaced + 1, cut=self.progress.cut + cut)
                _log.info("child_replaced", child=child.name, pid=child.pid)
            await self._check_goes_on(begun, missing)
            await self._end_with_router(plan, spawner)
            self._supervisor.timing = plan.timing
            plan.done()
            self._step(state="done")
            _log.info("reload_done", took_s=round(time.monotonic() - began, 1), cut=self.progress.cut)
        except ReloadError as error:
            self._call_off(str(error))
        except asyncio.CancelledError:
            self._call_off("the node stops")
            raise
        except Exception as error:
            _log.exception("reload_failed")
            self._call_off(repr(error))
        finally:
            self._supervisor.keep_spawners(spawner)

    async def _end_with_router(self, plan: Plan, spawner: Spawner) -> None:
        """Whenever the router is started from now on, it is with the code of now; only when asked, that is at once.

        Raises:
            ReloadError: the new one does not get ready; it is tried again and again, as after any end.

        """
        router = self._supervisor.router
        if router is None:
            return
        router.spawner = spawner
        if plan.router is None:
            return
        router.spec = plan.router
        timing = self._supervisor.timing
        # deadline: what it has for giving its shards away, and grace_s, after which it is killed
        await router.restart(timing.router_leave_s + timing.grace_s)
        await self._until_started(router, timing.start_s)

    async def _until_started(self, router: Child, start_s: float) -> None:
        """Waits for a router as the node's own start does: for as long as it says what it waits for, and runs on."""
        waited_s, restarts = 0.0, router.restarts
        while True:
            try:
                async with asyncio.timeout(start_s):
                    await router.ready.wait()
                return
            except TimeoutError as error:
                waited_s += start_s
                if not router.waits or router.restarts != restarts or self._supervisor.stopping:
                    raise ReloadError(f"the new router is not ready after {waited_s:g} s") from error
                _log.warning("not_ready_yet", children=[router.name], why=router.waits)

    async def _check_goes_on(self, begun: Mapping[Child, int | None], missing: Set[Child]) -> None:
        """Waits for what just ended to be back, but for what was missing from the beginning and has not had its turn.

        `begun` are the new processes, none of which may have ended.

        Raises:
            ReloadError: the node stops, a new process has ended, or something is not ready in time.

        """
        start_s = self._supervisor.timing.start_s
        try:
            async with asyncio.timeout(start_s):
                for child in self._supervisor.children:
                    if child in begun and child.pid != begun[child]:
                        raise ReloadError(f"the new process of {child.name} ended after it had been ready")
                    if child not in missing:
                        await child.ready.wait()
        except TimeoutError as error:
            late = ", ".join(self._supervisor.missing())
            raise ReloadError(f"not ready for {start_s:g} s: {late}") from error
        if self._supervisor.stopping:
            raise ReloadError("the node stops")

    def _step(self, **changes: object) -> None:
        self.progress = replace(self.progress, **changes)  # type: ignore[arg-type]

    def _call_off(self, why: str) -> None:
        self._step(state="called_off", why=why)
        _log.error("reload_called_off", why=why, replaced=self.progress.replaced, places=self.progress.places)
