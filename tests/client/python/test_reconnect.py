"""When and how to come back."""

import random

import pytest
from holdfast_client import Backoff, CloseClass, Closed
from holdfast_client.reconnect import Plan, plan
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 10_000), st.integers())
def test_backoff_stays_within_its_bounds(attempt: int, seed: int) -> None:
    delay_s = Backoff(0.5, 30.0).delay_s(attempt, random.Random(seed))
    assert 0 <= delay_s <= min(30.0, 0.5 * 2 ** min(attempt, 20))


def test_jitter_is_full_and_grows() -> None:
    source = random.Random(1)
    means = [sum(Backoff(1.0, 8.0).delay_s(attempt, source) for _ in range(500)) / 500 for attempt in range(5)]
    assert means == [pytest.approx(expected, rel=0.15) for expected in (0.5, 1.0, 2.0, 4.0, 4.0)]


def test_the_gateways_word_comes_first() -> None:
    closed = Closed(1, "draining", CloseClass.RESUME, after_ms=1500, target="tcp://b:1")
    assert plan(closed, 0, Backoff(), random.Random(1)) == Plan(CloseClass.RESUME, 1.5)
    assert plan(closed, 3, Backoff(), random.Random(1)).delay_s > 1.5


def test_stop_is_stop() -> None:
    assert plan(Closed(603, "banned", CloseClass.STOP), 0, Backoff(), random.Random(1)).class_ is CloseClass.STOP
