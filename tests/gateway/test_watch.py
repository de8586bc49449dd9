"""Who hangs is seen, written down and killed, once; who only seems to is left alone."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import autopsy
from gateway.watch import Health, Watch
from tests.gateway.test_supervisor import until

LOOK_S = 0.005


class Process:
    """Stands for a process that is ready: turns and answers as it is told."""

    def __init__(self, name: str = "worker-0", *, turns: bool = True, answers: bool = True) -> None:
        self.name, self.is_ready = name, True
        self.pid: int | None = 1
        self.turns, self.answers = turns, answers
        self.turn, self.asked, self.killed = 1, 0, 0

    def turn_ms(self) -> int:
        self.turn += self.turns
        return self.turn

    async def ask(self, method: str, *, deadline_s: float) -> None:
        assert method == "ping"
        self.asked += 1
        if not self.answers:
            await asyncio.sleep(deadline_s)

    def kill(self) -> None:
        self.killed += 1
        self.is_ready, self.pid = False, None


class Place:
    """A place with these processes."""

    def __init__(self, *processes: Process) -> None:
        self.processes = list(processes)
        self.stuck = 0


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be written about whom; the examination itself has its own tests."""
    found: list[str] = []

    async def examine(process: Any, why: str) -> str:
        return f"{process.name}: {why}"

    def keep(_folder: Path, _name: str, report: str) -> Path:
        found.append(report)
        return Path("report")

    monkeypatch.setattr(autopsy, "examine", examine)
    monkeypatch.setattr(autopsy, "keep", keep)
    return found


def watched(run_in_loop: Any, place: Place, over: Callable[[], bool]) -> int:
    """Runs a watch until `over`; how often it looked."""
    looks = 0

    def count() -> None:
        nonlocal looks
        looks += 1

    async def scenario() -> None:
        watch = Watch(
            lambda: [place],  # type: ignore[list-item]
            10 * LOOK_S,
            Path("x"),
            start_s=20 * LOOK_S,
            look_s=LOOK_S,
            each_look=count,
        )
        task = asyncio.create_task(watch.run())
        await until(lambda: over() or looks > 60, "it is over")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_in_loop(scenario())
    return looks


@pytest.mark.parametrize(
    ("process", "why"),
    [
        (Process(turns=False), "its data plane makes no turns for 0.05 s"),
        (Process(answers=False), "its control thread does not answer for 0.05 s"),
    ],
)
def test_who_hangs_is_written_down_and_killed_once(
    run_in_loop: Any, reports: list[str], process: Process, why: str
) -> None:
    well = Process("worker-0")
    place = Place(process, well)
    looks = watched(run_in_loop, place, lambda: process.killed > 0)
    assert looks >= 10
    assert reports == [f"worker-0: {why}"]
    assert (process.killed, well.killed, place.stuck) == (1, 0, 1)
    assert process.asked == 1 if not process.answers else process.asked > 1


def test_who_is_well_is_left_alone(run_in_loop: Any, reports: list[str]) -> None:
    place = Place(Process())
    assert watched(run_in_loop, place, lambda: False) > 60
    assert (reports, place.stuck, place.processes[0].killed) == ([], 0, 0)


def test_who_is_not_ready_yet_has_the_time_of_a_start(run_in_loop: Any, reports: list[str]) -> None:
    starting, waiting = Process(answers=False), Process()  # the other waits for its router
    starting.is_ready = waiting.is_ready = False
    looks = watched(run_in_loop, Place(starting, waiting), lambda: starting.killed > 0)
    assert looks >= 20
    assert reports == ["worker-0: its control thread does not answer for 0.1 s"]
    assert (starting.killed, waiting.killed) == (1, 0)


def test_who_lives_and_has_no_socket_any_more_is_stuck(run_in_loop: Any, reports: list[str]) -> None:
    class Deaf(Process):
        async def ask(self, method: str, *, deadline_s: float) -> None:
            raise ConnectionResetError

    deaf = Deaf()
    watched(run_in_loop, Place(deaf), lambda: deaf.killed > 0)
    assert reports == ["worker-0: its control thread does not answer for 0.05 s"]


def test_one_that_moves_again_begins_anew() -> None:
    async def answered() -> bool:
        return True

    async def scenario() -> None:
        health = Health()
        ask: Callable[[], Awaitable[bool]] = answered
        for turn in (5, 5, 5, 5):
            health.look(turn, ask)
            await asyncio.sleep(0)
        assert (health.turns_missed, health.stuck(4), bool(health.stuck(3))) == (3, "", True)
        health.look(6, ask)
        assert health.turns_missed == 0
        # One that has not begun its first turn, or counts none, is not held against it.
        fresh = Health()
        for _ in range(20):
            fresh.look(0, ask)
            await asyncio.sleep(0)
        assert fresh.stuck(2) == ""

    asyncio.run(scenario())


def test_a_report_that_cannot_be_written_does_not_save_the_process(
    run_in_loop: Any, reports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise PermissionError("no")

    monkeypatch.setattr(autopsy, "keep", refuse)
    process = Process(turns=False)
    watched(run_in_loop, Place(process), lambda: process.killed > 0)
    assert process.killed == 1
