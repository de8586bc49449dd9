"""What the embedded log stores besides messages, in SQLite: the epoch, the seeds, sessions, cursors and bans.

A session is one row; its channels are one MessagePack map in it, since they are read and written together and by the
ten thousand. Epoch, seeds and bans are on disk when a call returns (synchronous=FULL). Sessions and cursors survive
any process then (NORMAL), and a power loss once `sync` returned, which whoever has this calls a second after a change:
waiting for the disk every 20 ms would slow the log, which waits for the same disk, for everybody. So a power loss takes
back what sessions did in its last second or so: one that began then is gone, and its client is told so; in one that is
older, a JOIN of that second is forgotten, a LEAVE is not known, and what was acknowledged comes again.

All of this is for one thread, the one that made it, and knows no event loop; errors are those of sqlite3 and Broken.
"""

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgpack

from core import descriptors
from core.owned import ACCOUNT, Held
from router.log.port import ENDED_KEPT_MS, Ban, Changes, Position, Session, SessionChange
from router.log.segments import Broken

VERSION = 1
SEED_BYTES = 48
NEVER_MS = 2**62
# Beyond this many expired sessions the rest go with the next call.
SWEPT_MAX = 10_000
BUSY_TIMEOUT_S = 1.0
# 64 MiB of journal. Putting it into its place waits for the disk, and the log behind it: not in the middle of a rush.
CHECKPOINT_PAGES = 16_384
_NO_CHANNELS: bytes = msgpack.packb({})

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    id BLOB PRIMARY KEY, opened BLOB NOT NULL, expires_ms INTEGER NOT NULL, channels BLOB NOT NULL,
    date BLOB NOT NULL DEFAULT x''
);
CREATE INDEX sessions_by_end ON sessions (expires_ms);
CREATE TABLE cursors (channel TEXT PRIMARY KEY, epoch INTEGER NOT NULL, offset INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bans (
    user TEXT PRIMARY KEY, until_ms INTEGER NOT NULL, reason TEXT NOT NULL, since_ms INTEGER NOT NULL,
    kept_ms INTEGER NOT NULL
) WITHOUT ROWID;
"""
# A version that did not know of it reads and writes the same table without.
_ADD_DATE = "ALTER TABLE sessions ADD COLUMN date BLOB NOT NULL DEFAULT x''"
# Later in the same order, or of another one (`SessionChange.date`).
_LATER = """
CASE WHEN length({0}) = 0 THEN date WHEN substr({0}, 1, 8) = substr(date, 1, 8) THEN max({0}, date) ELSE {0} END
"""
_SAVE_SESSION = f"""
INSERT INTO sessions (id, opened, expires_ms, channels, date) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
SET opened = excluded.opened, expires_ms = excluded.expires_ms, channels = excluded.channels,
    date = {_LATER.format("excluded.date")}
"""
# Of a session that was opened and in which nothing else happened, what is stored of its channels stays as it is.
_SAVE_OPENED = f"""
INSERT INTO sessions (id, opened, expires_ms, channels, date) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO UPDATE
SET channels = CASE WHEN expires_ms > ?6 THEN channels ELSE excluded.channels END,
    opened = excluded.opened, expires_ms = excluded.expires_ms, date = {_LATER.format("excluded.date")}
"""
_SAVE_EXPIRY = f"""
UPDATE sessions SET expires_ms = ?1, date = {_LATER.format("?2")}
WHERE id = ?3 AND expires_ms > ?4 AND length(opened) > 0
"""
# Nothing is stored of a session that is over but when it ended: `opened` is empty, and that of no other one is.
_SAVE_ENDED = f"""
INSERT INTO sessions (id, opened, expires_ms, channels, date) VALUES (?1, x'', ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE
SET opened = excluded.opened, expires_ms = excluded.expires_ms, channels = excluded.channels,
    date = {_LATER.format("excluded.date")}
"""
_SAVE_CURSOR = """
INSERT INTO cursors (channel, epoch, offset) VALUES (?, ?, ?) ON CONFLICT (channel) DO UPDATE
SET epoch = excluded.epoch, offset = excluded.offset WHERE (excluded.epoch, excluded.offset) > (epoch, offset)
"""
_SWEEP = "DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions WHERE expires_ms <= ? LIMIT ?)"


class State:
    """The database.

    Args:
        path: its file; its folder is there, and nobody else has it open.
        sync: whether anything waits for the disk.

    Raises:
        sqlite3.Error: it cannot be opened now.
        Broken: it is not ours, or of another version.

    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self._path = path
        self._sync = sync
        self._held: list[Held] = []
        self._epoch = 0
        """Known to be stored: the next router's is higher."""
        # Transactions are begun by `_transaction` alone.
        self._sqlite = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._sqlite.close()
            raise
        self._hold()

    def _prepare(self) -> None:
        self._sqlite.execute("PRAGMA journal_mode = WAL")
        self._sqlite.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        self._wait_for_disk(True)
        (version,) = self._sqlite.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise Broken(
                f"{self._path} is of version {version}, and this program reads up to version {VERSION}: start the "
                f"version of Holdfast that wrote it, or give log.directory another folder"
            )
        with self._transaction():
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._sqlite.execute(statement)
                self._sqlite.execute(f"PRAGMA user_version = {VERSION}")
                self._set("seeds", secrets.token_bytes(SEED_BYTES))
                self._set("epoch", 0)
            if "date" not in [name for _, name, *_ in self._sqlite.execute("PRAGMA table_info(sessions)")]:
                self._sqlite.execute(_ADD_DATE)

    def _hold(self) -> None:
        """Note the descriptors that SQLite keeps: the file's, the journal's and the index's."""
        folder = os.path.realpath(self._path)
        for fd in descriptors.listed():
            found = descriptors.look(fd)
            if found is not None and found.link.startswith(folder):
                self._held.append(ACCOUNT.hold("control_fd", f"the log's {Path(found.link).name}", fd=fd))

    def _wait_for_disk(self, wanted: bool) -> None:
        level = "OFF" if not self._sync else "FULL" if wanted else "NORMAL"
        self._sqlite.execute(f"PRAGMA synchronous = {level}")

    @contextlib.contextmanager
    def _transaction(self, *, disk: bool = True) -> Iterator[None]:
        """All of it or nothing; with `disk`, on disk at its end."""
        self._wait_for_disk(disk)
        self._sqlite.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sqlite.execute("COMMIT")
        except BaseException:
            if self._sqlite.in_transaction:
                self._sqlite.execute("ROLLBACK")
            raise

    # ------------------------------------------------------------------------------------------------ epoch and seeds

    def _get(self, name: str) -> int | bytes:
        row = self._sqlite.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise Broken(f"{self._path} has no {name}: restore it from a copy, or give log.directory another folder")
        value: int | bytes = row[0]
        return value

    def _set(self, name: str, value: int | bytes) -> None:
        self._sqlite.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))

    def seeds(self) -> bytes:
        """The 48 bytes that were drawn when the database was made."""
        found = self._get("seeds")
        assert isinstance(found, bytes)
        return found

    def take_epoch(self, wish: int, known: int) -> int:
        """The wished epoch, or the lowest that is higher than any before; `known` is one of those."""
        with self._transaction():
            stored = self._get("epoch")
            assert isinstance(stored, int)
            taken = max(wish, stored + 1, known + 1)
            self._set("epoch", taken)
        self._epoch = taken
        return taken

    # ------------------------------------------------------------------------------------------- sessions and cursors

    def save(self, changes: Changes, now_ms: int) -> None:
        """Store changes, all or none of them."""
        with self._transaction(disk=False):
            if changes.claims > self._epoch:
                self._set("epoch", changes.claims)
            ended = [(one,) for one, change in changes.sessions.items() if change.ended and not _leaves_date(change)]
            self._sqlite.executemany("DELETE FROM sessions WHERE id = ?", ended)
            self._sqlite.executemany(_SAVE_ENDED, _ended_rows(changes, now_ms))
            self._sqlite.executemany(_SAVE_OPENED, _opened_rows(changes, now_ms))
            self._sqlite.executemany(_SAVE_EXPIRY, _expiry_rows(changes, now_ms))
            self._sqlite.executemany(_SAVE_SESSION, self._rows(changes, now_ms))
            cursors = ((channel, *position) for channel, position in changes.cursors.items())
            self._sqlite.executemany(_SAVE_CURSOR, cursors)
        self._epoch = max(self._epoch, changes.claims)

    def _rows(self, changes: Changes, now_ms: int) -> list[tuple[bytes, bytes, int, bytes, bytes]]:
        """Sessions that read what is stored of them first, since a part of it changes."""
        found = []
        for session, change in changes.sessions.items():
            if _is_over(change) or not _is_read(change):
                continue
            stored = self._session(session, now_ms)
            if stored is None and change.opened is None:
                continue
            changed = _changed(stored or Session(b"", NEVER_MS, {}), change)
            found.append((session, changed.opened, changed.expires_ms, msgpack.packb(changed.channels), change.date))
        return found

    def _session(self, session: bytes, now_ms: int) -> Session | None:
        wanted = (
            "SELECT opened, expires_ms, channels FROM sessions WHERE id = ? AND expires_ms > ? AND length(opened) > 0"
        )
        row = self._sqlite.execute(wanted, (session, now_ms)).fetchone()
        if row is None:
            return None
        channels = msgpack.unpackb(row[2], use_list=False)
        return Session(row[0], row[1], channels)  # its plain tuples: a Position each would cost more than all the rest

    def sessions(self, ids: Sequence[bytes], now_ms: int) -> list[Session | None]:
        """Sessions in the order of their ids."""
        return [self._session(session, now_ms) for session in ids]

    def dates(self, ids: Sequence[bytes]) -> list[bytes]:
        """Dates of sessions in the order of their ids."""
        wanted = "SELECT date FROM sessions WHERE id = ?"
        rows = [self._sqlite.execute(wanted, (session,)).fetchone() for session in ids]
        return [b"" if row is None else row[0] for row in rows]

    def cursors(self, channels: Sequence[str]) -> list[Position | None]:
        """Cursors in the order of the channels."""
        wanted = "SELECT epoch, offset FROM cursors WHERE channel = ?"
        rows = [self._sqlite.execute(wanted, (channel,)).fetchone() for channel in channels]
        return [None if row is None else Position(*row) for row in rows]

    def sync(self) -> None:
        """Have what was saved on disk: a commit that waits for the disk takes all that stands before it along."""
        with self._transaction():
            # Another value each time: of a row that stays the same SQLite writes nothing, and waits for nothing.
            self._sqlite.execute(
                "INSERT INTO meta VALUES ('synced', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
            )

    def sweep(self, now_ms: int) -> int:
        """Forget sessions that expired, SWEPT_MAX at most, and bans that ended; the number of sessions."""
        with self._transaction(disk=False):
            swept = self._sqlite.execute(_SWEEP, (now_ms, SWEPT_MAX)).rowcount
            self._sqlite.execute("DELETE FROM bans WHERE kept_ms <= ?", (now_ms,))
        return swept

    # ----------------------------------------------------------------------------------------------------------- bans

    def ban(self, ban: Ban, now_ms: int) -> None:
        """Store a ban, or forget it when nothing of it is to be kept."""
        with self._transaction():
            if ban.kept_ms <= now_ms:
                self._sqlite.execute("DELETE FROM bans WHERE user = ?", (ban.user,))
                return
            row = (ban.user, ban.until_ms, ban.reason, ban.since_ms, ban.kept_ms)
            self._sqlite.execute(
                "INSERT OR REPLACE INTO bans (user, until_ms, reason, since_ms, kept_ms) VALUES (?, ?, ?, ?, ?)", row
            )

    def bans(self, now_ms: int) -> list[Ban]:
        """Those that are kept, by user."""
        rows = self._sqlite.execute(
            "SELECT user, until_ms, reason, since_ms FROM bans WHERE kept_ms > ? ORDER BY user", (now_ms,)
        )
        return [Ban(*row) for row in rows]

    def close(self) -> None:
        """Close the database; what was stored stays."""
        for held in self._held:
            held.close()
        self._held = []
        self._sqlite.close()


