"""One etcd for the tests of its side, of which each has a prefix of its own."""

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import uvloop

from core.owned import ACCOUNT
from router.directory.etcd import EtcdDirectory
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


@contextlib.contextmanager
def in_a_hurry(directory: EtcdDirectory, deadline_s: float = 0.5) -> Iterator[None]:
    """Give its calls little time where they are to run out of it; elsewhere a busy machine may need more."""
    patient = directory._client.config
    directory._client.config = replace(patient, deadline_s=deadline_s)
    try:
        yield
    finally:
        directory._client.config = patient


@pytest.fixture(scope="package")
def member() -> Iterator[Member]:
    """A server that no test harms."""
    with running() as made:
        yield made


@pytest.fixture
def config(member: Member) -> EtcdConfig:
    # Ends without a digit: a test adds one, and would write where the tenth writes.
    return EtcdConfig(endpoints=(member.endpoint,), prefix=f"test{next(_prefixes)}th/")
