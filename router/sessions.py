"""What sessions are, kept in the log's store: written behind the data plane, read when one is resumed.

A session is stored when its HELLO is claimed and kept current by what its worker says of it (joined, left,
acknowledged, over), never only at its end: whoever resumes it after a kill finds it. Changes gather for
SAVE_EVERY_S and go in one write; a read sees those that are not written yet. A store that is away delays writes,
and a resume goes on without it after READ_DEADLINE_S by the client's own positions, if they are said to be the whole
session; else the client is told to come back.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgpack

from core import notes, records
from core.codes import Code
from router.log.port import Changes, Log, LogDeposed, LogError, Position, Session, SessionChange
from router.plane import Put, put_when_room

SAVE_EVERY_S = 0.02
SAVE_RETRY_S = 0.5
READ_DEADLINE_S = 2.0
# Some milliseconds of the event loop's time: the log's commits pass through it in between.
READ_BATCH_MAX = 250
# Changed sessions that wait for a store that is away; of those beyond it only what was stored before is known.
CHANGED_MAX = 1_000_000
# An open session is told of once in six hours (core/sessions.pxd): twice that, and it is nobody's any more.
OPEN_GRACE_MS = 12 * 3_600_000
# Told to whoever asks what is stored of sessions, of all of them together.
CHANNELS_TOLD_MAX = 200

_STATE = struct.Struct("=IHH16sQQHHIQ")
_CLOSE = struct.Struct("=IHHQQ16sII")
_HEAD = struct.Struct("=IHH")

_log = logging.getLogger("holdfast.sessions")


class Sessions:
    """Writes sessions behind, and reads them.

    Args:
        log: an open one.
        put: tells the data plane.
        ttl_s: how long a session is kept after its last sign of life: as long as its resume token is good.
        clock: wall clock, seconds.
        own: the namespaces of domain session, whose channels have cursors.
        leads: whether a channel is this router's: the cursors of others are kept elsewhere.

    """

    def __init__(
        self,
        log: Log,
        put: Put,
        *,
        ttl_s: int,
        clock: Callable[[], float],
        own: Collection[str] = ("user",),
        leads: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._log = log
        self._put = put
        self._ttl_ms = ttl_s * 1000
        self._clock = clock
        self._own = frozenset(own)
        self._leads = leads
        self._changes = Changes()
        self._saving = Changes()
        self._changed = asyncio.Event()
        self._saved = asyncio.Event()
        self._saved.set()
        self._claims: list[tuple[int, int, bytes, str]] = []
        self._cursors: list[tuple[int, int, str]] = []
        self._questions: list[tuple[int, list[bytes]]] = []
        self._asked = asyncio.Event()
        self._lost = 0
        self._over: set[bytes] = set()
        """Sessions that were over, and are resumed before that was written: what is stored of them is not theirs."""

    # -------------------------------------------------------------------------------------------- from the data plane

    def on_open(self, request: int, flags: int, conn: int, session: bytes, body: bytes) -> None:
        """A session was claimed; with RESUMES the data plane waits for what is stored of it."""
        if flags & records.RESUMES:
            self._claims.append((request, conn, session, _user(body)))
            self._asked.set()
        change = self._change(session)
        if change is None:
            return
        saving = self._saving.sessions.get(session)
        if change.ended or (saving is not None and saving.ended):
            self._over.add(session)
            if saving is not None:
                change.channels = {**dict.fromkeys(saving.channels), **change.channels}
        change.ended = False
        change.opened = body or msgpack.packb({})
        change.expires_ms = self._expires(open_still=True)

    def on_cursor(self, request: int, conn: int, channel: bytes) -> None:
        """A new device asks where its user stands."""
        self._cursors.append((request, conn, channel.decode()))
        self._asked.set()

    def on_question(self, request: int, ids: bytes) -> None:
        """An operator asks what is stored of these sessions, 16 bytes each."""
        self._questions.append((request, [ids[place : place + 16] for place in range(0, len(ids), 16)]))
        self._asked.set()

    def on_state(self, said: bytes) -> None:
        """What sessions did: STATE and CLOSE records."""
        for kind, aux, place in _walk(said):
            if kind == records.STATE:
                _, _, _, session, epoch, offset, what, _, _, _ = _STATE.unpack_from(said, place)
                name = said[place + _STATE.size :][:aux].decode()
                self._state(session, what, name, Position(epoch, offset))
            elif kind == records.CLOSE:
                session = _CLOSE.unpack_from(said, place)[5]
                change = self._change(session)
                if change is not None:
                    change.expires_ms = self._expires(open_still=False)
                    if aux & records.OVER:
                        change.ended = True
                        change.channels.clear()

    def _state(self, session: bytes, what: int, name: str, position: Position) -> None:
        if what in (records.ACKED, records.CURSOR) and name.partition(":")[0] in self._own:
            self._changes.cursors[name] = max(self._changes.cursors.get(name, position), position)
            self._wake()
        if what == records.CURSOR:
            return
        change = self._change(session)
        if change is None:
            return
        if what == records.HERE:
            change.expires_ms = self._expires(open_still=True)
        elif what == records.LEFT:
            change.channels[name] = None
        else:
            change.channels[name] = position

    def _change(self, session: bytes) -> SessionChange | None:
        """What changed of a session since the last write, to be added to; None: too much waits for the store."""
        change = self._changes.sessions.get(session)
        if change is None:
            if len(self._changes.sessions) >= CHANGED_MAX:
                self._lost += 1
                return None
            change = self._changes.sessions[session] = SessionChange()
        self._wake()
        return change

    def _wake(self) -> None:
        self._changed.set()
        self._saved.clear()

    def _expires(self, *, open_still: bool) -> int:
        return int(self._clock() * 1000) + self._ttl_ms + (OPEN_GRACE_MS if open_still else 0)

    # --------------------------------------------------------------------------------------------------------- writing

    async def write(self) -> None:
        """Write what changes until this is cancelled.

        Raises:
            LogDeposed: another router took over.
        """
        while True:
            await self._changed.wait()  # no deadline: for as long as nothing changes
            await asyncio.sleep(SAVE_EVERY_S)
            await self._save()

    async def _save(self) -> None:
        """One write, again until it is done: what came meanwhile goes with it."""
        self._saving, self._changes = self._changes, Changes()
        self._changed.clear()
        told = False
        while True:
            try:
                await self._log.save(self._saving)
                break
            except LogDeposed:
                raise
            except LogError as error:
                if not told:
                    _log.warning("sessions cannot be stored until the store is back: %s", error)
                told = True
            await asyncio.sleep(SAVE_RETRY_S)
            _merge(self._saving, self._changes)
            self._changes = Changes()
        if told:
            _log.warning("sessions are stored again; changes of %d found no room meanwhile", self._lost)
            self._lost = 0
        self._saving = Changes()
        if self._changes.sessions or self._changes.cursors:
            return  # more came meanwhile
        self._changed.clear()
        self._saved.set()

    async def flush(self, deadline_s: float) -> bool:
        """Wait until everything so far is stored; False: it is not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._saved.wait()
        return self._saved.is_set()

    # --------------------------------------------------------------------------------------------------------- reading

    async def read(self) -> None:
        """Answer what is asked until this is cancelled: all that came together in one read."""
        while True:
            await self._asked.wait()  # no deadline: for as long as nobody asks
            claims, self._claims = self._claims[:READ_BATCH_MAX], self._claims[READ_BATCH_MAX:]
            cursors, self._cursors = self._cursors[:READ_BATCH_MAX], self._cursors[READ_BATCH_MAX:]
            question = self._questions.pop(0) if self._questions else None
            if not self._claims and not self._cursors and not self._questions:
                self._asked.clear()
            if claims:
                await self._answer_claims(claims)
            if cursors:
                await self._answer_cursors(cursors)
            if question:
                await self._answer_question(*question)

    async def _answer_claims(self, claims: list[tuple[int, int, bytes, str]]) -> None:
        users = [user for _, _, _, user in claims]
        ids = [session for _, _, session, _ in claims]
        stored: list[Session | None] = [None] * len(claims)
        found: list[Position | None] = [None] * len(claims)
        code = 0
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                stored = await self._log.sessions(ids)
                found = await self._log.cursors([f"user:{user}" for user in users])  # of others' channels: none
        except (LogError, TimeoutError) as error:
            code = Code.UNAVAILABLE
            said = "%d sessions are resumed by their clients' positions alone, or told to come back: %s"
            _log.warning(said, len(claims), _said(error))
        for (request, conn, session, user), one, cursor in zip(claims, stored, found, strict=True):
            if session in self._over:
                self._start_again(session, one)
            channels = self._overlaid(session, one)
            channel = f"user:{user}"
            if self._leads(channel):
                told = _told(channels, channel, self._newest(channel, cursor))
            else:
                told = [[name, *position] for name, position in channels.items()]
            text = msgpack.packb(told)
            await put_when_room(self._put, notes.SESSION_OPENED, request=request, conn=conn, first=code, text=text)

    async def _answer_cursors(self, asked: list[tuple[int, int, str]]) -> None:
        found: list[Position | None] = [None] * len(asked)
        known = "read"
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                found = await self._log.cursors([channel for _, _, channel in asked])
        except (LogError, TimeoutError) as error:
            known = "away"
            _log.warning("%d new devices start at the oldest message that is kept: %s", len(asked), _said(error))
        for (request, conn, channel), one in zip(asked, found, strict=True):
            epoch, offset = self._newest(channel, one) or (0, 0)
            await put_when_room(
                self._put,
                notes.CURSOR_READ,
                request=request,
                conn=conn,
                first=records.CURSORS.index(known),
                second=epoch,
                third=offset,
                text=channel.encode(),
            )

    async def _answer_question(self, request: int, ids: list[bytes]) -> None:
        """[count, [[channel, epoch, offset], ...]] of each session, nil of one of which nothing is stored."""
        told: list[Any] = []
        left = CHANNELS_TOLD_MAX
        code = 0
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                stored = await self._log.sessions(ids)
        except (LogError, TimeoutError) as error:
            code, stored = Code.UNAVAILABLE, []
            _log.warning("what is stored of %d sessions cannot be told: %s", len(ids), _said(error))
        for session, one in zip(ids, stored, strict=False):
            channels = self._overlaid(session, one)
            first = sorted(channels.items())[:left]
            left -= len(first)
            known = one is not None or channels
            told.append([len(channels), [[name, *position] for name, position in first]] if known else None)
        await put_when_room(self._put, notes.SESSIONS_READ, request=request, first=code, text=msgpack.packb(told))

    def _start_again(self, session: bytes, stored: Session | None) -> None:
        self._over.discard(session)
        change = self._change(session)
        if change is not None and stored is not None:
            change.channels = {**dict.fromkeys(stored.channels), **change.channels}

    def _overlaid(self, session: bytes, stored: Session | None) -> dict[str, tuple[int, int]]:
        """A session's channels as stored and changed since."""
        channels = dict(stored.channels) if stored else {}
        for changes in (self._saving, self._changes):
            change = changes.sessions.get(session)
            if change is None:
                continue
            if change.ended:
                channels = {}
            for name, position in change.channels.items():
                if position is None:
                    channels.pop(name, None)
                else:
                    channels[name] = position
        return channels

    def _newest(self, channel: str, stored: Position | None) -> Position | None:
        known = [stored, self._saving.cursors.get(channel), self._changes.cursors.get(channel)]
        return max((one for one in known if one is not None), default=None)


