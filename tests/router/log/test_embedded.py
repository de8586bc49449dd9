"""The embedded log: what the contract (tests/contract/) does not ask of the other side."""

import asyncio
import fcntl
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from router.log import embedded
from router.log.embedded import EmbeddedLog
from router.log.port import Changes, LogBroken, LogInUse, LogUnavailable, Position, SessionChange
from router.log.segments import Sifted
from tests.contract.running import message, messages, recovered, run
from tests.contract.stores import EmbeddedStore, Keep

DEADLINE_S = 60
KILLS = int(os.environ.get("HOLDFAST_LOG_KILLS", "100"))
SESSION = bytes(16)


def on(directory: Path, body: Callable[[EmbeddedStore], Awaitable[None]], **options: int | str) -> None:
    store = EmbeddedStore(directory, **options)  # type: ignore[arg-type]
    run(store, lambda: body(store))


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds a directory in use does not wait for long."""
    monkeypatch.setattr(embedded, "LOCK_DEADLINE_S", 0.1)


async def offsets(log: EmbeddedLog, channel: bytes = b"group:a") -> list[int]:
    return [entry.offset for entry in await recovered(log) if entry.channel == channel]


# -------------------------------------------------------------------------------- the directory


def test_a_directory_in_use_is_refused_with_who_holds_it(tmp_path: Path) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        other = EmbeddedLog(tmp_path / "log")
        with pytest.raises(LogInUse, match=f"is in use by process {os.getpid()}: stop it, or give this node another"):
            await other.open(1)
        await log.append(message(b"group:a", 1, 1))
        assert await offsets(log) == [1]

    on(tmp_path / "log", body)


def test_two_processes_on_one_directory(tmp_path: Path) -> None:
    with _appender(tmp_path / "log") as process:
        assert process.stdout is not None
        process.stdout.readline()

        async def body(store: EmbeddedStore) -> None:
            other = EmbeddedLog(tmp_path / "log")
            with pytest.raises(LogInUse, match=f"process {process.pid}"):
                await other.open(1)
            process.kill()
            process.wait(DEADLINE_S)
            await (await store.log()).open(1)

        on(tmp_path / "log", body)


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_directory_that_cannot_be_is_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file" if kind == "a file" else tmp_path / "file" / "below"

    async def body(store: EmbeddedStore) -> None:
        with pytest.raises(LogBroken, match=r"log.directory is .*/file.* cannot be used \(.*\): name a folder that"):
            await (await store.log()).open(1)

    on(directory, body)


def test_only_the_owner_may_look_into_it(tmp_path: Path) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        await log.append(message(b"group:a", 1, 1))

    on(tmp_path / "a" / "log", body)
    assert (tmp_path / "a" / "log").stat().st_mode & 0o77 == 0
    assert (tmp_path / "a" / "log" / "segment-000000000001.log").stat().st_mode & 0o77 == 0


def test_a_damaged_database_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"something else" * 1000)

    async def body(store: EmbeddedStore) -> None:
        with pytest.raises(LogBroken, match=r"state.sqlite is damaged \(.*\): restore it from a copy, or remove it"):
            await (await store.log()).open(1)

    on(tmp_path, body)


def test_without_its_database_the_epoch_still_rises(tmp_path: Path) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        epoch = (await log.open(50)).epoch
        await log.append(message(b"group:a", epoch, 1))
        await log.close()
        _remove_database(tmp_path)
        log = await store.log()
        assert (await log.open(1)).epoch == 51
        assert await offsets(log) == [1]

    on(tmp_path, body)


def _remove_database(directory: Path) -> None:
    for path in directory.glob("state.sqlite*"):
        path.unlink()


@pytest.mark.parametrize("name", ["fsync", "flock"])
def test_one_that_could_not_be_opened_may_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        await log.append(message(b"group:a", 1, 1))
        await log.close()
        again = await store.log()
        with monkeypatch.context() as patch:
            patch.setattr(os if name == "fsync" else fcntl, name, _fail)
            with pytest.raises(LogUnavailable, match=r"cannot be written or read: .*Input/output error"):
                await again.open(1)
        epoch = (await again.open(1)).epoch
        await again.append(message(b"group:a", epoch, 2))
        assert await offsets(again) == [1, 2]

    on(tmp_path, body)


def _fail(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_an_unknown_sync_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log.sync is 'often', and may be one of always, never"):
        EmbeddedLog(tmp_path, sync="often")


def test_bytes_that_are_no_batch_are_refused_before_they_are_stored(tmp_path: Path) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        for junk in (b"", b"1234567"):
            with pytest.raises(ValueError, match=f"{len(junk)} bytes are no batch"):
                await log.append(junk)

    on(tmp_path, body)


# -------------------------------------------------------------------------------- group commit


@pytest.mark.parametrize(("sync", "least"), [("always", 2), ("never", 0)])
def test_what_comes_while_one_is_written_is_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, least: int
) -> None:
    syncs: list[int] = []
    real, go, started = os.fdatasync, threading.Event(), threading.Event()

    def fdatasync(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        await log.append(message(b"group:a", 1, 1))
        hold = asyncio.create_task(log._disk.run(wait_for, go, started))
        await asyncio.to_thread(started.wait, DEADLINE_S)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        tasks = [asyncio.create_task(log.append(message(b"group:a", 1, offset))) for offset in range(2, 102)]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(hold, *tasks)
        assert await offsets(log) == list(range(1, 102))
        assert len(syncs) == least  # 64 batches at most are written at once

    on(tmp_path, body, sync=sync, segment_bytes=10**9)


def test_a_late_answer_is_not_written_twice_when_asked_again(tmp_path: Path) -> None:
    go = threading.Event()

    async def body(store: EmbeddedStore) -> None:
        log = EmbeddedLog(tmp_path)
        await log.open(1)
        log._disk._deadline_s = 0.3
        log._disk.put(lambda: wait_for(go))
        batch = message(b"group:a", 1, 1)
        for _ in range(2):
            with pytest.raises(LogUnavailable, match=r"did not answer within 0.3 s"):
                await log.append(batch)
        go.set()
        log._disk._deadline_s = DEADLINE_S
        await _until_taken(log, batch)
        await log.append(batch)
        await log.append(message(b"group:a", 1, 2))
        assert await offsets(log) == [1, 2]
        await log.close()

    on(tmp_path, body)


def wait_for(go: threading.Event, started: threading.Event | None = None) -> None:
    """A disk that takes its time."""
    if started is not None:
        started.set()
    assert go.wait(DEADLINE_S)


async def _until_taken(log: EmbeddedLog, batch: bytes) -> None:
    """Ask again until it is answered, as a router does."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await log.append(batch)
            except LogUnavailable:
                await asyncio.sleep(0.01)


