"""The directory port: the promises that both sides keep, and the values that pass through it.

Keys are text, such as `nodes/a`, `shards/17`, `sessions/17/9f3c`; a side puts its prefix before them. Every change has
a revision, higher than that of any change before it; a key's revision is that of its last change, and is the fencing
number of whoever made it. One object a process, used by its control thread's event loop alone. Whatever is awaited here
ends within the deadline that the directory was made with, by a result or by a DirectoryError; only `watch` waits for
as long as nothing happens. `tests/contract/` holds both sides against this page.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

NODES = "nodes/"
"""Under it are the nodes that live: one key a node, which goes when its lease ends."""
BEATS = "beats/"
"""Under it are the renewals of those that write them down (router/beats.py): one key a node, on the same lease."""
KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 65_536
TTL_MIN_S = 2
"""A shorter lease ends now and then although it is kept: members elect a new leader within one second."""
TTL_MAX_S = 3_600
CLOCK_ALLOWANCE = 0.01
"""By how much of the time the clocks of this machine and of the directory may go apart."""


class DirectoryError(Exception):
    """The tree of what a directory says when it cannot do what was asked."""


class Unavailable(DirectoryError):
    """It is away or too slow. What was asked may have happened, or may still happen, unless the attributes say more.

    Args:
        results: of `transact`, what is known of its claims all the same, in their order; None: not known.
        nothing_done: it was not even begun.

    """

    def __init__(self, why: str, *, results: "Sequence[Result | None]" = (), nothing_done: bool = False) -> None:
        super().__init__(why)
        self.results = tuple(results)
        self.nothing_done = nothing_done


class NotAllowed(DirectoryError):
    """It does not know us, or we may not do that. Asking again is useless until somebody changes a setting."""


class Misused(DirectoryError):
    """What was asked makes no sense, and never will."""


class NodeEpoch(NamedTuple):
    """One life of a node: it is over when `nodes/<node>` is gone or has another epoch, and never comes back."""

    node: str
    epoch: int


class Item(NamedTuple):
    """What stands at a key."""

    value: bytes
    revision: int


class Claim(NamedTuple):
    """A wish to change one key, which wins or loses by itself."""

    key: str
    expected_revision: int
    """The key's revision as last seen; 0: there is no such key."""
    value: bytes | None
    """What is to stand there; None: the key is to go."""
    alive: NodeEpoch | None = None
    """It wins only while this node lives."""


class Won(NamedTuple):
    """The key was changed by this claim."""

    revision: int


class Lost(NamedTuple):
    """The key was not changed by this claim: somebody else was faster, or its node lives no more."""

    revision: int
    """Of the key as it is; 0: there is none."""
    value: bytes | None
    alive: bool = True
    """False: the key has the revision that the claim expected, but the claim's own node epoch is gone."""


Result = Won | Lost


class Change(NamedTuple):
    """One key's change; value None: it is gone."""

    key: str
    value: bytes | None
    revision: int


class Changes(NamedTuple):
    """What changed since the last ones, in order."""

    revision: int
    """Up to which nothing is missing: that of the last change here."""
    changes: tuple[Change, ...]


class Snapshot(NamedTuple):
    """All keys of a prefix at one revision. From a watch: it takes the place of all that was known."""

    revision: int
    items: dict[str, Item]


class Reach(NamedTuple):
    """Whether the directory answers, as far as was noticed by asking it something."""

    answers: bool
    since: float
    """`now()` at which this began."""


class Registration(Protocol):
    """A node's lease, which is kept until `close`, and the key on it."""

    identity: NodeEpoch
    lost: asyncio.Event
    """Set as soon as the lease is known to be gone: nothing that names this epoch counts any more. It stays so."""

    def held_until(self) -> float:
        """The time by `now()` until which the lease certainly lives, whatever happens to the directory or to us.

        When the last keep-alive that was answered had been sent, plus the time to live, less what clocks may go apart.
        It may lie in the past while the lease lives on, and come back when the directory answers again.
        """

    async def close(self) -> None:
        """Give the lease back: the key is gone at once. When the directory is away, it goes when the lease ends."""


