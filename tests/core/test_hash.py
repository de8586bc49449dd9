"""SipHash-1-3 against its published vectors and CPython's own; the index against a multimap."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.hash import HashIndex, siphash13

# Under the key 00 01 … 0f, of the messages "", 00, 00 01 and 00 01 02: little-endian, as the authors print them.
VECTORS = ("dcc40f055801acab", "93ca577df39bf4c9", "4dd4c74d029bcb82", "fbf7dde7b80af88b")
K0, K1 = (int.from_bytes(bytes(half), "little") for half in (range(8), range(8, 16)))


@pytest.mark.parametrize(("size", "expected"), list(enumerate(VECTORS)))
def test_published_vectors(size: int, expected: str) -> None:
    assert siphash13(bytes(range(size)), K0, K1).to_bytes(8, "little").hex() == expected


def cpython_secret(seed: int) -> tuple[int, int]:
    """The key that CPython (from 3.11 on) draws from PYTHONHASHSEED (Python/bootstrap_hash.c, lcg_urandom)."""
    drawn, x = bytearray(), seed
    for _ in range(16):
        x = (x * 214013 + 2531011) & 0xFFFFFFFF
        drawn.append(x >> 16 & 0xFF)
    return int.from_bytes(drawn[:8], "little"), int.from_bytes(drawn[8:], "little")


@pytest.mark.parametrize("seed", [0, 7, 4294967295])
def test_the_hash_is_cpythons(seed: int) -> None:
    program = "for size in range(1, 70): print(hash(bytes(range(100, 100 + size))))"
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split()
    k0, k1 = cpython_secret(seed) if seed else (0, 0)
    ours = [siphash13(bytes(range(100, 100 + size)), k0, k1) for size in range(1, 70)]
    assert [int(value) % 2**64 for value in printed] == ours


# Few high halves, which are the homes: some share one, some are neighbours, and the last run around the table's end.
HIGHS = [0, 1, 2, 1 << 30, (1 << 30) + 1, 1 << 31, 0xF0000000, 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF]
HASHES = st.builds(lambda high, low: high << 32 | low, st.sampled_from(HIGHS), st.integers(0, 3))
VALUES = st.integers(0, 40) | st.just(2**32 - 3)


class IndexMachine(RuleBasedStateMachine):
    """Every pair put in is found under its hash until it is removed; nothing else is, but for equal high halves."""

    def __init__(self) -> None:
        super().__init__()
        self.index = HashIndex()
        self.pairs: list[tuple[int, int]] = []

    @rule(hash=HASHES, value=VALUES)
    def put(self, hash: int, value: int) -> None:
        self.index.put(hash, value)
        self.pairs.append((hash, value))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.pairs))
        # The same value may stand under two hashes only in this test; the index is then free to take either, so
        # keep values unique when removing.
        if sum(value == pair[1] for _, value in self.pairs) == 1:
            self.index.remove(*pair)
            self.pairs.remove(pair)

    @invariant()
    def agrees(self) -> None:
        assert len(self.index) == len(self.pairs)
        for hash in {hash for hash, _ in self.pairs}:
            mine = sorted(value for other, value in self.pairs if other == hash)
            found = self.index.find(hash)
            alike = [value for other, value in self.pairs if other >> 32 == hash >> 32]
            for value in mine:
                assert found.count(value) >= mine.count(value)
            assert all(found.count(value) <= alike.count(value) for value in found)


IndexMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestIndex = IndexMachine.TestCase


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=300), st.randoms())
@settings(max_examples=30, deadline=None)
def test_whatever_order_pairs_leave_in_the_others_stay(hashes: list[int], random) -> None:  # type: ignore[no-untyped-def]
    index = HashIndex()
    for value, hash in enumerate(hashes):
        index.put(hash, value)
    left = dict(enumerate(hashes))
    for value in random.sample(sorted(left), len(left) // 2):
        index.remove(left.pop(value), value)
    assert all(value in index.find(hash) for value, hash in left.items())
    assert len(index) == len(left)


def test_growing_by_quarters_loses_nothing() -> None:
    index = HashIndex()
    for value in range(5000):
        index.put(siphash13(b"%d" % value), value)
        if value % 97 == 0:
            assert all(other in index.find(siphash13(b"%d" % other)) for other in range(value + 1))
    for value in range(4999, -1, -1):
        index.remove(siphash13(b"%d" % value), value)
    assert len(index) == 0


def test_no_put_moves_much_of_a_large_table() -> None:
    index, moving, most, grew = HashIndex(), 0, 0, 0
    for value in range(100_000):
        index.put(siphash13(b"%d" % value), value)
        if index.moving > moving:
            grew += 1
        else:
            most = max(most, moving - index.moving)
        moving = index.moving
    assert 0 < most <= 32
    assert grew > 10


@given(st.randoms(use_true_random=False), st.integers(500, 1500))
@settings(max_examples=10, deadline=None)
def test_pairs_come_and_go_while_a_table_is_moved(random, size: int) -> None:  # type: ignore[no-untyped-def]
    def drawn() -> int:  # homes around the table's end among them
        tag: int = random.choice((random.getrandbits(32), random.randrange(8), 2**32 - 1 - random.randrange(8)))
        return tag << 32

    index, pairs = HashIndex(), dict[int, int]()
    while len(pairs) < size or not index.moving:
        pairs[len(pairs)] = random.getrandbits(64) if len(pairs) % 8 else drawn()
        index.put(pairs[len(pairs) - 1], len(pairs) - 1)
    value = len(pairs)
    while index.moving:
        for _ in range(random.randrange(8)):
            gone = random.choice(list(pairs))
            hash = pairs.pop(gone)
            index.remove(hash, gone)
            assert gone not in index.find(hash)
        pairs[value] = drawn()
        index.put(pairs[value], value)
        value += 1
        tags: dict[int, list[int]] = {}
        for other, hash in pairs.items():
            tags.setdefault(hash >> 32, []).append(other)
        assert all(sorted(index.find(tag << 32)) == sorted(found) for tag, found in tags.items())
    for other, hash in pairs.items():
        index.remove(hash, other)
    assert len(index) == 0


def test_nothing_is_found_in_an_empty_index_or_under_another_hash() -> None:
    index = HashIndex()
    assert index.find(5) == []
    index.put(5 << 32 | 1, 7)
    assert index.find(6 << 32 | 1) == []
    index.remove(5 << 32 | 1, 7)
    assert index.find(5 << 32 | 1) == []
    with pytest.raises(KeyError):
        index.remove(5 << 32 | 1, 7)
