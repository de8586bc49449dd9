"""A node whose log is away at its start: it lives, is not ready, says why, and serves once the log is there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Node, free_ports, wait_until
from tests.servers.redis import running


@contextmanager
def node_of(port: int, **settings: str) -> Iterator[Node]:
    """A node whose Redis would be on that port; not ready yet."""
    url = f"redis://127.0.0.1:{port}/0"
    node = Node(("--workers", "1"), {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": url, **settings})
    try:
        yield node
    finally:
        node.destroy()


def missing(node: Node) -> list[str]:
    """What /readyz names."""
    try:
        status, text = node.get("/readyz")
    except OSError:
        return []
    assert status == 503
    found: list[str] = json.loads(text)["missing"]
    return found


def why(node: Node, port: int) -> bool:
    """Whether /readyz says what is waited for."""
    return any(one.startswith("router: its log is away: ") and str(port) in one for one in missing(node))


@pytest.mark.slow
def test_a_node_waits_for_its_log_and_serves_once_it_is_there() -> None:
    (port,) = free_ports(1)
    with node_of(port) as node:
        wait_until(lambda: why(node, port), lambda: f"{missing(node)}\n{node.log_tail()}")
        (router,) = node.routers
        assert "the log is away; the router serves once it is back" in node.log_tail()
        with running(port=port):
            node.wait_ready()
            assert node.routers == [router], "it waited, and was not started again"
            node.check_ledger()
            node.stop()


@pytest.mark.slow
def test_a_node_that_waits_for_its_log_stops_when_told() -> None:
    (port,) = free_ports(1)
    with node_of(port) as node:
        wait_until(lambda: why(node, port), lambda: f"{missing(node)}\n{node.log_tail()}")
        node.stop()


@pytest.mark.slow
def test_a_node_that_is_told_how_long_to_wait_ends_and_says_why() -> None:
    (port,) = free_ports(1)
    why = r"the log was away for 1 s \(log.open_timeout_s\)"
    with node_of(port, HOLDFAST_LOG_OPEN_TIMEOUT_S="1") as node, pytest.raises(AssertionError, match=why):
        node.wait_ready()
