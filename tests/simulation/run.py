"""Runs of seeds, and the shortening of those that fail.

`python -m tests.simulation.run 1 1000` runs seeds 1 to 999; `python -m tests.simulation.run 7` tells the story of one.
"""

import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tests.simulation.cluster import Cluster, Plan
from tests.simulation.faults import Fault, faults

FAULTS_END = 20.0


@dataclass(frozen=True)
class Failure:
    """A seed that failed."""

    plan: Plan
    problem: str
    story: str

    def __str__(self) -> str:
        listed = "\n".join(f"  {fault}" for fault in self.plan.faults)
        return (
            f"seed {self.plan.seed}: {self.problem}\n{self.plan.routers} routers, {self.plan.shards} shards; with these"
            f" faults and no fewer:\n{listed}\n{self.story}"
        )


def plan_of(seed: int) -> Plan:
    """What a seed stands for."""
    chance = random.Random(f"plan/{seed}")
    return Plan(
        seed=seed,
        routers=chance.randint(2, 4),
        shards=chance.randint(3, 6),
        faults=faults(seed, FAULTS_END - 2.0),
        faults_end=FAULTS_END,
    )


def fails(plan: Plan, cluster_type: type[Cluster] = Cluster) -> tuple[str, str] | None:
    """Run it; what went wrong, and the story."""
    cluster = cluster_type(plan)
    try:
        cluster.run()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}", cluster.world.story(120)
    return None


def shorten(plan: Plan, cluster_type: type[Cluster] = Cluster) -> Failure:
    """Leave out fault after fault as long as it still fails."""
    found = fails(plan, cluster_type)
    assert found is not None
    left: tuple[Fault, ...] = plan.faults
    for fault in plan.faults:
        fewer = replace(plan, faults=tuple(one for one in left if one is not fault))
        again = fails(fewer, cluster_type)
        if again is not None:
            found, left = again, fewer.faults
    return Failure(replace(plan, faults=left), *found)


def first_failure(seeds: Iterable[int], cluster_type: type[Cluster] = Cluster) -> Failure | None:
    """Run seeds until one fails."""
    for seed in seeds:
        plan = plan_of(seed)
        if fails(plan, cluster_type) is not None:
            return shorten(plan, cluster_type)
    return None


def main(arguments: list[str]) -> int:
    """The command line."""
    first = int(arguments[0])
    seeds = range(first, int(arguments[1])) if len(arguments) > 1 else range(first, first + 1)
    began = time.process_time()
    failure = first_failure(seeds)
    took = time.process_time() - began
    if failure is not None:
        print(failure)
        return 1
    print(f"{len(seeds)} seeds without a violation, {took / len(seeds) * 1000:.1f} ms of CPU each")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