def _is_over(change: SessionChange) -> bool:
    return change.ended and change.opened is None


def _leaves_date(change: SessionChange) -> bool:
    return _is_over(change) and bool(change.date)


def _ended_rows(changes: Changes, now_ms: int) -> Iterator[tuple[bytes, int, bytes, bytes]]:
    for session, change in changes.sessions.items():
        if _leaves_date(change):
            yield session, now_ms + ENDED_KEPT_MS, _NO_CHANNELS, change.date


def _is_read(change: SessionChange) -> bool:
    """Whether what is stored of a session must be read to be changed.

    When ten thousand are resumed at once it need not be: all that happened to them is that they were opened.
    """
    return bool(change.channels) or (change.opened is not None and change.expires_ms is None)


def _opened_rows(changes: Changes, now_ms: int) -> Iterator[tuple[bytes, bytes, int, bytes, bytes, int]]:
    for session, change in changes.sessions.items():
        if (
            not _is_over(change)
            and not _is_read(change)
            and change.opened is not None
            and change.expires_ms is not None
        ):
            yield session, change.opened, change.expires_ms, _NO_CHANNELS, change.date, now_ms


def _expiry_rows(changes: Changes, now_ms: int) -> Iterator[tuple[int, bytes, bytes, int]]:
    for session, change in changes.sessions.items():
        if not _is_over(change) and not _is_read(change) and change.opened is None and change.expires_ms is not None:
            yield change.expires_ms, change.date, session, now_ms


def _changed(stored: Session, change: SessionChange) -> Session:
    """A session after a change."""
    return Session(
        stored.opened if change.opened is None else change.opened,
        stored.expires_ms if change.expires_ms is None else change.expires_ms,
        change.channels_after(stored.channels),
    )
