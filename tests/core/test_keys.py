"""Idempotency keys against a dict, on a clock that the test advances."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.keys import KeyTable
from core.ledger import Stats

WINDOW = 1000
KEYS_MAX = 300
BLOCK = 4096
STEP = 4
SWEPT = 4096


class KeysMachine(RuleBasedStateMachine):
    """The first position inside the window stands; after it, or when too many came since, the key is new."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = Stats()
        self.table = KeyTable(self.stats, keys_max=KEYS_MAX, window_ms=WINDOW)
        self.now = 10**12
        self.kept: dict[bytes, tuple[tuple[int, int], int]] = {}  # in the order in which they came
        self.offset = 0

    def publish_one(self, key: bytes) -> None:
        self.kept = {name: entry for name, entry in self.kept.items() if entry[1] + WINDOW >= self.now}
        self.offset += 1
        known = key in self.kept
        position = self.table.publish(b"group:a", b"alice", key, (3, self.offset), self.now)
        if not known:
            if len(self.kept) == KEYS_MAX:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = ((3, self.offset), self.now)
        assert position == self.kept[key][0]

    @rule(number=st.integers(0, 20))
    def publish(self, number: int) -> None:
        self.publish_one(b"key%d" % number)

    @rule(first=st.integers(0, 5000), count=st.integers(1, 400))
    def publish_many(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.publish_one(b"key%d" % number)

    @rule(by=st.sampled_from([0, 1, WINDOW // 2, WINDOW, WINDOW + 1]))
    def advance(self, by: int) -> None:
        self.now += by

    @invariant()
    def agrees(self) -> None:
        ledger = self.stats.read()["ledger"]
        assert ledger["key_opened"] - ledger["key_closed"] == len(self.table) <= KEYS_MAX


KeysMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestKeys = KeysMachine.TestCase


def test_a_key_is_one_only_with_its_channel_and_its_sender() -> None:
    table, now = KeyTable(Stats()), 5
    names = [
        (b"group:a", b"alice", b"1"),
        (b"group:b", b"alice", b"1"),
        (b"group:a", b"bob", b"1"),
        # The same bytes in all, cut elsewhere.
        (b"group:aa", b"lice", b"1"),
        (b"group:a", b"alice1", b""),
        (b"group:", b"aalice", b"1"),
    ]
    for offset, name in enumerate(names, 1):
        assert table.publish(*name, (1, offset), now) == (1, offset)
    for offset, name in enumerate(names, 1):
        assert table.publish(*name, (1, 99), now) == (1, offset)


def test_the_window_includes_its_last_millisecond() -> None:
    table = KeyTable(Stats(), window_ms=WINDOW)
    assert table.publish(b"group:a", b"", b"k", (1, 1), 50) == (1, 1)
    assert table.publish(b"group:a", b"", b"k", (1, 2), 50 + WINDOW) == (1, 1)
    assert table.publish(b"group:a", b"", b"k", (1, 3), 51 + WINDOW) == (1, 3)


@pytest.mark.parametrize("sizes", [(255, 255, 64)])
def test_the_longest_names_fit(sizes: tuple[int, int, int]) -> None:
    parts = [b"x" * size for size in sizes]
    assert KeyTable(Stats()).publish(parts[0], parts[1], parts[2], (1, 1), 0) == (1, 1)


@pytest.mark.parametrize("sizes", [(256, 0, 1), (1, 256, 1), (1, 1, 65)])
def test_longer_ones_are_refused(sizes: tuple[int, int, int]) -> None:
    parts = [b"x" * size for size in sizes]
    with pytest.raises(ValueError, match="too long"):
        KeyTable(Stats()).publish(parts[0], parts[1], parts[2], (1, 1), 0)


def test_the_ledger_is_closed_with_the_table() -> None:
    stats = Stats()
    table = KeyTable(stats)
    for number in range(1000):
        table.publish(b"group:a", b"", b"%d" % number, (1, number), 0)
    del table
    ledger = stats.read()["ledger"]
    assert ledger["key_opened"] == ledger["key_closed"] == 1000


def fill(table: KeyTable, first: int, last: int, now: int = 0) -> None:
    for number in range(first, last + 1):
        assert table.publish(b"group:a", b"", b"%d" % number, (1, number), now) == (1, number)


def test_no_key_makes_room_for_more_than_a_block_of_them() -> None:
    """A ring that was copied into one of twice the size held a turn up for 70 ms at half a million keys."""
    table = KeyTable(Stats())
    blocks = []
    for number in range(4 * BLOCK):
        fill(table, number, number)
        blocks.append(table.blocks)
    assert blocks == [1 + number // BLOCK for number in range(4 * BLOCK)]


def test_around_the_ring_the_newest_are_known_and_blocks_go_with_the_oldest() -> None:
    table = KeyTable(Stats(), keys_max=BLOCK + 100)
    fill(table, 1, 10 * BLOCK)
    assert (len(table), table.blocks) == (BLOCK + 100, 2)
    fill(table, 1, 1)  # it was forgotten, and the oldest is now
    for number in range(9 * BLOCK - 98, 10 * BLOCK + 1):
        assert table.publish(b"group:a", b"", b"%d" % number, (2, 2), 0) == (1, number)


def test_keys_that_are_over_go_a_few_at_a_time_and_do_not_count_meanwhile() -> None:
    """Half a million that were over at once held a turn up for 40 ms."""
    stats = Stats()
    table = KeyTable(stats, window_ms=WINDOW)
    count = 3 * BLOCK
    fill(table, 1, count)
    later = WINDOW + 1
    fill(table, count, count, later)
    left = count + 1 - 2 * STEP
    assert len(table) == left
    table.sweep(later)
    assert len(table) == left - SWEPT
    assert table.blocks == 3
    fill(table, count - 100, count - 1, later)
    table.sweep(later)
    table.sweep(later)
    assert (len(table), table.blocks) == (101, 1)
    assert table.publish(b"group:a", b"", b"%d" % count, (2, 2), later) == (1, count)
    ledger = stats.read()["ledger"]
    assert ledger["key_opened"] - ledger["key_closed"] == 101
