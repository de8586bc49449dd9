"""The embedded log's database: what survives, and what is said when it cannot be read."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.owned import ACCOUNT
from router.log import embedded
from router.log.embedded import EmbeddedLog
from router.log.port import ENDED_KEPT_MS, Changes, Position, Session, SessionChange
from router.log.segments import Broken
from router.log.state import SEED_BYTES, SWEPT_MAX, State

NOW_MS = 1_000_000
DEADLINE_S = 30


@contextlib.contextmanager
def opened(path: Path, *, sync: bool = True) -> Iterator[State]:
    state = State(path, sync=sync)
    try:
        yield state
    finally:
        state.close()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    before = set(ACCOUNT.held)
    yield tmp_path / "state.sqlite"
    assert ACCOUNT.held - before == set()


def test_its_descriptors_are_accounted_for(path: Path) -> None:
    with opened(path):
        names = sorted(held.name for held in ACCOUNT.held if "state.sqlite" in held.name)
    assert names == ["the log's state.sqlite", "the log's state.sqlite-shm", "the log's state.sqlite-wal"]


def test_epochs_rise_over_restarts_and_over_what_the_segments_know(path: Path) -> None:
    with opened(path) as state:
        seeds = state.seeds()
        assert state.take_epoch(100, 0) == 100
        assert state.take_epoch(100, 0) == 101
    with opened(path) as state:
        assert state.take_epoch(7, 500) == 501
        assert state.take_epoch(7, 3) == 502
        assert state.seeds() == seeds
        assert len(seeds) == SEED_BYTES


@pytest.mark.parametrize(("sync", "levels"), [(True, (2, 1)), (False, (0, 0))])
def test_only_what_has_to_survive_a_power_loss_waits_for_the_disk(
    path: Path, sync: bool, levels: tuple[int, int]
) -> None:
    def level() -> int:
        return int(state._sqlite.execute("PRAGMA synchronous").fetchone()[0])

    with opened(path, sync=sync) as state:
        state.take_epoch(1, 0)
        taken = level()
        state.save(Changes(cursors={"user:alice": Position(1, 1)}), NOW_MS)
        assert (taken, level()) == levels


def test_a_failed_save_changes_nothing(path: Path) -> None:
    good, bad = bytes(16), b"\1" * 16
    with opened(path) as state:
        state.save(Changes({good: SessionChange(opened=b"was")}), NOW_MS)
        changes = Changes({good: SessionChange(opened=b"is"), bad: SessionChange(opened=b"x", expires_ms=2**70)})
        with pytest.raises(OverflowError):
            state.save(changes, NOW_MS)
        found = state.sessions([good, bad], NOW_MS)
        assert [one and one.opened for one in found] == [b"was", None]
        state.save(Changes(cursors={"user:alice": Position(1, 1)}), NOW_MS)
        assert state.cursors(["user:alice"]) == [Position(1, 1)]


def test_a_session_that_is_only_opened_again_keeps_its_channels_unless_it_had_expired(path: Path) -> None:
    kept, gone, never, said = (letter * 16 for letter in (b"k", b"g", b"n", b"s"))
    channels = {"group:a": Position(1, 1)}
    with opened(path) as state:
        first = {
            kept: SessionChange(opened=b"one", expires_ms=NOW_MS + 2, channels=dict(channels)),
            gone: SessionChange(opened=b"one", expires_ms=NOW_MS, channels=dict(channels)),
            said: SessionChange(opened=b"one", expires_ms=NOW_MS + 2, channels=dict(channels)),
        }
        state.save(Changes(sessions=first), NOW_MS - 1)
        again = {session: SessionChange(opened=b"two", expires_ms=NOW_MS + 5) for session in (kept, gone, never)}
        alive = {said: SessionChange(expires_ms=NOW_MS + 7), b"u" * 16: SessionChange(expires_ms=NOW_MS + 7)}
        state.save(Changes(sessions={**again, **alive}), NOW_MS)
        assert state.sessions([kept, gone, never, said, b"u" * 16], NOW_MS) == [
            Session(b"two", NOW_MS + 5, channels),
            Session(b"two", NOW_MS + 5, {}),
            Session(b"two", NOW_MS + 5, {}),
            Session(b"one", NOW_MS + 7, channels),
            None,
        ]


def test_expired_sessions_are_swept_a_bounded_number_at_a_time(path: Path) -> None:
    ids = [number.to_bytes(16, "big") for number in range(SWEPT_MAX + 5)]
    changes = Changes({one: SessionChange(opened=b"x", expires_ms=NOW_MS + 1) for one in ids})
    changes.sessions[b"\xff" * 16] = SessionChange(opened=b"x", expires_ms=NOW_MS + 3)
    with opened(path) as state:
        state.save(changes, NOW_MS)
        assert state.sweep(NOW_MS) == 0
        assert [state.sweep(NOW_MS + 2) for _ in range(3)] == [SWEPT_MAX, 5, 0]
        assert state.sessions([b"\xff" * 16], NOW_MS + 2) != [None]


def test_a_newer_version_is_refused(path: Path) -> None:
    with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 2")
    with pytest.raises(
        Broken, match=r"state.sqlite is of version 2, and this program reads up to version 1: start the"
    ):
        State(path)


def test_without_its_seeds_it_is_broken(path: Path) -> None:
    with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM meta")
        other.commit()
    with opened(path) as state, pytest.raises(Broken, match="has no seeds: restore it"):
        state.seeds()


def test_another_file_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        State(path)
    assert path.read_bytes() == b"not a database" * 100


def test_when_a_session_ended_is_forgotten_after_a_time(path: Path) -> None:
    with opened(path) as state:
        state.save(Changes({b"a": SessionChange(ended=True, date=b"order--a1")}), NOW_MS)
        assert state.sweep(NOW_MS + ENDED_KEPT_MS - 1) == 0
        assert state.dates([b"a"]) == [b"order--a1"]
        assert state.sweep(NOW_MS + ENDED_KEPT_MS) == 1
        assert state.dates([b"a"]) == [b""]


def test_a_database_from_before_sessions_had_dates_is_used_on(path: Path) -> None:
    with opened(path) as state:
        state.save(Changes({b"a": SessionChange(b"said", NOW_MS + 9)}), NOW_MS)
        state._sqlite.execute("ALTER TABLE sessions DROP COLUMN date")
    for _ in range(2):
        with opened(path) as state:
            assert state.sessions([b"a"], NOW_MS) == [Session(b"said", NOW_MS + 9, {})]
    with opened(path) as state:
        state.save(Changes({b"a": SessionChange(expires_ms=NOW_MS + 10, date=b"order--a1")}), NOW_MS)
        assert state.dates([b"a"]) == [b"order--a1"]


def test_sync_has_the_disk_take_all_that_was_saved_before(path: Path) -> None:
    """SQLite waits for the disk with the frames that a commit adds to its journal, and with none of one without any."""
    journal = path.with_name(path.name + "-wal")
    with opened(path) as state:
        state.save(Changes({bytes(16): SessionChange(opened=b"was")}), NOW_MS)
        for _ in range(2):
            before = journal.read_bytes()
            state.sync()
            assert journal.read_bytes() != before
        assert int(state._sqlite.execute("PRAGMA synchronous").fetchone()[0]) == 2
        assert state.sessions([bytes(16)], NOW_MS)[0] is not None


def test_what_was_saved_of_sessions_is_on_disk_soon_with_few_waits_for_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done, count = State.sync, threading.Event(), [0]

    def sync(state: State) -> None:
        real(state)
        count[0] += 1
        done.set()

    async def body() -> None:
        log = EmbeddedLog(tmp_path / "log")
        await log.open(1)
        try:
            for number in (1, 2):
                done.clear()
                await asyncio.gather(*(log.save(Changes({bytes(16): SessionChange(opened=b"x")})) for _ in range(20)))
                assert await asyncio.to_thread(done.wait, DEADLINE_S)
                assert number <= count[0] <= 10 * number
        finally:
            await log.close()

    monkeypatch.setattr(embedded, "STATE_SYNC_S", 0.2)
    monkeypatch.setattr(State, "sync", sync)
    asyncio.run(body())
