"""The watcher over real processes: one that leaks is found and its report names the place; one that works is not.

Time is the watcher's argument: a turn is a minute to it, and as long as it takes to us.
"""

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from core.commands import CommandClient
from gateway import watcher as watcher_module
from gateway.config import GrowthSection
from gateway.hook import Hook
from gateway.watcher import Place, Watcher

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DEADLINE_S = 30.0
MINUTE_S = 60.0

# Does a minute's work each time it is asked for, and keeps of it what it is told to leak.
PROGRAM = """
import asyncio, json, os, sys, threading
from core import introspect
from core.commands import CommandServer

leak, frames = sys.argv[2], int(sys.argv[3])
kept, never = [], None

async def held_for_ever():
    await never.wait()

async def work():
    file = os.open(sys.argv[4], os.O_RDONLY)
    task = asyncio.create_task(held_for_ever())
    block = bytearray(1_000_000)  # the leaking line
    for start in range(0, len(block), 4096):
        block[start] = 1
    await asyncio.sleep(0)
    if leak == "fd":
        kept.append(file)
    else:
        os.close(file)
    if leak == "task":
        kept.append(task)
    else:
        task.cancel()
    if leak == "memory":
        kept.append(block)
    if leak == "thread":
        thread = threading.Thread(target=ended.wait, args=(60,), name="forgotten", daemon=True)
        thread.start()

async def main():
    global never
    never = asyncio.Event()
    commands = CommandServer(int(sys.argv[1]), {"work": work, **introspect.handlers(frames)})
    await commands.start()
    await asyncio.wait_for(never.wait(), 60)

ended = threading.Event()
asyncio.run(main())
"""


@dataclass
class Worked:
    """A watched process, the watcher over it, and what the watcher told."""

    watcher: Watcher
    client: CommandClient
    live: dict[str, int]
    told: list[dict[str, Any]]
    now_s: list[float]
    place: list[Place]

    async def minutes(self, count: int, until: Callable[[], object] = lambda: False, **each: int) -> None:
        """Works and samples, a minute a turn, and raises the ledger's kinds by `each`."""
        for _ in range(count):
            await self.client.ask("work", deadline_s=DEADLINE_S)
            for kind, by in each.items():
                self.live[kind] = self.live.get(kind, 0) + by
            self.now_s[0] += MINUTE_S
            await self.watcher.turn()
            if until():
                return

    def suspected(self) -> set[str]:
        return {event["resource"] for event in self.watcher.suspected()}


class ToldHook(Hook):
    """Keeps what it is told."""

    def __init__(self, told: list[dict[str, Any]]) -> None:
        super().__init__("", "", 1)
        self._told = told

    def tell(self, event: Any) -> None:
        self._told.append(dict(event))


@dataclass
class Setup:
    """What a watched process does, and how it is watched."""

    folder: Path
    leak: str = ""
    frames: int = 0
    live: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def watched(self, **changes: Any) -> AsyncIterator[Worked]:
        opened = self.folder / "opened-7.txt"
        opened.write_text("")
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (str(theirs.fileno()), self.leak, str(self.frames), str(opened))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, *arguments, pass_fds=[theirs.fileno()]
            )
        client = CommandClient(ours, lambda event, fields: None)
        await client.start()
        now_s, told = [0.0], []  # type: ignore[var-annotated]
        place = [Place("worker-0", process.pid, self.live, client.ask)]
        settings = GrowthSection(
            window_s=4 * 3_600, warm_up_s=120, samples_min=20, report_dir=str(self.folder / "reports"), reports_max=3
        )
        settings = msgspec.structs.replace(settings, **changes)
        watcher = Watcher(settings, "node-1", lambda: place, ToldHook(told), clock=lambda: now_s[0])
        try:
            yield Worked(watcher, client, self.live, told, now_s, place)
        finally:
            await client.close()
            process.kill()
            async with asyncio.timeout(DEADLINE_S):
                await process.wait()


@pytest.fixture
def run_in_loop() -> Run:
    """With more time than the shared one has: hours of the watcher's time are thousands of questions to a process."""

    async def limited(work: Coroutine[Any, Any, Any]) -> Any:
        async with asyncio.timeout(3 * DEADLINE_S):
            return await work

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(limited(work))

    return run


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.parametrize(
    ("leak", "frames", "resource", "site"),
    [
        ("fd", 0, "fds", r"fds .*/opened-N\.txt"),
        ("task", 0, "tasks", r"tasks held_for_ever at .*locks\.py:\d+"),
        ("thread", 0, "threads", r"python threads forgotten"),
        ("memory", 1, "private_bytes", r"allocation <string>:\d+  "),
    ],
)
def test_a_leak_is_found_and_the_report_names_the_place(
    run_in_loop: Run, setup: Setup, leak: str, frames: int, resource: str, site: str
) -> None:
    async def work() -> Worked:
        setup.leak, setup.frames = leak, frames
        async with setup.watched() as worked:
            await worked.minutes(60, until=lambda: resource in worked.suspected())
            return worked

    worked = run_in_loop(work())
    event = next(event for event in worked.watcher.suspected() if event["resource"] == resource)
    assert event in worked.told
    assert event["event"] == "leak_suspected"
    assert (event["node"], event["process"], event["pid"]) == ("node-1", "worker-0", worked.place[0].pid)
    first = event["sites"][0]
    assert re.fullmatch(site, f"{first['group']} {first['name']}"), first
    per_minute = 1_003_520 if leak == "memory" else 1
    assert event["per_day"] == pytest.approx(per_minute * 1_440, rel=0.1)
    assert event["low"] <= event["per_day"] <= event["high"]
    report = Path(event["report"])
    assert first["name"] in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())["sites"][0] == first


