"""A node with a directory: what each role runs, what it tells, and that it leaves nothing there."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from tests.conftest import Node, free_ports, wait_until
from tests.process.clients import MESSAGE, Client, open_session, run
from tests.servers import etcd

PROGRAM_DEADLINE_S = 60.0
SHARDS = 8
GROUPS = [f"group:{number}" for number in range(24)]
"""So many that no shard is without one, as good as certainly."""


@pytest.fixture
def member() -> Iterator[etcd.Member]:
    with etcd.running() as made:
        yield made


@pytest.fixture
def cluster(member: etcd.Member, request: pytest.FixtureRequest) -> Callable[[], dict[str, str]]:
    """Settings of one node after the other of a cluster of the test's own."""

    def settings() -> dict[str, str]:
        return {
            "HOLDFAST_DIRECTORY_ENDPOINTS": member.endpoint,
            "HOLDFAST_DIRECTORY_PREFIX": f"{request.node.name}/",
            "HOLDFAST_DIRECTORY_TTL_S": "3",
            "HOLDFAST_BUS_ADVERTISE": f"127.0.0.1:{free_ports(1)[0]}",
            "HOLDFAST_DIRECTORY_SHARDS": str(SHARDS),
            "HOLDFAST_LOG_BACKEND": "none",
        }

    return settings


def test_a_router_alone_tells_of_the_cluster_and_leaves_nothing(
    cluster: Callable[[], dict[str, str]], member: etcd.Member, holdfast: Callable[..., Node]
) -> None:
    node = holdfast(**cluster(), HOLDFAST_NODE_ROLE="router", HOLDFAST_NODE_NAME="a")
    status, text = node.get("/api/shards")
    assert status == 200
    told = json.loads(text)
    assert (told["node"], told["reachable"], told["gateways"]) == ("a", True, [])
    assert node.metric("holdfast_directory_reachable") == 1


def test_a_directory_that_is_away_for_a_while_is_noticed_and_costs_no_descriptor(
    cluster: Callable[[], dict[str, str]], member: etcd.Member, holdfast: Callable[..., Node]
) -> None:
    node = holdfast(**cluster(), HOLDFAST_NODE_ROLE="router", HOLDFAST_NODE_NAME="a")
    for _ in range(2):
        member.kill()
        wait_until(lambda: node.metric("holdfast_directory_reachable") == 0, "that it is away is noticed")
        assert node.get("/api/shards")[0] == 200
        member.start()
        wait_until(lambda: node.metric("holdfast_directory_reachable") == 1, "that it is back is noticed")


