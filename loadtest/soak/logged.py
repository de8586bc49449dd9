"""The log's part of a soak: acknowledged publishes at `logged` while the router is killed, judged by the chaos oracle.

A node of its own, beside the one that is looked at for leaks, keeps short histories. Generation after generation of
cohorts (tests/chaos/cohorts.py) lives on it: they publish, break off, resume, stay away for longer than the history
reaches; in every so many generations the router is killed. Each ends with the oracle's verdict, so that nothing grows
with the length of the run: nothing acknowledged is lost, nothing repeated, no hole is silent.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from typing import Any

from loadtest.measure import process_tree
from loadtest.resources import kind_of
from loadtest.soak.plan import Plan
from tests.chaos.cohorts import Cohort, Tally, complaint
from tests.chaos.habits import Habits

COHORTS = 10
GENERATION_S = 10.0
RETAINED = 6
"""Messages that a group keeps: who is away for half a second misses more, who comes back sooner does not."""
HABITS = Habits(pause_s=0.2, breaks=4, away_s=2.0, leaves_out=15)
STORIES_MAX = 5
HOST = "127.0.0.1"


def environment() -> dict[str, str]:
    """What the node is started with: the groups' histories are trimmed all the time."""
    return {
        "HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES": str(RETAINED),
        "HOLDFAST_LOG_LEVEL": "warning",
    }


def router_of(node: int) -> int | None:
    """The pid of a node's router, if it has one now."""
    for pid in process_tree(node):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if kind_of(pid) == "router":
                return pid
    return None


class Soak:
    """Generations until the end, and what they proved together."""

    def __init__(self, plan: Plan, port: int, node: int) -> None:
        self._plan, self._port, self._node = plan, port, node
        self._rng = random.Random(plan.seed)
        self._tally = Tally()
        self._kinds: Counter[str] = Counter()
        self._stories: list[str] = []
        self._kills = self._generations = 0
        self._lives_s = min(GENERATION_S, plan.seconds / 2)

    async def run(self, stopped: asyncio.Event) -> dict[str, Any]:
        end_s, kill_s = time.monotonic() + self._plan.seconds, self._plan.kill_every_s / 2
        killed = time.monotonic()
        while not stopped.is_set() and time.monotonic() < end_s:
            kills = time.monotonic() - killed >= kill_s
            await self._generation(stopped, kills=kills)
            if kills:
                killed, kill_s = time.monotonic(), self._plan.kill_every_s
        return {
            "generations": self._generations,
            "router_kills": self._kills,
            "seeds": self._tally.seeds,
            "counts": dict(self._tally.counts),
            "outcomes": dict(self._tally.outcomes),
            "refusals": dict(self._tally.refusals),
            "faults": dict(self._kinds),
            "stories": self._stories,
        }

    async def _generation(self, stopped: asyncio.Event, *, kills: bool) -> None:
        self._generations += 1
        cohorts = [
            Cohort(
                f"soak-{self._plan.seed}-{self._generations}-{number}",
                lambda: (HOST, self._port),
                HABITS,
                retained=RETAINED,
            )
            for number in range(COHORTS)
        ]
        # deadline: COME_S of each cohort
        await asyncio.gather(*(cohort.come() for cohort in cohorts))
        for cohort in cohorts:
            cohort.act()
        at_s = self._rng.uniform(0, self._lives_s / 2)
        await asyncio.sleep(at_s)
        router = router_of(self._node)
        if kills and router is not None:
            os.kill(router, signal.SIGKILL)
            for cohort in cohorts:
                cohort.oracle.note("the router is killed")
        end_s = time.monotonic() + self._lives_s - at_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(end_s - time.monotonic()):
                await stopped.wait()
        # deadline: SETTLE_S of each cohort, twice
        found = await asyncio.gather(*(cohort.settle() for cohort in cohorts), return_exceptions=True)
        # All came to rest, so that there is a router again; it is another one if the kill struck.
        self._kills += kills and router is not None and router_of(self._node) not in (None, router)
        self._tally.add(cohorts)
        self._kinds.update(fault.kind.value for cohort in cohorts for fault in cohort.faults)
        broken = [str(one) for one in found if isinstance(one, BaseException)]
        self._kinds["not at rest"] += len(broken)
        self._kinds = +self._kinds
        text = complaint(cohorts)
        self._stories += [one for one in (text, *broken) if one][: STORIES_MAX - len(self._stories)]


async def until_told(soak: Soak) -> dict[str, Any]:
    """Its whole time, or until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    return await soak.run(stopped)


def main(arguments: list[str]) -> int:
    plan_text, port, node = arguments
    result = asyncio.run(until_told(Soak(Plan.from_json(plan_text), int(port), int(node))))
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
