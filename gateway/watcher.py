"""The growth watcher: samples each process of the node, fits what grows, and says what may be leaking.

One task in the supervisor. Every `interval_s` it samples all places at once, each within a deadline: /proc
(`gateway.probe`), the process's ledger in shared memory, and what the process says of itself (`core.introspect`).
FITS_A_WINDOW times a window it fits each resource against the load (`gateway.growth`) and decides whether that is a
leak (`gateway.suspicion`). A suspicion is logged, told to the hook, shown in metrics and API, and written down as a
report with the sites that grew. A process that ended takes its samples with it; the next one in its place starts anew.

Memory is bounded: at most `gateway.series.ROWS_MAX` rows a process, two details each, and one event a suspicion.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.commands import CommandError
from gateway import growth_report, logs, probe
from gateway.config import GrowthSection
from gateway.growth import Growth, fit
from gateway.growth_report import Detail
from gateway.hook import Hook
from gateway.series import Series
from gateway.suspicion import Suspicion

ASK_DEADLINE_S = 2.0
# For what names things; tracemalloc's snapshot of a large process takes its time.
DETAIL_DEADLINE_S = 30.0
FITS_A_WINDOW = 96
STOP_DEADLINE_S = 5.0
_MIB = 1_048_576

# Resources beside the ledger's kinds, each with the least level that its relative growth is a share of (a process with
# three tasks does not grow by a third with the fourth), and the groups of sites that tell most about it.
LEVELS = {
    "private_bytes": 16 * _MIB,
    "heap_used_bytes": 16 * _MIB,
    "fds": 50,
    "threads": 20,
    "tasks": 50,
    "objects": 10_000,
    "blocks": 50_000,
}
KIND_LEVEL = 100
_GROUPS = {
    "private_bytes": ("allocation", "types", "ledger"),
    "heap_used_bytes": ("ledger", "allocation", "types"),
    "fds": ("fds", "ledger"),
    "threads": ("python threads", "threads"),
    "tasks": ("tasks",),
    "objects": ("types", "allocation", "tasks"),
    "blocks": ("allocation", "types"),
}
# Kinds of the ledger that are the load: they come and go with the clients, or are kept by design up to their bounds.
# Others may follow them without leaking.
LOADS = {"load": ("connection", "session"), "kept": ("history", "key")}
_LOAD_KINDS = frozenset(kind for kinds in LOADS.values() for kind in kinds)

_log = logs.get("growth")


@dataclass(frozen=True)
class Place:
    """One process to watch, as it is now."""

    name: str
    pid: int
    live: Mapping[str, int] = field(default_factory=dict)
    """What its ledger has open, by kind."""
    ask: Callable[..., Awaitable[Any]] | None = None
    """(method, deadline_s=...): see `core.commands.CommandClient.ask`; None: it answers nothing."""


class _Watch:
    """What is known of the process in one place."""

    def __init__(self, pid: int, since_s: float, window_s: float) -> None:
        self.pid = pid
        self.since_s = since_s
        self.series = Series(window_s)
        self.kinds: list[str] = []
        self.details: deque[Detail] = deque(maxlen=2)
        self.fitted_s = -math.inf
        self.fits: dict[str, Growth] = {}
        self.suspicions: dict[str, Suspicion] = {}
        self.events: dict[str, dict[str, Any]] = {}

    @property
    def resources(self) -> list[str]:
        return [*(name for name in LEVELS if name in self.series.names), *self.kinds]

    def fitted(self, confidence: float) -> dict[str, Growth]:
        """A fit of each resource against the load."""
        loads = [load for load in LOADS if load in self.series.names]
        found = {}
        for resource in self.resources:
            times, (values, *beside) = self.series.column(resource, *loads)
            level_min = LEVELS.get(resource, KIND_LEVEL)
            found[resource] = fit(times, values, confidence, load=beside, level_min=level_min)
        return found


class Watcher:
    """Watches the places; `start` it in the running loop, `close` it.

    Args:
        settings: how often, how long, from when on.
        node: the node's name, for the events.
        places: the processes that live now.
        hook: who is told.
        clock: seconds, never going back.

    """

    def __init__(
        self,
        settings: GrowthSection,
        node: str,
        places: Callable[[], Sequence[Place]],
        hook: Hook,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._node = node
        self._places = places
        self._hook = hook
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        self._watching: asyncio.Task[None] | None = None

    @property
    def settings(self) -> GrowthSection:
        return self._settings

    def start(self) -> None:
        if self._settings.interval_s:
            self._watching = asyncio.create_task(self._watch(), name="growth watcher")

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching}, timeout=STOP_DEADLINE_S)

    def fits(self) -> dict[str, dict[str, Growth]]:
        """The latest fit of each resource, by process."""
        return {name: dict(watch.fits) for name, watch in self._watches.items()}

    def pids(self) -> dict[str, int]:
        return {name: watch.pid for name, watch in self._watches.items()}

    def suspected(self) -> list[dict[str, Any]]:
        """The events of what is suspected now."""
        return [event for watch in self._watches.values() for event in watch.events.values()]

    async def _watch(self) -> None:
        while True:  # for as long as the node lives
            started = time.monotonic()
            try:
                await self.turn()
            except Exception:
                # A fault of ours must not end the watching, nor the node.
                _log.exception("growth_turn_failed")
            await asyncio.sleep(max(0.0, self._settings.interval_s - (time.monotonic() - started)))

    async def turn(self) -> None:
        """Samples all places once, and fits those that are due."""
        places = {place.name: place for place in self._places()}
        for name in [name for name, watch in self._watches.items() if not self._is_in(places.get(name), watch)]:
            self._forget(name)
        await asyncio.gather(*(self._look(place) for place in places.values()))

    def _is_in(self, place: Place | None, watch: _Watch) -> bool:
        return place is not None and place.pid == watch.pid

    def _forget(self, name: str) -> None:
        watch = self._watches.pop(name)
        for resource in watch.events:
            self._say_cleared(name, watch.pid, resource, "the process has ended")

    async def _look(self, place: Place) -> None:
        values = await _sample(place)
        if values is None:
            return
        now_s = self._clock()
        watch = self._watches.setdefault(place.name, _Watch(place.pid, now_s, self._settings.window_s))
        if now_s - watch.since_s < self._settings.warm_up_s:
            return
        watch.kinds = [kind for kind in place.live if kind not in _LOAD_KINDS]
        watch.series.add(now_s, values)
        if not watch.details or now_s - watch.details[-1].time_s >= self._settings.window_s / 2:
            watch.details.append(await _detail(place, now_s, mark=True))
        pause_s = self._settings.window_s / FITS_A_WINDOW
        if len(watch.series) >= self._settings.samples_min and now_s - watch.fitted_s >= pause_s:
            watch.fitted_s = now_s
            await self._judge(place, watch, now_s)

    async def _judge(self, place: Place, watch: _Watch, now_s: float) -> None:
        # In a thread of its own: some tens of milliseconds, in which the supervisor has to answer.
        async with asyncio.timeout(DETAIL_DEADLINE_S):
            watch.fits = await asyncio.to_thread(watch.fitted, self._settings.confidence)
        threshold = self._settings.threshold_percent / 100
        raised = []
        for resource, found in watch.fits.items():
            changed = watch.suspicions.setdefault(resource, Suspicion(threshold)).see(found)
            if changed == "raised":
                raised.append(resource)
            elif changed == "cleared":
                watch.events.pop(resource, None)
                self._say_cleared(place.name, watch.pid, resource, "it does not grow any more")
        if raised:
            await self._say_raised(place, watch, raised, now_s)

    async def _say_raised(self, place: Place, watch: _Watch, raised: Sequence[str], now_s: float) -> None:
        try:
            found = growth_report.sites(watch.details[0], await _detail(place, now_s, mark=False))
        except (OSError, TimeoutError) as error:
            # That it leaks is raised once only: it must be told, with or without the place.
            _log.error("growth_sites_failed", process=place.name, error=repr(error))
            found = []
        for resource in raised:
            sites = growth_report.about(found, resource, _GROUPS.get(resource, ("ledger",)))
            event = self._event("leak_suspected", place.name, watch.pid, resource)
            event |= _figures(watch.fits[resource]) | {"sites": sites, "report": None}
            watch.events[resource] = event
            event["report"] = await self._written(event)
            _log.warning(
                "leak_suspected",
                process=place.name,
                pid=watch.pid,
                resource=resource,
                percent_per_day=round(100 * event["relative_per_day"], 2),
                at_least=round(100 * event["relative_low"], 2),
                span_s=round(event["span_s"]),
                sites=[f"{site['group']} {site['name']} +{site['grown']}" for site in sites[:3]],
                report=event["report"],
            )
            self._hook.tell(event)

    async def _written(self, event: Mapping[str, Any]) -> str | None:
        """Where the report is; None when it is not wanted or cannot be written, which is logged."""
        folder = self._settings.report_dir
        if not folder:
            return None
        try:
            async with asyncio.timeout(DETAIL_DEADLINE_S):
                path = await asyncio.to_thread(
                    growth_report.write, Path(folder), event, kept_max=self._settings.reports_max
                )
        except (OSError, TimeoutError) as error:
            _log.error("growth_report_failed", folder=folder, error=repr(error))
            return None
        return str(path)

    def _say_cleared(self, name: str, pid: int, resource: str, reason: str) -> None:
        _log.info("leak_cleared", process=name, pid=pid, resource=resource, reason=reason)
        self._hook.tell({**self._event("leak_cleared", name, pid, resource), "reason": reason})

    def _event(self, event: str, process: str, pid: int, resource: str) -> dict[str, Any]:
        return {
            "event": event,
            "time": time.time(),
            "node": self._node,
            "process": process,
            "pid": pid,
            "resource": resource,
        }


def _figures(found: Growth) -> dict[str, Any]:
    names = ("per_day", "low", "high", "level", "relative_per_day", "relative_low", "relative_high", "confidence",
             "samples", "span_s")  # fmt: skip
    return {name: getattr(found, name) for name in names}


async def _sample(place: Place) -> dict[str, float] | None:
    """One row: the kernel's figures, the process's own as far as it answers, the ledger and the load."""
    async with asyncio.timeout(DETAIL_DEADLINE_S):
        # In a thread: of a process with gigabytes the kernel takes tens of milliseconds.
        found = await asyncio.to_thread(probe.sample, place.pid)
    if found is None:
        return None
    values: dict[str, float] = {name: found[name] for name in LEVELS if name in found}
    values |= await _asked(place, "sample", ASK_DEADLINE_S) or {}
    values |= place.live
    for load, kinds in LOADS.items():
        values[load] = sum(place.live.get(kind, 0) for kind in kinds)
    return values


async def _detail(place: Place, now_s: float, *, mark: bool) -> Detail:
    async with asyncio.timeout(DETAIL_DEADLINE_S):
        counts = await asyncio.to_thread(probe.detail, place.pid)
    counts["ledger"] = Counter(place.live)
    if mark:
        await _asked(place, "sample_mark", DETAIL_DEADLINE_S)
    said = await _asked(place, "sample_detail", DETAIL_DEADLINE_S) or {}
    for group in ("tasks", "types", "python threads"):
        counts[group] = Counter(said.get(group, {}))
    return Detail(now_s, counts, said.get("allocations", []))


async def _asked(place: Place, method: str, deadline_s: float) -> Any:
    """The answer; None when there is none in time, which is no fault of the watcher's to tell (see the supervisor)."""
    if place.ask is None:
        return None
    try:
        return await place.ask(method, deadline_s=deadline_s)
    except (CommandError, ConnectionError, TimeoutError) as error:
        _log.debug("growth_sample_missing", process=place.name, method=method, error=repr(error))
        return None
