"""Samples of one process over time, in bounded memory: columns of numbers by name, with one column of times.

Invariant: at most ROWS_MAX rows. When that is reached, neighbours are merged into their means, two by two, and from
then on a row is the mean of twice as many samples. What a sample lacks is NaN and left out by `column`.
"""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence

ROWS_MAX = 512


class Series:
    """The samples of one process.

    Args:
        window_s: rows that are older than this, measured from the newest, are dropped.

    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._times = array("d")
        # Single precision: 6e-8 of a value is far below any noise, and it halves what a thousand columns take.
        self._columns: dict[str, array[float]] = {}
        self._each = 1
        self._open: list[tuple[float, Mapping[str, float]]] = []

    def __len__(self) -> int:
        return len(self._times)

    @property
    def names(self) -> list[str]:
        return list(self._columns)

    @property
    def span_s(self) -> float:
        """From the oldest row to the newest."""
        return self._times[-1] - self._times[0] if self._times else 0.0

    def add(self, time_s: float, values: Mapping[str, float]) -> None:
        """One sample; times must rise."""
        self._open.append((time_s, values))
        if len(self._open) < self._each:
            return
        self._append(self._open)
        self._open = []
        oldest = sum(time < time_s - self._window_s for time in self._times)
        if oldest:
            self._keep(lambda column: column[oldest:])
        if len(self._times) >= ROWS_MAX:
            self._merge()

    def column(self, name: str, *beside: str) -> tuple[Sequence[float], list[Sequence[float]]]:
        """The times and values of one column with those beside it, at which all of them are known."""
        columns = [self._columns[one] for one in (name, *beside)]
        rows = [row for row in zip(self._times, *columns, strict=True) if not any(map(math.isnan, row))]
        times, *values = zip(*rows, strict=True) if rows else [()] * (2 + len(beside))
        return times, list(values)

    def last(self, name: str) -> float:
        """The newest value of a column; NaN when there is none."""
        column = self._columns.get(name)
        return column[-1] if column else math.nan

    def _append(self, samples: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        for name in {name for _, values in samples for name in values} - self._columns.keys():
            self._columns[name] = array("f", [math.nan] * len(self._times))
        self._times.append(math.fsum(time for time, _ in samples) / len(samples))
        for name, column in self._columns.items():
            column.append(_mean([values[name] for _, values in samples if name in values]))

    def _merge(self) -> None:
        def halved(column: "array[float]") -> "array[float]":
            pairs = zip(column[::2], column[1::2], strict=False)
            return array(column.typecode, [_mean([one for one in pair if not math.isnan(one)]) for pair in pairs])

        assert len(self._times) % 2 == 0
        self._keep(halved)
        self._each *= 2

    def _keep(self, part: Callable[["array[float]"], "array[float]"]) -> None:
        self._times = part(self._times)
        self._columns = {name: part(column) for name, column in self._columns.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
