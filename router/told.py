"""What workers tell of sessions, as values; and in order what several of them told an earlier router.

Workers link to a new router one after the other, so what they tell again (core/told.pxd) comes in the order of their
links. Each record carries the time at which it was told first, by the monotonic clock, which the processes of a node
share: a session's records are put in the order of these times, and of them counts what was said by whoever had the
session then. What is stored has such a time, too (its date): of what is no newer nothing counts, for the session may
have gone on since, with a worker that is gone.
"""

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core import records
from router.log.port import Position

# A millisecond or two of the event loop's time.
TURN_RECORDS = 500

_STATE = struct.Struct("=IHH16sQQHHIQ")
_SESSION = struct.Struct("=IHHQ16sIIQ")
_TOLD = struct.Struct("=IHHII")
_HEAD = struct.Struct("=IHH")
_STATE_SESSION, _SESSION_SESSION = 8, 16  # where the session stands in them
_START = Position(0, 0)
_NOTHING: Mapping[bytes, int] = {}
# Drawn anew when the machine starts, as its monotonic clock is.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK_BYTES = 8


def clock_name() -> bytes:
    """What tells this machine's monotonic clock, which began when it started, from any other."""
    return b"%08x" % zlib.crc32(_BOOT_ID.read_bytes())


def date_of(clock: bytes, time_us: int) -> bytes:
    """A time as it is stored with a session; later ones of a clock compare higher."""
    return b"%s%016d" % (clock, time_us)


def time_of(clock: bytes, date: bytes) -> int:
    """The time of a date, 0: it is none, or another clock's: it says nothing about the order."""
    return int(date[_CLOCK_BYTES:]) if date.startswith(clock) else 0


@dataclass(slots=True)
class Said:
    """A record: OPEN, CLOSE or STATE."""

    kind: int
    flags: int
    """OpenFlag, CloseFlag or StateKind."""
    session: bytes
    conn: int
    """The worker's handle of the connection; of a STATE, its low half."""
    name: str = ""
    position: Position = _START
    body: bytes = b""
    """Of an OPEN, what HELLO said; of HEARS, {name: [epoch, offset]}."""
    time_us: int = 0
    """When its worker said it first, by the monotonic clock; 0: that is not known."""
    worker: int = -1
    """Who told it to an earlier router; -1: it was told to this one."""
    owner: int = records.NOBODY
    """The worker that had the session before this router started, and has it still."""


def walk(said: bytes) -> Iterator[Said]:
    """The records of a batch, each with what the TOLD before it says."""
    return (one for one, _ in parts(said))


def parts(said: bytes) -> Iterator[tuple[Said, bytes]]:
    """The records of a batch as `walk` gives them, each with its bytes, and those of its TOLD."""
    place = 0
    while place < len(said):
        begins = place
        one, place = _one(said, place)
        yield one, said[begins:place]


def _one(said: bytes, place: int) -> tuple[Said, int]:
    """The record there, or the one behind the TOLD there, and where the next begins."""
    size, kind, aux = _HEAD.unpack_from(said, place)
    if kind != records.TOLD:
        return _read(said, place, kind, aux), place + size
    _, _, worker, owner, _ = _TOLD.unpack_from(said, place)
    place += size
    size, kind, aux = _HEAD.unpack_from(said, place)
    one = _read(said, place, kind, aux)
    one.worker, one.owner = worker, owner
    return one, place + size


def _places(said: bytes) -> Iterator[tuple[bytes, int]]:
    """Session and place of each record of a batch, where its TOLD is."""
    place = 0
    while place < len(said):
        begins = place
        size, kind, _ = _HEAD.unpack_from(said, place)
        if kind == records.TOLD:
            place += size
            size, kind, _ = _HEAD.unpack_from(said, place)
        session = place + (_STATE_SESSION if kind == records.STATE else _SESSION_SESSION)
        yield said[session : session + 16], begins
        place += size


def _read(said: bytes, place: int, kind: int, aux: int) -> Said:
    if kind == records.STATE:
        _, _, _, session, epoch, offset, what, _, conn, time_us = _STATE.unpack_from(said, place)
        start = place + _STATE.size
        what &= ~records.STATES_TOLD
        if what == records.HEARS:
            return Said(kind, what, session, conn, body=said[start : start + aux], time_us=time_us)
        name = said[start : start + aux].decode()
        return Said(kind, what, session, conn, name, Position(epoch, offset), time_us=time_us)
    _, _, _, conn, session, _, body_size, time_us = _SESSION.unpack_from(said, place)
    start = place + _SESSION.size
    return Said(kind, aux, session, conn, body=said[start : start + body_size], time_us=time_us)


def sessions_in(said: bytes) -> list[bytes]:
    """The sessions of a batch, each once."""
    return list(dict.fromkeys(session for session, _ in _places(said)))


async def in_order(said: bytes, stored_us: Mapping[bytes, int] = _NOTHING) -> AsyncIterator[Said]:
    """What workers told an earlier router: of each session what counts, in the order in which it happened.

    Of what is not newer than `stored_us` of a session, nothing counts.

    It may be much, of one session or of many: others have their turn after each TURN_RECORDS of them.
    """
    # Numbers, which the garbage collector passes over: it would hold everybody up for all the records at once.
    sessions: dict[bytes, list[int]] = {}
    for number, (session, place) in enumerate(_places(said), 1):
        sessions.setdefault(session, []).append(place)
        if number % TURN_RECORDS == 0:
            await asyncio.sleep(0)
    number = 0
    for session, places in sessions.items():
        for one in _of_one([_one(said, place)[0] for place in places], stored_us.get(session, 0)):
            yield one
            number += 1
            if number % TURN_RECORDS == 0:
                await asyncio.sleep(0)


def _of_one(told: list[Said], stored_us: int) -> Iterator[Said]:
    """Of one session.

    Who had it before all of this is not known, unless it is a worker that has it now and told no claim: then it had it
    all along.
    """
    told.sort(key=lambda one: one.time_us)
    worker, conn = _first_owner(told)
    for one in told:
        if one.kind == records.OPEN:
            worker, conn = one.worker, one.conn
        elif worker >= 0 and (one.worker != worker or not _is_same(one, conn)):
            continue
        if one.time_us > stored_us:
            yield one
        if one.kind == records.CLOSE:
            worker = conn = -1


def _first_owner(told: Iterable[Said]) -> tuple[int, int]:
    owner = next((one.owner for one in told if one.owner != records.NOBODY), -1)
    if any(one.kind == records.OPEN and one.worker == owner for one in told):
        owner = -1
    return owner, -1


def _is_same(one: Said, conn: int) -> bool:
    """Whether it is of this connection, -1: of any."""
    return conn < 0 or (one.conn ^ conn) & 0xFFFFFFFF == 0
