"""A node whose log is in Redis: what was answered is known to the next router, and Redis may go and come back."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from tests.conftest import Node, wait_until
from tests.process.clients import HISTORY, PUBLISH, REPLY, Client, group, open_session, run
from tests.servers.redis import running

MESSAGES = 20
EXIT_LOG_TAKEN = 70
LATE = 999


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


@pytest.mark.slow
def test_a_node_whose_log_another_took_sends_its_clients_there_and_ends_for_good(
    holdfast: Callable[..., Node],
) -> None:
    with running() as server:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}
        former = holdfast("--workers", "1", HOLDFAST_GATEWAY_DRAIN_MS="1000", **settings)
        former.expect_lost()
        answered: dict[str, tuple[int, int]] = {}

        async def publish(client: Client, channel: str, key: str) -> None:
            answer = await client.publish(channel, key, key=key)
            answered[key] = (answer["epoch"], answer["offset"])

        async def body() -> None:
            channel = group()
            old = await open_session(former)
            await old.join(channel)
            for number in range(MESSAGES):
                await publish(old, channel, f"old-{number}")
            node = await asyncio.to_thread(holdfast, "--workers", "1", **settings)
            new = await open_session(node)
            await new.join(channel)
            for number in range(MESSAGES):
                await publish(new, channel, f"new-{number}")
            await old.send(PUBLISH, LATE, channel, "late", {})
            status, said = await asyncio.to_thread(until_not_ready, former)
            assert (status, "stopping" in said) == (503, True), said
            fin = await old.fin()
            assert 1 <= fin[1] < 200, f"resume, says its class: {fin}"
            assert not [frame for frame in old.kept if frame[:2] == [REPLY, LATE]]
            await old.acknowledge()
            await asyncio.to_thread(former.expect_end, EXIT_LOG_TAKEN)
            await publish(new, channel, "last")
            history = await new.ask(HISTORY, channel, {"limit": 1000})
            kept = {message[3]: (message[4]["epoch"], message[2]) for message in history["messages"]}
            assert answered.items() <= kept.items(), "what was answered is there"
            await new.close()

        run(body())
        text = former.log.read_text()
        assert "another node has the log now" in text
        assert "has this log now: this one has to end: process " in text
        assert text.count("log_taken") == 1, "and its router was not started again"


def until_not_ready(node: Node) -> tuple[int, str]:
    """What /readyz says first that is not 200."""
    found: list[tuple[int, str]] = []

    def is_not_ready() -> bool:
        found.append(node.get("/readyz"))
        return found[-1][0] != 200

    wait_until(is_not_ready, "/readyz is not 200")
    return found[-1]
