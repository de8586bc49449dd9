"""Shared buffers: freed by the last release; an arena starts over only when nobody points into it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.buffer import SharedBuffer, WireArena
from core.ledger import Stats

ARENA = 65536


def live(stats: Stats) -> int:
    ledger = stats.read()["ledger"]
    return ledger["buffer_opened"] - ledger["buffer_closed"]


@pytest.mark.parametrize("retained", [0, 1, 5])
def test_the_last_release_frees(retained: int) -> None:
    stats = Stats()
    buffer = SharedBuffer(stats, b"shared")
    for _ in range(retained):
        buffer.retain()
    for _ in range(retained):
        assert buffer.release() is False
        assert live(stats) == 1
    assert buffer.refs == 1
    assert buffer.release() is True
    assert buffer.refs == 0
    assert live(stats) == 0


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_messages_stand_behind_each_other_until_the_buffer_is_full(sizes: list[int]) -> None:
    stats = Stats()
    arena, used = WireArena(stats), 0
    for size in sizes:
        used = 0 if used + size > ARENA else used
        assert arena.write(b"x" * size) == (used, 1)
        used += size
    # Nobody else points here, so buffers that were left are gone already.
    assert live(stats) == 1
    arena.rest(False)
    assert live(stats) == 0


def test_a_resting_arena_is_written_from_its_front_again() -> None:
    stats = Stats()
    arena = WireArena(stats)
    arena.write(b"first")
    arena.rest(True)
    assert arena.write(b"second") == (0, 1)
    assert stats.read()["ledger"]["buffer_opened"] == 1
    arena.rest(False)
    arena.rest(False)
    assert live(stats) == 0


def test_a_message_longer_than_the_arena_gets_a_buffer_that_is_not_kept() -> None:
    stats = Stats()
    arena = WireArena(stats)
    assert arena.write(b"x" * (ARENA + 1)) == (0, 1)
    arena.rest(True)
    assert live(stats) == 0
