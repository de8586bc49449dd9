"""Each fault under at least a hundred seeds: nothing acknowledged is lost, nothing repeated, no hole is silent.

A seed is a cohort of talkers with its own channels and its own will (tests/chaos/cohorts.py); a round lets many of them
live on one node and makes one seeded schedule of faults (tests/chaos/schedule.py) to all. What failed is told with seed
and schedule, and the story of the message that it is about. HOLDFAST_CHAOS=full (make chaos) runs 400 seeds a
fault (HOLDFAST_CHAOS_NODES more), and HOLDFAST_CHAOS_SEED others.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.codes import Code
from tests.chaos.cohorts import Cohort, Tally, complaint
from tests.chaos.schedule import schedule
from tests.chaos.talkers import Habits
from tests.chaos.world import World
from tests.conftest import Node
from tests.servers.redis import ALWAYS, LASTING, running, running_cluster, running_sentinels

FULL = os.environ.get("HOLDFAST_CHAOS") == "full"
SEED = int(os.environ.get("HOLDFAST_CHAOS_SEED", "1"))
RELEASE = os.environ.get("HOLDFAST_BUILD", "release") == "release"
COHORTS = 50 if RELEASE else 25
# So few on one node: the supervisor waits longer before each start of what dies again and again. Most of a round is its
# schedule's own time, so that many cohorts in few rounds cost less than few in many.
ROUNDS = 4 if FULL else 2 if RELEASE else 1
"""The hundred seeds are the release build's; the checked one looks for broken invariants in a quarter of them."""
NODES = int(os.environ.get("HOLDFAST_CHAOS_NODES", "2")) if FULL else 1
FEW = 10
"""Seeds of what takes long by itself: a fail-over is seconds."""
HABITS = Habits(pause_s=0.06)
NAMED = replace(HABITS, leaves_out=0)
"""While the store of sessions is away, what a client names at its return is all that is known of its channels."""
SURE = replace(HABITS, sure_s=2.0)
"""Where a router and a worker are killed at once, nobody else knows of what was joined just before."""
TOGETHER = ("both", "node")
SHORT = 12
"""Messages that a namespace keeps of which much is to be trimmed."""
SECRET = "a secret of thirty-two bytes or so"
"""Without one, each start of a node signs resume tokens with a key of its own."""
COMMAND_S = 10.0
DISK_BYTES = 24 * 1024 * 1024
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600 if FULL else 240)]
Start = Callable[..., Node]


async def one_round(
    world: World, fault: str, number: int, habits: Habits, tally: Tally, count: int = COHORTS, **of_cohort: Any
) -> str:
    """A round's schedule over its cohorts; what was broken."""
    plan = schedule(fault, number)
    cohorts = [Cohort(f"{fault}-{number}-{index}", world.place, habits, **of_cohort) for index in range(count)]
    await asyncio.gather(*(cohort.come() for cohort in cohorts))
    for cohort in cohorts:
        cohort.act()

    def note(what: str) -> None:
        for cohort in cohorts:
            cohort.oracle.note(what)

    await world.strike(plan, note)
    found = await asyncio.gather(*(cohort.settle() for cohort in cohorts), return_exceptions=True)
    tally.add(cohorts)
    texts = [complaint(cohorts), *(str(one) for one in found if isinstance(one, BaseException))]
    text = "\n".join(text for text in texts if text)
    return f"{plan}\n{text}\n{world.node.log_tail()}" if text else ""


def run(
    world_of: Callable[[], World], fault: str, habits: Habits = HABITS, *, few: bool = False, **of_cohort: Any
) -> Tally:
    """Rounds on one node after the other; the first that breaks something fails. `few`: one round of few seeds."""
    tally = Tally()
    rounds, count = (1, FEW) if few and not FULL else (ROUNDS, COHORTS)
    for number in range(NODES * rounds):
        if number % rounds == 0:
            world = world_of()
            world.node.expect_lost()
        text = asyncio.run(one_round(world, fault, SEED * 1_000 + number, habits, tally, count, **of_cohort))
        assert not text, text
        if number % rounds == rounds - 1:
            world.node.check_ledger()
            world.node.stop()
    print(f"{fault}: {tally}")
    assert tally.seeds == NODES * rounds * count
    assert few or ROUNDS == 1 or tally.seeds >= 100
    assert tally.counts["acknowledged"] > 10 * tally.seeds
    assert tally.counts["delivered"] > tally.counts["acknowledged"]
    return tally


@pytest.mark.parametrize("fault", ["worker", "router", "both", "node", "held"])
def test_nothing_acknowledged_is_lost_or_repeated(holdfast: Start, fault: str) -> None:
    habits = SURE if fault in TOGETHER else HABITS
    tally = run(lambda: World(holdfast("--workers", "2", HOLDFAST_AUTH_SECRET=SECRET)), fault, habits, secret=SECRET)
    assert fault in ("router", "held") or tally.outcomes["replayed"], "somebody had missed something"


@pytest.mark.parametrize("durability", [ALWAYS, LASTING], ids=["always", "everysec"])
def test_redis_is_killed(holdfast: Start, durability: tuple[str, ...]) -> None:
    with running(*durability) as server:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}
        run(lambda: World(holdfast("--workers", "2", **settings), redis=server), "redis", NAMED)


def test_redis_is_out_of_memory(holdfast: Start) -> None:
    with running(*LASTING) as server:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}
        run(lambda: World(holdfast("--workers", "2", **settings), redis=server), "memory", NAMED)


@pytest.mark.parametrize("fault", ["router", "both", "node"])
def test_processes_are_killed_over_redis(holdfast: Start, fault: str) -> None:
    with running(*LASTING) as server:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}
        settings["HOLDFAST_AUTH_SECRET"] = SECRET
        habits = SURE if fault in TOGETHER else HABITS
        run(lambda: World(holdfast("--workers", "2", **settings), redis=server), fault, habits, secret=SECRET)


@pytest.mark.parametrize("servers", ["sentinels", "cluster"])
def test_a_primary_is_killed_and_its_replica_takes_over(holdfast: Start, servers: str) -> None:
    with running_sentinels() if servers == "sentinels" else running_cluster(replicas=1) as many:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": many.url}
        run(lambda: World(holdfast("--workers", "2", **settings), many=many), "primary", NAMED, few=True)


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
    numbers = iter(range(NODES))

    def world() -> World:
        directory = (small or tmp_path) / f"log-{next(numbers)}"
        node = holdfast("--workers", "2", HOLDFAST_LOG_DIRECTORY=str(directory))
        return World(node, disk=small, log=directory)

    tally = run(world, "disk")
    assert tally.refusals[Code.UNAVAILABLE], "nobody noticed"


def test_the_clock_steps_back(holdfast: Start, tmp_path: Path) -> None:
    """By minutes to an hour, and the router is killed behind it: its successor's wall clock is before its own."""
    if not FAKETIME.exists():
        pytest.skip("needs libfaketime: make provision")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    settings = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    run(lambda: World(holdfast("--workers", "2", **settings), clock=clock), "clock")


def test_a_client_comes_back_before_its_old_connection_is_noticed(holdfast: Start) -> None:
    run(lambda: World(holdfast("--workers", "2")), "nothing", replace(HABITS, hurries=12))


def test_two_connections_resume_one_session_at_once(holdfast: Start) -> None:
    run(lambda: World(holdfast("--workers", "2")), "nothing", replace(HABITS, doubles=12))


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
