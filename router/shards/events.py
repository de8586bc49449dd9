"""What the logic of shards is told, and what it wants done. Values only.

Claims, and what becomes of them, are the directory port's own values. Times are seconds of the clock that leases are
kept by (the port's `now()`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from router.directory.port import Claim as Claim
from router.directory.port import Lost as Lost
from router.directory.port import NodeEpoch as NodeEpoch
from router.directory.port import Won as Won

# Events.


class Registered(NamedTuple):
    """There is a lease, and a node key on it: a new life begins. Whatever an earlier one led is over."""

    epoch: int


class LeaseHeld(NamedTuple):
    """A keep-alive was answered: the lease of this epoch certainly lives until then by our own clock."""

    epoch: int
    until: float


class LeaseLost(NamedTuple):
    """The lease of this epoch is gone for ever."""

    epoch: int


class Changed(NamedTuple):
    """A watch of a prefix told of changes, in order and without a gap since the last ones."""

    prefix: str
    revision: int
    changes: tuple[tuple[str, bytes | None, int], ...]
    """Key, value (None: gone) and revision."""


class Snapshot(NamedTuple):
    """All that stands under a prefix at a revision; takes the place of what was known."""

    prefix: str
    revision: int
    items: Mapping[str, tuple[bytes, int]]


class ClaimAnswered(NamedTuple):
    """What became of a claim; None: that is not known, and it may still come about at any time."""

    claim: Claim
    result: Won | Lost | None


class Opened(NamedTuple):
    """The log refuses any lower epoch of the shard from now on, and its tail was read."""

    shard: int
    epoch: int


class Refused(NamedTuple):
    """The log did not open a shard, or refused an append."""

    shard: int
    epoch: int
    newest: int | None
    """The higher epoch that the log knows; None: the log did not answer."""


class Prepared(NamedTuple):
    """What can be had of a shard before leading it is there."""

    shard: int
    epoch: int


class Drained(NamedTuple):
    """All that was under way of a paused shard was answered by the log."""

    shard: int
    ticket: int
    """Of the Drain that this is the end of."""


class Tick(NamedTuple):
    """The time of the last WakeAt has come."""


class DirectoryAway(NamedTuple):
    """Claims would not be answered now."""


class DirectoryBack(NamedTuple):
    """Claims are answered again."""


class Move(NamedTuple):
    """An operator wants a shard to be with a router; None: wherever placement puts it."""

    shard: int
    to: str | None
    ticket: int


class Cordon(NamedTuple):
    """An operator wants a router to give its shards away and get none, or lifts that."""

    node: str
    on: bool
    ticket: int
    leaving: bool = False
    """It is about to stop: the cordon ends with this life of the node."""


Event = (
    Registered | LeaseHeld | LeaseLost | Changed | Snapshot | ClaimAnswered | Opened | Refused | Prepared | Drained
    | Tick | DirectoryAway | DirectoryBack | Move | Cordon
)  # fmt: skip


# Effects.


class Claims(NamedTuple):
    """Claims for one round trip. Each is to be answered by one ClaimAnswered."""

    claims: tuple[Claim, ...]


class Hold(NamedTuple):
    """Until when the data plane may sequence for the shards that it leads. It looks at its clock itself, each turn."""

    until: float


class Open(NamedTuple):
    """Have the log refuse lower epochs and read the tail; Opened or Refused tells the end."""

    shard: int
    epoch: int


class Lead(NamedTuple):
    """Sequence for this shard, under this epoch, as long as Hold says."""

    shard: int
    epoch: int


class Pause(NamedTuple):
    """Take no more publishes of this shard; workers keep them."""

    shard: int


class Drain(NamedTuple):
    """Tell by Drained when the log answered all that is under way."""

    shard: int
    ticket: int


class Resume(NamedTuple):
    """Go on after a Pause, under the same epoch: it was not handed over."""

    shard: int
    epoch: int


class Stop(NamedTuple):
    """The shard is not ours: sequence no more, drop what was kept, have workers ask anew."""

    shard: int


class Prepare(NamedTuple):
    """Load what can be loaded of a shard that we shall take over, and say Prepared."""

    shard: int
    epoch: int


class Forget(NamedTuple):
    """What was prepared of this shard is not wanted."""

    shard: int


class Follow(NamedTuple):
    """Of the shards that are led in other regions, keep these up to date from there, and no others."""

    shards: frozenset[int]
    leaders: Mapping[int, tuple[str, int]]
    """By shard, the region where it is led, or was last, and its epoch there."""


class WakeAt(NamedTuple):
    """Send a Tick at this time. Takes the place of the one before."""

    time: float


class Told(NamedTuple):
    """The answer to an operator."""

    ticket: int
    problem: str
    """Empty: it was written down."""


class Complain(NamedTuple):
    """Something for the log of errors."""

    text: str


Effect = (
    Claims | Hold | Open | Lead | Pause | Drain | Resume | Stop | Prepare | Forget | Follow | WakeAt | Told | Complain
)  # fmt: skip
