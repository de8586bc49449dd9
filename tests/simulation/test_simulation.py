"""Routers under the simulator: thousands of seeds without a violation, and every planted bug found.

HOLDFAST_SIM=full runs 100,000 seeds on all processors and the rare bugs as well; HOLDFAST_SIM_SEED begins elsewhere.
"""

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.cluster import Cluster, Plan
from tests.simulation.mutations import MORE, PLANTED, RARE
from tests.simulation.run import Failure, fails, first_failure, plan_of

FULL = os.environ.get("HOLDFAST_SIM") == "full"
SEED = int(os.environ.get("HOLDFAST_SIM_SEED", "1"))
SEEDS = 100_000 if FULL else 2_000
CHUNK = 500
FOUND_WITHIN = 1_000
BUGS = PLANTED | MORE | (RARE if FULL else {})


def _chunk(first: int) -> Failure | None:
    return first_failure(range(first, first + CHUNK))


@pytest.mark.slow
@pytest.mark.timeout(7200 if FULL else 600)
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
@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    failure = first_failure(range(1, FOUND_WITHIN + 1), BUGS[bug])
    assert failure is not None, f"{bug!r} was not found within {FOUND_WITHIN} seeds"
    # What is left of its faults fails by itself, and without any of them it does not, unless none is needed.
    assert fails(failure.plan, BUGS[bug]) is not None
    assert str(failure.plan.seed) in str(failure)


def test_one_seed_is_one_run() -> None:
    first, second = Cluster(plan_of(7)), Cluster(plan_of(7))
    first.run()
    second.run()
    assert first.world.story(100_000) == second.world.story(100_000)


def test_routers_that_start_together_share_the_shards_at_once() -> None:
    cluster = Cluster(Plan(seed=1, routers=4, shards=64))
    _start(cluster)
    cluster.world.run(3.0)
    assert sorted(cluster.loads().values()) == [16, 16, 16, 16]
    assert {_epoch(cluster, shard) for shard in range(64)} == {1}


def test_from_three_to_six_routers_in_ten_seconds_with_the_fewest_moves_and_short_pauses() -> None:
    cluster = Cluster(Plan(seed=2, routers=3, shards=256, ttl=10.0))
    _start(cluster)
    cluster.world.run(5.0)
    assert sorted(cluster.loads().values()) == [85, 85, 86]
    for name in ("j1", "j2", "j3"):
        cluster.start(name)
    cluster.world.run(15.0)
    assert sorted(cluster.loads().values()) == [42, 42, 43, 43, 43, 43]
    # 127 or 128 of 256 have to move, and nothing moved twice.
    assert len(cluster.pauses) in (127, 128)
    assert {_epoch(cluster, shard) for shard in range(256)} == {1, 2}
    assert max(cluster.pauses) < 0.2


def test_a_killed_routers_shards_are_led_again_within_its_ttl_and_two_seconds() -> None:
    cluster = Cluster(Plan(seed=3, routers=3, shards=60, ttl=10.0))
    _start(cluster)
    cluster.world.run(5.0)
    killed = cluster.processes[0]
    before = {shard for shard in range(60) if cluster.leader(shard) is killed}
    cluster.names.remove(killed.name)
    cluster._remove(killed)
    cluster.world.run(5.0 + 10.0 + 2.0)
    assert cluster.unled() == []
    assert sorted(cluster.loads().values()) == [30, 30]
    # Nobody else's shards moved.
    assert {shard for shard in range(60) if _epoch(cluster, shard) > 1} == before


def test_a_router_that_is_started_again_by_who_knows_that_it_died_leads_again_at_once() -> None:
    cluster = Cluster(Plan(seed=4, routers=3, shards=60, ttl=10.0))
    _start(cluster)
    cluster.world.run(5.0)
    killed = cluster.processes[0]
    cluster._remove(killed)
    cluster._start_again(killed.name, killed.epochs)
    cluster.world.run(7.5)
    assert cluster.unled() == []


def test_a_router_that_leaves_gives_everything_away_by_short_moves() -> None:
    cluster = Cluster(Plan(seed=5, routers=4, shards=64, ttl=10.0))
    _start(cluster)
    cluster.world.run(5.0)
    leaving = cluster.processes[0]
    cluster._leave(leaving, None)  # type: ignore[arg-type]
    for _ in range(40):
        cluster.world.run(cluster.world.now + 0.1)
        assert len(cluster.unled()) <= 3
    assert not leaving.led
    assert sorted(cluster.loads()[name] for name in cluster.names) == [21, 21, 22]
    assert len(cluster.pauses) == 16
    assert max(cluster.pauses) < 0.2


def test_while_the_directory_is_away_nobody_leads_past_the_bound_and_the_same_lead_on_when_it_is_back() -> None:
    cluster = Cluster(Plan(seed=6, routers=3, shards=12, ttl=4.0))
    _start(cluster)
    cluster.world.run(5.0)
    leaders = [cluster.leader(shard) for shard in range(12)]
    cluster.directory.up = False
    cluster.world.run(5.0 + 2.0)
    assert [cluster.leader(shard) for shard in range(12)] == leaders
    cluster.world.run(5.0 + 4.0)
    assert cluster.unled() == list(range(12))
    for epoch, (node, _) in cluster.directory.leases.items():
        # A directory that comes back gives its leases their time anew, as etcd does.
        cluster.directory.leases[epoch] = (node, cluster.world.now + 8.0)
    cluster._directory_back()
    cluster.world.run(5.0 + 6.0)
    assert [cluster.leader(shard) for shard in range(12)] == leaders
    assert {_epoch(cluster, shard) for shard in range(12)} == {1}


def _start(cluster: Cluster) -> None:
    for number in range(cluster.plan.routers):
        cluster.world.after(0.05 * number, cluster.start, f"r{number}")
    cluster.world.after(0.1, cluster._publish)


def _epoch(cluster: Cluster, shard: int) -> int:
    record = cluster.owner(shard)
    assert record is not None
    return record.epoch
