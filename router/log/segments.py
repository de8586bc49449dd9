"""Segment files: the log's records on disk, in files that only grow, every batch under a checksum.

`segment-000000000001.log` is a head and then batches, back to back; a batch is a head and log records
(core/log_records.pxd), so that everything starts at a multiple of 8. Whatever is appended at once is one write and one
fdatasync. A batch says up to which byte of its file everything was on disk when it was written: so a damaged place that
a crash can have left (nobody was answered for it: it is cut) is told from one that was whole before (it is passed over,
and said in the log: its readers get a gap or a reset, never silence).

A sift replaces old segments by one that holds what is kept of them: written beside, then renamed over the first. Its
head names the last that it stands for, so that those left by a crash in between are not read twice.

All of this is for one thread at a time, and knows no event loop; errors are OSError.
"""

import contextlib
import logging
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core.owned import ACCOUNT, Held

SEGMENT_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
VERSION = 1
# 48 bytes: magic, version, crc of what follows; the segment's number, the last that it stands for, the epoch, whether
# it was sifted.
_FILE = struct.Struct("<8sIIQQQQ")
_FILE_MAGIC = b"HFSEGMNT"
# 32 bytes: magic, crc of what follows and the records, size of the records, 0; the epoch; all before this is on disk.
_BATCH = struct.Struct("<4sIIIQQ")
_BATCH_MAGIC = b"HFLB"
_NAME = re.compile(r"segment-(\d{12})\.log")
_SIFTED = "sifted.tmp"
_CRC_FROM = 8
# Of one writev: IOV_MAX is 1024, two a batch.
BATCHES_MAX = 500

_log = logging.getLogger("holdfast")


class Broken(Exception):
    """A file that is not ours, or of another version. The message says what to do."""


class Batch(NamedTuple):
    """A whole batch of a segment, or the damaged bytes before the next whole one."""

    start: int
    end: int
    epoch: int
    synced: int
    records: memoryview | None
    """None: these bytes are damaged."""


@dataclass(frozen=True)
class Segment:
    """One file."""

    path: Path
    number: int
    last: int
    """It stands for the segments up to this one."""
    epoch: int
    sifted: bool
    size: int


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor for the time of a block, noted in the account."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        with ACCOUNT.hold("control_fd", f"the log's {path.name}", fd=fd):
            yield fd
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    """A whole file; those of the log have a bound."""
    with opened(path, os.O_RDONLY) as fd:
        parts = []
        while part := os.read(fd, 16 * 1024 * 1024):  # deadline: the disk's
            parts.append(part)
    return b"".join(parts)


def write(fd: int, parts: Sequence[bytes]) -> int:
    """Write all, however often the kernel takes only some; the bytes."""
    done = os.writev(fd, parts)
    wanted = sum(map(len, parts))
    if done < wanted:
        rest = memoryview(b"".join(parts))
        while done < wanted:
            done += os.write(fd, rest[done:])
    return wanted


def sync_directory(directory: Path) -> None:
    """Make names that were created, renamed or removed survive a power loss."""
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def name_of(number: int) -> str:
    return f"segment-{number:012d}.log"


def file_head(number: int, last: int, epoch: int, *, sifted: bool = False) -> bytes:
    """The first bytes of a segment."""
    rest = struct.pack("<QQQQ", number, last, epoch, sifted)
    return struct.pack("<8sII", _FILE_MAGIC, VERSION, zlib.crc32(rest)) + rest


def batch_head(records: bytes, epoch: int, synced: int) -> bytes:
    """What stands before the records of a batch."""
    rest = struct.pack("<IIQQ", len(records), 0, epoch, synced)
    return struct.pack("<4sI", _BATCH_MAGIC, zlib.crc32(records, zlib.crc32(rest))) + rest


def listed(directory: Path) -> list[Segment]:
    """The segments of a directory, oldest first, without those that a sifted one stands for.

    Raises:
        Broken: a file is not of this version.
    """
    found: list[Segment] = []
    for path in sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name)):
        match = _NAME.fullmatch(path.name)
        assert match is not None
        number = int(match[1])
        if found and number <= found[-1].last:
            continue
        last, epoch, sifted = _head_of(path, number)
        found.append(Segment(path, number, last, epoch, sifted, path.stat().st_size))
    return found


def replaced(directory: Path) -> list[Path]:
    """Files that a sift which did not come to its end left behind."""
    wanted = {segment.path for segment in listed(directory)}
    names = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) or path.name == _SIFTED]
    return [path for path in names if path not in wanted]