def test_one_that_only_works_is_not_accused(run_in_loop: Run, setup: Setup) -> None:
    async def work() -> Worked:
        async with setup.watched() as worked:
            await worked.minutes(120)
            return worked

    worked = run_in_loop(work())
    assert worked.told == []
    fits = worked.watcher.fits()["worker-0"]
    assert set(fits) >= {"private_bytes", "fds", "tasks", "threads", "objects", "blocks"}
    assert not [resource for resource, found in fits.items() if found.growing and found.relative_low > 0.01]


def test_a_kind_of_the_ledger_that_grows_without_connections_is_named(run_in_loop: Run, setup: Setup) -> None:
    async def work() -> Worked:
        setup.live.update(connection=1_000, ring=10, buffer=500)
        async with setup.watched() as worked:
            await worked.minutes(60, until=worked.suspected, ring=2)
            return worked

    worked = run_in_loop(work())
    assert worked.suspected() == {"ring"}
    first = worked.told[0]["sites"][0]
    assert (first["group"], first["name"]) == ("ledger", "ring")
    assert first["now"] - first["before"] == first["grown"] > 0


def test_a_leak_is_told_though_nobody_can_say_where(
    run_in_loop: Run, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = watcher_module._detail

    async def detail(place: Place, now_s: float, *, mark: bool) -> Any:
        if not mark:
            raise TimeoutError
        return await real(place, now_s, mark=mark)

    monkeypatch.setattr(watcher_module, "_detail", detail)
    setup.live = {"ring": 1_000}

    async def scenario() -> None:
        async with setup.watched() as worked:
            await worked.minutes(90, until=worked.suspected, ring=5)
            (event,) = worked.told
            assert (event["resource"], event["sites"]) == ("ring", [])

    run_in_loop(scenario())


def test_what_grows_with_the_connections_is_not_accused(run_in_loop: Run, setup: Setup) -> None:
    async def work() -> Worked:
        setup.live.update(connection=1_000, fd=1_010, timer=1_000)
        async with setup.watched() as worked:
            await worked.minutes(60, connection=20, fd=20, timer=20)
            return worked

    worked = run_in_loop(work())
    assert worked.told == []
    assert "connection" not in worked.watcher.fits()["worker-0"]


def test_it_is_taken_back_once_the_growth_has_stopped(run_in_loop: Run, setup: Setup) -> None:
    async def work() -> Worked:
        setup.live.update(connection=1_000, ring=10)
        async with setup.watched() as worked:
            await worked.minutes(60, until=worked.suspected, ring=2)
            assert worked.suspected() == {"ring"}
            await worked.minutes(240, until=lambda: not worked.suspected())
            return worked

    worked = run_in_loop(work())
    assert worked.suspected() == set()
    assert [(event["event"], event["resource"]) for event in worked.told] == [
        ("leak_suspected", "ring"),
        ("leak_cleared", "ring"),
    ]
    assert worked.told[1]["reason"] == "it does not grow any more"


def test_the_next_process_in_its_place_starts_anew(run_in_loop: Run, setup: Setup) -> None:
    async def work() -> tuple[Worked, int]:
        setup.live.update(connection=1_000, ring=10)
        async with setup.watched() as worked, Setup(setup.folder).watched() as next_one:
            await worked.minutes(60, until=worked.suspected, ring=2)
            worked.place[0] = next_one.place[0]
            await worked.minutes(5)
            return worked, next_one.place[0].pid

    worked, pid = run_in_loop(work())
    assert worked.suspected() == set()
    assert worked.told[-1]["event"] == "leak_cleared"
    assert worked.told[-1]["reason"] == "the process has ended"
    assert worked.watcher.pids() == {"worker-0": pid}
    assert worked.watcher.fits() == {"worker-0": {}}


def test_a_process_that_does_not_answer_is_still_watched_from_outside(
    run_in_loop: Run, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(method: str, *, deadline_s: float) -> None:
        raise TimeoutError

    async def work() -> Worked:
        async with setup.watched() as worked:
            worked.place[0] = Place("worker-0", worked.place[0].pid, {}, silent)
            await worked.minutes(30)
            return worked

    worked = run_in_loop(work())
    assert set(worked.watcher.fits()["worker-0"]) == {"private_bytes", "fds", "threads"}


def test_reports_that_cannot_be_written_do_not_matter(run_in_loop: Run, setup: Setup) -> None:
    async def work() -> Worked:
        setup.live.update(connection=1_000, ring=10)
        (setup.folder / "file").write_text("")
        async with setup.watched(report_dir=str(setup.folder / "file")) as worked:
            await worked.minutes(60, until=worked.suspected, ring=2)
            return worked

    worked = run_in_loop(work())
    assert worked.told[0]["report"] is None


def test_it_samples_by_itself_and_survives_a_fault(
    run_in_loop: Run, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    async def turn(self: Watcher) -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            raise ZeroDivisionError
        if len(turns) == 3:
            came.set()

    async def work() -> None:
        async with setup.watched(interval_s=1) as worked:
            worked.watcher.start()
            async with asyncio.timeout(DEADLINE_S):
                await came.wait()
            await worked.watcher.close()

    came = asyncio.Event()
    monkeypatch.setattr(watcher_module.Watcher, "turn", turn)
    run_in_loop(work())
    assert turns == [0, 1, 2]


def test_an_interval_of_0_turns_it_off(run_in_loop: Run, setup: Setup) -> None:
    async def work() -> set[str]:
        async with setup.watched(interval_s=0) as worked:
            worked.watcher.start()
            names = {task.get_name() for task in asyncio.all_tasks()}
            await worked.watcher.close()
            return names

    assert "growth watcher" not in run_in_loop(work())
