"""A fault that is made and does not strike is told: none passes for one that was lived through."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import world as worlds
from tests.chaos.clock import Clock, of_router
from tests.chaos.placement import Placement
from tests.chaos.rounds import SECRET, Start, marks
from tests.chaos.schedule import Schedule, Step, schedule
from tests.chaos.world import World
from tests.conftest import Node, wait_until
from tests.process.clients import group, open_session, run

AT_LEAST_S = 1.0

pytestmark = marks


def strike(world: World, plan: Schedule) -> None:
    asyncio.run(world.strike(plan, lambda what: None))


async def somebody_comes(node: Node) -> None:
    client = await open_session(node)
    await client.join(group())
    await client.close()


def spare_whom_it_kills(patch: pytest.MonkeyPatch) -> None:
    kill = os.kill
    patch.setattr(os, "kill", lambda pid, number: None if number == signal.SIGKILL else kill(pid, number))


def let_it_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(worlds, "stand_still", lambda pid: None)


def leave_it_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "_limit_files", lambda world, size: None)
    patch.setattr(worlds, "NOTICED_S", AT_LEAST_S)


def test_nothing_passes_that_did_not_happen(holdfast: Start, tmp_path: Path) -> None:
    world = World(holdfast("--workers", "2", HOLDFAST_LOG_DIRECTORY=str(tmp_path / "log")), log=tmp_path / "log")
    spared: list[tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = [
        ("worker", spare_whom_it_kills, "killed, and still there"),
        ("router", spare_whom_it_kills, "killed, and still there"),
        ("all", spare_whom_it_kills, "killed, and still there"),
        ("held", let_it_run, "did not stand still"),
        ("disk", leave_it_room, "finds no room for its log"),
    ]
    for fault, spare, told in spared:
        with pytest.MonkeyPatch.context() as patch:
            spare(patch)
            with pytest.raises(AssertionError, match=told):
                strike(world, schedule(fault, 1))
    # Nobody was harmed by any of it.
    assert world.node.metric("holdfast_process_restarts_total") == 0


def test_who_dies_after_a_later_router_has_come_did_not_die_with_the_first(holdfast: Start) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()
    world = World(node)
    world._kill_router(0)
    wait_until(world._is_router_back, "a later router serves")
    with pytest.raises(AssertionError, match="a later router served"):
        world._kill_worker(0)
    world.heal()


def test_a_tail_that_was_not_torn_is_told(holdfast: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    node = holdfast("--workers", "2", HOLDFAST_LOG_DIRECTORY=str(log))
    node.expect_lost()
    world, whole = World(node, log=log), dict[Path, int]()
    of_router(node)  # publishes something
    run(somebody_comes(node))
    crash, start_again = node.crash, node.start_again

    def crash_and_look() -> None:
        crash()
        whole.update((path, path.stat().st_size) for path in log.rglob("segment-*.log"))

    def start_whole() -> None:
        for path, size in whole.items():
            os.truncate(path, size)
        start_again()

    monkeypatch.setattr(node, "crash", crash_and_look)
    monkeypatch.setattr(node, "start_again", start_whole)
    with pytest.raises(AssertionError, match=r"nothing says: .* bytes torn; they are cut"):
        strike(world, schedule("torn", 1))


@pytest.mark.parametrize("left_out", ["LD_PRELOAD", "WALL_CLOCK_SHIFT"])
def test_a_clock_that_does_not_step_is_told(holdfast: Start, tmp_path: Path, left_out: str) -> None:
    """Its processes do not know of the clock, or of another one."""
    clock, other = Clock(tmp_path, SECRET), tmp_path / "other"
    other.write_bytes(bytes(8))
    settings = {name: value for name, value in clock.settings.items() if name != left_out}
    settings |= {"WALL_CLOCK_SHIFT": str(other)} if left_out == "WALL_CLOCK_SHIFT" else {}
    world = World(holdfast("--workers", "2", **settings), clock=clock)
    with pytest.raises(AssertionError, match="the router's clock did not step"):
        strike(world, Schedule("clock", 1, (Step(0.0, "step clock back", 7),)))


def test_sessions_that_stay_where_they_are_have_not_moved() -> None:
    before = Placement({f"user-{number}": number % 2 for number in range(100)})
    assert not before.is_moved(before)
    assert not before.is_moved(Placement({}))
    assert before.is_moved(Placement({f"user-{number}": number // 3 % 2 for number in range(100)}))