def program(node: Node, *arguments: str) -> str:
    """What `holdfast` prints to a node's question."""
    command = [str(Path(sys.executable).parent / "holdfast"), *arguments, "--url", node.admin_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_DEADLINE_S, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{node.log_tail()}"
    return done.stdout


def shares(node: Node) -> dict[str, int]:
    """How many shards each router leads."""
    told = json.loads(node.get("/api/shards")[1])
    return {router["name"]: router["leads"] for router in told["routers"]}


def publish(node: Node, channel: str, data: str) -> None:
    body = json.dumps({"channel": channel, "data": data}).encode()
    request = urllib.request.Request(f"{node.admin_url}/api/publish", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PROGRAM_DEADLINE_S) as answer:
        assert answer.status == 200


async def hear_all(clients: list[Client], said: set[tuple[str, str]]) -> None:
    """Each hears all of it, each once."""
    for client in clients:
        heard = [await client.expect(MESSAGE) for _ in said]
        assert sorted((frame[1], frame[3]) for frame in heard) == sorted(said)


def test_two_nodes_share_the_shards_and_clients_of_both_hear_each_other(
    cluster: Callable[[], dict[str, str]], holdfast: Callable[..., Node]
) -> None:
    one = holdfast("--workers", "1", **cluster(), HOLDFAST_NODE_NAME="a")
    wait_until(lambda: shares(one) == {"a": SHARDS}, lambda: f"the first leads everything, not {shares(one)}")
    other = holdfast("--workers", "1", **cluster(), HOLDFAST_NODE_NAME="b")
    halves = {"a": SHARDS // 2, "b": SHARDS // 2}
    for node in (one, other):
        wait_until(lambda at=node: shares(at) == halves, lambda: f"each leads its half, not {shares(one)}")  # type: ignore[misc]
        wait_until(lambda at=node: at.metric("holdfast_admin_links") == 2, "the admin API is linked to both")  # type: ignore[misc]

    async def body() -> None:
        clients = [await open_session(node, "tcp") for node in (one, other)]
        for client in clients:
            for channel in GROUPS:
                await client.join(channel)
        for number, client in enumerate(clients):
            for channel in GROUPS:
                await client.publish(channel, f"client {number}")
        for number, node in enumerate((one, other)):
            for channel in GROUPS:
                await asyncio.to_thread(publish, node, channel, f"admin {number}")
        words = [f"{who} {number}" for who in ("client", "admin") for number in range(2)]
        await hear_all(clients, {(channel, word) for channel in GROUPS for word in words})
        for client in clients:
            await client.close()

    run(body())


def test_an_operator_moves_shards_and_takes_a_router_away(
    cluster: Callable[[], dict[str, str]], holdfast: Callable[..., Node]
) -> None:
    nodes = [holdfast(**cluster(), HOLDFAST_NODE_ROLE="router", HOLDFAST_NODE_NAME=name) for name in ("a", "b")]
    wait_until(lambda: set(shares(nodes[0]).values()) == {SHARDS // 2}, "each leads its half")
    assert program(nodes[1], "cordon", "a") == "a: cordoned, leads 0\n"
    assert shares(nodes[0]) == {"a": 0, "b": SHARDS}
    assert program(nodes[0], "uncordon", "a") == "a: takes shards\n"
    wait_until(lambda: set(shares(nodes[0]).values()) == {SHARDS // 2}, "each leads its half again")
    assert program(nodes[0], "shards", "move", "3", "b").startswith("shard 3: led by b")
    assert program(nodes[0], "shards", "move", "3", "a").startswith("shard 3: led by a")
    assert "pinned: 3 at a" in program(nodes[1], "shards")


def test_workers_alone_go_on_with_a_router_elsewhere_that_was_killed_over_encrypted_links(
    cluster: Callable[[], dict[str, str]], holdfast: Callable[..., Node]
) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    keys = {"HOLDFAST_BUS_PUBLIC_KEY": public, "HOLDFAST_BUS_SECRET_KEY": secret}
    router = holdfast(**cluster(), **keys, HOLDFAST_NODE_NAME="r", HOLDFAST_NODE_ROLE="router")
    router.expect_lost()
    apart = cluster() | {"HOLDFAST_BUS_ADVERTISE": ""}
    gateway = holdfast("--workers", "1", **apart, **keys, HOLDFAST_NODE_NAME="g", HOLDFAST_NODE_ROLE="gateway")
    told = json.loads(gateway.get("/api/shards")[1])
    assert [(one["name"], one["encrypted"]) for one in told["routers"]] == [("r", True)]
    assert [one["name"] for one in told["gateways"]] == ["g"]

    async def body() -> None:
        client = await open_session(gateway, "tcp")
        await client.join("group:a")
        await client.publish("group:a", "before")
        epoch = told["routers"][0]["epoch"]
        os.kill(router.routers[0], signal.SIGKILL)

        def is_back() -> bool:
            found = json.loads(gateway.get("/api/shards")[1])
            return [one["leads"] for one in found["routers"] if one["epoch"] > epoch] == [SHARDS]

        await asyncio.to_thread(wait_until, is_back, "the router leads again")
        await asyncio.to_thread(publish, gateway, "group:a", "admin")
        await client.publish("group:a", "after")
        assert [(await client.expect(MESSAGE))[3] for _ in range(3)] == ["before", "admin", "after"]
        await client.close()

    run(body())
