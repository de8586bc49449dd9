"""A whole node over its embedded log: what was answered outlives the node, whichever way it ends."""

import json
import os
import signal
import urllib.request
from typing import Any

import pytest

from tests.conftest import HTTP_DEADLINE_S, Node, wait_until
from tests.process.clients import HISTORY, group, open_session, run


def publish(node: Node, channel: str, data: Any, **more: Any) -> tuple[int, int]:
    """(epoch, offset) of a message."""
    body = json.dumps({"channel": channel, "data": data, **more}).encode()
    request = urllib.request.Request(
        f"{node.admin_url}/api/publish", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
        said = json.load(answer)
    return said["epoch"], said["offset"]


def kept(node: Node, channel: str) -> list[Any]:
    """The data of the messages that HISTORY gives."""
    found: list[Any] = []

    async def ask() -> None:
        client = await open_session(node)
        await client.join(channel)
        answer = await client.ask(HISTORY, channel, {})
        await client.close()
        found.extend(message[3] for message in answer["messages"])

    run(ask())
    return found


@pytest.mark.slow
def test_what_was_answered_outlives_kills_of_the_router_and_of_the_node(holdfast: Any) -> None:
    node = holdfast("--workers", "1")
    channel = group("kept")
    first = publish(node, channel, "one", key="k")
    publish(node, channel, "two")
    (router,) = node.routers
    os.kill(router, signal.SIGKILL)
    wait_until(lambda: node.routers not in ([], [router]), "another router")
    epoch, offset = publish(node, channel, "three")
    assert epoch > first[0]
    assert offset == 3
    assert publish(node, channel, "one", key="k") == first
    node.crash()
    node.start_again()
    assert kept(node, channel) == ["one", "two", "three"]
    assert publish(node, channel, "one", key="k") == first
    assert publish(node, channel, "four")[1] == 4
    node.expect_lost()


@pytest.mark.slow
def test_a_second_node_on_the_same_directory_says_who_has_it(holdfast: Any) -> None:
    node = holdfast("--workers", "1")
    with pytest.raises(AssertionError, match=r"is in use by process \d+: stop it, or give this node another folder"):
        holdfast("--workers", "1", HOLDFAST_LOG_DIRECTORY=str(next((node.folder / "state").rglob("lock")).parent))
