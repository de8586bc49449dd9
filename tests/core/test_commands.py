"""What the supervisor asks a process: answers, refusals, deadlines, what is told unasked, and the end of a side."""

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from core import commands
from core.commands import READY_FRAME, CommandClient, CommandError, CommandServer, Handler

DEADLINE_S = 30.0


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(4 * DEADLINE_S):
            await work

    asyncio.run(limited())


def ignore(_event: str, _fields: dict[str, Any]) -> None:
    pass


@contextlib.asynccontextmanager
async def pair(
    handlers: dict[str, Handler], on_event: Callable[[str, dict[str, Any]], None] = ignore
) -> AsyncIterator[tuple[CommandServer, CommandClient]]:
    ours, theirs = socket.socketpair()
    server, client = CommandServer(theirs.detach(), handlers), CommandClient(ours, on_event)
    await server.start()
    await client.start()
    try:
        yield server, client
    finally:
        await client.close()
        await server.close()


def slow_and_quick(release: asyncio.Event) -> dict[str, Handler]:
    """Two commands: one that answers at once, and one that waits for `release`."""

    async def slow() -> str:
        await release.wait()
        return "slow"

    async def quick() -> str:
        return "quick"

    return {"slow": slow, "quick": quick}


def test_an_answer_is_what_the_handler_returned_for_the_arguments() -> None:
    async def add(one: int, other: list[int]) -> dict[str, int]:
        return {"sum": one + sum(other)}

    async def scenario() -> None:
        async with pair({"add": add}) as (_, client):
            answers = [client.ask("add", deadline_s=DEADLINE_S, one=1, other=[number]) for number in range(200)]
            assert await asyncio.gather(*answers) == [{"sum": 1 + number} for number in range(200)]

    run(scenario())


def test_a_slow_command_does_not_hold_up_a_quick_one() -> None:
    async def scenario() -> None:
        release = asyncio.Event()
        async with pair(slow_and_quick(release)) as (_, client):
            waiting = asyncio.create_task(client.ask("slow", deadline_s=DEADLINE_S))
            assert await client.ask("quick", deadline_s=DEADLINE_S) == "quick"
            release.set()
            assert await waiting == "slow"

    run(scenario())


def test_many_slow_commands_do_not_hold_up_a_quick_one_and_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "UNDER_WAY_MAX", 9)

    async def scenario() -> None:
        release = asyncio.Event()

        async def slow() -> str:
            await release.wait()
            return "slow"

        async def quick() -> str:
            return "quick"

        async with pair({"slow": slow, "quick": quick}) as (_, client):
            waiting = [asyncio.create_task(client.ask("slow", deadline_s=DEADLINE_S)) for _ in range(8)]
            assert await client.ask("quick", deadline_s=DEADLINE_S) == "quick"
            waiting.append(asyncio.create_task(client.ask("slow", deadline_s=DEADLINE_S)))
            await asyncio.sleep(0)
            with pytest.raises(CommandError, match="busy"):
                await client.ask("slow", deadline_s=DEADLINE_S)
            release.set()
            assert await asyncio.gather(*waiting) == ["slow"] * 9

    run(scenario())


def test_a_handler_that_fails_and_a_command_that_is_not_known_are_told_apart_from_silence() -> None:
    async def fail() -> None:
        raise ValueError("no such thing")

    async def scenario() -> None:
        async with pair({"fail": fail}) as (_, client):
            with pytest.raises(CommandError, match="ValueError: no such thing"):
                await client.ask("fail", deadline_s=DEADLINE_S)
            with pytest.raises(CommandError, match="does not know the command other"):
                await client.ask("other", deadline_s=DEADLINE_S)

    run(scenario())


def test_an_answer_after_the_deadline_is_nobodys() -> None:
    async def scenario() -> None:
        release = asyncio.Event()
        async with pair(slow_and_quick(release)) as (_, client):
            with pytest.raises(TimeoutError):
                await client.ask("slow", deadline_s=0.01)
            release.set()
            assert await client.ask("quick", deadline_s=DEADLINE_S) == "quick"

    run(scenario())


def test_the_end_of_the_process_fails_what_waits_and_what_is_asked_later() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        client = CommandClient(ours, ignore)
        await client.start()
        waiting = asyncio.create_task(client.ask("ping", deadline_s=DEADLINE_S))
        await asyncio.sleep(0)
        theirs.close()
        with pytest.raises(ConnectionError):
            await waiting
        with pytest.raises(ConnectionError):
            await client.ask("ping", deadline_s=DEADLINE_S)
        await client.close()

    run(scenario())


def test_an_end_while_the_question_is_sent_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        client = CommandClient(ours, ignore)
        await client.start()
        asking = asyncio.create_task(client.ask("any", deadline_s=DEADLINE_S, text="x" * 10_000_000))
        await asyncio.sleep(0.01)  # it is in the middle of it
        theirs.close()
        with pytest.raises(ConnectionError):
            await asking
        await client.close()
        del asking
        gc.collect()

    run(scenario())
    assert "never retrieved" not in caplog.text


def test_what_is_told_unasked_arrives_in_order_also_when_the_teller_ends_at_once() -> None:
    async def scenario() -> None:
        told: list[tuple[str, dict[str, Any]]] = []
        ours, theirs = socket.socketpair()
        client = CommandClient(ours, lambda event, fields: told.append((event, fields)))
        await client.start()
        theirs.sendall(READY_FRAME + READY_FRAME)
        theirs.close()
        await client.close(linger_s=DEADLINE_S)
        assert told == [("ready", {})] * 2

    run(scenario())


def test_events_carry_their_fields() -> None:
    async def scenario() -> None:
        told = asyncio.Queue[tuple[str, dict[str, Any]]]()
        async with pair({}, lambda event, fields: told.put_nowait((event, fields))) as (server, _):
            server.tell("leak_suspected", resource="fd", growth=1.5)
            assert await told.get() == ("leak_suspected", {"resource": "fd", "growth": 1.5})

    run(scenario())


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\x81"])
def test_garbage_and_half_a_frame_end_the_connection(garbage: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        client = CommandClient(ours, ignore)
        await client.start()
        waiting = asyncio.create_task(client.ask("ping", deadline_s=DEADLINE_S))
        await asyncio.sleep(0)
        theirs.sendall(garbage)
        theirs.close()
        with pytest.raises(ConnectionError):
            await waiting
        await client.close()

    run(scenario())


def test_nothing_stays_open_and_no_task_is_left() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        before = os.listdir("/proc/self/fd")
        async with pair({"forever": forever}) as (_, client):
            with pytest.raises(TimeoutError):
                await client.ask("forever", deadline_s=0.01)
        assert os.listdir("/proc/self/fd") == before
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(scenario())


def test_without_a_supervisor_nothing_is_asked_or_told() -> None:
    async def scenario() -> None:
        server = CommandServer(-1, {})
        await server.start()
        server.tell("ready")
        await server.close()

    run(scenario())
