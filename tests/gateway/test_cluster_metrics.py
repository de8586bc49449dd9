"""The cluster's gauges, from a real directory."""

import asyncio
import signal
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.child import Child
from gateway.cluster import Cluster
from gateway.cluster_metrics import ClusterCollector
from gateway.membership import Membership
from gateway.spawner import Spawner
from router.config import DirectoryConfig
from router.directory.port import now
from tests.gateway.test_cluster_view import lead, node_of, shown, viewed
from tests.gateway.test_supervisor import until


def test_the_gauges_say_how_the_cluster_stands(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, others):
            membership = Membership(view, "a", "{}", 2, list)
            registry = CollectorRegistry(auto_describe=False)
            registry.register(
                ClusterCollector(Cluster(view, membership), "a", lambda: [True, False], list, None, in_etcd.ttl_s)
            )

            def value(name: str, **labels: str) -> float | None:
                return registry.get_sample_value(f"holdfast_{name}", labels)

            assert (value("shards_led"), value("shards_unled"), value("routers")) == (0, 4, 0)
            assert value("lease_remaining_seconds", unit="gateway") == 0
            assert value("lease_remaining_seconds", unit="router") is None, "none runs here"
            assert value("lease_ttl_seconds") == in_etcd.ttl_s
            membership.start()
            one, other = [await others.register(name, node_of(name), 5) for name in ("a", "b")]
            for shard in range(3):
                await lead(others, shard, one)
            await shown(view, lambda: view.leaders().count("a") == 3 and len(view.routers()) == 2)
            await until(lambda: membership.lease_s() > 0, "registered")
            assert (value("shards_led"), value("shards_unled"), value("routers")) == (3, 1, 2)
            assert (value("shards_moving"), value("admin_links")) == (1, 1)
            assert value("directory_reachable") == 1
            assert 0 < (value("lease_remaining_seconds", unit="gateway") or 0) <= 2
            await asyncio.gather(one.close(), other.close(), membership.close())

    run_in_loop(scenario())


def test_the_lease_of_the_router_is_what_its_process_told_last(
    in_etcd: DirectoryConfig, programs: Any, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, _):
            spawner = Spawner(())
            place = Child(programs.spec("router", lease=now() + 60), spawner)
            registry = CollectorRegistry(auto_describe=False)
            registry.register(ClusterCollector(Cluster(view, None), "a", list, list, place, in_etcd.ttl_s))

            def left() -> float | None:
                return registry.get_sample_value("holdfast_lease_remaining_seconds", {"unit": "router"})

            assert left() == 0, "it has not started"
            running = asyncio.create_task(place.run_once(1))
            await place.ready.wait()
            before = left()
            assert before is not None
            assert 0 < before <= 60
            assert (left() or 60) < before, "it falls although nothing is told"
            assert registry.get_sample_value("holdfast_lease_remaining_seconds", {"unit": "gateway"}) is None
            place.send(signal.SIGTERM)
            await running
            assert left() == 0, "it has ended"
            spawner.close()

    run_in_loop(scenario())


def test_a_node_that_is_alone_has_names_without_values() -> None:
    """So that a rule about them can be told from one with a misspelt name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ClusterCollector(None, "a", list, list, None, 10))
    families = {family.name: family.samples for family in registry.collect()}
    assert families["holdfast_shards_unled"] == families["holdfast_worker_routers"] == []
    assert families["holdfast_lease_remaining_seconds"] == []
