"""What a router remembers of the shards that it leads, gives and takes, and the times that all have in common."""

from dataclasses import dataclass
from enum import Enum

from router.shards.events import NodeEpoch

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for all routers. Times in seconds."""

    shards: int = 256
    margin_s: float = 0.2
    """Before the lease's safe bound sequencing stops: what was sequenced by then arrives within it."""
    settle_s: float = 1.0
    """Routers start together: shards that nobody ever led, and those of others, are not taken before the routers that
    are there have been the same for so long."""
    patience_s: float = 0.3
    """For each rank below the first, so long a router leaves a shard without leader to those above."""
    patience_rank_max: int = 3
    drain_s: float = 0.15
    """A leader that is not drained within it goes on, and tries again after `retry_s`: a taker that waits for it asks
    for nothing else."""
    take_s: float = 2.0
    """A taker that did not get the shard within it gives up, and takes another."""
    retry_s: float = 0.5
    """After what failed: a claim that lost or was not answered, an Open that was refused."""
    far_moves_max: int = 6
    """Shards that a router gives, or takes, at once, where they go from one region to another: the time of such a move
    is that of its ways, not of its work. Of all others it is one at a time."""
    region: str = ""
    """Where this router is; empty: there are no regions."""
    regions: frozenset[str] = frozenset()
    """The others whose logs are known; empty: what is led elsewhere is not followed."""
    placement: tuple[str, ...] = ()
    """Regions in the order in which shards are rather led in them; of BY_PUBLISHERS alone, each where its publishers
    are; empty: in all alike."""

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 65_536:
            raise ValueError(f"{self.shards} shards: 1 to 65536")
        if self.drain_s >= self.take_s:
            raise ValueError(f"a drain of {self.drain_s} s does not fit into a taker's {self.take_s} s")
        if self.region in self.regions or (self.regions and not self.region):
            raise ValueError(f"region {self.region!r} has to be one beside {', '.join(sorted(self.regions))}")
        if self.far_moves_max < 1:
            raise ValueError(f"{self.far_moves_max} moves between regions at once: 1 or more")
        times = (self.margin_s, self.settle_s, self.patience_s)
        if min(times) < 0 or min(self.drain_s, self.retry_s) <= 0 or self.patience_rank_max < 1:
            raise ValueError(
                "times are above 0 (margin, settling and patience may be 0), and patience_rank_max is 1 or more"
            )


class Role(Enum):
    """What a router is to a shard whose key names it."""

    OPENING = "opening"
    LEADING = "leading"
    DRAINING = "draining"
    HANDING = "handing"


@dataclass(slots=True)
class Held:
    """A shard whose key names us."""

    role: Role
    epoch: int
    revision: int
    """Of the key that says so."""
    retry_at: float = NEVER
    """OPENING: when to ask the log again. HANDING: when to take the shard back."""
    doubt: bool = False
    """HANDING: nothing is known of a claim that may still win."""
    request: str = ""
    """DRAINING, HANDING: the taker's request."""
    far: bool = False
    """DRAINING, HANDING: the taker is in another region."""


@dataclass(slots=True)
class Giving:
    """A shard that is drained, to be handed over."""

    taker: NodeEpoch
    ticket: int
    deadline: float


@dataclass(slots=True)
class Taking:
    """A shard that we ask for."""

    epoch: int
    deadline: float
    request: str
    """The name of our request for it (records.py)."""
    far: bool
    """Its leader is in another region."""
    asked: bool = False
    """Whether it was prepared and the request was claimed."""
