"""Each fault under at least a hundred seeds with the log in Redis, of Redis itself and of the processes before it."""

from dataclasses import replace

import pytest

from core.codes import Code
from tests.chaos.rounds import EVERYBODY, HABITS, MOVING, SECRET, SURE, TOGETHER, Start, marks, run
from tests.chaos.world import World
from tests.servers.redis import ALWAYS, LASTING, running, running_cluster, running_sentinels

LASTING_ACKS = replace(HABITS, acks_last=True)
"""The router lives, and gives its log what it could not write before."""

pytestmark = marks


@pytest.mark.parametrize("durability", [ALWAYS, LASTING], ids=["always", "everysec"])
def test_redis_is_killed(holdfast: Start, durability: tuple[str, ...]) -> None:
    with running(*durability) as server:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}
        run(lambda: World(holdfast("--workers", "2", **settings), redis=server), "redis", LASTING_ACKS)


def test_redis_is_out_of_memory(holdfast: Start) -> None:
    with running(*LASTING) as server:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}
        run(
            lambda: World(holdfast("--workers", "2", **settings), redis=server),
            "memory",
            LASTING_ACKS,
            shows=lambda tally: tally.refusals[Code.UNAVAILABLE],
        )


@pytest.mark.parametrize("fault", ["router", "both", "node", "moved all"])
def test_processes_are_killed_over_redis(holdfast: Start, fault: str) -> None:
    with running(*LASTING) as server:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url}
        settings |= {"HOLDFAST_AUTH_SECRET": SECRET, **EVERYBODY}
        habits = MOVING if fault.startswith("moved") else SURE if fault in TOGETHER else HABITS
        run(
            lambda: World(holdfast("--workers", "2", **settings), redis=server),
            fault,
            habits,
            secret=SECRET,
            everybody=True,
        )


@pytest.mark.parametrize("servers", ["sentinels", "cluster"])
@pytest.mark.parametrize("fault", ["primary", "taken over"])
def test_a_primary_is_killed_and_its_replica_takes_over(holdfast: Start, fault: str, servers: str) -> None:
    """It comes back before, while or after another takes its place; or surely after that."""
    with running_sentinels() if servers == "sentinels" else running_cluster(replicas=1) as many:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": many.url}
        run(lambda: World(holdfast("--workers", "2", **settings), many=many), fault, HABITS, few=True)
