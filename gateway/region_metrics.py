"""Other regions in the node's metrics: how far each is with what is led here, and which are evacuated.

What the router tells its supervisor once a second; how far they are is told by whoever leads a shard, and by nobody
else, so that a shard has one series a region in all of the cluster. Of a node without regions, names without values.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.child import Child
from router.loads import Other, others_of

_OF_SHARDS = {
    "holdfast_region_lag_entries": "Batches of a shard led here that another region has not confirmed.",
    "holdfast_region_lag_seconds": "For how long another region has not confirmed what is led here.",
}
_OF_REGIONS: dict[str, tuple[str, Callable[[Other], int]]] = {
    "holdfast_region_breaker_open": (
        "1 while another region counts as away: it does not confirm what is led here.",
        lambda other: int(other.away),
    ),
    "holdfast_region_shards_followed": (
        "Shards led in another region that this node's router follows.",
        lambda other: other.follows,
    ),
    "holdfast_region_shards_behind": (
        "Of the followed shards, those of which the router does not have all yet.",
        lambda other: other.behind,
    ),
}


class RegionCollector(Collector):
    """Collects at the time of the scrape what was told last.

    Args:
        router: the place of the router; None: none runs here.
        evacuated: all regions that there are, and whether each is evacuated.

    """

    def __init__(self, router: Child | None, evacuated: Callable[[], Mapping[str, bool]]) -> None:
        self._router = router
        self._evacuated = evacuated

    def collect(self) -> Iterator[Metric]:
        """Gauges alone."""
        process = self._router.current if self._router is not None else None
        others = others_of(process.regions) if process is not None else {}
        yield from _lags(others)
        for name, (about, value) in _OF_REGIONS.items():
            family = GaugeMetricFamily(name, about, labels=["region"])
            for region, other in others.items():
                family.add_metric([region], value(other))
            yield family
        family = GaugeMetricFamily("holdfast_region_evacuated", "1 while a region is evacuated.", labels=["region"])
        for region, is_evacuated in self._evacuated().items():
            family.add_metric([region], float(is_evacuated))
        yield family


def _lags(others: Mapping[str, Other]) -> Iterator[Metric]:
    entries, seconds = (
        GaugeMetricFamily(name, about, labels=["region", "shard"]) for name, about in _OF_SHARDS.items()
    )
    for region, other in others.items():
        for shard, (count, since_s) in other.lags.items():
            entries.add_metric([region, str(shard)], count)
            seconds.add_metric([region, str(shard)], since_s)
    yield from (entries, seconds)
