"""What the nodes of a cluster have to agree on before one of them takes part.

A node with another number of shards hashes channels to other shards than everybody else, one with other keys of the bus
leads shards that nobody reaches, and two of one name end each other's leases for ever: none of it shows by itself, and
each loses messages. `cluster`: [1, number of shards], written by the first node and by nobody after it.
"""

import json
from collections.abc import Iterator

import msgpack

from router.directory.port import Claim, Directory, Lost, Misused
from router.shards.records import NODES, NodeRecord, Unreadable, decode

CLUSTER = "cluster"
VERSION = 1


async def agree(directory: Directory, shards: int) -> None:
    """Have the cluster keep to this number of shards.

    Raises:
        Misused: it has another one.
        Unavailable, NotAllowed: see the port.
    """
    value = msgpack.packb([VERSION, shards])
    (result,) = await directory.transact([Claim(CLUSTER, 0, value)])
    if isinstance(result, Lost) and result.value is not None and result.value != value:
        raise Misused(
            f"this cluster has {_said(result.value)} shards, and directory.shards = {shards} here: it is the same on"
            " all nodes and for good"
        )


async def obstacle(directory: Directory, node: str, address: str, *, leads: bool = True) -> str:
    """Why a node cannot be registered now; empty: nothing speaks against it.

    Args:
        directory: where it is to be registered.
        node: its name.
        address: what it would say of itself.
        leads: whether it is a router.

    Raises:
        Unavailable, NotAllowed: see the port.
    """
    found = (await directory.read(NODES)).items
    records = {key.removeprefix(NODES): item.value for key, item in found.items()}
    return next(_obstacles(records, node, address, leads=leads), "")


def key_of(address: str) -> str:
    """The public key of the bus that an address names; empty: none."""
    try:
        told = json.loads(address)
        return str(told.get("key", "")) if isinstance(told, dict) else ""
    except ValueError:
        return ""


def _obstacles(records: dict[str, bytes], node: str, address: str, *, leads: bool) -> Iterator[str]:
    for name, value in sorted(records.items()):
        try:
            record = decode(NodeRecord, value)
        except Unreadable:
            continue  # of a later version, which knows what it does
        if name == node and record.address != address:
            yield (
                f"another node named {node} is registered, with the address {record.address}: node.name is each node's"
                " own; if that one is gone, its lease has to end first"
            )
        elif leads and name != node and record.weight and key_of(record.address) != key_of(address):
            yield (
                f"the router {name} has another bus.public_key than this node: the pair is the same on all nodes, so"
                " that they reach each other"
            )


def _said(value: bytes) -> str:
    try:
        version, shards = msgpack.unpackb(value)
    except (ValueError, TypeError, msgpack.UnpackException):
        return "an unreadable number of"
    return str(shards) if version == VERSION else f"(in a form of version {version})"
