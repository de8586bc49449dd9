"""Who joined and who left, as members of two workers hear it, and what resuming in time makes of it."""

import asyncio
import os
import signal
from typing import Any

from tests.process.clients import EVENT, LEAVE, MESSAGE, PRESENCE, Client, open_session, run
from tests.process.places import one_on_each_worker, worker_of
from tests.process.test_requests import close_all
from tests.process.test_resume import resume

LONG_MS = "60000"


def settings(damping_ms: str) -> dict[str, str]:
    return {
        "HOLDFAST_NAMESPACES_HELD_DOMAIN": "group",
        "HOLDFAST_NAMESPACES_HELD_EVENTS": "true",
        "HOLDFAST_ROUTER_PRESENCE_DAMPING_MS": damping_ms,
    }


async def told(client: Client) -> tuple[str, str, str, str]:
    """(channel, kind, session, user) of the next event."""
    _, channel, kind, about = await client.expect(EVENT)
    return channel, kind, about["session"], about["user"]


async def counted(client: Client, channel: str, count: int) -> None:
    """Ask until so many are present."""
    async with asyncio.timeout(10):
        while (await client.ask(PRESENCE, channel))["count"] != count:
            pass


def test_members_of_both_workers_hear_who_joins_and_leaves(holdfast: Any) -> None:
    node = holdfast("--workers", "2", **settings("100"))

    async def body() -> None:
        alice, bob = await one_on_each_worker(node, ("tcp", "text"))
        for client in (alice, bob):
            await client.join("held:a")
        assert [await told(alice) for _ in range(2)] == [
            ("held:a", "joined", client.session, client.user) for client in (alice, bob)
        ]
        assert await told(bob) == ("held:a", "joined", bob.session, bob.user)
        await bob.ask(LEAVE, "held:a")
        assert await told(alice) == ("held:a", "left", bob.session, bob.user)
        await bob.join("held:a")
        assert await told(alice) == ("held:a", "joined", bob.session, bob.user)
        await bob.abort()
        assert await told(alice) == ("held:a", "left", bob.session, bob.user)
        # One that resumes after it was told of as left is told of as joined.
        bob = await resume(node, bob, {"held:a": [0, 0]})
        assert await told(alice) == ("held:a", "joined", bob.session, bob.user)
        await close_all(alice, bob)

    run(body())


def test_who_resumes_in_time_was_never_gone_also_when_the_worker_was_killed(holdfast: Any) -> None:
    node = holdfast("--workers", "2", **settings(LONG_MS))
    node.expect_lost()

    async def body() -> None:
        alice, bob = await one_on_each_worker(node)
        for client in (alice, bob):
            await client.join("held:a")
        for _ in range(2):
            await told(alice)
        await bob.abort()
        await counted(alice, "held:a", 1)
        bob = await resume(node, bob, {"held:a": [0, 0]})
        await counted(alice, "held:a", 2)
        while worker_of(node, bob) == worker_of(node, alice):
            await bob.abort()
            bob = await resume(node, bob, {"held:a": [0, 0]})
        os.kill(worker_of(node, bob), signal.SIGKILL)
        await counted(alice, "held:a", 1)
        bob = await resume(node, bob, {"held:a": [0, 0]})
        await counted(alice, "held:a", 2)
        await alice.publish("held:a", "said last")
        async with asyncio.timeout(10):
            while (frame := await alice.receive())[0] != MESSAGE:
                assert frame[0] != EVENT, frame
        carol = await open_session(node, "binary")
        await carol.join("held:a")
        assert await told(alice) == ("held:a", "joined", carol.session, carol.user)
        await close_all(alice, bob, carol)

    run(body(), 60)
