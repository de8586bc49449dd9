"""Servers for the tests of the Redis log: started once for these tests, of which each has a prefix of its own."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import uvloop

from core.owned import ACCOUNT
from router.log.port import LogUnavailable
from router.log.redis import RedisLog
from tests.servers.redis import Server, running

DEADLINE_S = 60.0
POLL_S = 0.05
T = TypeVar("T")
_prefixes = itertools.count(1)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine with a deadline; whatever it opened must be closed when it ends."""
    held = set(ACCOUNT.held)

    async def limited() -> T:
        async with asyncio.timeout(DEADLINE_S):
            return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(limited())
    left = [one.name for one in ACCOUNT.held - held]
    assert not left, f"left open: {left}"
    return result


async def again(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As the router does it: again and again while the log is away, be it for a moment in which the machine is busy."""
    while True:
        with contextlib.suppress(LogUnavailable):
            return await ask()
        await asyncio.sleep(POLL_S)


async def append(log: RedisLog, batch: bytes) -> None:
    """Until it is in."""
    await again(lambda: log.append(batch))


async def until(is_so: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Ask until the answer is yes; the test's deadline ends it else."""
    while True:
        if await is_so():
            return
        await asyncio.sleep(POLL_S)


@pytest.fixture(scope="package")
def redis_server() -> Iterator[Server]:
    """A server for all; nobody may kill or reconfigure it."""
    with running() as server:
        yield server


@pytest.fixture(scope="package")
def servers(redis_server: Server) -> Iterator[list[Server]]:
    """Three, one a region, which nobody may kill."""
    with running() as second, running() as third:
        yield [redis_server, second, third]


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone."""
    return f"t{next(_prefixes)}:"


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of this test alone."""
    with running() as server:
        yield server


@pytest.fixture
def make_log(redis_server: Server, prefix: str) -> Callable[..., RedisLog]:
    """Logs over the same keys."""

    def make(**options: Any) -> RedisLog:
        return RedisLog(redis_server.url, prefix=prefix, **options)

    return make
