"""One process: what it is given, when it is ready, what it answers, how it ends, and what stays of it: nothing."""

import asyncio
import os
import signal
from typing import Any

import pytest

from core.commands import CommandClient
from gateway.child_process import ChildProcess
from gateway.spawner import Spawner

DEADLINE_S = 30.0


async def started(programs: Any, spawner: Spawner, seen: list[str], *fds: int, **behaviour: Any) -> ChildProcess:
    spec = programs.spec("one", **behaviour)

    def changed(process: ChildProcess) -> None:
        seen.append("ready" if process.is_ready else "ended")

    process = ChildProcess("one", changed, lambda _, event, fields: seen.append(f"{event} {fields}"))
    await process.start(spawner, spec.command, lambda stats_fd, commands_fd: spec.config(3, stats_fd, commands_fd), fds)
    return process


def test_from_its_start_to_its_end_it_tells_of_both_and_leaves_nothing(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        seen: list[str] = []
        try:
            first = await started(programs, spawner, seen, exit=3)
            assert await first.end() == 3
            before = os.listdir("/proc/self/fd")
            process = await started(programs, spawner, seen, counts=True)
            assert await process.until_ready(DEADLINE_S)
            assert process.stats()["ledger"]["fd_opened"] == 5
            with pytest.raises(TimeoutError):
                await process.ask("ping", deadline_s=0.05)
            process.send(signal.SIGTERM)
            assert await process.until_end(DEADLINE_S)
            assert (await process.end(), process.pid, process.is_ready) == (0, None, False)
            assert not any(process.stats().values())
            process.send(signal.SIGKILL)  # to nobody
            with pytest.raises(ConnectionResetError):
                await process.ask("ping", deadline_s=1)
            assert os.listdir("/proc/self/fd") == before
            assert seen == ["ended", "ready", "ended"]
        finally:
            spawner.close()

    run_in_loop(scenario())


def test_who_does_not_get_ready_is_waited_for_only_so_long(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        try:
            process = await started(programs, spawner, [], serve=False)
            assert not await process.until_ready(0.05)
            assert not await process.until_end(0.05)
            process.send(signal.SIGKILL)
            assert not await process.until_ready(DEADLINE_S), "it ended first"
            assert await process.end() == -signal.SIGKILL
        finally:
            spawner.close()

    run_in_loop(scenario())


def test_who_has_ended_is_not_ready_whatever_it_told_last(
    programs: Any, run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        try:
            process = await started(programs, spawner, [], serve=False)
            waiting = asyncio.create_task(process.until_ready(DEADLINE_S))
            close, answers = CommandClient.close, []

            async def hear_last_words(client: CommandClient, linger_s: float = 0.0) -> None:
                process._hear("ready", {})
                answers.append(await waiting)
                await close(client, linger_s)

            monkeypatch.setattr(CommandClient, "close", hear_last_words)
            process.kill()
            assert await process.end() == -signal.SIGKILL
            assert answers == [False]
        finally:
            spawner.close()

    run_in_loop(scenario())


def test_further_descriptors_come_after_the_usual_ones(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        reading, writing = os.pipe()
        try:
            process = await started(programs, spawner, [], reading, writing)
            assert await process.until_ready(DEADLINE_S)
            links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (5, 6)]
            assert links == [os.readlink(f"/proc/self/fd/{fd}") for fd in (reading, writing)]
            process.send(signal.SIGTERM)
            await process.end()
        finally:
            spawner.close()
            os.close(reading)
            os.close(writing)

    run_in_loop(scenario())


def test_a_start_that_fails_leaves_nothing(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        try:
            await (await started(programs, spawner, [], exit=0)).end()
            before = os.listdir("/proc/self/fd")
            process = ChildProcess("one", lambda _: None, lambda *_: None)
            with pytest.raises(FileNotFoundError):
                await process.start(spawner, ("/no/such/program",), lambda *_: b"{}", ())
            assert os.listdir("/proc/self/fd") == before
        finally:
            spawner.close()

    run_in_loop(scenario())
