"""Segment files: what was appended is read back, whatever a crash or the disk did to the rest."""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.owned import ACCOUNT
from router.log import segments
from router.log.segments import Broken, Segment, SegmentWriter, Sifted

FILE_HEAD = 48
BATCH_HEAD = 32


def records(size: int, seed: int = 0) -> bytes:
    """Bytes that stand for log records: nothing here looks into them."""
    return random.Random(size * 1000 + seed).randbytes(size * 8)


def fill(directory: Path, *groups: list[bytes], epoch: int = 1, segment_bytes: int = 10**9) -> None:
    """Append groups of batches, and end in order."""
    directory.mkdir(exist_ok=True)
    writer = SegmentWriter(directory, segment_bytes=segment_bytes)
    writer.open()
    writer.take(epoch)
    for group in groups:
        writer.append(group)
    writer.close()


def content(directory: Path) -> bytes:
    """All records of a directory in order."""
    return b"".join(part for segment in segments.listed(directory) for _, part in segments.placed_of(segment))


def reopened(directory: Path, more: bytes = b"") -> bytes:
    """All records after an open, as the next start does it, and one more append."""
    writer = SegmentWriter(directory)
    writer.open()
    writer.take(writer.epoch + 1)
    if more:
        writer.append([more])
    writer.close()
    return content(directory)


def only_file(directory: Path) -> Path:
    (path,) = directory.glob("segment-*")
    return path


@pytest.fixture(autouse=True)
def nothing_is_held() -> object:
    before = set(ACCOUNT.held)
    yield
    assert ACCOUNT.held - before == set()


# ------------------------------------------------------------------------------------------------- writing, rolling


def test_batches_are_read_back_over_restarts_and_segments(tmp_path: Path) -> None:
    groups = [[records(size, seed) for seed in range(3)] for size in range(1, 20)]
    for group in groups:
        fill(tmp_path, group, segment_bytes=500)
    assert content(tmp_path) == b"".join(b"".join(group) for group in groups)
    numbers = [segment.number for segment in segments.listed(tmp_path)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 10


def test_a_segment_ends_once_it_is_large_enough(tmp_path: Path) -> None:
    fill(tmp_path, *([records(10)] for _ in range(9)), segment_bytes=FILE_HEAD + 3 * (BATCH_HEAD + 80))
    assert [segment.size for segment in segments.listed(tmp_path)] == [FILE_HEAD + 3 * (BATCH_HEAD + 80)] * 3


def test_the_epoch_of_the_last_batch_is_found(tmp_path: Path) -> None:
    fill(tmp_path, [records(1)], epoch=5)
    fill(tmp_path, [records(2)], epoch=9)
    writer = SegmentWriter(tmp_path)
    writer.open()
    writer.close()
    assert writer.epoch == 9


def test_a_segment_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, [records(1)])
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(Broken, match=r"segment-000000000001.log is of version 2 .* reads version 1: start the version"):
        segments.listed(tmp_path)


def test_a_damaged_head_costs_none_of_the_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, [records(3)], [records(4)])
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[3] ^= 0xFF
    path.write_bytes(data)
    with caplog.at_level(logging.ERROR, "holdfast"):
        assert content(tmp_path) == records(3) + records(4)
    assert "its first 48 bytes are damaged" in caplog.text


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "segment-1.log").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    fill(tmp_path, [records(1)])
    assert content(tmp_path) == records(1)
    assert (tmp_path / "segment-1.log").read_text() == (tmp_path / "notes.txt").read_text() == "mine"


# ---------------------------------------------------------------------------------------------- torn and damaged


def test_a_tail_torn_at_any_byte_of_the_last_batch_is_cut(tmp_path: Path) -> None:
    fill(tmp_path, [records(3)], [records(2)])
    path = only_file(tmp_path)
    before = path.stat().st_size
    fill(tmp_path, [records(9)])
    whole = path.read_bytes()
    for size in range(before, len(whole)):
        path.write_bytes(whole[:size])
        assert reopened(tmp_path, records(4)) == records(3) + records(2) + records(4), f"torn at byte {size}"


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_of_a_group_that_was_never_answered_a_prefix_is_kept(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The kernel writes pages in any order: any of the group's bytes may be missing."""
    directory = tmp_path_factory.mktemp("log")
    fill(directory, [records(30)], [records(5), records(6)])
    path = only_file(directory)
    before = path.stat().st_size
    group = [records(size, 1) for size in data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))]
    fill(directory, group)
    written = bytearray(path.read_bytes())
    for start in data.draw(st.sets(st.integers(before, len(written) - 1), min_size=1, max_size=4)):
        written[start : start + 64] = bytes(len(written[start : start + 64]))
    path.write_bytes(written[: data.draw(st.integers(before, len(written)))])
    answered = records(30) + records(5) + records(6)
    found = reopened(directory)
    prefixes = [answered + b"".join(group[:count]) for count in range(len(group) + 1)]
    assert found in prefixes
    assert reopened(directory, records(7)) == found + records(7)


