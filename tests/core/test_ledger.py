"""The ledger: counters in memory that another process reads, laid out without overlap."""

import mmap
import os

import pytest

from core import ledger
from core._testing import failed, took
from core.codes import TABLE, CodeInfo
from core.conn import ConnectionTable
from core.ledger import STATS_BYTES, Stats
from core.ring import RingBuffer


def test_what_is_acquired_and_released_is_counted() -> None:
    stats = Stats()
    rings = [RingBuffer(stats), RingBuffer(stats)]
    assert stats.read()["ledger"] == {
        **{f"{kind}_{side}": 0 for kind in ledger.KINDS for side in ("opened", "closed")},
        "ring_opened": 2,
    }
    rings[0].release()
    assert stats.read()["ledger"]["ring_closed"] == 1


def test_the_control_thread_counts_what_it_drops_where_the_data_plane_does() -> None:
    stats = Stats()
    for _ in range(2):
        stats.count("states_lost")
    stats.count("log_outgrown", 7)
    stats.gauge("log_disk_bytes", 9)
    read = stats.read()
    assert (read["counters"]["states_lost"], read["counters"]["log_outgrown"]) == (2, 7)
    assert read["gauges"]["log_disk_bytes"] == 9


def test_another_process_reads_the_counters_through_the_shared_memory() -> None:
    fd = os.memfd_create("ledger-test")
    try:
        os.ftruncate(fd, STATS_BYTES)
        stats = Stats(fd)
        table = ConnectionTable(stats)
        handle = table.acquire()
        assert handle is not None
        with mmap.mmap(fd, STATS_BYTES) as theirs:
            table.release(handle)
            seen = ledger.read(theirs)
    finally:
        os.close(fd)
    assert seen == stats.read()
    assert seen["ledger"]["connection_opened"] == seen["ledger"]["connection_closed"] == 1
    assert seen["counters"]["entered_accepted"] == seen["counters"]["entered_closed"] == 1


def test_every_word_stands_for_at_most_one_name() -> None:
    """Count up one word after the other: each must change one number, or be unused."""
    words = bytearray(STATS_BYTES)
    nothing = ledger.read(words)
    changed: set[tuple[str, str]] = set()
    for place in range(STATS_BYTES // 8):
        words[8 * place] = 1
        now = ledger.read(words)
        words[8 * place] = 0
        differing = {(part, name) for part in now for name in now[part] if now[part][name] != nothing[part][name]}
        assert len(differing) <= 1
        assert not differing & changed
        changed |= differing
    assert changed == {(part, name) for part in nothing for name in nothing[part]}


@pytest.mark.parametrize(
    ("ms", "bucket"),
    [(0, "1"), (1, "1"), (2, "2"), (3, "5"), (500, "500"), (501, "1000"), (10_000, "10000"), (10_001, "inf")],
)
def test_a_time_is_counted_once_in_the_first_bucket_that_holds_it(ms: int, bucket: str) -> None:
    stats = Stats()
    took(stats, ledger.TIMES.index("welcome"), ms)
    seen = {name: count for name, count in stats.read()["times"].items() if count}
    assert seen == {f"welcome_{bucket}": 1, **({"welcome_sum": ms} if ms else {})}


@pytest.mark.parametrize("info", TABLE, ids=lambda info: info.name)
def test_each_code_of_an_error_has_its_own_count(info: CodeInfo) -> None:
    stats = Stats()
    failed(stats, info.number)
    assert {name: count for name, count in stats.read()["errors"].items() if count} == {info.name: 1}
    assert stats.read()["counters"]["errors_sent"] == 1


def test_short_memory_is_refused() -> None:
    with pytest.raises(Exception, match="requires a buffer"):
        ledger.read(bytes(STATS_BYTES - 1))
