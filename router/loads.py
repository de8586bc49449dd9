"""What routers tell operators, and nobody else: how much each leads, and how far other regions are with that.

It stands at `loads/<node>` in the directory, from where any node of the cluster shows it: [1, node epoch, {shard:
messages a second}], and behind it, where there are regions, {region: `Other`}.
"""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import msgpack

from router.directory.port import Directory

LOADS = "loads/"
VERSION = 1
NEVER = 1 << 63
"""The epoch of no node."""


class Other(NamedTuple):
    """Another region, as a router sees it."""

    away: bool
    """Its breaker is open: it does not confirm what is led here."""
    lags: dict[int, tuple[int, float]]
    """Of shards that are led here, the batches that it has not confirmed, and for how long (seconds)."""
    follows: int
    """Shards that are led there and followed here."""
    behind: int
    """Of these, those that are being caught up."""


class Load(NamedTuple):
    """What one router told."""

    epoch: int
    """Of this life of the node."""
    rates: dict[int, float]
    """Messages a second of the shards that it leads."""
    others: dict[str, Other]


def pack(epoch: int, rates: Mapping[int, float], others: Mapping[str, Other]) -> bytes:
    """The value. Shards of which a region has everything are left out, so that it stays short."""
    value: list[object] = [VERSION, epoch, rates]
    if others:
        value.append({name: one._replace(lags=_behind(one.lags)) for name, one in others.items()})
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(value: bytes) -> Load:
    """What stands there; of another version, nothing that counts or goes."""
    try:
        version, epoch, rates, *more = msgpack.unpackb(value, strict_map_key=False)
        if version == VERSION:
            return Load(epoch, rates, others_of(more[0]) if more else {})
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        pass
    return Load(NEVER, {}, {})


async def read(directory: Directory, alive: Container[int]) -> dict[str, Load]:
    """What routers whose lives are among these told last, by node."""
    found = {name: unpack(item.value) for name, item in (await directory.read(LOADS)).items.items()}
    return {name.removeprefix(LOADS): load for name, load in found.items() if load.epoch in alive}


def others_of(told: Mapping[str, list[Any]]) -> dict[str, Other]:
    """Other regions, from the form of MessagePack."""
    return {
        name: Other(away, {shard: (entries, seconds) for shard, (entries, seconds) in lags.items()}, *counts)
        for name, (away, lags, *counts) in told.items()
    }


def _behind(lags: Mapping[int, tuple[int, float]]) -> dict[int, tuple[int, float]]:
    return {shard: (entries, round(seconds, 3)) for shard, (entries, seconds) in lags.items() if entries}
