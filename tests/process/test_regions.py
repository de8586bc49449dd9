"""Two regions, each with a log of its own, and one directory: what one confirmed to the other outlives it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Node, free_ports, wait_until
from tests.process.clients import DEADLINE_S, Client, Refused, open_session, run
from tests.servers import etcd, redis

SHARDS = 8
GROUPS = [f"group:{number}" for number in range(12)]
BEFORE = {"eu": SHARDS, "us": 0}


@pytest.fixture
def regions() -> Iterator[Callable[[str], dict[str, str]]]:
    """Settings of a node in `eu`, which leads all while it is there, or in `us`."""
    with etcd.running() as member, redis.running() as eu, redis.running() as us:
        logs = {"eu": eu.url, "us": us.url}

        def settings(region: str) -> dict[str, str]:
            other = next(name for name in logs if name != region)
            return {
                "HOLDFAST_NODE_NAME": region,
                "HOLDFAST_DIRECTORY_ENDPOINTS": member.endpoint,
                "HOLDFAST_DIRECTORY_TTL_S": "3",
                "HOLDFAST_DIRECTORY_SHARDS": str(SHARDS),
                "HOLDFAST_DIRECTORY_REGION": region,
                "HOLDFAST_DIRECTORY_PLACEMENT": "eu,us",
                "HOLDFAST_BUS_ADVERTISE": f"127.0.0.1:{free_ports(1)[0]}",
                "HOLDFAST_LOG_BACKEND": "redis",
                "HOLDFAST_LOG_REDIS_URL": logs[region],
                "HOLDFAST_LOG_REGIONS": f"{other}={logs[other]}",
                "HOLDFAST_NAMESPACES_GROUP_ACK": "replicated",
            }

        yield settings


def leaders(node: Node) -> dict[str, int]:
    """How many shards each router leads."""
    return {router["name"]: router["leads"] for router in json.loads(node.get("/api/shards")[1])["routers"]}


def shown(node: Node, other: str) -> dict[str, float]:
    """What a node's metrics say of another region."""
    names = ("lag_entries", "breaker_open", "shards_followed", "shards_behind", "evacuated")
    return {name: node.metric(f"holdfast_region_{name}", region=other) for name in names}


def told(node: Node) -> dict[str, Any]:
    """What it says of all regions, by name."""
    return {one["name"]: one for one in json.loads(node.get("/api/regions")[1])["regions"]}


CLOSED = {"lag_entries": 0, "breaker_open": 0, "shards_followed": 0, "shards_behind": 0, "evacuated": 0}


async def publish(client: Client, channel: str, data: str) -> None:
    """Until it is answered: before a region confirms what the other has, it is `unavailable`."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await client.publish(channel, data, key=data)
            except Refused:
                await asyncio.sleep(0.1)
            else:
                return


async def hear(client: Client, said: set[str]) -> None:
    """All of it, each once."""
    assert sorted([frame[3] for frame in await client.messages(len(said))]) == sorted(said)


def look(eu: Node, us: Node) -> None:
    """How far the other region is, once it has all that was published, in the metrics and over HTTP."""
    wait_until(lambda: shown(eu, "us") == CLOSED, lambda: f"us has all: {shown(eu, 'us')}")
    followed = {**CLOSED, "shards_followed": SHARDS}
    wait_until(lambda: shown(us, "eu") == followed, lambda: f"us follows all: {shown(us, 'eu')}")
    lags = eu.metrics()["holdfast_region_lag_seconds"]
    assert sorted(int(labels["shard"]) for labels, _ in lags) == list(range(SHARDS))
    wait_until(lambda: told(eu)["us"]["follows"] == SHARDS, lambda: f"it is written down: {told(eu)}")
    wait_until(lambda: told(us)["us"]["breakers"] == 1, lambda: f"of us tells eu: {told(us)}")
    assert told(us)["us"]["lag_entries"] == 0
    shards = json.loads(us.get("/api/shards")[1])["shards"]
    assert {one["followers"]["us"]["router"] for one in shards} == {"us"}


def test_what_was_answered_in_one_region_is_heard_in_the_other_also_when_the_first_is_gone(
    regions: Callable[[str], dict[str, str]], holdfast: Callable[..., Node]
) -> None:
    eu = holdfast("--workers", "1", **regions("eu"))
    wait_until(lambda: leaders(eu) == {"eu": SHARDS}, lambda: f"eu leads everything, not {leaders(eu)}")
    us = holdfast("--workers", "1", **regions("us"))
    wait_until(lambda: leaders(us) == BEFORE, lambda: f"us leads nothing, not {leaders(us)}")
    eu.expect_lost()

    async def body() -> None:
        near, far = await open_session(eu, "tcp"), await open_session(us, "tcp")
        for channel in GROUPS:
            await near.join(channel)
            await far.join(channel)
        for channel in GROUPS:
            await publish(near, channel, f"near {channel}")
            await publish(far, channel, f"far {channel}")
        said = {f"{who} {channel}" for channel in GROUPS for who in ("near", "far")}
        await hear(near, said)
        await hear(far, said)
        await asyncio.to_thread(look, eu, us)
        await asyncio.to_thread(eu.crash)
        await asyncio.to_thread(wait_until, lambda: shown(us, "eu")["breaker_open"] == 1, "eu is away")
        await asyncio.to_thread(wait_until, lambda: leaders(us).get("us") == SHARDS, lambda: f"{leaders(us)}")
        late = await open_session(us, "tcp")
        for channel in GROUPS:
            assert (await late.join(channel))["offset"] == 2, "nothing that was answered is missing"
        await asyncio.to_thread(eu.start_again)
        await asyncio.to_thread(wait_until, lambda: leaders(us) == BEFORE, lambda: f"eu leads again: {leaders(us)}")
        for channel in GROUPS:
            await publish(far, channel, f"again {channel}")
        again = {f"again {channel}" for channel in GROUPS}
        await hear(far, again)
        await hear(late, again)
        back = await open_session(eu, "tcp")
        for channel in GROUPS:
            assert (await back.join(channel))["offset"] == 3
        for client in (far, late, back):
            await client.close()

    run(body())