@given(st.integers(0, 4), st.data())
@settings(deadline=None, max_examples=60)
def test_a_flipped_bit_costs_its_own_batch_alone(
    tmp_path_factory: pytest.TempPathFactory, damaged: int, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("log")
    groups = [records(size) for size in (5, 1, 30, 8, 12, 3)]
    ends = [FILE_HEAD]
    for group in groups:
        ends.append(ends[-1] + BATCH_HEAD + len(group))
    fill(directory, *([group] for group in groups))
    path = only_file(directory)
    written = bytearray(path.read_bytes())
    written[data.draw(st.integers(ends[damaged], ends[damaged + 1] - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(written)
    rest = groups[:damaged] + groups[damaged + 1 :]
    assert reopened(directory, records(50)) == b"".join(rest) + records(50)


def test_damage_is_told_with_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, [records(5)], [records(6)], [records(7)])
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[FILE_HEAD + BATCH_HEAD + 3] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.ERROR, "holdfast"):
        assert content(tmp_path) == records(6) + records(7)
    assert f"bytes 48 to {48 + 32 + 40} are damaged" in caplog.text


def test_what_is_cut_is_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, [records(5)])
    with only_file(tmp_path).open("ab") as file:
        file.write(b"HFLB" + bytes(100))
    writer = SegmentWriter(tmp_path)
    with caplog.at_level(logging.WARNING, "holdfast"):
        writer.open()
    writer.close()
    assert writer.cut_bytes == 104
    assert "its last 104 bytes torn; they are cut" in caplog.text


@pytest.mark.parametrize("size", [0, 1, FILE_HEAD - 1, FILE_HEAD])
def test_a_segment_that_was_just_being_made_is_made_again(tmp_path: Path, size: int) -> None:
    fill(tmp_path, [records(5)])
    (tmp_path / segments.name_of(2)).write_bytes(segments.file_head(2, 2, 1)[:size])
    assert reopened(tmp_path, records(6)) == records(5) + records(6)


def test_without_sync_a_torn_tail_is_cut_as_well(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, sync=False)
    writer.open()
    writer.take(1)
    for size in (3, 4, 5):
        writer.append([records(size)])
    writer.close()
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    assert reopened(tmp_path) == records(3) + records(4)


# ------------------------------------------------------------------------------------------------- a disk that fails


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError, times: int = 1) -> Callable[[], int]:
    """Let a call of the system fail the next `times`; how often it did."""
    real, left = getattr(os, name), [times]

    def call(*arguments: object) -> object:
        if left[0] > 0:
            left[0] -= 1
            if name == "writev":
                os.write(arguments[0], b"half of it")  # type: ignore[arg-type]
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, name, call)
    return lambda: times - left[0]


@pytest.mark.parametrize("name", ["writev", "fdatasync"])
def test_a_failed_append_leaves_nothing_and_may_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    writer = SegmentWriter(tmp_path)
    writer.open()
    writer.append([records(3)])
    size = only_file(tmp_path).stat().st_size
    failures = failing(monkeypatch, name, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        writer.append([records(4), records(5)])
    assert failures() == 1
    assert only_file(tmp_path).stat().st_size == size
    writer.append([records(4), records(5)])
    writer.close()
    assert content(tmp_path) == records(3) + records(4) + records(5)


def test_what_could_not_be_cut_is_cut_before_the_next_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path)
    writer.open()
    writer.append([records(3)])
    failing(monkeypatch, "fdatasync", OSError(5, "Input/output error"))
    failing(monkeypatch, "ftruncate", OSError(5, "Input/output error"), times=2)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            writer.append([records(4)])
    writer.append([records(5)])
    writer.close()
    assert content(tmp_path) == records(3) + records(5)


