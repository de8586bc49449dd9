"""Slab pool: indexes are unique while live, what is written stays, and empty chunks are given back."""

import os
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.ledger import CHECKED
from core.slab import SlabPool

SIZE = 24
PAGE = os.sysconf("SC_PAGE_SIZE")
LIVE_MAX = 37


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class SlabMachine(RuleBasedStateMachine):
    """Acquire and release in any order against a dict of what each live object holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SlabPool(SIZE, 2, LIVE_MAX)
        self.live: dict[int, bytes] = {}
        self.number = 0

    @rule(count=st.integers(1, 20))
    def acquire(self, count: int) -> None:
        for _ in range(count):
            index = self.pool.acquire()
            if len(self.live) == LIVE_MAX:
                assert index is None
                continue
            assert index is not None
            assert index not in self.live
            self.number += 1
            self.live[index] = self.number.to_bytes(SIZE, "big")
            self.pool.write(index, self.live[index])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        for index in data.draw(st.lists(st.sampled_from(sorted(self.live)), unique=True)):
            del self.live[index]
            self.pool.release(index)

    @invariant()
    def agrees(self) -> None:
        assert self.pool.check()
        assert self.pool.live == len(self.live)
        for index, data in self.live.items():
            assert self.pool.read(index) == data
        chunks = {index >> 2 for index in self.live}
        assert len(chunks) <= self.pool.chunks_with_memory <= len(chunks) + 1  # one is kept for the next acquire


SlabMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSlab = SlabMachine.TestCase


def test_all_memory_of_large_chunks_is_given_back_and_used_again() -> None:
    pool = SlabPool(64, 9)  # 32 KiB a chunk
    for _ in range(3):
        indexes = [pool.acquire() for _ in range(5000)]
        assert pool.chunks_with_memory == 10
        for index in indexes:
            assert index is not None
            pool.release(index)
        assert pool.chunks_with_memory == 0
        # The chunks' numbers come back as well: an index stays small however often memory was given back.
        assert max(index for index in indexes if index is not None) < 5120


def test_one_small_chunk_stays_for_the_next_turn() -> None:
    pool = SlabPool(64, 3)
    indexes = [pool.acquire() for _ in range(100)]
    for index in indexes:
        assert index is not None
        pool.release(index)
    assert pool.chunks_with_memory == 1
    assert pool.check()


def test_what_was_never_acquired_is_not_touched() -> None:
    pool = SlabPool(4096, 12)  # 16 MiB
    before = resident_bytes()
    pool.acquire()
    assert resident_bytes() - before < 1 << 20


if CHECKED:  # a release build does not poison

    def test_a_released_object_carries_nothing_over() -> None:
        pool = SlabPool(SIZE, 2)
        kept, index = pool.acquire(), pool.acquire()
        assert kept is not None
        assert index is not None
        pool.write(index, b"secret" * 4)
        pool.release(index)
        assert pool.read(index)[4:] == b"\xdd" * (SIZE - 4)
