"""How the tests of a contract run: on a loop of their own, within a deadline, and nothing may be held at their end."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import uvloop

from core import log_records
from core.owned import ACCOUNT
from router.log.port import Log
from tests.contract.stores import Store

DEADLINE_S = 120.0


class Ends(Protocol):
    """What a test runs over: a store of logs, a place of directories."""

    async def end(self) -> None: ...


def run(store: Ends, body: Callable[[], Awaitable[None]]) -> None:
    """Run one body over a store, end the store, and look at what is left."""

    async def whole() -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await body()
        finally:
            await store.end()

    before = set(ACCOUNT.held)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())
    left = {f"{held.kind} {held.name}, {held.place}" for held in ACCOUNT.held - before}
    assert not left, f"still held: {left}"


def on_a_loop(test: Callable[[Store], Awaitable[None]]) -> Callable[[Store], None]:
    """Makes a test of a coroutine over `store`."""

    @functools.wraps(test)
    def wrapper(store: Store) -> None:
        run(store, lambda: test(store))

    return wrapper


def message(channel: bytes, epoch: int, offset: int, *, body: bytes = b"", key: tuple[int, int] = (0, 0)) -> bytes:
    """A log record of a message; its body differs from that of any other."""
    return log_records.pack(
        log_records.MESSAGE,
        channel,
        epoch,
        offset,
        time_ms=time.time_ns() // 1_000_000,
        key=key,
        body=body or b"%s %d-%d" % (channel, epoch, offset),
    )


def messages(channel: bytes, epoch: int, first: int, last: int) -> bytes:
    """A batch of a channel's messages."""
    return b"".join(message(channel, epoch, offset) for offset in range(first, last + 1))


async def recovered(log: Log) -> list[log_records.LogEntry]:
    """All records that `recover` gives."""
    return [entry async for batch in log.recover() for entry in log_records.entries(batch)]
