"""One etcd for the tests of its side, of which each has a prefix of its own."""

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import uvloop

from core.owned import ACCOUNT
from router.directory.etcd_config import EtcdConfig
from tests.servers.etcd import Member, running

DEADLINE_S = 60.0
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


@pytest.fixture(scope="package")
def member() -> Iterator[Member]:
    """A server that no test harms."""
    with running() as made:
        yield made


@pytest.fixture
def config(member: Member) -> EtcdConfig:
    return EtcdConfig(endpoints=(member.endpoint,), prefix=f"test{next(_prefixes)}/")
