"""What stands in the directory about nodes, shards and their moves: keys, and values as MessagePack.

A value is a list whose first element is the version of its form. What cannot be read is never taken for "nothing":
somebody who knows better wrote it, and it stays his.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgpack

from router.shards.owners import Owner

NODES = "nodes/"
SHARDS = "shards/"
MOVES = "moves/"
PINS = "pins/"
CORDONS = "cordons/"
REGIONS = "regions/"
PUBLISHERS = "publishers/"
PREFIXES = (NODES, SHARDS, MOVES, PINS, CORDONS, REGIONS, PUBLISHERS)
VERSION = 1
_T = TypeVar("_T")


class Unreadable(ValueError):
    """A value that this version does not understand."""


class NodeRecord(NamedTuple):
    """`nodes/<node>`: written once, with the lease, so that the key's revision is the node's epoch."""

    weight: int
    """How many shards it is to lead, relative to others; 0: it is no router."""
    address: str
    region: str = ""


class ShardRecord(NamedTuple):
    """`shards/<n>`: who leads it, or led it last. It leads while this node epoch lives."""

    node: str
    node_epoch: int
    epoch: int
    """The shard's own, one more with each change of hands: what the log checks appends against."""
    how: str
    """`claimed` from nobody, `taken` from a node epoch that was over, `handed` by a leader, `kept` by it after all, or
    `raised` because the log knew a higher epoch."""


class MoveRecord(NamedTuple):
    """`moves/<taker>`, `moves/<taker>/1`, ...: a router is ready to take over a shard, and asks its leader for it."""

    node_epoch: int
    """The taker's."""
    shard: int
    epoch: int
    """Of the shard: once it changes hands, this is over."""


def request_of(taker: str, number: int) -> str:
    """The name of a router's request, of which each is for one shard."""
    return f"{taker}/{number}" if number else taker


def taker_of(request: str) -> str:
    """Whose request that is."""
    return request.partition("/")[0]


class PinRecord(NamedTuple):
    """`pins/<n>`: an operator wants a shard to be with this router."""

    node: str


class CordonRecord(NamedTuple):
    """`cordons/<node>`: it gets no shards, and gives away what it has."""

    epoch: int
    """0: until it is lifted; otherwise only in that life of the node, which is about to end."""


class RegionRecord(NamedTuple):
    """`regions/<name>`: an operator has the region evacuated: it leads nothing, its clients go elsewhere."""

    by: str
    """Who wanted that."""
    since_ms: int
    """Of the wall clock."""
    pace: int = 0
    """Clients of the region that are sent away a second; 0: each gateway's own pace."""


class PublishersRecord(NamedTuple):
    """`publishers/<n>`: from which region most of a shard's publishes come, as its leader found."""

    region: str


_SHAPES: dict[Any, tuple[type, ...]] = {
    NodeRecord: (int, str, str),
    ShardRecord: (str, int, int, str),
    MoveRecord: (int, int, int),
    PinRecord: (str,),
    CordonRecord: (int,),
    RegionRecord: (str, int, int),
    PublishersRecord: (str,),
    Owner: (str, str, str, str, int, int, int),
}
HOWS = ("claimed", "taken", "handed", "kept", "raised")


Record = NodeRecord | ShardRecord | MoveRecord | PinRecord | CordonRecord | RegionRecord | PublishersRecord | Owner


def encode(record: Record) -> bytes:
    """The value of a record."""
    packed: bytes = msgpack.packb([VERSION, *record])
    return packed


def decode(kind: Callable[..., _T], value: bytes) -> _T:
    """The record of a value.

    Raises:
        Unreadable: it is none of this kind and version.
    """
    shape = _SHAPES[kind]
    try:
        version, *fields = msgpack.unpackb(value)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Unreadable(f"{value[:64]!r} is no list in MessagePack") from error
    if version != VERSION:
        raise Unreadable(f"it has version {version!r}, and this program reads version {VERSION}: upgrade it")
    if len(fields) != len(shape) or any(type(one) is not wanted for one, wanted in zip(fields, shape, strict=True)):
        raise Unreadable(f"{fields!r} is not {', '.join(one.__name__ for one in shape)}")
    if any(type(one) is int and one < 0 for one in fields):
        raise Unreadable(f"{fields!r} has a number below 0")
    return kind(*fields)
