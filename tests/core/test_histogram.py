"""The histogram knows a value to 1.6 %, keeps every one, and tells each exactly once."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from core.histogram import Times

VALUES = st.integers(0, 2**64 - 1)


@given(VALUES)
def test_a_value_comes_back_within_its_bucket(value: int) -> None:
    times = Times()
    times.add(value)
    [(told, count)] = times.take()
    assert count == 1
    assert abs(told - value) <= max(value / 64, 0)


@given(st.lists(st.lists(VALUES, max_size=20), max_size=5))
def test_each_value_is_told_once(batches: list[list[int]]) -> None:
    times = Times()
    for batch in batches:
        for value in batch:
            times.add(value)
        told = times.take()
        assert sum(count for _, count in told) == len(batch)
        assert [value for value, _ in told] == sorted(value for value, _ in told)
    assert times.take() == []


def test_small_values_are_exact_and_neighbours_differ() -> None:
    times = Times()
    for value in range(128):
        times.add(value)
    assert Counter(dict(times.take())) == Counter(range(128))
