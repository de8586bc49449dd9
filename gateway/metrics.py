"""The node's metrics: what each process counts in its ledger, read from shared memory without asking the process.

Counters are those of a place in the node (`process="worker-0"`) over all processes that were in it, so they never go
back. For each kind of resource, opened = closed + lost + live, where lost is what a killed process had open.
"""

import functools
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from core.ledger import BOUNDS_MS, TIMES
from gateway.child import Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_GAPS = "gaps_"
_TIME_HELP = {
    "publish": "From a PUBLISH to the router's answer, or to the end of the wait for it, at the worker.",
    "welcome": "From the accept of a connection to its WELCOME.",
}


@dataclass(frozen=True)
class ProcessView:
    """What the collector needs to know about one place in the node; `totals` is None for the supervisor itself."""

    name: str
    pid: int | None
    ready: bool
    restarts: int
    totals: Totals | None
    stuck: int = 0


@dataclass(frozen=True)
class Usage:
    """What the kernel says of one process."""

    resident_bytes: int
    cpu_seconds: float
    started_seconds: float
    """When it was started, as seconds since 1970."""
    open_files: int
    open_files_max: int
    """The limit that it stops accepting at; the soft one."""


def usage(pid: int) -> Usage | None:
    """What /proc says of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            resident_pages = int(file.read().split()[1])
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may hold anything; utime and stime are the 12th and 13th field after it.
            fields = file.read().rpartition(b")")[2].split()
        open_files = _open_files(pid)
        open_files_max, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Usage(
        resident_pages * _PAGE_BYTES,
        (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
        _boot_seconds() + int(fields[19]) / _TICKS_PER_SECOND,
        open_files,
        open_files_max,
    )


def _open_files(pid: int) -> int:
    """Since Linux 6.2 the folder's size is their number; before, they are listed, all of what may be a million."""
    folder = f"/proc/{pid}/fd"
    return os.stat(folder).st_size or sum(1 for _ in os.scandir(folder))


@functools.cache
def _boot_seconds() -> float:
    """When the machine started; kept, since the clock that it is told from is adjusted while we run."""
    with open("/proc/stat", "rb") as file:
        return next(float(line.split()[1]) for line in file if line.startswith(b"btime"))


class NodeCollector(Collector):
    """Collects from the places that `views` gives at the time of the scrape."""

    def __init__(self, views: Callable[[], Iterable[ProcessView]], *, node: str, version: str) -> None:
        self._views = views
        self._info = {"node": node, "version": version}

    def collect(self) -> Iterator[Metric]:
        """One pass over the places, giving every family whole."""
        views = list(self._views())
        counted = [(view.name, view.totals) for view in views if view.totals is not None]
        yield InfoMetricFamily("holdfast_build", "The node and the version that it runs.", value=self._info)
        yield from _process_families(views)
        yield from _ledger_families(counted)
        yield from _counter_families(counted)
        yield from _gauge_families(counted)
        yield _error_family(counted)
        yield from _time_families(counted)