@pytest.mark.parametrize("name", ["writev", "fdatasync"])
def test_a_segment_that_cannot_be_begun_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    writer = SegmentWriter(tmp_path, segment_bytes=100)
    writer.open()
    writer.append([records(30)])
    failing(monkeypatch, name, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        writer.append([records(4)])
    assert [segment.number for segment in segments.listed(tmp_path)] == [1]
    writer.append([records(4)])
    writer.close()
    assert [segment.number for segment in segments.listed(tmp_path)] == [1, 2]
    assert content(tmp_path) == records(30) + records(4)


def test_what_comes_after_somebody_removed_the_segment_is_in_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = SegmentWriter(tmp_path)
    writer.open()
    writer.append([records(1)])
    only_file(tmp_path).unlink()
    writer.append([records(2)])
    writer.append([records(3)])
    writer.close()
    assert only_file(tmp_path).name == segments.name_of(2)
    assert content(tmp_path) == records(2) + records(3)
    assert f"somebody removed {segments.name_of(1)}" in caplog.text


def test_what_the_kernel_takes_in_parts_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", lambda fd, parts: os.write(fd, b"".join(parts)[:7]))
    fill(tmp_path, [records(30), records(31)], [records(32)])
    assert content(tmp_path) == records(30) + records(31) + records(32)


# ---------------------------------------------------------------------------------------------------------- sifting


def sift(directory: Path, kept: list[list[bytes]], old: list[Segment]) -> None:
    sifted = Sifted(directory, 7)
    for segment, parts in zip(old, kept, strict=True):
        sifted.add(segment, parts)
    sifted.finish(lambda *_: ())


def five_segments(directory: Path) -> list[Segment]:
    fill(directory, *([records(20, number)] for number in range(5)), segment_bytes=100)
    return segments.listed(directory)


def test_sifted_segments_are_read_where_the_old_ones_were(tmp_path: Path) -> None:
    old = five_segments(tmp_path)
    sift(tmp_path, [[records(1)], [], [records(2), records(3)]], old[:3])
    wanted = records(1) + records(2) + records(3) + records(20, 3) + records(20, 4)
    assert content(tmp_path) == wanted
    assert [(one.number, one.last, one.sifted) for one in segments.listed(tmp_path)] == [
        (1, 3, True),
        (4, 4, False),
        (5, 5, False),
    ]
    assert reopened(tmp_path, records(9)) == wanted + records(9)


def test_of_segments_of_which_nothing_is_kept_no_file_is_left(tmp_path: Path) -> None:
    sift(tmp_path, [[], [b""], []], five_segments(tmp_path)[:3])
    assert [one.number for one in segments.listed(tmp_path)] == [4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [segments.name_of(4), segments.name_of(5)]


@pytest.mark.parametrize("name", ["rename", "unlink", "writev", "fdatasync"])
def test_a_sift_that_was_broken_off_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old = five_segments(tmp_path)
    before, kept = content(tmp_path), [[records(1)], [records(2)], []]
    target = Path if name == "unlink" else os
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(target, name, fail)
        with pytest.raises(OSError, match="Input/output"):
            sift(tmp_path, kept, old[:3])
    after = records(1) + records(2) + records(20, 3) + records(20, 4)
    assert content(tmp_path) == (after if name == "unlink" else before)
    assert reopened(tmp_path) == (after if name == "unlink" else before)
    assert segments.replaced(tmp_path) == []
    assert not (tmp_path / "sifted.tmp").exists()


def test_a_log_that_ends_in_a_sifted_segment_goes_on_after_all_that_it_stands_for(tmp_path: Path) -> None:
    sift(tmp_path, [[records(1)], [records(2)], [records(3)], [], []], five_segments(tmp_path))
    kept = records(1) + records(2) + records(3)
    fill(tmp_path, *([records(20, number)] for number in range(7)), segment_bytes=100)
    assert content(tmp_path) == kept + b"".join(records(20, number) for number in range(7))
    assert [segment.number for segment in segments.listed(tmp_path)] == [1, *range(6, 6 + 7)]


def test_a_flipped_bit_in_a_sifted_segment_costs_its_own_batch_alone(tmp_path: Path) -> None:
    sift(tmp_path, [[records(1)], [records(2)], [records(3)], [], []], five_segments(tmp_path))
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[FILE_HEAD + BATCH_HEAD] ^= 1
    path.write_bytes(data)
    assert reopened(tmp_path, records(9)) == records(2) + records(3) + records(9)