def test_after_a_failure_nothing_that_came_later_is_applied_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends that were under way at a failure fail as well, also those in the thread's next group."""
    real = os.fdatasync
    failures = [OSError(28, "No space left on device")]

    def fdatasync(fd: int) -> None:
        if failures:
            raise failures.pop()
        real(fd)

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        await log.append(message(b"group:a", 1, 1))
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        batches = [message(b"group:a", 1, offset) for offset in range(2, 200)]
        answers = await asyncio.gather(*(log.append(batch) for batch in batches), return_exceptions=True)
        assert {type(answer) for answer in answers} == {LogUnavailable}
        assert "no room left" in str(answers[0])
        assert await offsets(log) == [1]
        await asyncio.gather(*(log.append(batch) for batch in batches))
        assert await offsets(log) == list(range(1, 200))

    on(tmp_path, body, segment_bytes=10**9)


def test_saving_sessions_does_not_wait_behind_appends(tmp_path: Path) -> None:
    go = threading.Event()

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        log._disk.put(lambda: wait_for(go))
        append = asyncio.create_task(log.append(message(b"group:a", 1, 1)))
        await log.save(Changes({SESSION: SessionChange(opened=b"x")}, {"user:alice": Position(1, 1)}))
        assert await log.cursors(["user:alice"]) == [Position(1, 1)]
        assert not append.done()
        go.set()
        await append

    on(tmp_path, body)


# -------------------------------------------------------------------------------- sifting


def _sizes(directory: Path) -> list[int]:
    return [path.stat().st_size for path in directory.glob("segment-*")]


