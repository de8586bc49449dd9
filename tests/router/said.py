"""What workers say of sessions, as bytes."""

import struct

import msgpack

from core import records

Date = tuple[int, int]  # the number of a claim, and the time by its worker's clock


def record(kind: int, aux: int, fixed: bytes, variable: bytes = b"") -> bytes:
    size = (8 + len(fixed) + len(variable) + 7) & ~7
    return (struct.pack("=IHH", size, kind, aux) + fixed + variable).ljust(size, b"\0")


def state(
    session: bytes, what: int, name: str, epoch: int = 0, offset: int = 0, user: str = "", date: Date = (0, 0)
) -> bytes:
    fixed = struct.pack("=16sQQHHIQQ", session, epoch, offset, what, len(user), 0, date[1], date[0])
    return record(records.STATE, len(name), fixed, name.encode() + user.encode())


def closed(session: bytes, flags: int = 0, date: Date = (0, 0)) -> bytes:
    return record(records.CLOSE, flags, struct.pack("=Q16sIIQQ", 5, session, 0, 0, date[1], date[0]))


def told(date: Date, one: bytes, worker: int = 0, claim: int = 0) -> bytes:
    """A record that a worker told an earlier router, then; `claim`: of a connection that has the session still."""
    dated = bytearray(one)
    struct.pack_into("=QQ", dated, 48 if one[4] == records.STATE else 40, date[1], date[0])
    return record(records.TOLD, worker, struct.pack("=Q", claim)) + bytes(dated)


def body_of(user: str) -> bytes:
    packed: bytes = msgpack.packb({"user": user})
    return packed
