"""Regions under the simulator: seeds without a violation, and every planted bug found.

HOLDFAST_SIM=full runs 20,000 seeds on all processors.
"""

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.region_log import BRIDGE_ENTRIES, RegionLog
from tests.simulation.region_mutations import PLANTED, TOLD
from tests.simulation.regions import RegionPlan, Regions, fails, first_failure, plan_of, story
from tests.simulation.run import Failure
from tests.simulation.world import Violation, World

FULL = os.environ.get("HOLDFAST_SIM") == "full"
SEED = int(os.environ.get("HOLDFAST_SIM_SEED", "1"))
SEEDS = 20_000 if FULL else 1_000
CHUNK = 250
STORIES = 60
FOUND_WITHIN = 1_000


def _chunk(first: int) -> Failure | None:
    return first_failure(range(first, first + CHUNK))


@pytest.mark.slow
@pytest.mark.timeout(7200 if FULL else 900)
def test_no_seed_shows_a_violation() -> None:
    firsts = range(SEED, SEED + SEEDS, CHUNK)
    if FULL:
        with ProcessPoolExecutor() as pool:
            failures = list(pool.map(_chunk, firsts))
    else:
        failures = [_chunk(first) for first in firsts]
    found = [str(failure) for failure in failures if failure is not None]
    assert not found, found[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_a_planted_bug_is_found(bug: str) -> None:
    assert any(fails(plan_of(seed), PLANTED[bug]) is not None for seed in range(1, FOUND_WITHIN + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in turn", "half cut"])
def test_no_story_shows_a_violation(name: str) -> None:
    for seed in range(1, STORIES + 1):
        found = fails(story(name, seed))
        assert found is None, f"seed {seed}: {found}"


@pytest.mark.slow
@pytest.mark.parametrize("bug", sorted(TOLD))
def test_a_bug_is_found_in_a_story(bug: str) -> None:
    name, mutant = TOLD[bug]
    assert any(fails(story(name, seed), mutant) is not None for seed in range(1, STORIES + 1))


def test_one_seed_is_one_run() -> None:
    first, second = Regions(plan_of(7)), Regions(plan_of(7))
    first.run()
    second.run()
    assert first.world.story(100_000) == second.world.story(100_000)
    assert first.answered
    assert first.answered == second.answered


def test_without_faults_all_is_answered_and_nothing_is_dropped() -> None:
    regions = Regions(RegionPlan(seed=3, regions=3, routers=3, shards=3))
    regions.run()
    assert regions.answered == regions.logged
    assert not regions.dropped


def test_a_region_that_comes_back_drops_what_only_it_had_and_says_so() -> None:
    world, dropped = World(1), set[tuple[int, tuple[int, int]]]()
    log = RegionLog(world, "eu", dropped)
    for number in (1, 2, 3):
        assert log.append(0, (1, number), "r0")
    assert log.repeat(0, 2, True, [(1, 1), (2, 1)], (0, 0))
    assert log.history(0) == [(1, 1), (2, 1)]
    assert dropped == {(0, (1, 2)), (0, (1, 3))}
    # What is heard again, or late, changes nothing.
    assert log.repeat(0, 2, False, [(2, 1)], (1, 1))
    assert log.repeat(0, 2, True, [(1, 1)], (0, 0))
    assert log.history(0) == [(1, 1), (2, 1)]
    assert not log.append(0, (1, 4), "r0"), "it is deposed"
    assert not log.repeat(0, 1, False, [(1, 2)], (1, 1)), "and so is who followed it"


def test_what_is_too_old_or_unknown_is_read_whole() -> None:
    log = RegionLog(World(1), "eu", set())
    for number in range(1, BRIDGE_ENTRIES + 3):
        log.append(0, (1, number), "r0")
    assert log.read(0, (1, BRIDGE_ENTRIES)) == (False, [(1, BRIDGE_ENTRIES + 1), (1, BRIDGE_ENTRIES + 2)])
    assert log.read(0, (1, 1)) == (True, log.history(0))
    assert log.read(0, (2, 1)) == (True, log.history(0))
    with pytest.raises(Violation, match="which is at"):
        log.append(0, (1, 99), "r0")
