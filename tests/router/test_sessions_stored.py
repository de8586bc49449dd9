"""What is said to be stored is: nobody else keeps it then."""

import asyncio
from collections.abc import Callable

from core import records
from router.log.port import LogUnavailable
from tests.router.test_sessions import ALICE, DEADLINE_S, Desk, body_of, run, state, told


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not wanted():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.01)


def test_it_is_said_when_the_store_has_it_and_not_before() -> None:
    async def body(desk: Desk) -> None:
        desk.store.gate.clear()
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.now_us = 70_000
        await desk.store.asked.wait()
        desk.now_us = 90_000
        assert max(desk.stored_ms, default=0) <= 1
        desk.store.gate.set()
        await until(lambda: max(desk.stored_ms, default=0) == 70)
        assert set(desk.store.stored) == {ALICE}
        await until(lambda: max(desk.stored_ms) == 90)  # and then whatever was before now, since nothing waits

    run(body)


def test_it_is_not_said_while_the_store_is_away() -> None:
    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.now_us = 70_000
        for _ in range(2):
            desk.store.asked.clear()
            await desk.store.asked.wait()
        assert max(desk.stored_ms, default=0) <= 1
        desk.store.fails = None
        await until(lambda: max(desk.stored_ms, default=0) == 70)

    run(body)


def test_it_is_not_said_before_what_workers_told_an_earlier_router_is_taken() -> None:
    async def body(desk: Desk) -> None:
        desk.sessions.gather()
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.now_us = 70_000
        await asyncio.wait(desk.tasks, timeout=0.6)  # longer than it takes to say it without a change
        assert desk.stored_ms == []
        desk.sessions.on_told(told(5, state(ALICE, records.JOINED, "group:a", 1, 2, "alice")))
        await until(lambda: max(desk.stored_ms, default=0) == 70)
        assert desk.store.stored[ALICE].channels == {"group:a": (1, 2)}

    run(body)
