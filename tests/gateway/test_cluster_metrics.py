"""The cluster's gauges, from a real directory."""

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.cluster import Cluster
from gateway.cluster_metrics import ClusterCollector
from gateway.membership import Membership
from router.config import DirectoryConfig
from tests.gateway.test_cluster_view import lead, node_of, shown, viewed
from tests.gateway.test_supervisor import until


def test_the_gauges_say_how_the_cluster_stands(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, others):
            membership = Membership(view, "a", "{}", 2, list)
            registry = CollectorRegistry(auto_describe=False)
            registry.register(ClusterCollector(Cluster(view, membership), "a", lambda: [True, False], list))

            def value(name: str) -> float | None:
                return registry.get_sample_value(f"holdfast_{name}")

            assert (value("shards_led"), value("shards_unled"), value("routers")) == (0, 4, 0)
            assert value("lease_remaining_seconds") == 0
            membership.start()
            one, other = [await others.register(name, node_of(name), 5) for name in ("a", "b")]
            for shard in range(3):
                await lead(others, shard, one)
            await shown(view, lambda: view.leaders().count("a") == 3 and len(view.routers()) == 2)
            await until(lambda: membership.lease_s() > 0, "registered")
            assert (value("shards_led"), value("shards_unled"), value("routers")) == (3, 1, 2)
            assert (value("shards_moving"), value("admin_links")) == (1, 1)
            assert value("directory_reachable") == 1
            assert 0 < (value("lease_remaining_seconds") or 0) <= 2
            await asyncio.gather(one.close(), other.close(), membership.close())

    run_in_loop(scenario())


def test_a_node_that_is_alone_has_names_without_values() -> None:
    """So that a rule about them can be told from one with a misspelt name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ClusterCollector(None, "a", list, list))
    families = {family.name: family.samples for family in registry.collect()}
    assert families["holdfast_shards_unled"] == families["holdfast_worker_routers"] == []
