"""What workers tell of sessions, as values; and in order what several of them told an earlier router.

Workers link to a new router one after the other, so what they tell again (core/told.pxd) comes in the order of their
links. Each record carries the number of the claim by which its connection had the session (its fence: the router gives
each claim a higher one), and the time at which it was told first, by its worker's clock. Between claims their numbers
decide, and only of one claim are times compared: clocks of different machines have nothing in common. What is stored
has such a date, too: of what is no newer nothing counts, for the session may have gone on since, with a worker that is
gone.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from core import records
from router.log.port import Position

# A millisecond or two of the event loop's time.
TURN_RECORDS = 500

_STATE = struct.Struct("=IBBH16sQQHHIQQ")
_SESSION = struct.Struct("=IBBHQ16sIIQQ")
_TOLD = struct.Struct("=IBBHQ")
_HEAD = struct.Struct("=IBBH")
_STATE_SESSION, _SESSION_SESSION = 8, 16  # where the session stands in them
_START = Position(0, 0)
_WHAT = 40  # where a STATE says what it is
_NAMES = (records.HEARS, records.LISTS)
_NOTHING: Mapping[bytes, bytes] = {}
# More claims than an epoch has numbers for go on in those of the next one. So that it is stored in time, that one is
# taken from later routers half of them before.
_AHEAD = 1 << records.CLAIM_BITS >> 1
# Dates of earlier versions began with the name of a clock instead: they say nothing about the order.
_ORDER = b"claims--"


def date_of(fence: int, time_us: int) -> bytes:
    """The time of a claim as it is stored with its session; later ones compare higher, and so do those of later claims.

    Of what has no claim it is b"", which is below all.
    """
    return b"%s%020d%020d" % (_ORDER, fence, time_us) if fence else b""


def claims_of(fence: int) -> int:
    """The epoch that no later router may take, once a claim has this number."""
    return (fence + _AHEAD) >> records.CLAIM_BITS


def known_date(date: bytes) -> bytes:
    """What is stored, b"" if no version since has written it."""
    return date if date.startswith(_ORDER) else b""


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
    """Of an OPEN, what HELLO said; of HEARS and LISTS, {name: [epoch, offset]}."""
    time_us: int = 0
    """When its worker said it first, by its clock; 0 of an OPEN, with which its claim begins."""
    fence: int = 0
    """The number of the claim; 0: this has no date."""
    worker: int = -1
    """Who told it to an earlier router; -1: it was told to this one."""
    claim: int = 0
    """That of a connection that has had the session since before this router started; 0: none has."""


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
    size, kind, _, aux = _HEAD.unpack_from(said, place)
    if kind != records.TOLD:
        return _read(said, place, kind, aux), place + size
    _, _, _, worker, claim = _TOLD.unpack_from(said, place)
    place += size
    size, kind, _, aux = _HEAD.unpack_from(said, place)
    one = _read(said, place, kind, aux)
    one.worker, one.claim = worker, claim
    return one, place + size


def _places(said: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Of each record of a batch its session, its place, where its TOLD is, and what a STATE is; else 0."""
    place = 0
    while place < len(said):
        begins = place
        size, kind, _, _ = _HEAD.unpack_from(said, place)
        if kind == records.TOLD:
            place += size
            size, kind, _, _ = _HEAD.unpack_from(said, place)
        is_state = kind == records.STATE
        session = place + (_STATE_SESSION if is_state else _SESSION_SESSION)
        what = int.from_bytes(said[place + _WHAT : place + _WHAT + 2], "little") if is_state else 0
        yield said[session : session + 16], begins, what & ~records.STATES_TOLD
        place += size


def _read(said: bytes, place: int, kind: int, aux: int) -> Said:
    if kind == records.STATE:
        _, _, _, _, session, epoch, offset, what, _, conn, time_us, fence = _STATE.unpack_from(said, place)
        start = place + _STATE.size
        what &= ~records.STATES_TOLD
        if what in _NAMES:
            return Said(kind, what, session, conn, body=said[start : start + aux], time_us=time_us, fence=fence)
        name = said[start : start + aux].decode()
        return Said(kind, what, session, conn, name, Position(epoch, offset), time_us=time_us, fence=fence)
    _, _, _, _, conn, session, _, body_size, time_us, fence = _SESSION.unpack_from(said, place)
    start = place + _SESSION.size
    return Said(kind, aux, session, conn, body=said[start : start + body_size], time_us=time_us, fence=fence)


def sessions_in(said: bytes) -> list[bytes]:
    """The sessions of a batch, each once."""
    return list(dict.fromkeys(session for session, *_ in _places(said)))


def listed_in(said: bytes) -> list[bytes]:
    """Those of which a LISTS tells."""
    return list(dict.fromkeys(session for session, _, what in _places(said) if what == records.LISTS))


async def in_order(said: bytes, stored: Mapping[bytes, bytes] = _NOTHING) -> AsyncIterator[Said]:
    """What workers told an earlier router: of each session what counts, in the order in which it happened.

    Of what is not newer than the date in `stored` of a session, nothing counts.

    It may be much, of one session or of many: others have their turn after each TURN_RECORDS of them.
    """
    # Numbers, which the garbage collector passes over: it would hold everybody up for all the records at once.
    sessions: dict[bytes, list[int]] = {}
    for number, (session, place, _) in enumerate(_places(said), 1):
        sessions.setdefault(session, []).append(place)
        if number % TURN_RECORDS == 0:
            await asyncio.sleep(0)
    number = 0
    for session, places in sessions.items():
        for one in _of_one([_one(said, place)[0] for place in places], stored.get(session, b"")):
            yield one
            number += 1
            if number % TURN_RECORDS == 0:
                await asyncio.sleep(0)


def _of_one(told: list[Said], stored: bytes) -> Iterator[Said]:
    """Of one session: claim after claim, and of each what its connection did, by its worker's clock.

    An end that another claim follows does not count: its client came back, and may have said it after that. Nor does
    what came before the claim of a connection that has had the session for so long that it is not told, nor joins and
    leaves of before a claim that lists its channels.
    """
    told.sort(key=lambda one: (one.fence, one.time_us))
    claims = {one.fence for one in told if one.kind == records.OPEN}
    had = max(one.claim for one in told)
    last = max(claims | {had})
    since = 0 if had in claims else had
    listed = max((one.fence for one in told if one.flags == records.LISTS and one.kind == records.STATE), default=0)
    bounds = {records.OPEN: since, records.CLOSE: last, records.STATE: max(since, listed)}
    for one in told:
        if one.fence < bounds[one.kind]:
            continue
        if date_of(one.fence, one.time_us) > stored:
            yield one