def test_a_log_that_is_written_for_ever_stays_small(tmp_path: Path) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        sizes, written = [], 0
        for offset in range(1, 601):
            batch = message(b"group:%d" % (offset % 10), 1, offset)
            written += len(batch)
            await log.append(batch)
            if offset % 30 == 0:
                await store.trim(log)
                sizes.append(_sizes(tmp_path))
        assert written > 60_000
        assert max(map(sum, sizes)) < 20_000
        assert max(map(len, sizes)) < 16
        for number in range(10):
            found = await offsets(log, b"group:%d" % number)
            assert found[-4:] == [offset for offset in range(1, 601) if offset % 10 == number][-4:]
            assert found == sorted(set(found))

    on(tmp_path, body, segment_bytes=4000)


def test_a_sift_asks_nothing_when_nothing_is_to_be_gained(tmp_path: Path) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        keep = Keep({}, {})
        await log.sift(keep)
        await log.append(messages(b"group:a", 1, 1, 10))
        await log.sift(keep)
        assert keep.asked == 0
        for offset in range(11, 200):
            await log.append(message(b"group:a", 1, offset))
        everything = Keep({}, {b"group:a": (1, 1)})
        await log.sift(everything)
        asked = everything.asked
        await log.sift(everything)
        assert 0 < asked == everything.asked
        assert await offsets(log) == list(range(1, 200))

    on(tmp_path, body)


def test_a_sift_that_nobody_answers_ends_and_changes_nothing(tmp_path: Path) -> None:
    async def keep(records: bytes) -> bytes:
        await asyncio.Event().wait()
        return records

    async def body(store: EmbeddedStore) -> None:
        log = EmbeddedLog(tmp_path, segment_bytes=4000)
        await log.open(1)
        for offset in range(1, 100):
            await log.append(message(b"group:a", 1, offset))
        log._sifter._deadline_s = 0.1
        with pytest.raises(LogUnavailable, match=r"nobody said within 0.1 s what is kept"):
            await log.sift(keep)
        assert await offsets(log) == list(range(1, 100))
        await log.close()

    on(tmp_path, body)


def test_closing_while_the_disk_hangs_ends_and_keeps_the_lock(tmp_path: Path) -> None:
    go = threading.Event()

    async def body(store: EmbeddedStore) -> None:
        log = EmbeddedLog(tmp_path)
        await log.open(1)
        log._disk._deadline_s = 0.3
        log._disk.put(lambda: wait_for(go))
        with pytest.raises(LogUnavailable, match="keeps the thread log for more than"):
            await log.close()
        with pytest.raises(LogInUse):
            await EmbeddedLog(tmp_path).open(1)
        go.set()
        await asyncio.to_thread(log._disk._thread.join, DEADLINE_S)
        assert log._lock is not None
        log._lock.release()

    on(tmp_path, body)


def test_sifting_costs_a_bounded_share_of_writing(tmp_path: Path) -> None:
    """Even when everything is kept, and sift is called all the time."""
    asked = 0

    async def keep(records: bytes) -> bytes:
        nonlocal asked
        asked += len(records)
        return records

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        written = 0
        for offset in range(1, 151):
            batch = message(b"group:a", 1, offset, body=b"x" * 2700)
            written += len(batch)
            await log.append(batch)
            await log.sift(keep)
        assert written / 2 < asked < written * 2
        assert await offsets(log) == list(range(1, 151))

    on(tmp_path, body)


def test_on_a_disk_without_room_what_is_not_kept_at_all_goes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        for offset in range(1, 100):
            await log.append(message(b"group:a", 1, offset))
        monkeypatch.setattr(Sifted, "_write", _no_room)
        with pytest.raises(LogUnavailable, match="no room left"):
            await log.sift(Keep({b"group:a": (1, 99)}, {b"group:a": (1, 60)}))
        found = await offsets(log)
        assert 30 < found[0] <= 60
        assert found == list(range(found[0], 100))

    on(tmp_path, body)


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_appends_go_on_while_a_sift_waits_for_its_answers(tmp_path: Path) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def keep(records: bytes) -> bytes:
        asked.set()
        await go.wait()
        return records

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        for offset in range(1, 100):
            await log.append(message(b"group:a", 1, offset))
        sift = asyncio.create_task(log.sift(keep))
        await asked.wait()
        for offset in range(100, 200):
            await log.append(message(b"group:a", 1, offset))
        go.set()
        await sift
        assert await offsets(log) == list(range(1, 200))

    on(tmp_path, body)


