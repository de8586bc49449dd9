"""A node with a directory: what each role runs, what it tells, and that it leaves nothing there."""

import json
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Node, free_ports, wait_until
from tests.servers import etcd


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
            "HOLDFAST_LOG_BACKEND": "none",
        }

    return settings


def test_a_router_alone_tells_of_the_cluster_and_leaves_nothing(
    holdfast: Callable[..., Node], cluster: Callable[[], dict[str, str]], member: etcd.Member
) -> None:
    node = holdfast(**cluster(), HOLDFAST_NODE_ROLE="router", HOLDFAST_NODE_NAME="a")
    status, text = node.get("/api/shards")
    assert status == 200
    told = json.loads(text)
    assert (told["node"], told["reachable"], told["gateways"]) == ("a", True, [])
    assert node.metric("holdfast_directory_reachable") == 1


def test_a_directory_that_is_away_for_a_while_is_noticed_and_costs_no_descriptor(
    holdfast: Callable[..., Node], cluster: Callable[[], dict[str, str]], member: etcd.Member
) -> None:
    node = holdfast(**cluster(), HOLDFAST_NODE_ROLE="router", HOLDFAST_NODE_NAME="a")
    for _ in range(2):
        member.kill()
        wait_until(lambda: node.metric("holdfast_directory_reachable") == 0, "that it is away is noticed")
        assert node.get("/api/shards")[0] == 200
        member.start()
        wait_until(lambda: node.metric("holdfast_directory_reachable") == 1, "that it is back is noticed")
