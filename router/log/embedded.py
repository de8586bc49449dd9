"""The embedded side of the log: segment files and SQLite in one directory, for one node without any other server.

Two threads wait for the disk, so that the event loop never does: one appends, the other has SQLite and sifts, so that
saving ten thousand sessions does not stand in front of a batch. Appends that come while one is being written are
written together, with one fdatasync for all of them.
"""

import asyncio
import contextlib
import errno
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core import log_records
from core.log_index import LogIndex
from core.namespace_spec import BUILT_IN, NamespaceSpec
from core.owned import ACCOUNT, Held
from router.log import segments
from router.log.disk_thread import CLOSED, JOBS_MAX, DiskThread
from router.log.lock import DirectoryLock
from router.log.port import (
    Ban,
    Changes,
    Loaded,
    LogBroken,
    LogDeposed,
    LogError,
    LogLost,
    LogUnavailable,
    Opened,
    Position,
    Session,
    Sift,
    Standing,
)
from router.log.reading import read_channels, read_standing
from router.log.segments import SEGMENT_BYTES, Broken, Segment, SegmentWriter
from router.log.sifting import Sifter
from router.log.state import State
from router.log.unknown import DAYS, say_unknown

SYNCS = ("always", "never")
DEADLINE_S = 10.0
# How long a directory may be held by one who is just about to end.
LOCK_DEADLINE_S = 2.0
# From a change of a session to its being safe from a power loss (router/log/state.py).
STATE_SYNC_S = 1.0
GROUP_BYTES_MAX = 8 * 1024 * 1024
GROUP_BATCHES_MAX = 64
# A batch is known by its hash and its first bytes, which hold the first record's channel and position.
KEY_BYTES = log_records.HEAD_BYTES + 255
RECENT_MAX = 1024
# SQLITE_CORRUPT and SQLITE_NOTADB.
_SQLITE_BROKEN = (11, 26)
# Whatever time passes, a folder stays so.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)

_Key = tuple[int, bytes]
_T = TypeVar("_T")


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class _Append:
    """A batch under way."""

    __slots__ = ("answer", "batch", "generation", "key")

    def __init__(self, key: _Key, batch: bytes, generation: int, answer: "asyncio.Future[None]") -> None:
        self.key = key
        self.batch = batch
        self.generation = generation
        self.answer = answer


