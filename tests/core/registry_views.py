"""What the tests see of the registry: one question to a data plane, its records as dicts."""

import itertools
from typing import Any

import msgpack

from core import listing, notes
from tests.core.edge_harness import Edge

_numbers = itertools.count(1)


def turn(
    edge: Edge, kind: int = notes.LIST, named: dict[str, Any] | None = None, **query: Any
) -> tuple[int, list[Any]]:
    """One LIST (or RECLAIM): where to go on, and the records."""
    number = next(_numbers)
    edge.put(kind, request=number, text=listing.query(**query), **(named or {}))
    note = edge.note(notes.LISTED)
    assert note[3] == number
    unpacker = msgpack.Unpacker()
    unpacker.feed(note[7])
    records = [dict(zip(listing.FIELDS, one, strict=True)) for one in unpacker]
    assert len(records) == note[5]
    return note[4], records


def listed(edge: Edge, **query: Any) -> list[dict[str, Any]]:
    """Turn after turn to the end."""
    found: list[dict[str, Any]] = []
    slot = 0
    while slot != listing.END:
        slot, records = turn(edge, slot=slot, **query)
        found += records
    return found


def vitals(edge: Edge, conn: int) -> dict[str, Any]:
    """The record of one connection."""
    [record] = turn(edge, conn=conn)[1]
    return dict(record)
