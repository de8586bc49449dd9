"""What the node's metrics say of regions: what the router told last, and what the directory says."""

import asyncio
import signal
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.child import Child
from gateway.region_metrics import RegionCollector
from gateway.spawner import Spawner

# As `router.loads.Other` comes through MessagePack.
TOLD = {"us": [False, {"1": [0, 0.0], "6": [3, 1.5]}, 128, 4], "ap": [True, {}, 0, 0]}


def test_what_the_router_told_last_is_shown_while_it_lives(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        place = Child(programs.spec("router", regions=TOLD), spawner)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(RegionCollector(place, lambda: {"us": False, "eu": True}))

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"holdfast_region_{name}", labels)

        assert value("breaker_open", region="us") is None, "it has not started"
        assert (value("evacuated", region="eu"), value("evacuated", region="us")) == (1, 0)
        running = asyncio.create_task(place.run_once(1))
        await place.ready.wait()
        assert (value("lag_entries", region="us", shard="6"), value("lag_seconds", region="us", shard="6")) == (3, 1.5)
        assert (value("lag_entries", region="us", shard="1"), value("lag_seconds", region="us", shard="1")) == (0, 0)
        assert value("lag_entries", region="ap", shard="6") is None
        assert (value("breaker_open", region="us"), value("breaker_open", region="ap")) == (0, 1)
        assert (value("shards_followed", region="us"), value("shards_behind", region="us")) == (128, 4)
        place.send(signal.SIGTERM)
        await running
        assert value("breaker_open", region="us") is None, "it has ended"
        spawner.close()

    run_in_loop(scenario())


def test_a_node_without_regions_has_names_without_values() -> None:
    """So that a rule about them can be told from one with a misspelt name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RegionCollector(None, dict))
    families = {family.name: family.samples for family in registry.collect()}
    names = ("lag_entries", "lag_seconds", "breaker_open", "shards_followed", "shards_behind", "evacuated")
    assert families == {f"holdfast_region_{name}": [] for name in names}
