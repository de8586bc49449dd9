"""What the nodes of a cluster have to agree on before one of them takes part.

A node with another number of shards hashes channels to other shards than everybody else, one with other keys of the bus
leads shards that nobody reaches, and two of one name end each other's leases for ever: none of it shows by itself, and
each loses messages. `cluster`: [1, number of shards], written by the first node and by nobody after it.

What a node says of itself names this start of it (`start_here`): processes that one supervisor starts one after the
other take their own place again, and another start of the node, be it at the same address, waits until the lease of the
former has ended. Only of one that was on this machine, and is not there any more, need nobody wait for that.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgpack

from router.directory.port import Claim, Directory, Lost, Misused
from router.shards.records import NODES, NodeRecord, Unreadable, decode

CLUSTER = "cluster"
VERSION = 1
_OF_START = ("start", "placement")


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
            " all nodes and for good; if that number is a mistake and no shard holds anything yet, stop all nodes,"
            f" delete the key `{CLUSTER}` behind directory.prefix, and start them"
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
    return str(_told(address).get("key", ""))


def placement_of(address: str) -> str:
    """The `directory.placement` that an address names; empty: none."""
    return str(_told(address).get("placement", ""))


def start_here(pid: int = 0) -> str:
    """By what a process of this machine, ours or another, is known to all that see its pid: the machine's boot, the
    namespace of pids, its pid, and when it began.
    """
    pid = pid or os.getpid()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "/".join((boot, str(Path("/proc/self/ns/pid").readlink()), str(pid), _began(pid)))


def is_over(address: str) -> bool:
    """Whether the start that an address names was one of this machine, and has ended."""
    told = str(_told(address).get("start", "")).split("/")
    here = start_here().split("/")
    if len(told) != len(here) or told[:2] != here[:2] or not told[2].isdecimal():
        return False
    return _began(int(told[2])) != told[3]


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty: it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "XZ" else rest[18]


def _told(address: str) -> dict[str, object]:
    try:
        told = json.loads(address)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _place(address: str) -> str:
    """What an address says of where the node is, and not of how it was started."""
    told = _told(address)
    return json.dumps({name: text for name, text in told.items() if name not in _OF_START}) if told else address


def _obstacles(records: dict[str, bytes], node: str, address: str, *, leads: bool) -> Iterator[str]:
    for name, value in sorted(records.items()):
        try:
            record = decode(NodeRecord, value)
        except Unreadable:
            continue  # of a later version, which knows what it does
        if name == node and record.address != address and not is_over(record.address):
            there = _place(record.address)
            what = "another start of this node" if there == _place(address) else f"another node named {node}"
            yield (
                f"{what} is registered, with the address {there}: node.name is each node's own, and a node runs once;"
                " if that one is gone, its lease has to end first"
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
