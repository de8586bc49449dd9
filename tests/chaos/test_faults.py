"""Each fault under at least a hundred seeds: nothing acknowledged is lost, nothing repeated, no hole is silent."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.codes import Code
from tests.chaos.clock import Clock
from tests.chaos.rounds import EVERYBODY, FULL, HABITS, MOVING, SECRET, SURE, TOGETHER, Start, marks, run
from tests.chaos.sequenced import SequencedBook
from tests.chaos.world import World

SHORT = 12
"""Messages that a namespace keeps of which much is to be trimmed."""
LEAVE_THE_ROUTER = ("worker", "held")
COMMAND_S = 10.0
DISK_BYTES = 24 * 1024 * 1024

pytestmark = marks


@pytest.mark.parametrize("fault", ["worker", "router", "both", "all", "node", "torn", "held"])
def test_nothing_acknowledged_is_lost_or_repeated(holdfast: Start, tmp_path: Path, fault: str) -> None:
    habits = SURE if fault in TOGETHER else replace(HABITS, acks_last=fault in LEAVE_THE_ROUTER)
    tally = run(worlds(holdfast, tmp_path), fault, habits, secret=SECRET, everybody=True)
    assert fault in ("router", "held") or tally.outcomes["replayed"], "somebody had missed something"
    assert fault != "worker" or tally.counts["forgets"], "nobody had to rely on its last ACK"


@pytest.mark.parametrize("fault", ["moved both", "moved all", "moved again", "moved away"])
def test_sessions_move_just_before_it(holdfast: Start, tmp_path: Path, fault: str) -> None:
    """Nobody has had a session for long, and most say nothing of what they hold."""
    # A router writes what it hears within two seconds of its start, which takes a while on a busy machine.
    habits = replace(MOVING, sure_s=5.0) if fault == "moved again" else MOVING
    tally = run(worlds(holdfast, tmp_path), fault, habits, secret=SECRET)
    assert fault == "moved again" or tally.counts["forgets"], "nobody had to rely on its last ACK"
    assert tally.counts["returns"] > 3 * tally.seeds, "nobody moved"


def worlds(holdfast: Start, tmp_path: Path) -> Callable[[], World]:
    """Nodes one after the other, each with a log of its own."""
    numbers = itertools.count()

    def world() -> World:
        directory = tmp_path / f"log-{next(numbers)}"
        settings = {"HOLDFAST_AUTH_SECRET": SECRET, "HOLDFAST_LOG_DIRECTORY": str(directory), **EVERYBODY}
        return World(holdfast("--workers", "2", **settings), log=directory)

    return world


@pytest.mark.parametrize("fault", ["router", "both", "unwritten"])
def test_what_dies_with_the_router_is_told(holdfast: Start, tmp_path: Path, fault: str) -> None:
    """Channels that answer at `sequenced`, whose streams may be recreated below what was told of them."""
    config = tmp_path / "holdfast.toml"
    config.write_text('[namespaces.quick]\ndomain = "group"\nack = "sequenced"\n')
    habits = {"router": HABITS, "both": SURE, "unwritten": replace(SURE, leaves_out=0, forgets=0, leaves=0)}[fault]
    numbers = itertools.count()

    def world() -> World:
        directory = tmp_path / f"log-{next(numbers)}"
        settings = {"HOLDFAST_AUTH_SECRET": SECRET, "HOLDFAST_LOG_DIRECTORY": str(directory)}
        return World(holdfast("--config", str(config), "--workers", "2", **settings), log=directory)

    tally = run(world, fault, habits, namespace="quick", secret=SECRET, kind=SequencedBook)
    if fault == "unwritten":
        assert tally.counts["recreations"], "no stream went on below what a member had"
        assert tally.outcomes["reset"], "nobody came back with what had died"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, so that filling it harms nobody."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, timeout=COMMAND_S)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=COMMAND_S)


@pytest.mark.parametrize("disk", ["limit", "small"] if FULL else ["limit"])
def test_the_disk_is_full(holdfast: Start, tmp_path: Path, request: pytest.FixtureRequest, disk: str) -> None:
    """By a limit of the kernel on how far the router's files may grow, which needs no privilege, and a full one."""
    small: Path | None = request.getfixturevalue("small_disk") if disk == "small" else None
    numbers = itertools.count()

    def world() -> World:
        directory = (small or tmp_path) / f"log-{next(numbers)}"
        node = holdfast("--workers", "2", HOLDFAST_LOG_DIRECTORY=str(directory))
        return World(node, disk=small, log=directory)

    run(world, "disk", shows=lambda tally: tally.refusals[Code.UNAVAILABLE])


def test_the_clock_steps_back(holdfast: Start, tmp_path: Path) -> None:
    """By minutes to an hour, and the router is killed behind it: its successor's wall clock is before its own."""
    clock = Clock(tmp_path, SECRET)
    run(lambda: World(holdfast("--workers", "2", **clock.settings), clock=clock), "clock", secret=SECRET)


def test_a_client_comes_back_before_its_old_connection_is_noticed(holdfast: Start) -> None:
    habits = replace(HABITS, hurries=12, acks_last=True)
    run(lambda: World(holdfast("--workers", "2")), "nothing", habits, shows=lambda tally: tally.counts["evicted"])


def test_two_connections_resume_one_session_at_once(holdfast: Start) -> None:
    habits = replace(HABITS, doubles=12, acks_last=True)
    run(lambda: World(holdfast("--workers", "2")), "nothing", habits, shows=lambda tally: tally.counts["at_once"])


@pytest.mark.parametrize("fault", ["nothing", "both"])
def test_what_is_not_kept_any_more_is_told_exactly(holdfast: Start, tmp_path: Path, fault: str) -> None:
    """A short history, and clients that stay away for longer than it reaches."""
    config = tmp_path / "holdfast.toml"
    config.write_text(f'[namespaces.short]\ndomain = "group"\nhistory_messages = {SHORT}\n')
    habits = replace(SURE, breaks=3, away_s=1.0)
    tally = run(
        lambda: World(holdfast("--config", str(config), "--workers", "2")),
        fault,
        habits,
        namespace="short",
        retained=SHORT,
    )
    assert tally.outcomes["gap"], "nobody was away for long enough"
    assert tally.outcomes["replayed"], "nobody came back soon enough"
