"""Machines were started at different times, and so their monotonic clocks began: nothing is lost between them."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.conftest import Node, free_ports, wait_until
from tests.process.clients import Client, Gone, dial, group, run, unique

SECRET = "a secret of thirty-two bytes or more"
PROGRAM_DEADLINE_S = 20
COME_BACK_DEADLINE_S = 30
# Longer than what a session did is on its way to the store, or to be kept when it has come there.
PASSES_S = 1.5


def started(ahead_s: int) -> tuple[str, ...]:
    """A command that runs another one as on a machine that was started so many seconds earlier, or later."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs root, and unshare of util-linux")
    before = (unshare, "-T", "--monotonic", str(ahead_s), "--boottime", str(ahead_s))
    asked = (*before, sys.executable, "-c", "import time; print(time.monotonic())")
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=PROGRAM_DEADLINE_S)
    if done.returncode or abs(float(done.stdout) - time.monotonic() - ahead_s) > PROGRAM_DEADLINE_S:
        pytest.skip("needs root, and a kernel with time namespaces that a program begins in")
    return before


def uptime_s() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]))


def token(user: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, SECRET, "HS256")


async def enter(node: Node, user: str) -> Client:
    return await (await dial(node, "tcp")).hello(token=token(user))


async def resumed(node: Node, old: Client) -> Client:
    """As soon as the node lets it in."""
    async with asyncio.timeout(COME_BACK_DEADLINE_S):
        while True:
            client = await dial(node, "tcp")
            with contextlib.suppress(AssertionError, Gone):  # told to come back
                return await client.hello(session=old.session, token=old.resume_token)
            await client.abort()
            await asyncio.sleep(0.3)


async def lose_the_router(node: Node, session: Client, channel: str) -> None:
    """JOIN of a channel that the worker knows, answered while the router hangs, which is killed then."""
    (router,) = node.routers
    os.kill(router, signal.SIGSTOP)
    await session.join(channel)
    await asyncio.sleep(PASSES_S)
    os.kill(router, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: node.routers not in ([], [router]), "another router")


@pytest.mark.parametrize("moves", [True, False], ids=["moves", "stays"])
@pytest.mark.parametrize("earlier", [True, False], ids=["started earlier", "started later"])
def test_an_answered_join_outlives_the_router_whatever_the_clocks_say(
    holdfast: Callable[..., Any], moves: bool, earlier: bool
) -> None:
    """Two machines, one with the router, and sessions of the other one, which stay there or go to the first."""
    away = started(100_000 if earlier else -(uptime_s() // 2))
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    shared = {"HOLDFAST_AUTH_SECRET": SECRET, "HOLDFAST_ROUTER_ENDPOINT": endpoint}
    first: Node = holdfast("--workers", "1", **shared)
    other: Node = holdfast("--workers", "1", command="gateway", before=away, **shared)

    async def body() -> None:
        place, known, held = first if moves else other, group(), group()
        beside = await enter(place, unique("beside"))
        await beside.join(known)
        old = await enter(other, unique("user"))
        await old.join(held)
        await asyncio.sleep(PASSES_S)
        if moves:
            await old.abort()
            old = await resumed(first, old)
            assert held in old.welcome["channels"]
            await asyncio.sleep(PASSES_S)
        first.expect_lost()
        await lose_the_router(first, old, known)
        await old.abort()
        found = await resumed(place, old)
        assert {known, held} <= set(found.welcome["channels"])
        await asyncio.gather(found.close(), beside.close())

    run(body(), 120)
