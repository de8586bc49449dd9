"""What sessions are, kept in the log's store: written behind the data plane, read when one is resumed.

A session is stored when its HELLO is claimed and kept current by what its worker says of it (joined, left,
acknowledged, over), never only at its end: whoever resumes it after a kill finds it. Changes gather for
SAVE_EVERY_S and go in one write; a read sees those that are not written yet. A store that is away delays writes,
and a resume goes on without it after READ_DEADLINE_S by the client's own positions, if they are said to be the whole
session; else the client is told to come back.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from typing import Any

import msgpack

from core import notes, records
from core.codes import Code
from router.log.port import Changes, Log, LogDeposed, LogError, LogUnavailable, Position, Session, SessionChange
from router.plane import Put, put_when_room
from router.told import TURN_RECORDS, Said, claims_of, date_of, in_order, known_date, listed_in, parts, sessions_in

SAVE_EVERY_S = 0.02
SAVE_RETRY_S = 0.5
# How often the data plane is told up to when everything is stored, while nothing changes.
STORED_TELL_S = 0.5
READ_DEADLINE_S = 2.0
# Some milliseconds of the event loop's time: the log's commits pass through it in between.
READ_BATCH_MAX = 250
# Whole ones, of which each may be in many channels.
LISTED_BATCH_MAX = 50
# Changed sessions that wait for a store that is away; of those beyond it only what was stored before is known.
CHANGED_MAX = 1_000_000
# An open session is told of once in six hours (core/sessions.pxd): twice that, and it is nobody's any more.
OPEN_GRACE_MS = 12 * 3_600_000
# Told to whoever asks what is stored of several sessions, of all of them together, and of one session.
CHANNELS_TOLD_MAX, CHANNELS_OF_ONE_MAX = 200, 1_000

# What is said in one turn of the data plane is taken at once up to here, about TURN_RECORDS; more, some at a time.
TURN_BYTES = 65_536
# That wait for it at most: as much as the data plane gathers while nothing is taken.
TURNS_BYTES_MAX = 33_554_432

_log = logging.getLogger("holdfast.sessions")


class Sessions:
    """Writes sessions behind, and reads them.

    Args:
        log: an open one.
        put: tells the data plane.
        ttl_s: how long a session is kept after its last sign of life: as long as its resume token is good.
        clock: wall clock, seconds.
        own: the namespaces of domain session, whose channels have cursors.
        everywhere: those of domain global, in whose channels everybody is.
        ticks_us: this machine's monotonic clock.
        on_lost: told of each change that finds no room.
        is_gone: whether another router writes what is in a shard, by its byte (`Changes.drop`); None: there is none.
        on_stored: told now and then that all that this got before a time (ms, `ticks_us`) is stored.

    """

    def __init__(
        self,
        log: Log,
        put: Put,
        *,
        ttl_s: int,
        clock: Callable[[], float],
        own: Collection[str] = ("user",),
        everywhere: Collection[str] = ("global",),
        ticks_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
        on_lost: Callable[[], None] = lambda: None,
        on_stored: Callable[[int], None] = lambda _: None,
        is_gone: Callable[[int], bool] | None = None,
    ) -> None:
        self._log = log
        self._put = put
        self._ttl_ms = ttl_s * 1000
        self._clock = clock
        self._own = frozenset(own)
        self._everywhere = frozenset(everywhere)
        self._on_lost = on_lost
        self._on_stored = on_stored
        self._is_gone = is_gone
        self._changes = Changes()
        self._saving = Changes()
        self._changed = asyncio.Event()
        self._written: list[Changes] | None = None
        """What was written while a read is under way: the read may have come before it."""
        self._saved = asyncio.Event()
        self._saved.set()
        self._marks: list[asyncio.Future[None]] = []
        self._claims: list[tuple[int, int, bytes, str, int]] = []
        self._cursors: list[tuple[int, int, str]] = []
        self._questions: list[tuple[int, list[bytes]]] = []
        self._asked = asyncio.Event()
        self._lost = 0
        self._ticks_us = ticks_us
        self._early: list[Said] | None = None
        """What was heard while what is told of the time before waits; None: nothing waits."""
        self._told_before: list[bytes] = []
        self._told = asyncio.Event()
        self._told.set()
        self._taking = asyncio.Lock()
        self._turns: deque[tuple[Iterator[tuple[Said, bytes]], int]] = deque()
        """What came and was not taken yet: the rest of it, its bytes, and when it came."""
        self._turns_bytes = 0

    # -------------------------------------------------------------------------------------------- from the data plane

    def gather(self) -> None:
        """Let what is heard wait until `on_told` comes: that happened before."""
        self._early = []
        self._told.clear()

    def on_told(self, said: bytes) -> None:
        """What workers told an earlier router: TOLD records, each with the one behind it."""
        self._told_before.append(said)
        self._told.set()

    async def all_told(self, deadline_s: float) -> bool:
        """Whether `on_told` comes within so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._told.wait()
        return self._told.is_set()

    async def _take_told(self) -> None:
        """Take what was told of the time before, and what was heard since, some at a time: it may be much.

        Raises:
            LogError, TimeoutError: the store is away; it waits on.
        """
        await self._told.wait()  # no deadline: `on_told` comes after a time that workers have, or at the end
        async with self._taking:  # no deadline: whoever has it is at work here
            dates: dict[bytes, bytes] = {}
            while self._told_before:
                count = len(self._told_before)
                said = b"".join(self._told_before)
                heard = {one.session for one in self._early or () if one.fence}
                dates |= await self._dates(list(heard.union(sessions_in(said))))
                with self._sees_writes():
                    listed = await self._read_listed(listed_in(said))
                    del self._told_before[:count]
                    await self._apply_told(in_order(said, dates), listed, dates)
            while self._early:
                early, self._early = self._early[:TURN_RECORDS], self._early[TURN_RECORDS:]
                for one in early:
                    # An old connection's worker may have linked first: a later claim decides, as of what is told.
                    if not one.fence or date_of(one.fence, one.time_us) > dates.get(one.session, b""):
                        self._apply(one)
                await asyncio.sleep(0)
            self._early = None

    @contextlib.contextmanager
    def _sees_writes(self) -> Iterator[None]:
        """What is written within counts as later than what is read within."""
        if self._written is not None:
            yield  # a read is under way, which sees to it
            return
        self._written = []
        try:
            yield
        finally:
            self._written = None

    async def _apply_told(
        self, told: AsyncIterator[Said], listed: dict[bytes, Session | None], dates: dict[bytes, bytes]
    ) -> None:
        """Apply it in its order; `dates` get those of the claims."""
        channels = 0
        async for one in told:  # deadline: it waits for nothing but its turn
            if one.kind == records.OPEN:
                dates[one.session] = max(dates.get(one.session, b""), date_of(one.fence, 0))
            if one.kind != records.STATE or one.flags != records.LISTS:
                self._apply(one)
            elif one.session in listed:
                channels += self._list(one, listed[one.session])
            if channels >= TURN_RECORDS:
                channels = 0
                await asyncio.sleep(0)

    def _list(self, said: Said, stored: Session | None) -> int:
        """LISTS: the session is in these channels, and in none else but global ones; how many they are."""
        listed = _heard(said.body)
        known = self._overlaid(said.session, stored)
        own = {} if stored is None else stored.channels
        gone = [name for name in known.keys() - listed.keys() if name.partition(":")[0] not in self._everywhere]
        news = {name: max(at, own.get(name, at)) for name, at in listed.items() if name not in known}
        change = self._change(said) if gone or news else None
        if change is not None:
            for name in gone:
                change.put(name, None)
            change.put_all(news, joined=False)
        return len(listed)

    async def _dates(self, ids: list[bytes]) -> dict[bytes, bytes]:
        """The dates of sessions as stored, or changed since."""
        found = {}
        for first in range(0, len(ids), READ_BATCH_MAX):
            some = ids[first : first + READ_BATCH_MAX]
            later = [(changes.sessions.get(one) for changes in self._later()) for one in some]
            changed = [[change.date for change in of_one if change is not None] for of_one in later]
            async with asyncio.timeout(READ_DEADLINE_S):
                stored = await self._log.dates(some)
            for session, date, dates in zip(some, stored, changed, strict=True):
                found[session] = max(known_date(date), *dates, b"")
        return found

    async def _read_listed(self, ids: list[bytes]) -> dict[bytes, Session | None]:
        """What is stored of sessions of which a LISTS tells; of those that cannot be read, that counts as it stands.

        Raises:
            LogDeposed: another router took over.
        """
        found: dict[bytes, Session | None] = {}
        for first in range(0, len(ids), LISTED_BATCH_MAX):
            some = ids[first : first + LISTED_BATCH_MAX]
            try:
                async with asyncio.timeout(READ_DEADLINE_S):
                    found.update(zip(some, await self._log.sessions(some), strict=True))
            except LogDeposed:
                raise
            except (LogError, TimeoutError) as error:
                _log.warning("of %d sessions what is stored counts as it stands: %s", len(some), _said(error))
        return found

    async def _is_taken(self) -> bool:
        """Whether nothing is left of what was told of the time before; else the store is away."""
        if self._early is None:
            return True
        try:
            await self._take_told()
        except (LogError, TimeoutError) as error:
            _log.warning("what workers told an earlier router waits for the store: %s", _said(error))
        return self._early is None

    def on_open(self, request: int, flags: int, conn: int, session: bytes, body: bytes, fence: int = 0) -> None:
        """A session was claimed; with RESUMES the data plane waits for what is stored of it.

        What whoever had it before tells from now on has the lower number of an earlier claim.
        """
        if flags & records.RESUMES:
            self._claims.append((request, conn, session, _user(body), fence))
            self._asked.set()
        opened = Said(records.OPEN, flags, session, conn, body=body, fence=fence)
        self._come(iter(((opened, b""),)), len(body))

    def _opened(self, said: Said) -> None:
        change = self._change(said)
        if change is None:
            return
        if not said.flags & records.RESUMES:
            change.opened = said.body or msgpack.packb({})
        elif change.ended and change.opened is None:
            return  # it is over, and only a HELLO afresh begins one
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
        """What sessions did: STATE and CLOSE records; behind a TOLD, what a worker that linked late told of before.

        That is compared with what is stored; what is heard behind it waits.
        """
        self._come(parts(said), len(said))

    def _come(self, said: Iterator[tuple[Said, bytes]], size: int) -> None:
        """Take what was said in its order: at once, or some at a time where it is much, and what comes behind it."""
        self._turns.append((said, size))
        self._turns_bytes += size
        if len(self._turns) == 1 and size <= TURN_BYTES:
            self._take_turn()
        while self._turns_bytes > TURNS_BYTES_MAX:  # the data plane's mailbox is the queue then
            self._take_turn()
        if self._turns:
            self._changed.set()
            self._saved.clear()

    def _take_turn(self) -> None:
        for _ in range(TURN_RECORDS):
            said, size = self._turns[0]
            one, whole = next(said, (None, b""))
            if one is None:
                self._turns.popleft()
                self._turns_bytes -= size
                if not self._turns:
                    return
            elif one.worker < 0:
                self._hear(one)
            else:
                self._early = [] if self._early is None else self._early
                self._told_before.append(whole)
                self._asked.set()

    async def _take_turns(self) -> None:
        """All that came before this: others have their turn after each TURN_RECORDS."""
        while self._turns:
            self._take_turn()
            await asyncio.sleep(0)

    def _hear(self, said: Said) -> None:
        if self._early is None:
            self._apply(said)
        elif len(self._early) < CHANGED_MAX:
            self._early.append(said)
        else:
            self._lost += 1
            self._on_lost()

    def _apply(self, said: Said) -> None:
        if said.kind == records.OPEN:
            self._opened(said)
        elif said.kind == records.CLOSE:
            self._closed(said)
        else:
            self._state(said)

    def _closed(self, said: Said) -> None:
        change = self._change(said)
        if change is None:
            return
        change.expires_ms = self._expires(open_still=False)
        if said.flags & records.OVER:
            change.ended, change.opened = True, None
            change.channels.clear()
            change.joined.clear()

    def _state(self, said: Said) -> None:
        change = self._change(said)
        if change is None:
            return
        if said.flags == records.HERE:
            change.expires_ms = self._expires(open_still=True)
        elif said.flags == records.LEFT:
            change.put(said.name, None)
        elif said.flags == records.HEARS:
            change.put_all(_heard(said.body), joined=said.worker < 0)
        else:
            # Told again, it may be older than an acknowledgement that is stored.
            change.put(said.name, said.position, joined=said.flags == records.JOINED and said.worker < 0)
        if said.flags == records.ACKED and said.name.partition(":")[0] in self._own:
            position = said.position
            self._changes.cursors[said.name] = max(self._changes.cursors.get(said.name, position), position)

    def _change(self, said: Said) -> SessionChange | None:
        """What changed of a session since the last write, to be added to; None: too much waits for the store."""
        change = self._changes.sessions.get(said.session)
        if change is None:
            if len(self._changes.sessions) >= CHANGED_MAX:
                self._lost += 1
                self._on_lost()
                return None
            change = self._changes.sessions[said.session] = SessionChange()
        change.date = max(change.date, date_of(said.fence, said.time_us))
        self._changes.claims = max(self._changes.claims, claims_of(said.fence))
        self._changed.set()
        self._saved.clear()
        return change

    def _expires(self, *, open_still: bool) -> int:
        return int(self._clock() * 1000) + self._ttl_ms + (OPEN_GRACE_MS if open_still else 0)

    # --------------------------------------------------------------------------------------------------------- writing

    async def write(self) -> None:
        """Write what changes until this is cancelled.

        Raises:
            LogDeposed: another router took over.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STORED_TELL_S):
                    await self._changed.wait()
            if self._changed.is_set():
                await asyncio.sleep(SAVE_EVERY_S)
            began_us = self._ticks_us()
            await self._take_turns()
            gathers = self._early is not None
            if self._changed.is_set():
                await self._save()
            if not gathers:
                self._on_stored(began_us // 1000)

    async def _save(self) -> None:
        """One write, again until it is done: what came meanwhile goes with it."""
        self._saving, self._changes = self._changes, Changes()
        marks, self._marks = self._marks, []
        self._changed.clear()
        told = False
        while True:
            if self._is_gone is not None:
                self._saving.drop(self._is_gone)
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
            self._saving.add(self._changes)
            self._changes = Changes()
        if told:
            _log.warning("sessions are stored again; changes of %d found no room meanwhile", self._lost)
            self._lost = 0
        if self._written is not None:
            self._written.append(self._saving)
        self._saving = Changes()
        if not self._changes.sessions and not self._changes.cursors:
            marks, self._marks = marks + self._marks, []
            self._changed.clear()
            self._saved.set()
        for mark in [one for one in marks if not one.done()]:
            mark.set_result(None)

    async def flush(self, deadline_s: float) -> bool:
        """Wait until everything so far is stored, whatever comes meanwhile; False: it is not in time."""
        if not self._told.is_set():
            self.on_told(b"")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._take_turns()
                while not await self._is_taken():  # noqa: ASYNC110  the store is asked again
                    await asyncio.sleep(SAVE_RETRY_S)
                if not self._saved.is_set():
                    self._marks.append(asyncio.get_running_loop().create_future())
                    await self._marks[-1]
                return True
        return False

    # --------------------------------------------------------------------------------------------------------- reading

    async def read(self) -> None:
        """Answer what is asked until this is cancelled: all that came together in one read.

        What workers told an earlier router is taken first: it is part of what is stored, which is away until then.
        """
        await self._told.wait()  # no deadline: see `_take_told`
        while True:
            if await self._is_taken():
                await self._asked.wait()  # no deadline: for as long as nobody asks
                await self._take_turns()
                if self._early is not None:
                    continue  # a worker told late
            else:
                await asyncio.sleep(SAVE_RETRY_S)
            claims, self._claims = self._claims[:READ_BATCH_MAX], self._claims[READ_BATCH_MAX:]
            cursors, self._cursors = self._cursors[:READ_BATCH_MAX], self._cursors[READ_BATCH_MAX:]
            question = self._questions.pop(0) if self._questions else None
            if not self._claims and not self._cursors and not self._questions:
                self._asked.clear()
            with self._sees_writes():
                if claims:
                    await self._answer_claims(claims)
                if cursors:
                    await self._answer_cursors(cursors)
                if question:
                    await self._answer_question(*question)

    async def _answer_claims(self, claims: list[tuple[int, int, bytes, str, int]]) -> None:
        users = [user for *_, user, _ in claims]
        ids = [session for _, _, session, *_ in claims]
        stored: list[Session | None] = [None] * len(claims)
        found: list[Position | None] = [None] * len(claims)
        code = 0
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                stored = await self._stored(ids)
                found = await self._log.cursors([f"user:{user}" for user in users])
        except (LogError, TimeoutError) as error:
            code = Code.UNAVAILABLE
            said = "%d sessions are resumed by their clients' positions alone, or told to come back: %s"
            _log.warning(said, len(claims), _said(error))
        for (request, conn, session, user, fence), one, cursor in zip(claims, stored, found, strict=True):
            refusal = code
            if not code and not self._is_alive(session, one):
                refusal = Code.SESSION_EXPIRED
            channels = self._overlaid(session, one)
            text = msgpack.packb(_told(channels, f"user:{user}", self._newest(f"user:{user}", cursor)))
            await put_when_room(
                self._put, notes.SESSION_OPENED, request=request, conn=conn, first=refusal, second=fence, text=text
            )

    async def _stored(self, ids: list[bytes]) -> list[Session | None]:
        if self._early is not None:
            raise LogUnavailable("what workers told an earlier router could not be compared with it yet")
        return await self._log.sessions(ids)

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
        """[count, [[channel, epoch, offset], ...], user] of each session, nil of one of which nothing is stored."""
        told: list[Any] = []
        left, code = CHANNELS_OF_ONE_MAX if len(ids) == 1 else CHANNELS_TOLD_MAX, 0
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                stored = await self._stored(ids)
        except (LogError, TimeoutError) as error:
            code, stored = Code.UNAVAILABLE, []
            _log.warning("what is stored of %d sessions cannot be told: %s", len(ids), _said(error))
        for session, one in zip(ids, stored, strict=False):
            channels = self._overlaid(session, one)
            first = sorted(channels.items())[:left]
            left -= len(first)
            known = self._is_alive(session, one) or channels
            changes = [later.sessions.get(session) for later in self._later()]
            opened = [change.opened for change in changes if change is not None and change.opened]
            user = _user([b"" if one is None else one.opened, *opened][-1])
            told.append([len(channels), [[name, *position] for name, position in first], user] if known else None)
        await put_when_room(self._put, notes.SESSIONS_READ, request=request, first=code, text=msgpack.packb(told))

    def _is_alive(self, session: bytes, stored: Session | None) -> bool:
        """Whether a session is stored, has not expired, and is not over."""
        alive = stored is not None
        for changes in self._later():
            change = changes.sessions.get(session)
            if change is not None and (change.ended or change.opened is not None):
                alive = change.opened is not None
        return alive

    def _overlaid(self, session: bytes, stored: Session | None) -> dict[str, tuple[int, int]]:
        """A session's channels as stored and changed since."""
        channels = dict(stored.channels) if stored else {}
        for changes in self._later():
            change = changes.sessions.get(session)
            if change is not None:
                channels = change.channels_after(channels)
        return channels

    def _later(self) -> list[Changes]:
        """What a read that is under way may not have seen, oldest first."""
        return [*(self._written or ()), self._saving, self._changes]

    def _newest(self, channel: str, stored: Position | None) -> Position | None:
        known = [stored, *(one.cursors.get(channel) for one in self._later())]
        return max((one for one in known if one is not None), default=None)


def _told(channels: dict[str, tuple[int, int]], own: str, cursor: Position | None) -> list[tuple[object, ...]]:
    """[[name, epoch, offset], ...] for the data plane; the user's own channel with the offset of the cursor."""
    told: list[tuple[object, ...]] = [(name, *position) for name, position in channels.items() if name != own]
    position = channels.get(own, cursor)
    if position is not None:
        told.append((own, *position, cursor.offset if cursor else 0))
    return told


@functools.lru_cache(maxsize=16)
def _heard(body: bytes) -> Mapping[str, tuple[int, int]]:
    """What HEARS or LISTS says. Sessions that begin between two messages say the same, and share its names."""
    channels: dict[str, tuple[int, int]] = msgpack.unpackb(body, use_list=False)
    return channels


def _user(body: bytes) -> str:
    """The user in what is stored of a session."""
    stored = msgpack.unpackb(body) if body else {}
    return str(stored.get("user", ""))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
