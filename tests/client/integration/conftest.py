"""A node that the tests of a module share: two workers, and a heartbeat short enough to be waited for."""

from collections.abc import Iterator

import pytest

from tests.conftest import Node

PING_MS = 1000
MISSES = 2
SETTINGS = {
    "HOLDFAST_GATEWAY_PING_MS": str(PING_MS),
    "HOLDFAST_GATEWAY_MISSES": str(MISSES),
    "HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS": str(PING_MS * MISSES),
}


@pytest.fixture(scope="module")
def shared_node() -> Iterator[Node]:
    node = Node(("--workers", "2"), SETTINGS)
    try:
        node.wait_ready()
        yield node
        node.stop()
    finally:
        node.destroy()


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The module's node; whoever uses it must have closed its sessions at the end."""
    yield shared_node
    shared_node.check_ledger()
