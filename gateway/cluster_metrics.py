"""The cluster in the node's metrics, as this node sees it; of a node that is alone, names without values."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.child import Child
from router.directory.port import now

if TYPE_CHECKING:  # a node that is alone does without the library of etcd
    from gateway.cluster import Cluster

_ABOUT = {
    "holdfast_directory_reachable": "1 while the directory answers.",
    "holdfast_shards_led": "Shards that this node's router leads.",
    "holdfast_shards_unled": "Shards of the cluster that nobody leads.",
    "holdfast_shards_moving": "Shards of the cluster that are to be led by another router.",
    "holdfast_routers": "Routers of the cluster that live.",
    "holdfast_admin_links": "Routers that the admin API is linked to and heard lately.",
    "holdfast_lease_ttl_seconds": "How long a lease in the directory lives when it is not renewed: directory.ttl_s.",
}


class ClusterCollector(Collector):
    """Collects what the directory says at the time of the scrape.

    Args:
        cluster: what is known of it; None: this node is alone.
        node: this node's name.
        links: the routers that the admin API is linked to: whether each was heard lately.
        workers: the places of workers.
        router: the place of the router; None: none runs here.
        ttl_s: of the leases.

    """

    def __init__(
        self,
        cluster: "Cluster | None",
        node: str,
        links: Callable[[], Iterable[bool]],
        workers: Callable[[], Iterable[Child]],
        router: Child | None,
        ttl_s: int,
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._links = links
        self._workers = workers
        self._router = router
        self._ttl_s = ttl_s

    def collect(self) -> Iterator[Metric]:
        """Gauges alone: all of it goes up and down."""
        values = {} if self._cluster is None else self._values(self._cluster)
        for name, about in _ABOUT.items():
            yield GaugeMetricFamily(name, about, value=values.get(name))
        yield self._told()
        yield self._leases()

    def _values(self, cluster: "Cluster") -> dict[str, float]:
        view = cluster.view
        placed = list(zip(view.leaders(), view.wanted(), strict=True))
        leaders = Counter(leader for leader, _ in placed)
        values = {
            "holdfast_lease_ttl_seconds": self._ttl_s,
            "holdfast_directory_reachable": view.reachable().answers,
            "holdfast_shards_led": leaders[self._node],
            "holdfast_shards_unled": leaders[None],
            "holdfast_shards_moving": sum(leader is not None and leader != wanted for leader, wanted in placed),
            "holdfast_routers": len(view.routers()),
            "holdfast_admin_links": sum(self._links()),
        }
        return {name: float(value) for name, value in values.items()}

    def _told(self) -> Metric:
        told = GaugeMetricFamily(
            "holdfast_worker_routers", "Routers that a worker was told to link to.", labels=["process"]
        )
        membership = None if self._cluster is None else self._cluster.membership
        for child in self._workers() if membership is not None else ():
            count = membership.linked(child.current) if membership is not None and child.current is not None else None
            if count is not None:
                told.add_metric([child.name], count)
        return told

    def _leases(self) -> Metric:
        leases = GaugeMetricFamily(
            "holdfast_lease_remaining_seconds",
            "How long the lease of this node's gateway or router certainly lives on; 0: it has none.",
            labels=["unit"],
        )
        if self._cluster is None:
            return leases
        if self._cluster.membership is not None:
            leases.add_metric(["gateway"], self._cluster.membership.lease_s())
        if self._router is not None:
            process = self._router.current
            until = 0.0 if process is None else process.lease_until
            leases.add_metric(["router"], max(0.0, until - now()))
        return leases