class EmbeddedLog:
    """The log port (router/log/port.py) over one directory.

    Args:
        directory: where everything is; made if it is not there.
        sync: `always`: what was answered survives a power loss; `never`: it survives the end of any process, but a
            power loss takes what the kernel had not written yet.
        deadline_s: of each call.
        namespaces: how much is kept of a channel.
        segment_bytes: a segment file that is larger is ended.
        bytes_max: of all segments; beyond it the oldest messages go before their age. 0: no bound.
        on_disk: called after each look at the disk with the segments' bytes, and how many messages went before their
            age since the call before.
        on_crowded: called when the bound is near: a sift is wanted before its time.
        now_ms: the wall clock.

    """

    def __init__(
        self,
        directory: Path,
        *,
        sync: str = "always",
        deadline_s: float = DEADLINE_S,
        namespaces: Sequence[NamespaceSpec] = BUILT_IN,
        segment_bytes: int = SEGMENT_BYTES,
        bytes_max: int = 0,
        on_disk: Callable[[int, int], None] = lambda bytes_, outgrown: None,
        on_crowded: Callable[[], None] = lambda: None,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        if sync not in SYNCS:
            raise ValueError(f"log.sync is {sync!r}, and may be one of {', '.join(SYNCS)}")
        self._directory = directory
        self._sync = sync == "always"
        self._deadline_s = deadline_s
        self._segment_bytes = segment_bytes
        self._bytes_max = bytes_max
        self._on_disk = on_disk
        self._on_crowded = on_crowded
        self._now_ms = now_ms
        self._held: Held | None = None  # from open to close
        self._lock: DirectoryLock | None = None
        self._state: State | None = None
        self._namespaces = namespaces
        self._sync_due: asyncio.TimerHandle | None = None
        self._index = LogIndex(namespaces)
        self._unread: deque[Segment] = deque()  # the thread's: what the index does not know yet, oldest first
        self._writer = SegmentWriter(directory, sync=self._sync, segment_bytes=segment_bytes)
        self._appends: deque[_Append] = deque()  # loop to thread
        self._is_asked = False
        self._generation = 0  # of appends from now on; one more with each failure that was told
        self._refused_below = 0  # the thread's: appends of generations before a failure come after it, and fail too
        self._failure: LogError | None = None
        self._under_way: dict[_Key, _Append] = {}
        self._recent: dict[_Key, None] = {}

    @property
    def cut_bytes(self) -> int:
        """What `open` cut from the end of the last segment, since a crash had left it torn."""
        return self._writer.cut_bytes

    # -------------------------------------------------------------------------------------------------- open and close

    async def open(self, epoch: int) -> Opened:
        """See `Log.open`."""
        self._disk = DiskThread("log", self._deadline_s, lambda: _Translated(self._directory))
        self._state_disk = DiskThread("log-state", self._deadline_s, lambda: _Translated(self._directory))
        self._held = ACCOUNT.hold("handle", f"the log in {self._directory}", object_=self)
        try:
            await self._disk.run(self._open_segments)
            self._on_disk(self._sifter.disk_bytes, 0)
            taken, seeds = await self._state_disk.run(self._open_state, epoch)
            self._writer.take(taken)
        except BaseException:
            await self.close()
            raise
        return Opened(taken, seeds, complete=True)

    def _open_segments(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DirectoryLock(self._directory / "lock", min(LOCK_DEADLINE_S, self._deadline_s / 2))
        except OSError as error:
            if error.errno not in _UNUSABLE:
                raise
            raise LogBroken(
                f"log.directory is {self._directory}, which cannot be used ({error.strerror}): name a folder that "
                f"the gateway may write to"
            ) from error
        self._writer.open()
        self._unread = deque(segments.listed(self._directory))
        self._index = LogIndex(self._namespaces)
        self._sifter = Sifter(
            self._directory,
            self._index,
            self._writer,
            self._state_disk,
            segment_bytes=self._segment_bytes,
            bytes_max=self._bytes_max,
            deadline_s=self._deadline_s,
            now_ms=self._now_ms,
        )
        self._sifter.look()

    def _open_state(self, epoch: int) -> tuple[int, bytes]:
        state = self._state = State(self._directory / "state.sqlite", sync=self._sync)
        return state.take_epoch(epoch, self._writer.epoch), state.seeds()

    async def close(self) -> None:
        """See `Log.close`."""
        if self._held is None:
            return
        self._held.close()
        self._held = None
        if self._sync_due is not None:
            self._sync_due.cancel()
        self._state_disk.put(self._close_state)
        self._disk.put(self._close_segments)
        ends = await asyncio.gather(self._state_disk.close(), self._disk.close(), return_exceptions=True)
        for failed in filter(None, ends):
            raise failed  # the lock stays: a write may still be under way, until the process ends
        if self._lock is not None:
            self._lock.release()

    def _close_state(self) -> None:
        if self._state is not None:
            self._state.close()

    def _close_segments(self) -> None:
        self._commit()
        self._writer.close()

    # --------------------------------------------------------------------------------------------------------- messages

    async def recover(self) -> AsyncIterator[bytes]:
        """See `Log.recover`. What is read for the first time is put into the index on the way."""
        for segment in await self._disk.run(segments.listed, self._directory):
            for records in await self._disk.run(self._records_of, segment):
                yield records
        unknown = await self._disk.run(self._index.unknown)
        if unknown:
            counts = [(name.decode(errors="replace"), count) for name, count in unknown.items()]
            bound = ", or until log.bytes_max wants their room" if self._bytes_max else ""
            say_unknown(f"the log in {self._directory}", counts, f"until they are {DAYS} days old{bound}")

    def _records_of(self, segment: Segment) -> list[bytes]:
        if self._unread and self._unread[0].number == segment.number:
            return self._read_first()
        return list(segments.chunks(records for _, records in segments.placed_of(segment)))

    def _read_first(self) -> list[bytes]:
        """The first segment that the index does not know: put there, and its records."""
        first, found = self._unread[0], []
        for at, records in segments.placed_of(first):
            self._index.add(records, first.number, at)
            found.append(records)
        self._unread.popleft()
        return list(segments.chunks(found))

    def _index_rest(self) -> None:
        """Nobody recovers first, or not to the end: still the index has to know everything."""
        while self._unread:
            self._read_first()

    async def append(self, batch: bytes) -> None:
        """See `Log.append`."""
        if not batch or len(batch) % 8:
            raise ValueError(f"{len(batch)} bytes are no batch of log records")
        key = (hash(batch), batch[:KEY_BYTES])
        if key in self._recent:
            return  # it is there: asked again after an answer that came too late
        one = self._under_way.get(key)
        if one is None:
            if len(self._under_way) >= JOBS_MAX or self._held is None:
                raise LogUnavailable(CLOSED if self._held is None else f"{JOBS_MAX} appends are under way")
            one = _Append(key, batch, self._generation, asyncio.get_running_loop().create_future())
            self._under_way[key] = one
            self._appends.append(one)
            if not self._is_asked:
                self._is_asked = True
                self._disk.put(self._commit)
        await self._disk.wait(one.answer)

    def _commit(self) -> None:
        """In the thread: write what waits. What comes after this looked asks again, as `_is_asked` is off by then."""
        self._is_asked = False
        while self._appends:
            group = self._group()
            error = self._write(group)
            self._disk.tell(self._on_written, group, error)

    def _group(self) -> list[_Append]:
        """Some that wait, of one generation."""
        group = [self._appends.popleft()]
        size = len(group[0].batch)
        while self._appends and len(group) < GROUP_BATCHES_MAX and size < GROUP_BYTES_MAX:
            if self._appends[0].generation != group[0].generation:
                break
            group.append(self._appends.popleft())
            size += len(group[-1].batch)
        return group

    def _write(self, group: Sequence[_Append]) -> LogError | None:
        if group[0].generation < self._refused_below:
            return self._failure
        try:
            with _Translated(self._directory):
                lost = "the log was closed" if self._lock is None else self._lock.lost()
                if lost:
                    raise (LogDeposed if self._lock is not None and self._lock.is_taken else LogLost)(lost)
                if self._unread:
                    self._index_rest()
                places = self._writer.append([one.batch for one in group])
                for one, at in zip(group, places, strict=True):
                    self._index.add(one.batch, self._writer.file_number, at)
        except LogError as error:
            self._refused_below = group[0].generation + 1
            self._failure = error
        else:
            self._failure = None
        return self._failure

    def _on_written(self, group: Sequence[_Append], error: LogError | None) -> None:
        for one in group:
            del self._under_way[one.key]
            if error is None:
                self._recent[one.key] = None
                if not one.answer.done():
                    one.answer.set_result(None)
            else:
                self._generation = max(self._generation, one.generation + 1)
                if not one.answer.done():
                    one.answer.set_exception(type(error)(*error.args))
        if self._sifter.is_crowded():
            self._on_crowded()
        while len(self._recent) > RECENT_MAX:
            del self._recent[next(iter(self._recent))]

    async def load(self, channels: Sequence[bytes], *, messages: bool) -> list[Loaded]:
        """See `Log.load`. The index knows the positions; the messages are read by the thread that also sifts, so that
        they stay where the index says meanwhile.
        """
        if self._unread:
            await self._disk.run(self._index_rest)
        if messages:
            return await self._state_disk.run(read_channels, self._directory, self._index, channels)
        return [Loaded(Position(*self._index.position(channel))) for channel in channels]

    async def standing(self, namespaces: Sequence[str]) -> list[Standing]:
        """See `Log.standing`."""
        if self._unread:
            await self._disk.run(self._index_rest)
        return await self._state_disk.run(read_standing, self._directory, self._index, namespaces)

    # ------------------------------------------------------------------------------------------------------------ sift

    async def sift(self, keep: Sift) -> None:
        """See `Log.sift`."""
        await self._ask(lambda state, now_ms: state.sweep(now_ms))
        if self._unread:
            await self._disk.run(self._index_rest)
        outgrown = self._sifter.outgrown
        try:
            await self._sifter.sift(keep)
        finally:
            self._on_disk(self._sifter.disk_bytes, self._sifter.outgrown - outgrown)

    # ---------------------------------------------------------------------------------------- sessions, cursors, bans

    async def save(self, changes: Changes) -> None:
        """See `Log.save`."""
        await self._ask(lambda state, now_ms: state.save(changes, now_ms))
        if self._sync and self._sync_due is None and self._held is not None:
            self._sync_due = asyncio.get_running_loop().call_later(STATE_SYNC_S, self._sync_state)

    def _sync_state(self) -> None:
        """What was saved is on disk soon; what fails here fails for the next save as well, which says so."""
        self._sync_due = None
        self._state_disk.put(self._sync_saved)

    def _sync_saved(self) -> None:
        if self._state is not None:
            with contextlib.suppress(sqlite3.Error):
                self._state.sync()

    async def sessions(self, ids: Sequence[bytes]) -> list[Session | None]:
        """See `Log.sessions`."""
        return await self._ask(lambda state, now_ms: state.sessions(ids, now_ms))

    async def dates(self, ids: Sequence[bytes]) -> list[bytes]:
        """See `Log.dates`."""
        return await self._ask(lambda state, _: state.dates(ids))

    async def cursors(self, channels: Sequence[str]) -> list[Position | None]:
        """See `Log.cursors`."""
        return await self._ask(lambda state, _: state.cursors(channels))

    async def ban(self, ban: Ban) -> None:
        """See `Log.ban`."""
        await self._ask(lambda state, now_ms: state.ban(ban, now_ms))

    async def bans(self) -> list[Ban]:
        """See `Log.bans`."""
        return await self._ask(lambda state, now_ms: state.bans(now_ms))

    async def _ask(self, question: Callable[[State, int], _T]) -> _T:
        def answer() -> _T:
            assert self._state is not None, "open comes first"
            return question(self._state, self._now_ms())

        return await self._state_disk.run(answer)


class _Translated:
    """What the disk and SQLite say in this block is said in the port's words."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Broken):
            raise LogBroken(str(error)) from error
        if isinstance(error, sqlite3.DatabaseError):
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_BROKEN:
                raise LogBroken(
                    f"{self._directory / 'state.sqlite'} is damaged ({error}): restore it from a copy, or remove it, "
                    f"which forgets sessions, cursors and bans, and keeps the messages"
                ) from error
            raise LogUnavailable(f"{self._directory / 'state.sqlite'}: {error}") from error
        if isinstance(error, OSError):
            raise LogUnavailable(_advice(self._directory, error)) from error


def _advice(directory: Path, error: OSError) -> str:
    """What went wrong, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"there is no room left for the log in {directory} ({error.strerror}): free some, and it goes on by itself"
        )
    return f"the log in {directory} cannot be written or read: {error}"
