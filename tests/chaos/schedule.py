"""Schedules of faults: which, when, and to whom, all from a seed. The same seed gives the same schedule.

A schedule names no processes: `pick` is a number that whoever strikes takes modulo those that are there.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple


class Step(NamedTuple):
    """Wait so long after the step before, then do this."""

    after_s: float
    act: str
    pick: int = 0


@dataclass(frozen=True)
class Schedule:
    """The faults of one round."""

    fault: str
    seed: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        steps = ", ".join(f"{step.act} {step.pick} after {step.after_s:.3f} s" for step in self.steps)
        return f"{self.fault} with seed {self.seed}: {steps}"


# What each fault does, in order; each step comes after a random time within its bounds, in seconds.
ACTS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "nothing": (("wait", 0.5, 0.8),),
    "worker": (("kill worker", 0.2, 0.6), ("wait", 0.3, 0.6)),
    "router": (("kill router", 0.2, 0.6), ("wait", 0.3, 0.8)),
    "both": (("kill router", 0.6, 1.2), ("kill worker", 0.0, 0.05), ("wait", 0.3, 0.8)),
    "all": (("kill router", 0.6, 1.2), ("kill other workers", 0.0, 0.05), ("wait", 0.3, 0.8)),
    # The same when sessions have had the time to move about.
    "moved both": (
        ("note sessions", 0.0, 0.0),
        ("see them moved", 0.8, 2.0),
        ("kill router", 0.0, 0.1),
        ("kill worker", 0.0, 0.05),
        ("wait", 0.3, 0.8),
    ),
    "moved all": (
        ("note sessions", 0.0, 0.0),
        ("see them moved", 0.8, 2.0),
        ("kill router", 0.0, 0.1),
        ("kill other workers", 0.0, 0.05),
        ("wait", 0.3, 0.8),
    ),
    # The next router is killed while it still gathers what it is told.
    "moved again": (
        ("note sessions", 0.0, 0.0),
        ("see them moved", 0.8, 2.0),
        ("kill router", 0.0, 0.1),
        ("await router", 0.0, 0.0),
        ("kill router", 0.0, 1.5),
        ("kill worker", 0.0, 0.05),
        ("wait", 0.3, 0.8),
    ),
    # A worker stands still while its sessions go elsewhere and the router is killed, and then tells what it knew.
    "moved away": (
        ("note sessions", 0.0, 0.0),
        ("see them moved", 0.3, 0.8),
        ("stop worker", 0.0, 0.2),
        ("kill router", 0.3, 1.0),
        ("continue worker", 0.2, 4.0),
        ("wait", 0.3, 0.8),
    ),
    "torn": (
        ("await journal", 0.0, 0.0),
        ("kill node", 0.6, 1.2),
        ("tear tails", 0.0, 0.0),
        ("start node", 0.0, 0.1),
        ("wait", 0.3, 0.6),
    ),
    "node": (("kill node", 0.6, 1.2), ("start node", 0.0, 0.1), ("wait", 0.3, 0.6)),
    "redis": (("kill redis", 0.2, 0.6), ("start redis", 0.0, 0.4), ("wait", 0.3, 0.6)),
    "primary": (("kill primary", 0.2, 0.6), ("start killed", 0.2, 4.0), ("wait", 0.3, 0.6)),
    "taken over": (
        ("kill primary", 0.2, 0.6),
        ("await another primary", 0.0, 0.0),
        ("start killed", 0.0, 0.5),
        ("wait", 0.3, 0.6),
    ),
    "disk": (("fill disk", 0.2, 0.5), ("free disk", 0.2, 0.6), ("wait", 0.3, 0.5)),
    "memory": (("fill redis", 0.2, 0.5), ("free redis", 0.2, 0.6), ("wait", 0.3, 0.5)),
    "clock": (("step clock back", 0.2, 0.5), ("kill router", 0.0, 0.2), ("wait", 0.3, 0.6)),
    # What was said lately is nowhere but at a worker that stands still, and the stream goes on without it: the next
    # router waits for each worker for two seconds after its start.
    "unwritten": (
        ("fill disk", 0.2, 0.4),
        ("stop worker", 0.3, 0.6),
        ("kill router", 0.0, 0.02),
        ("kill other workers", 0.0, 0.02),
        ("continue worker", 4.0, 4.5),
        ("wait", 0.3, 0.6),
    ),
    "held": (("stop router", 0.2, 0.5), ("continue router", 0.1, 0.8), ("wait", 0.2, 0.5)),
}


def schedule(fault: str, seed: int) -> Schedule:
    """The schedule of a fault's round."""
    rng = random.Random(f"{fault}/{seed}")
    steps = [Step(rng.uniform(least, most), act, rng.randrange(1 << 16)) for act, least, most in ACTS[fault]]
    return Schedule(fault, seed, tuple(steps))
