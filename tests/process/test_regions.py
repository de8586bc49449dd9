"""Two regions, each with a log of its own, and one directory: what one confirmed to the other outlives it."""

import asyncio
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Node, free_ports, wait_until
from tests.process.clients import (
    DEADLINE_S,
    EVENT,
    HELLO,
    LEAVE,
    PRESENCE,
    Client,
    Refused,
    dial,
    open_session,
    run,
)
from tests.servers import etcd, redis

SHARDS = 8
BANNED = 603
GROUPS = [f"group:{number}" for number in range(12)]
BEFORE = {"eu": SHARDS, "us": 0}
ROOM = "held:room"
KEPT_NOWHERE = {
    "HOLDFAST_NAMESPACES_HELD_DOMAIN": "group",
    "HOLDFAST_NAMESPACES_HELD_EVENTS": "true",
    "HOLDFAST_NAMESPACES_BRIEF_DOMAIN": "global",
    "HOLDFAST_NAMESPACES_BRIEF_HISTORY_MESSAGES": "0",
    "HOLDFAST_NAMESPACES_BRIEF_PUBLISH": "anyone",
    "HOLDFAST_NAMESPACES_GLOBAL_PUBLISH": "anyone",
    "HOLDFAST_ROUTER_PRESENCE_DAMPING_MS": "50",
}


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


def both(regions: Callable[[str], dict[str, str]], holdfast: Callable[..., Node], **settings: str) -> tuple[Node, Node]:
    """A node in `eu`, which leads all, and one in `us`."""
    eu = holdfast("--workers", "1", **regions("eu"), **settings)
    wait_until(lambda: leaders(eu) == {"eu": SHARDS}, lambda: f"eu leads everything, not {leaders(eu)}")
    us = holdfast("--workers", "1", **regions("us"), **settings)
    wait_until(lambda: leaders(us) == BEFORE, lambda: f"us leads nothing, not {leaders(us)}")
    return eu, us


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
    batches = eu.metric("holdfast_log_batches_replicated_total")
    assert 0 < batches <= eu.metric("holdfast_log_batches_total")
    assert us.metric("holdfast_log_batches_followed_total") > 0
    assert us.metric("holdfast_log_records_dropped_total") == 0
    wait_until(lambda: told(eu)["us"]["follows"] == SHARDS, lambda: f"it is written down: {told(eu)}")
    wait_until(lambda: told(us)["us"]["breakers"] == 1, lambda: f"of us tells eu: {told(us)}")
    assert told(us)["us"]["lag_entries"] == 0
    shards = json.loads(us.get("/api/shards")[1])["shards"]
    assert {one["followers"]["us"]["router"] for one in shards} == {"us"}


def test_what_was_answered_in_one_region_is_heard_in_the_other_also_when_the_first_is_gone(
    regions: Callable[[str], dict[str, str]], holdfast: Callable[..., Node]
) -> None:
    eu, us = both(regions, holdfast)
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


def test_a_ban_in_one_region_ends_sessions_in_the_other_and_outlives_the_first(
    regions: Callable[[str], dict[str, str]], holdfast: Callable[..., Node]
) -> None:
    eu = holdfast("--workers", "1", **regions("eu"))
    wait_until(lambda: leaders(eu) == {"eu": SHARDS}, lambda: f"eu leads everything, not {leaders(eu)}")
    us = holdfast("--workers", "1", **regions("us"))
    wait_until(lambda: leaders(us) == BEFORE, lambda: f"us leads nothing, not {leaders(us)}")
    eu.expect_lost()

    async def body() -> None:
        far = await (await dial(us, "tcp")).hello(user="eve")
        await asyncio.to_thread(ban, eu, "eve")
        assert (await far.fin())[1] == BANNED
        await far.acknowledge()
        await asyncio.to_thread(eu.crash)
        await asyncio.to_thread(wait_until, lambda: leaders(us).get("us") == SHARDS, lambda: f"{leaders(us)}")
        assert [one["user"] for one in json.loads(us.get("/api/bans")[1])["bans"]] == ["eve"]
        again = await dial(us, "tcp")
        await again.send(HELLO, 1, {"v": 1, "user": "eve"})
        assert (await again.fin())[1] == BANNED
        await again.ended()

    run(body())
    eu.start_again()


def ban(node: Node, user: str) -> None:
    said = json.dumps({"user": user, "for": "10m"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{node.admin_url}/api/bans", said, headers, method="POST")
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert answer.status in (200, 201)


async def hears(client: Client, kind: str, about: Client) -> None:
    """Who came or went; events of others before that are passed over."""
    async with asyncio.timeout(DEADLINE_S):
        while (await client.expect(EVENT))[1:] != [ROOM, kind, {"session": about.session, "user": about.user}]:
            pass


async def heard(client: Client, channel: str, count: int) -> list[int]:
    """The offsets of so many messages, which have to be of this channel."""
    frames = await client.messages(count)
    assert {frame[1] for frame in frames} == {channel}
    return [frame[2] for frame in frames]


async def fed_at_home(node: Node) -> None:
    """Wait until the leader of the room sends it to its own region's worker alone."""

    def workers() -> int:
        found: int = json.loads(node.get(f"/api/channels/{ROOM}")[1])["workers"]
        return found

    await asyncio.to_thread(wait_until, lambda: workers() == 1, lambda: f"one worker, not {workers()}")


def test_who_comes_and_goes_and_what_is_kept_nowhere_is_heard_in_both_regions(
    regions: Callable[[str], dict[str, str]], holdfast: Callable[..., Node]
) -> None:
    eu, us = both(regions, holdfast, **KEPT_NOWHERE)

    async def body() -> None:
        ann, ben = await open_session(eu, "tcp", "ann"), await open_session(us, "text", "ben")
        for client in (ann, ben):
            await client.join(ROOM)
        await fed_at_home(eu)
        far, near = await open_session(us, "tcp", "ben"), await open_session(eu, "tcp", "ann")
        everybody = (ann, ben, far, near)
        for comes in (far, near):
            await comes.join(ROOM)
            for client in (ann, ben, comes):
                await hears(client, "joined", comes)
        for client in everybody:
            answer = await client.ask(PRESENCE, ROOM)
            assert {(one["session"], one["user"]) for one in answer["sessions"]} == {
                (one.session, one.user) for one in everybody
            }
            assert (answer["users"], answer["count"]) == (2, 4)
        for channel, publishers in ((ROOM, (ann, ben)), ("brief:news", (ann, ben)), ("global:news", (far, near))):
            for client in publishers:
                await client.publish(channel, client.user)
            for client in everybody:
                assert await heard(client, channel, 2) == [1, 2]
        await ann.publish("user:ben", "to each of his devices")
        for client in (ben, far):
            assert await heard(client, "user:ben", 1) == [1]
        for goes in (far, near):
            await goes.ask(LEAVE, ROOM)
            for client in (ann, ben):
                await hears(client, "left", goes)
        for client in everybody:
            assert not [frame for frame in await client.settle() if frame[2] == "gap" or frame[0] != EVENT]
            await client.close()

    run(body())