class AuditCollector(Collector):
    """What the last audit of the ledger found; no samples before the first one."""

    def __init__(self, last: Callable[[], Mapping[str, int]]) -> None:
        self._last = last

    def collect(self) -> Iterator[Metric]:
        """A gauge, since the next audit may find less."""
        found = GaugeMetricFamily(
            "holdfast_ledger_audit_differences",
            "Findings of the last audit: what the ledger and the tables do not agree on.",
            labels=["process"],
        )
        for process, count in self._last().items():
            found.add_metric([process], count)
        yield found


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus scrapes."""
    return generate_latest(registry)


def _process_families(views: list[ProcessView]) -> Iterator[Metric]:
    ready = GaugeMetricFamily("holdfast_process_ready", "1 while the process serves.", labels=["process"])
    restarts = CounterMetricFamily(
        "holdfast_process_restarts", "Starts after the first, each because the process had ended.", labels=["process"]
    )
    stuck = CounterMetricFamily(
        "holdfast_process_stuck", "Processes that hung, and were killed and replaced.", labels=["process"]
    )
    resident = GaugeMetricFamily(
        "holdfast_process_resident_memory_bytes", "Resident memory, from /proc.", labels=["process"]
    )
    cpu = CounterMetricFamily(
        "holdfast_process_cpu_seconds",
        "Processor time of the living process; anew from 0 after a restart.",
        labels=["process"],
    )
    started = GaugeMetricFamily(
        "holdfast_process_start_time_seconds", "When the living process started, since 1970.", labels=["process"]
    )
    files = GaugeMetricFamily("holdfast_process_open_fds", "Open file descriptors.", labels=["process"])
    files_max = GaugeMetricFamily("holdfast_process_max_fds", "Limit of open file descriptors.", labels=["process"])
    for view in views:
        ready.add_metric([view.name], float(view.ready))
        restarts.add_metric([view.name], view.restarts)
        stuck.add_metric([view.name], view.stuck)
        used = usage(view.pid) if view.pid is not None else None
        if used is not None:
            resident.add_metric([view.name], used.resident_bytes)
            cpu.add_metric([view.name], used.cpu_seconds)
            started.add_metric([view.name], used.started_seconds)
            files.add_metric([view.name], used.open_files)
            files_max.add_metric([view.name], used.open_files_max)
    yield from (ready, restarts, stuck, resident, cpu, started, files, files_max)


def _ledger_families(counted: list[tuple[str, Totals]]) -> Iterator[Metric]:
    labels = ["process", "kind"]
    opened = CounterMetricFamily("holdfast_ledger_opened", "Resources acquired, by kind.", labels=labels)
    closed = CounterMetricFamily("holdfast_ledger_closed", "Resources released, by kind.", labels=labels)
    lost = CounterMetricFamily(
        "holdfast_ledger_lost", "Resources that were open when their process ended.", labels=labels
    )
    live = GaugeMetricFamily("holdfast_ledger_live", "Resources open now: opened - closed - lost.", labels=labels)
    for process, totals in counted:
        for kind, count in totals.opened.items():
            opened.add_metric([process, kind], count)
            closed.add_metric([process, kind], totals.closed[kind])
            lost.add_metric([process, kind], totals.lost[kind])
            live.add_metric([process, kind], totals.live[kind])
    yield from (opened, closed, lost, live)


def _counter_families(counted: list[tuple[str, Totals]]) -> Iterator[Metric]:
    gaps = CounterMetricFamily(
        "holdfast_gaps",
        "Gaps that members were told of, and positions without a history in common (reset), by reason.",
        labels=["process", "reason"],
    )
    for name in dict.fromkeys(name for _, totals in counted for name in totals.counters):
        if name.startswith(_GAPS):
            for process, totals in counted:
                gaps.add_metric([process, name.removeprefix(_GAPS)], totals.counters[name])
            continue
        family = CounterMetricFamily(f"holdfast_{name}", f"Count of {name.replace('_', ' ')}.", labels=["process"])
        for process, totals in counted:
            family.add_metric([process], totals.counters[name])
        yield family
    yield gaps


def _gauge_families(counted: list[tuple[str, Totals]]) -> Iterator[Metric]:
    for name in dict.fromkeys(name for _, totals in counted for name in totals.gauges):
        family = GaugeMetricFamily(f"holdfast_{name}", f"Now: {name.replace('_', ' ')}.", labels=["process"])
        for process, totals in counted:
            if name in totals.gauges:
                family.add_metric([process], totals.gauges[name])
        yield family


def _error_family(counted: list[tuple[str, Totals]]) -> Metric:
    family = CounterMetricFamily(
        "holdfast_request_errors", "Requests answered by ERROR, by its code.", labels=["process", "code"]
    )
    for process, totals in counted:
        for code, count in totals.errors.items():
            family.add_metric([process, code], count)
    return family


def _time_families(counted: list[tuple[str, Totals]]) -> Iterator[Metric]:
    for time in TIMES:
        family = HistogramMetricFamily(f"holdfast_{time}_seconds", _TIME_HELP[time], labels=["process"])
        for process, totals in counted:
            below, buckets = 0, []
            for bound_ms in BOUNDS_MS:
                below += totals.times[f"{time}_{bound_ms}"]
                buckets.append((f"{bound_ms / 1000:g}", float(below)))
            buckets.append(("+Inf", float(below + totals.times[f"{time}_inf"])))
            family.add_metric([process], buckets, totals.times[f"{time}_sum"] / 1000)
        yield family