class Directory(Protocol):
    """A directory: leases of nodes, claims of keys, and watches."""

    async def register(self, node: str, value: bytes, ttl_s: int) -> Registration:
        """Say that a node is there, from now on and as long as this process keeps its lease.

        What is there of an earlier life of the same name goes first. The epoch is higher than that of any life before.

        Raises:
            Unavailable, NotAllowed: see there.
            Misused: the name, the value or the time cannot be.
        """

    async def transact(self, claims: Sequence[Claim]) -> list[Result]:
        """Try claims, each by itself; their results in the same order. Not one transaction: some win, some lose.

        Claims of all callers are gathered into common round trips. Of claims of one key with the same expected revision
        at most one wins, however often answers get lost.

        Raises:
            Unavailable: of some the result is not known; `results` has the others.
            NotAllowed, Misused: see there.
        """

    async def read(self, prefix: str) -> Snapshot:
        """All keys that begin with the prefix, as they are at one revision that is not older than the call."""

    async def page(self, prefix: str, after: str, count: int) -> Snapshot:
        """The first `count` keys that begin with the prefix and come after `after` (`""`: from the first)."""

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes | Snapshot, None]:
        """What changes after a revision, without gap and without repetition, for as long as it is iterated.

        Goes on by itself when a connection or the directory was away; where changes are forgotten meanwhile, a Snapshot
        comes instead. To be ended by `aclose` (`contextlib.aclosing`).

        Raises:
            NotAllowed: see there.
        """

    def reachable(self) -> Reach:
        """Whether it answers. A node that is registered asks at least each third of its time to live."""

    async def close(self) -> None:
        """Give up what is held. Registrations are to be closed before: what is left of them ends by itself."""


def now() -> float:
    """Seconds of a clock that goes on while the machine is suspended, as leases do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def checked_key(key: str) -> str:
    """The key, if it is one.

    Raises:
        Misused: it is none.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = 0  # half a surrogate pair
    if not 0 < size <= KEY_BYTES_MAX or "\0" in key:
        raise Misused(f"{key!r} is no key: 1 to {KEY_BYTES_MAX} bytes of UTF-8 without zero bytes")
    return key


def checked_claim(claim: Claim) -> Claim:
    """The claim, if it makes sense.

    Raises:
        Misused: it does not.
    """
    checked_key(claim.key)
    if claim.key.startswith(NODES):
        raise Misused(f"the claim of {claim.key}: what is under {NODES} belongs to registrations alone")
    if claim.expected_revision < 0:
        raise Misused(f"the claim of {claim.key} expects revision {claim.expected_revision}: 0 or higher")
    if claim.value is None and claim.expected_revision == 0:
        raise Misused(f"the claim of {claim.key} expects that it is not there, and would have it go")
    if claim.value is not None:
        checked_value(claim.key, claim.value)
    if claim.alive is not None:
        checked_key(claim.alive.node)
        if claim.alive.epoch <= 0:
            raise Misused(
                f"the claim of {claim.key} names epoch {claim.alive.epoch}: a registration gives a higher one"
            )
    return claim


def checked_value(key: str, value: bytes) -> bytes:
    """The value, if it is not too long.

    Raises:
        Misused: it is.
    """
    if len(value) > VALUE_BYTES_MAX:
        raise Misused(f"the value for {key} has {len(value)} bytes: at most {VALUE_BYTES_MAX}")
    return value


def checked_registration(node: str, value: bytes, ttl_s: int) -> str:
    """The key of a node.

    Raises:
        Misused: it, its value or its time to live cannot be.
    """
    key = checked_key(NODES + checked_key(node))
    if "/" in node:
        raise Misused(f"{node!r} is no name of a node: `/` separates the parts of a key")
    checked_value(key, value)
    if not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
        raise Misused(f"a lease of {ttl_s} s cannot be kept: {TTL_MIN_S} to {TTL_MAX_S} s")
    return key


def safe_bound(sent: float, ttl_s: float) -> float:
    """Until when a lease certainly lives that was granted or renewed by what was sent at this time."""
    return sent + ttl_s * (1 - CLOCK_ALLOWANCE)