def _told(channels: dict[str, tuple[int, int]], own: str, cursor: Position | None) -> list[list[object]]:
    """[[name, epoch, offset], ...] for the data plane; the user's own channel with the offset of the cursor."""
    told: list[list[object]] = [[name, *position] for name, position in channels.items() if name != own]
    position = channels.get(own, cursor)
    if position is not None:
        told.append([own, *position, cursor.offset if cursor else 0])
    return told


def _merge(into: Changes, later: Changes) -> None:
    """Add what changed later."""
    for session, change in later.sessions.items():
        before = into.sessions.get(session)
        if before is None or change.ended:
            into.sessions[session] = change
            continue
        before.ended = False if change.opened is not None else before.ended
        before.opened = before.opened if change.opened is None else change.opened
        before.expires_ms = before.expires_ms if change.expires_ms is None else change.expires_ms
        before.channels.update(change.channels)
    for channel, position in later.cursors.items():
        into.cursors[channel] = max(into.cursors.get(channel, position), position)


def _walk(said: bytes) -> Iterator[tuple[int, int, int]]:
    """(kind, aux, place) of each record."""
    place = 0
    while place < len(said):
        size, kind, aux = _HEAD.unpack_from(said, place)
        yield kind, aux, place
        place += size


def _user(body: bytes) -> str:
    """The user in what is stored of a session."""
    stored = msgpack.unpackb(body) if body else {}
    return str(stored.get("user", ""))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
