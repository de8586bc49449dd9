"""Nodes that the tests of a module share; each test has to leave them as it found them."""

from collections.abc import Iterator

import pytest

from tests.conftest import Node
from tests.servers.redis import running


@pytest.fixture(scope="module")
def shared_node() -> Iterator[Node]:
    """Two workers and a router in development mode, for all tests of a module."""
    node = Node(("--workers", "2"), {})
    try:
        node.wait_ready()
        yield node
        node.stop()
    finally:
        node.destroy()


@pytest.fixture(params=["embedded", "redis"])
def kept_in(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of a node with each side of the log; for those that are killed and go on with what they had.

    Named before `holdfast`, so that nodes can store what is left when they stop: without Redis they try for seconds.
    """
    if request.param == "embedded":
        yield {}
        return
    with running() as server:
        yield {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The module's node; whoever uses it must have closed its connections at the end."""
    yield shared_node
    shared_node.check_ledger()
