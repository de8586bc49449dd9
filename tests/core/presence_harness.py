"""Scripted workers whose sessions come, go and are asked about: what the tests of presence have in common."""

from typing import Any

import msgpack
import msgspec

from core import records
from core.namespace_spec import BUILT_IN
from tests.core.router_harness import EPOCH, Worker

HELD = msgspec.structs.replace(BUILT_IN[1], name="held", events=True)
"""Like groups, with events."""
BARE = msgspec.structs.replace(BUILT_IN[1], name="bare", presence=False)
NAMESPACES = (*BUILT_IN, HELD, BARE)


def session_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def claim(worker: Worker, session: bytes, conn: int = 5) -> None:
    """A connection of this worker has the session from now on, whoever had it; nothing is answered."""
    worker.say.session(records.OPEN, session, conn, 1, records.AGAIN)


def say(worker: Worker, what: int, session: bytes, channel: str, user: str, conn: int = 5) -> None:
    worker.say.state(session, what, channel.encode(), EPOCH, 0, user.encode(), conn)


def present(worker: Worker, channel: str) -> tuple[set[tuple[str, str]], int, int]:
    """The answer to PRESENCE: (sessions with users, users, count)."""
    worker.say.history(records.PRESENCE, 9, channel.encode())
    (one,) = worker.rest()
    assert (one["kind"], one["seq"], one["aux"]) == (records.REPLY, 9, 0)
    told = msgpack.unpackb(one["body"])
    assert set(told) == {"sessions", "users", "count"}
    return {(entry["session"], entry["user"]) for entry in told["sessions"]}, told["users"], told["count"]


def expected(*entries: tuple[bytes, str]) -> tuple[set[tuple[str, str]], int, int]:
    return {(session.hex(), user) for session, user in entries}, len({user for _, user in entries}), len(entries)


def events(said: list[dict[str, Any]]) -> list[tuple[int, str, str, bytes, str]]:
    """(handle, channel, kind, session, user) of the events among what the router said."""
    found = []
    for one in said:
        if one["kind"] == records.MESSAGE and one["aux"] == 2:
            kind, channel, what, about = msgpack.unpackb(one["body"])
            assert (kind, set(about)) == (13, {"session", "user"})
            found.append((one["channel"], channel, what, bytes.fromhex(about["session"]), about["user"]))
    return found
