"""What goes wrong in a run: which, when, whom, how long. All from a seed, and told one by one, so that a run can be
repeated with fewer of them.
"""

import random
from typing import NamedTuple

KINDS = {
    "kill": (0.0, 6.0),
    "replace": (2.0, 9.0),
    "pause": (0.2, 12.0),
    "cut": (0.5, 9.0),
    "cut in": (0.5, 9.0),
    "cut out": (0.5, 9.0),
    "slow": (1.0, 8.0),
    "slow log": (1.0, 8.0),
    "log away": (0.3, 4.0),
    "directory away": (0.3, 7.0),
    "join": (0.0, 0.0),
    "leave": (0.0, 0.0),
    "cordon": (1.0, 6.0),
    "move": (1.0, 6.0),
    "reconnect": (0.0, 0.0),
    "stall": (0.3, 6.0),
}
"""Kinds, and within which bounds they last, in seconds."""

MOVING = ("kill", "move", "move", "cordon", "join", "leave")


class Fault(NamedTuple):
    """One thing that goes wrong. `pick` is taken modulo whatever there is to choose from."""

    at: float
    kind: str
    pick: int
    length: float

    def __str__(self) -> str:
        return f"{self.at:7.3f} s: {self.kind} {self.pick} for {self.length:.3f} s"


def faults(seed: int, until: float, most: int = 12) -> tuple[Fault, ...]:
    """The faults of a seed, in order of time. Half of them come in the wake of the one before."""
    chance = random.Random(f"faults/{seed}")
    # Two more of what has shards change hands: the rest does most harm meanwhile.
    kinds = chance.sample(sorted(KINDS), 4) + chance.choices(MOVING, k=2)
    found: list[Fault] = []
    at = 0.0
    for _ in range(chance.randint(1, most)):
        at = at + chance.random() * 0.4 if found and chance.random() < 0.6 else chance.uniform(1.0, until)
        kind = chance.choice(kinds)
        shortest, longest = KINDS[kind]
        length = shortest + (longest - shortest) * chance.random() ** chance.choice((1, 4))
        found.append(Fault(min(at, until), kind, chance.randrange(1 << 16), length))
    return tuple(sorted(found))
