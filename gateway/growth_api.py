"""What the growth watcher has found, for people and Prometheus: `GET /api/growth` and the metrics."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.access import check_access
from gateway.growth import TOO_FEW, Growth
from gateway.hook import Hook
from gateway.watcher import Watcher

if TYPE_CHECKING:
    from gateway.admin import AdminContext

_SHOWN = ("verdict", "level", "per_day", "low", "high", "relative_per_day", "relative_low", "relative_high", "samples",
          "span_s")  # fmt: skip


def routes(context: "AdminContext") -> list[Route]:
    """The route of /api/growth; none where nothing is watched."""
    watcher = context.growth
    if watcher is None:
        return []

    async def growth(request: Request) -> Response:
        check_access(context.token, request)
        return JSONResponse(findings(watcher))

    return [Route("/api/growth", growth)]


def findings(watcher: Watcher) -> dict[str, Any]:
    """The latest fits by process and resource, what is suspected, and the settings that these come from."""
    pids = watcher.pids()
    processes = [
        {
            "process": name,
            "pid": pids[name],
            "resources": {resource: _shown(found) for resource, found in fits.items()},
        }
        for name, fits in watcher.fits().items()
    ]
    settings = msgspec.structs.asdict(watcher.settings)
    shown = ("interval_s", "window_s", "warm_up_s", "samples_min", "threshold_percent", "confidence")
    return {
        "settings": {name: settings[name] for name in shown},
        "processes": processes,
        "suspected": watcher.suspected(),
    }


def _shown(found: Growth) -> dict[str, Any]:
    return {name: getattr(found, name) for name in _SHOWN}


class GrowthCollector(Collector):
    """The fits as gauges: 0.01 is 1 % of its level a day. A resource has figures once there are samples enough."""

    def __init__(self, watcher: Watcher, hook: Hook) -> None:
        self._watcher = watcher
        self._hook = hook

    def collect(self) -> Iterator[Metric]:
        """One pass over the latest fits."""
        labels = ["process", "resource"]
        suspected = GaugeMetricFamily(
            "holdfast_leak_suspected", "1 while the growth is held for a leak.", labels=labels
        )
        ratio = "holdfast_growth_per_day_ratio"
        families = {
            "relative_per_day": GaugeMetricFamily(ratio, "Growth a day as a share of the level.", labels=labels),
            "relative_low": GaugeMetricFamily(
                f"{ratio}_low", "The low end of the growth's confidence interval.", labels=labels
            ),
            "relative_high": GaugeMetricFamily(
                f"{ratio}_high", "The high end of the growth's confidence interval.", labels=labels
            ),
        }
        accused = {(event["process"], event["resource"]) for event in self._watcher.suspected()}
        for process, fits in self._watcher.fits().items():
            for resource, found in fits.items():
                if found.verdict == TOO_FEW:
                    continue
                suspected.add_metric([process, resource], float((process, resource) in accused))
                for name, family in families.items():
                    family.add_metric([process, resource], getattr(found, name))
        yield suspected
        yield from families.values()
        hook = CounterMetricFamily("holdfast_hook_events", "Events for the hook, by outcome.", labels=["outcome"])
        hook.add_metric(["delivered"], self._hook.delivered)
        hook.add_metric(["failed"], self._hook.failed)
        yield hook
