"""A node whose log is in Redis: what was answered is known to the next router, and Redis may go and come back."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from tests.conftest import Node, wait_until
from tests.process.clients import group, open_session, run
from tests.servers.redis import running

MESSAGES = 20


def kill_router(node: Node) -> None:
    [router] = node.routers
    os.kill(router, signal.SIGKILL)
    wait_until(lambda: node.routers not in ([], [router]), "the next router")


@pytest.mark.slow
def test_keys_outlive_the_router_and_publishes_wait_for_redis(holdfast: Callable[..., Node]) -> None:
    with running() as server:
        node = holdfast("--workers", "1", HOLDFAST_LOG_BACKEND="redis", HOLDFAST_LOG_REDIS_URL=server.url)
        node.expect_lost()

        async def body() -> None:
            channel = group()
            client = await open_session(node)
            await client.join(channel)
            first = [await client.publish(channel, number, key=f"key-{number}") for number in range(MESSAGES)]
            await client.messages(MESSAGES)
            await asyncio.to_thread(kill_router, node)
            for number in (0, MESSAGES - 1):
                again = await client.publish(channel, number, key=f"key-{number}")
                assert (again["epoch"], again["offset"]) == (first[number]["epoch"], first[number]["offset"])
            now = await client.publish(channel, MESSAGES)
            assert now["epoch"] > first[0]["epoch"]
            server.kill()
            waiting = asyncio.create_task(client.publish(channel, MESSAGES + 1, key="late"))
            await asyncio.to_thread(server.start)
            late = await waiting
            assert (late["epoch"], late["offset"]) == (now["epoch"], now["offset"] + 1)
            await client.messages(2)
            await client.close()

        run(body())
    # Redis has gone for good: the node tries for a while to store what is left, and stops all the same.
    node.check_ledger()
    node.stop()
