"""Who owns a session: the record in the directory, its fence, and which sessions exclude each other."""

from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

SESSIONS = "sessions/"


class Policy(Enum):
    """How many sessions a user may have at once."""

    MANY = "many"
    ONE_PER_DEVICE_CLASS = "one_per_device_class"
    ONE = "one"


class Owner(NamedTuple):
    """A connection that a session lives on."""

    session: str
    user: str
    device_class: str
    node: str
    node_epoch: int
    """The life of the node where its worker is: when that is over, so is this."""
    worker: int
    connection: int


class Fence(NamedTuple):
    """The number by which a later owner is told from an earlier one; greater is later.

    The revision of the claim. Without the directory: that of the last claim that is known, and a count.
    """

    revision: int
    local: int = 0


def slot_of(policy: Policy, owner: Owner) -> str:
    """What a session takes: of those with the same slot, one lives. The last part of its key, short whatever the names.

    So "one winner" is the compare-and-set of one key, whichever leaders and workers take part.
    """
    if policy is Policy.MANY:
        what: tuple[str, ...] = ("session", owner.session)
    elif policy is Policy.ONE_PER_DEVICE_CLASS:
        what = ("device", owner.user, owner.device_class)
    else:
        what = ("user", owner.user)
    digest = blake2b(digest_size=16)
    for part in what:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.hexdigest()


def prefix_of(shard: int) -> str:
    """Under which the sessions of a shard are."""
    return f"{SESSIONS}{shard}/"
