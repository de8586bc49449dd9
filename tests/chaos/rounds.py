"""Rounds of faults: how many seeds live through them, on how many nodes, and what they must have proved together.

A seed is a cohort of talkers with its own channels and its own will (tests/chaos/cohorts.py); a round lets many of them
live on one node and makes one seeded schedule of faults (tests/chaos/schedule.py) to all. What failed is told with seed
and schedule, and the story of the message that it is about. HOLDFAST_CHAOS=full (make chaos) runs 400 seeds a
fault (HOLDFAST_CHAOS_NODES more), and HOLDFAST_CHAOS_SEED others.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.cohorts import Cohort, Tally, complaint
from tests.chaos.habits import Habits
from tests.chaos.schedule import schedule
from tests.chaos.world import World
from tests.conftest import Node

FULL = os.environ.get("HOLDFAST_CHAOS") == "full"
SEED = int(os.environ.get("HOLDFAST_CHAOS_SEED", "1"))
RELEASE = os.environ.get("HOLDFAST_BUILD", "release") == "release"
COHORTS = 50 if FULL else 25
# So few on one node: the supervisor waits longer before each start of what dies again and again. All seeds of a round
# share its schedule: that of the faults is another one in each round, and the seeds meet it at different moments.
ROUNDS = 4 if FULL or RELEASE else 1
"""The hundred seeds are the release build's; the checked one looks for broken invariants in a quarter of them."""
NODES = int(os.environ.get("HOLDFAST_CHAOS_NODES", "2")) if FULL else 1
TWICE = ("moved again",)
"""What kills a router twice in a round: half as many of them on one node."""
FEW = 10
"""Seeds of what takes long by itself: a fail-over is seconds."""
HABITS = Habits(pause_s=0.06, forgets=33, acks_every=10)
SURE = replace(HABITS, sure_s=1.0)
"""Where a router and a worker are killed at once, nobody else knows of what was joined just before."""
MOVING = replace(SURE, hurries=5, breaks=5, leaves_out=50, forgets=50)
"""A session has moved within a second before whatever is struck, to the other worker as often as not."""
TOGETHER = ("both", "all", "moved both", "moved all", "node", "torn")
SECRET = "a secret of thirty-two bytes or so"
"""Without one, each start of a node signs resume tokens with a key of its own."""
marks = [pytest.mark.slow, pytest.mark.timeout(3_600 if FULL else 240)]
"""Of every module of rounds."""
EVERYBODY = {
    "HOLDFAST_NAMESPACES_GLOBAL_PUBLISH": "anyone",
    "HOLDFAST_NAMESPACES_GLOBAL_HISTORY_MESSAGES": "1000",
}
"""Of nodes on which one cohort of each round speaks in global channels."""
Start = Callable[..., Node]


async def one_round(
    world: World,
    fault: str,
    number: int,
    habits: Habits,
    tally: Tally,
    count: int = COHORTS,
    everybody: bool = False,
    **of_cohort: Any,
) -> str:
    """A round's schedule over its cohorts; what was broken. With `everybody` one of them speaks in global channels."""
    plan = schedule(fault, number)
    cohorts = [Cohort(f"{fault}-{number}-{index}", world.place, habits, **of_cohort) for index in range(count)]
    if everybody:
        cohorts[0] = Cohort(f"{fault}-{number}-all", world.place, habits, **{**of_cohort, "namespace": "global"})
    await asyncio.gather(*(cohort.come() for cohort in cohorts))
    for cohort in cohorts:
        cohort.act()

    def note(what: str) -> None:
        for cohort in cohorts:
            cohort.oracle.note(what)

    try:
        await world.strike(plan, note)
    except BaseException:
        await asyncio.gather(*(cohort.give_up() for cohort in cohorts))
        raise
    found = await asyncio.gather(*(cohort.settle() for cohort in cohorts), return_exceptions=True)
    tally.add(cohorts)
    texts = [complaint(cohorts), *(str(one) for one in found if isinstance(one, BaseException))]
    text = "\n".join(text for text in texts if text)
    return f"{plan}\n{text}\n{world.node.log_tail()}" if text else ""


def run(
    world_of: Callable[[], World],
    fault: str,
    habits: Habits = HABITS,
    *,
    few: bool = False,
    shows: Callable[[Tally], object] = bool,
    **of_cohort: Any,
) -> Tally:
    """Rounds on one node after the other; the first that breaks something fails, and one that does not show what it is
    about. `few`: one round of few seeds.
    """
    tally = Tally()
    rounds, count = (1, FEW) if few and not FULL else (ROUNDS * NODES, COHORTS)
    on_one_node = max(1, ROUNDS // 2) if fault in TWICE else ROUNDS
    for number in range(rounds):
        if number % on_one_node == 0:
            world = world_of()
            world.node.expect_lost()
        seen = Tally()
        text = asyncio.run(one_round(world, fault, SEED * 1_000 + number, habits, seen, count, **of_cohort))
        assert not text, text
        assert shows(seen), f"round {number} of {fault} did not show it: {seen}"
        tally.merge(seen)
        if number % on_one_node == on_one_node - 1 or number == rounds - 1:
            world.node.check_ledger()
            world.node.stop()
    print(f"{fault}: {tally}")
    assert tally.seeds == rounds * count
    assert few or ROUNDS == 1 or tally.seeds >= 100
    assert tally.counts["acknowledged"] > 10 * tally.seeds
    assert tally.counts["delivered"] > tally.counts["acknowledged"]
    return tally