def _head_of(path: Path, number: int) -> tuple[int, int, bool]:
    """(last, epoch, sifted) of a segment's head; of a head that is damaged, what its name says."""
    with opened(path, os.O_RDONLY) as fd:
        head = os.read(fd, _FILE.size)  # deadline: the disk's
    if len(head) < _FILE.size:
        return number, 0, False
    magic, version, crc, own, last, epoch, sifted = _FILE.unpack(head)
    if magic == _FILE_MAGIC and version != VERSION:
        raise Broken(
            f"{path} is of version {version} of the segment files, and this program reads version {VERSION}: start the "
            f"version of Holdfast that wrote it, or give log.directory another folder"
        )
    if magic != _FILE_MAGIC or crc != zlib.crc32(head[16:]) or own != number:
        _log.error("%s: its first %d bytes are damaged; its batches are read all the same", path, _FILE.size)
        return number, 0, False
    return last, epoch, bool(sifted)


def batches(data: bytes) -> Iterator[Batch]:
    """The batches of a segment's bytes in order, and between them what is damaged."""
    view, place, size = memoryview(data), _FILE.size, len(data)
    while place < size:
        batch = _batch_at(data, view, place)
        if batch is None:
            following = _batch_after(data, view, place)
            end = size if following is None else following.start
            yield Batch(place, end, 0, 0, None)
            place = end
        else:
            yield batch
            place = batch.end


def _batch_at(data: bytes, view: memoryview, place: int) -> Batch | None:
    if len(data) - place < _BATCH.size:
        return None
    magic, crc, size, zero, epoch, synced = _BATCH.unpack_from(data, place)
    end = place + _BATCH.size + size
    if magic != _BATCH_MAGIC or zero or size == 0 or size % 8 or end > len(data):
        return None
    if zlib.crc32(view[place + _CRC_FROM : end]) != crc:
        return None
    return Batch(place, end, epoch, synced, view[place + _BATCH.size : end])


def _batch_after(data: bytes, view: memoryview, damaged: int) -> Batch | None:
    place = data.find(_BATCH_MAGIC, damaged + 1)
    while place >= 0:
        batch = _batch_at(data, view, place) if place % 8 == 0 else None
        if batch is not None:
            return batch
        place = data.find(_BATCH_MAGIC, place + 1)
    return None


def torn_at(data: bytes) -> int | None:
    """Where the part begins that was never known to be on disk and is not whole; None: nothing is torn."""
    start: int | None = None
    for batch in batches(data):
        if batch.records is None:
            start = batch.start if start is None else start
        elif start is not None and batch.synced > start:
            start = None  # that damage came later than the crash
    return start


def placed_of(segment: Segment) -> Iterator[tuple[int, bytes]]:
    """A segment's batches of records, and where in its file they begin; what is damaged is passed over and told."""
    for batch in batches(read(segment.path)):
        if batch.records is not None:
            yield batch.start + _BATCH.size, bytes(batch.records)
            continue
        _log.error(
            "%s: bytes %d to %d are damaged: what stood there is lost, and readers are told of a gap",
            segment.path,
            batch.start,
            batch.end,
        )


def chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Batches of records as larger ones of about CHUNK_BYTES."""
    held: list[bytes] = []
    size = 0
    for part in filter(None, parts):
        held.append(part)
        size += len(part)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


class SegmentWriter:
    """The end of the log: the segment that is being written.

    Args:
        directory: where the segments are; nobody else writes there.
        sync: whether an append waits for the disk.
        segment_bytes: a segment that is larger is ended.

    """

    def __init__(self, directory: Path, *, sync: bool = True, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.number = 0
        self.file_number = 0
        """By which the file is named: lower than `number` while it is one that a sift made of several."""
        self.epoch = 0
        """The highest that was found; `take` sets this router's own."""
        self.cut_bytes = 0
        """What a crash had left of the last segment's end."""
        self.appended_bytes = 0
        self._directory = directory
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._fd = -1
        self._held: Held | None = None
        self._end = 0
        self._is_clean = True

    def open(self) -> None:
        """Find the end of the log, cut what is torn, and make sure that all before it is on disk.

        Raises:
            Broken: a file is not of this version.
        """
        for path in replaced(self._directory):
            path.unlink()
        found = listed(self._directory)
        self.number = found[-1].last if found else 0
        self.epoch = max((segment.epoch for segment in found), default=0)
        if found and found[-1].size <= _FILE.size:
            found[-1].path.unlink()  # a crash came while it was being made, or nothing came after
        elif found:
            self._open_last(found[-1])

    def _open_last(self, segment: Segment) -> None:
        data = read(segment.path)
        torn = torn_at(data)
        self._adopt(os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), segment.path)
        self.file_number = segment.number
        self._end = len(data)
        if torn is not None:
            self.cut_bytes = len(data) - torn
            self._end = torn
            os.ftruncate(self._fd, torn)
            _log.warning(
                "%s: a crash left its last %d bytes torn; they are cut. Nothing of them was acknowledged.",
                segment.path,
                self.cut_bytes,
            )
        os.fsync(self._fd)
        self.epoch = max([self.epoch, *(one.epoch for one in batches(data[: self._end]))])

    def take(self, epoch: int) -> None:
        """From now on this is the epoch of what is written."""
        self.epoch = epoch

    def append(self, batches: Sequence[bytes]) -> list[int]:
        """Append batches, all of them or none; at most BATCHES_MAX. Gives where the records of each begin in the file.

        Raises:
            OSError: nothing of them is in the log.
        """
        try:
            if not self._is_clean:
                os.ftruncate(self._fd, self._end)
                self._is_clean = True
            if self._fd < 0 or self._end >= self._segment_bytes or self._is_removed():
                self._roll()
            return self._write(batches)
        except OSError:
            self._take_back()
            raise

    def _is_removed(self) -> bool:
        """Whether somebody removed the file: what is written there would be gone with this process."""
        if os.fstat(self._fd).st_nlink:
            return False
        _log.error(
            "%s: somebody removed %s while it was being written: what it held is lost, and the log goes on in the next",
            self._directory,
            name_of(self.number),
        )
        return True

    def _write(self, batches: Sequence[bytes]) -> list[int]:
        synced = self._end if self._sync else 0
        parts: list[bytes] = []
        places, end = [], self._end
        for records in batches:
            parts += (batch_head(records, self.epoch, synced), records)
            places.append(end + _BATCH.size)
            end += _BATCH.size + len(records)
        written = write(self._fd, parts)
        if self._sync:
            os.fdatasync(self._fd)
        self._end += written
        self.appended_bytes += written
        return places

    def _take_back(self) -> None:
        """Cut what a failure may have left. After a failed fdatasync as well: what is cut is written anew, so that the
        kernel's having given up on those pages does not matter.
        """
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, self._end)
        except OSError:
            self._is_clean = False

    def _roll(self) -> None:
        """Begin the next segment; a file that cannot be begun does not stay."""
        number = self.number + 1
        path = self._directory / name_of(number)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # an attempt before this one
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            end = write(fd, [file_head(number, number, self.epoch)])
            if self._sync:
                os.fdatasync(fd)
                sync_directory(self._directory)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._release()
        self._adopt(fd, path)
        self.number = self.file_number = number
        self._end = end

    def _adopt(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._held = ACCOUNT.hold("control_fd", f"the log's {path.name}", fd=fd)

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            os.close(self._fd)
            self._held, self._fd = None, -1

    def close(self) -> None:
        """Close the file; what was appended is where append left it."""
        self._release()


Settle = Callable[[int, int, list[tuple[int, bytes]]], Iterable[None]]
"""Told of a sifted segment's number, of the last that it stands for, and of its batches with where they begin; it is
done when all of what it returns was gone through, step by step, so that other threads have their turns."""


def _done(steps: Iterable[None]) -> None:
    for _ in steps:
        continue


class Sifted:
    """The segment that takes the place of old ones, while it is being filled.

    Args:
        directory: where the segments are.
        epoch: this router's.

    """

    def __init__(self, directory: Path, epoch: int) -> None:
        self._directory = directory
        self._epoch = epoch
        self._parts: list[bytes] = []
        self._replaces: list[Segment] = []
        self.size = 0

    def add(self, segment: Segment, kept: Sequence[bytes]) -> None:
        """Take what is kept of a segment; segments come in their order."""
        self._replaces.append(segment)
        self._parts += (records for records in kept if records)
        self.size += sum(map(len, kept))

    def finish(self, settle: Settle) -> None:
        """Put it in the place of those that it was made from, and tell what is where now.

        Raises:
            OSError: all are as they were.
        """
        if not self._replaces:
            return
        first, last = self._replaces[0], self._replaces[-1]
        placed: list[tuple[int, bytes]] = []
        if self._parts:
            placed = self._write(first, last.last)
            os.rename(self._directory / _SIFTED, first.path)
            _done(settle(first.number, last.last, placed))
            sync_directory(self._directory)
        else:
            _done(settle(first.number, last.last, placed))
        for segment in self._replaces[1 if self._parts else 0 :]:
            segment.path.unlink()
        self._parts, self._replaces, self.size = [], [], 0

    def _write(self, first: Segment, last: int) -> list[tuple[int, bytes]]:
        placed = []
        path = self._directory / _SIFTED
        try:
            with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
                end = write(fd, [file_head(first.number, last, self._epoch, sifted=True)])
                for records in self._parts:  # all of it is on disk before the file has its name
                    placed.append((end + _BATCH.size, records))
                    end += write(fd, [batch_head(records, self._epoch, end), records])
                os.fdatasync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return placed