# -------------------------------------------------------------------------------- a full disk


def test_a_full_disk_makes_it_unavailable_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """RLIMIT_FSIZE lets write fail in the middle of a batch, as a full disk does, and needs no rights."""

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        answered: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            with pytest.raises(
                LogUnavailable, match=r"no room left for the log in .*: free some, and it goes on by it"
            ):
                await _fill(log, answered, 500)
            with pytest.raises(LogUnavailable):
                await log.append(message(b"group:a", 1, len(answered) + 1, body=b"x" * 500))
            assert await offsets(log) == answered
            assert len(answered) > 20
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await log.append(message(b"group:a", 1, len(answered) + 1))
        log = await store.log()
        await log.open(1)
        assert log.cut_bytes == 0
        assert await offsets(log) == [*answered, len(answered) + 1]

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    on(tmp_path, body, segment_bytes=10**9)


async def _fill(log: EmbeddedLog, answered: list[int], size: int) -> None:
    for offset in range(1, 10_000):
        await log.append(message(b"group:a", 1, offset, body=b"x" * size))
        answered.append(offset)


async def _save_many(log: EmbeddedLog) -> None:
    for number in range(1000):
        await log.save(Changes({number.to_bytes(16, "big"): SessionChange(opened=b"x" * 1000)}))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=DEADLINE_S).returncode != 0:
        pytest.skip("needs root, and the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=DEADLINE_S)


def test_a_file_system_that_is_full_loses_nothing_that_was_answered(small_disk: Path) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        answered: list[int] = []
        with pytest.raises(LogUnavailable, match="no room left"):
            await _fill(log, answered, 700)
        with pytest.raises(LogUnavailable, match=r"state.sqlite: database or disk is full"):
            await _save_many(log)
        assert await offsets(log) == answered
        await log.sift(Keep({b"group:a": (1, answered[-1])}, {b"group:a": (1, answered[-1] - 3)}))
        await log.append(message(b"group:a", 1, answered[-1] + 1))
        await log.save(Changes(cursors={"user:alice": Position(1, 1)}))
        log = await store.log()
        await log.open(1)
        found = await offsets(log)
        assert found[-5:] == [*answered[-4:], answered[-1] + 1]
        assert len(found) < len(answered) / 2

    on(small_disk / "log", body, segment_bytes=64_000)


# -------------------------------------------------------------------------------- kills

APPENDER = """
import asyncio, sys
from pathlib import Path
from router.log.embedded import EmbeddedLog
from tests.contract.running import messages

async def main():
    log = EmbeddedLog(Path(sys.argv[1]), segment_bytes=60_000)
    epoch = (await log.open(1)).epoch
    print(epoch, flush=True)
    async def append(first):
        await log.append(messages(b"group:a", epoch, first, first + 9))
        print(first + 9, flush=True)
    under_way = set()
    for first in range(1, 100_000, 10):
        under_way.add(asyncio.create_task(append(first)))
        if len(under_way) > 5:
            _, under_way = await asyncio.wait(under_way, return_when="FIRST_COMPLETED")

asyncio.run(main())
"""


def _appender(directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", APPENDER, str(directory)]
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(root)]))
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_answered_is_there_after_any_number_of_kills(tmp_path: Path) -> None:
    dice = random.Random(6)
    answered: dict[int, int] = {}
    for _ in range(KILLS):
        with _appender(tmp_path) as process:
            assert process.stdout is not None
            epoch = int(process.stdout.readline())
            answered[epoch] = 0
            for _ in range(dice.randrange(1, 60)):
                answered[epoch] = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            for line in process.stdout.read().splitlines(keepends=True):
                answered[epoch] = int(line) if line.endswith(b"\n") else answered[epoch]

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        found: dict[int, list[int]] = {}
        for entry in await recovered(log):
            found.setdefault(entry.epoch, []).append(entry.offset)
        for epoch, last in answered.items():
            there = found.pop(epoch)
            assert there == list(range(1, len(there) + 1)), f"epoch {epoch} has gaps"
            assert last <= len(there), f"of epoch {epoch}, {last} was answered, and {len(there)} is the last one there"
            assert len(there) % 10 == 0, "half of a batch is there"
        assert found == {}

    assert list(answered) == sorted(answered)
    on(tmp_path, body)
