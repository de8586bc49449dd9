"""The cluster in the node's metrics, as this node sees it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.child import Child
from gateway.cluster import Cluster


class ClusterCollector(Collector):
    """Collects what the directory says at the time of the scrape.

    Args:
        cluster: what is known of it.
        node: this node's name.
        links: the routers that the admin API is linked to: whether each was heard lately.
        workers: the places of workers.

    """

    def __init__(
        self,
        cluster: Cluster,
        node: str,
        links: Callable[[], Iterable[bool]],
        workers: Callable[[], Iterable[Child]],
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._links = links
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Gauges alone: all of it goes up and down."""
        view, membership = self._cluster.view, self._cluster.membership
        placed = list(zip(view.leaders(), view.wanted(), strict=True))
        leaders = Counter(leader for leader, _ in placed)
        yield _gauge("holdfast_directory_reachable", "1 while the directory answers.", view.reachable().answers)
        yield _gauge("holdfast_shards_led", "Shards that this node's router leads.", leaders[self._node])
        yield _gauge("holdfast_shards_unled", "Shards of the cluster that nobody leads.", leaders[None])
        moving = sum(leader is not None and leader != wanted for leader, wanted in placed)
        yield _gauge("holdfast_shards_moving", "Shards of the cluster that are to be led by another router.", moving)
        yield _gauge("holdfast_routers", "Routers of the cluster that live.", len(view.routers()))
        up = sum(self._links())
        yield _gauge("holdfast_admin_links", "Routers that the admin API is linked to and heard lately.", up)
        if membership is not None:
            lease = "Seconds for which the lease of this node's workers certainly lives on; 0: it has none."
            yield _gauge("holdfast_lease_remaining_seconds", lease, membership.lease_s())
            told = GaugeMetricFamily(
                "holdfast_worker_routers", "Routers that a worker was told to link to.", labels=["process"]
            )
            for child in self._workers():
                count = membership.linked(child.current) if child.current is not None else None
                if count is not None:
                    told.add_metric([child.name], count)
            yield told


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=float(value))
