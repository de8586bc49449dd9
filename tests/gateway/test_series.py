"""Samples in bounded memory: nothing is lost of a line's shape when neighbours are merged."""

import math

import pytest

from gateway.growth import fit
from gateway.series import ROWS_MAX, Series


def test_rows_are_as_given_until_there_are_too_many() -> None:
    series = Series(window_s=1e9)
    for place in range(ROWS_MAX - 1):
        series.add(float(place), {"fds": place * 2})
    times, (values,) = series.column("fds")
    assert list(times) == [float(place) for place in range(ROWS_MAX - 1)]
    assert list(values) == [2.0 * place for place in range(ROWS_MAX - 1)]
    assert series.last("fds") == 2 * (ROWS_MAX - 2)
    assert math.isnan(series.last("tasks"))


def test_it_stays_bounded_and_keeps_the_line() -> None:
    series = Series(window_s=1e9)
    for place in range(20 * ROWS_MAX):
        series.add(float(place), {"fds": 100 + 3 * place})
        assert len(series) < ROWS_MAX
    assert len(series) >= ROWS_MAX // 2 - 1
    times, (values,) = series.column("fds")
    assert fit(times, values).per_day == pytest.approx(3 * 86_400, rel=1e-4)
    assert series.span_s > 19 * ROWS_MAX


def test_what_is_older_than_the_window_goes() -> None:
    series = Series(window_s=10)
    for place in range(50):
        series.add(float(place), {"fds": place})
    times, _ = series.column("fds")
    assert list(times) == [float(place) for place in range(39, 50)]
    assert series.span_s == 10


def test_what_a_sample_lacks_is_left_out() -> None:
    series = Series(window_s=1e9)
    series.add(0.0, {"fds": 1})
    series.add(1.0, {"fds": 2, "tasks": 7})
    series.add(2.0, {"tasks": 8})
    series.add(3.0, {"fds": 4, "tasks": 9})
    assert series.column("fds")[0] == (0.0, 1.0, 3.0)
    times, (fds, tasks) = series.column("fds", "tasks")
    assert (times, fds, tasks) == ((1.0, 3.0), (2.0, 4.0), (7.0, 9.0))
    assert series.names == ["fds", "tasks"]


def test_what_is_never_known_has_no_rows() -> None:
    series = Series(window_s=1e9)
    series.add(0.0, {"fds": 1})
    series.add(1.0, {"tasks": 1})
    assert series.column("fds", "tasks") == ((), [(), ()])
