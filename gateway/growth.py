"""How much something grows a day, and how sure that is: samples in, fit out; no clock, no process, no state.

The model of one series is

    value(t) = level + growth * t + sum of share * load(t) + sum of height * [t >= step] + noise

and only `growth` is a leak. What follows the load (memory of connections) is taken by its shares: when growth and load
cannot be told apart, the interval of the growth widens by itself (partial regression; Frisch & Waugh 1933, Lovell
1963). A load also counts with its highest value so far, because an allocator keeps the pages of its busiest moment. A
step upwards (a cache that was filled, an arena that was added) is a term of its own when it is far beyond the noise, at
most STEPS_MAX of them; one downwards is not, since it gives back what grew before (a saw tooth).

Against single bursts the samples are first gathered into at most BLOCKS_MAX medians. Against waves and saw teeth, whose
neighbours are alike and so say less than their number, the standard error is that of the effective number of samples,
n * (1 - r) / (1 + r) with the lag-1 autocorrelation r of the residuals (Santer et al. 2000, "Statistical significance
of trends", eq. 6), r corrected by its bias in short series about a line, (2 + 4 r) / n.

Before a series is called growing, the growth has to stay beside one more step, however small, and must not have stopped
in the second half. A series of less than about one period of a wave or saw tooth that no load explains may still be
called growing: nothing in it tells otherwise.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

GROWING: Final = "growing"
STEADY: Final = "not distinguishable from 0"
TOO_FEW: Final = "too few samples"

DAY_S = 86_400.0
SAMPLES_MIN = 12
BLOCKS_MAX = 48
STEPS_MAX = 2
# The largest of some 40 jumps in mere noise has |t| beyond this in less than one series of a hundred.
STEP_T_MIN = 4.5
# A column of which less than this share is left beside the others says nothing of its own.
_INDEPENDENT_MIN = 1e-9
_CORRELATION_MAX = 0.99


@dataclass(frozen=True)
class Growth:
    """The growth of one series: an estimate a day, and the interval that holds it at the asked confidence.

    In the unit of the values: `per_day`, `low`, `high`, `level` (their median). The `relative_` ones are shares of
    the level a day: 0.01 is 1 % a day. `steps_s` are the times of the steps that were set aside.
    """

    verdict: str
    per_day: float
    low: float
    high: float
    level: float
    relative_per_day: float
    relative_low: float
    relative_high: float
    confidence: float
    samples: int
    span_s: float
    steps_s: tuple[float, ...] = ()

    @property
    def growing(self) -> bool:
        """Whether it grows at the asked confidence, and goes on doing so."""
        return self.verdict == GROWING


def fit(
    times_s: Sequence[float],
    values: Sequence[float],
    confidence: float = 0.95,
    *,
    load: Sequence[Sequence[float]] = (),
    level_min: float = 1e-9,
) -> Growth:
    """The growth of a series.

    Args:
        times_s: seconds, rising; the intervals may differ.
        values: one a time, in any unit.
        confidence: of the two-sided interval; a steady series is called growing in (1 - confidence) / 2 of all cases
            at most.
        load: what the values may follow without leaking, such as the number of connections; each as long as `values`.
        level_min: the relative growth is a share of this when the level is less.

    Raises:
        ValueError: the lengths differ, or the confidence is not between 0 and 1.

    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    if any(len(series) != len(times_s) for series in (values, *load)):
        raise ValueError("times, values and load differ in length")
    span_s = times_s[-1] - times_s[0] if len(times_s) else 0.0
    level = statistics.median(values) if len(values) else 0.0
    if len(values) < SAMPLES_MIN or span_s <= 0:
        return _growth(TOO_FEW, _Slope(0.0, 0.0), level, level_min, confidence, len(values), span_s)
    if min(values) == max(values):
        return _growth(STEADY, _Slope(0.0, 0.0), level, level_min, confidence, len(values), span_s)
    loads = [series for given in load for series in (list(given), _highest(given))]
    times, points, columns = _blocks(times_s, values, loads)
    steps = _steps(times, points, columns, confidence)
    slope = _slope(times, points, [*columns, *(_step(times, at_s) for at_s in steps)], confidence)
    goes_on = (
        slope.low > 0
        and _beside_a_step(times, points, columns, steps, confidence).low > 0
        and not _settled(times, points, columns, confidence)
    )
    verdict = GROWING if goes_on else STEADY
    return _growth(verdict, slope, level, level_min, confidence, len(values), span_s, tuple(steps))


def student_t(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's t (Hill 1970, Algorithm 396); `freedom` is 1 or more, whole or not."""
    outside = 1 - confidence
    if freedom <= 1:
        return 1 / math.tan(outside * math.pi / 2)
    if freedom == 2:
        return math.sqrt(2 / (outside * (2 - outside)) - 2)
    a = 1 / (freedom - 0.5)
    b = 48 / (a * a)
    c = ((20_700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * freedom
    y = (d * outside) ** (2 / freedom)
    if y > 0.05 + a:
        x = statistics.NormalDist().inv_cdf(outside / 2)
        y = x * x
        if freedom < 5:
            c += 0.3 * (freedom - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = (
            1 / (((freedom + 6) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2) * 3) + 0.5 / (freedom + 4)
        ) * y - 1
        y = y * (freedom + 1) / (freedom + 2) + 1 / ((d * outside) ** (2 / freedom))
    return math.sqrt(freedom * y)


# --------------------------------------------------------------------------------------------------- one regression


@dataclass(frozen=True)
class _Slope:
    """A slope a second and half the width of its interval."""

    value: float
    margin: float

    @property
    def low(self) -> float:
        return self.value - self.margin

    @property
    def high(self) -> float:
        return self.value + self.margin


def _slope(
    times: Sequence[float],
    points: Sequence[float],
    columns: Sequence[Sequence[float]],
    confidence: float,
    *,
    independent: bool = False,
) -> _Slope:
    """The slope of `points` over `times` beside the other columns."""
    beside = _independent(columns)
    across = _left(_centred(times), beside)
    rest = _left(_centred(points), beside)
    weight = _dot(across, across)
    if weight <= _INDEPENDENT_MIN * _dot(_centred(times), _centred(times)):
        # Time cannot be told from the load at all: any slope within the values' range may be the load's.
        return _Slope(0.0, (max(points) - min(points)) / (times[-1] - times[0]))
    value = _dot(across, rest) / weight
    noise = [one - value * place for one, place in zip(rest, across, strict=True)]
    samples = len(noise) if independent else _effective(noise)
    freedom = max(samples - 2.0 - len(beside), 1.0)
    return _Slope(value, student_t(confidence, freedom) * math.sqrt(_dot(noise, noise) / freedom / weight))


def _effective(noise: Sequence[float]) -> float:
    """How many independent samples say as much as these."""
    count = len(noise)
    power = _dot(noise, noise)
    if power == 0:
        return float(count)
    alike = _dot(noise[:-1], noise[1:]) / power
    alike += (2 + 4 * alike) / count
    alike = min(max(alike, 0.0), _CORRELATION_MAX)
    return count * (1 - alike) / (1 + alike)


def _independent(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """The columns, centred, each without what the ones before it say, and none that says nothing (Gram-Schmidt)."""
    kept: list[list[float]] = []
    for column in columns:
        centred = _centred(column)
        left = _left(centred, kept)
        if _dot(left, left) > _INDEPENDENT_MIN * max(_dot(centred, centred), 1e-300):
            kept.append(left)
    return kept


def _left(column: list[float], beside: Sequence[list[float]]) -> list[float]:
    """What is left of a centred column without its shares of the others, which are independent of each other."""
    for other in beside:
        share = _dot(column, other) / _dot(other, other)
        column = [one - share * two for one, two in zip(column, other, strict=True)]
    return column


def _centred(column: Sequence[float]) -> list[float]:
    mean = math.fsum(column) / len(column)
    return [one - mean for one in column]


def _dot(one: Sequence[float], two: Sequence[float]) -> float:
    return sum(map(float.__mul__, one, two))


# ------------------------------------------------------------------------------------------------ what is not growth


def _steps(
    times: Sequence[float], points: Sequence[float], columns: Sequence[Sequence[float]], confidence: float
) -> list[float]:
    """The times at which the series jumped by more than its noise and its growth explain, at most STEPS_MAX."""
    found: list[float] = []
    while len(found) < STEPS_MAX:
        beside = _independent([*columns, list(times), *(_step(times, at_s) for at_s in found)])
        rest = _left(_centred(points), beside)
        at_s = times[_jump(rest)]
        step = _left(_centred(_step(times, at_s)), beside)
        weight = _dot(step, step)
        if at_s in found or weight <= _INDEPENDENT_MIN * len(times):
            break
        height = _dot(step, rest) / weight
        noise = [one - height * two for one, two in zip(rest, step, strict=True)]
        freedom = max(len(times) - len(beside) - 2, 1)
        if height * math.sqrt(weight) <= STEP_T_MIN * math.sqrt(_dot(noise, noise) / freedom):
            break
        found.append(at_s)
    return sorted(found)


def _beside_a_step(
    times: Sequence[float],
    points: Sequence[float],
    columns: Sequence[Sequence[float]],
    steps: Sequence[float],
    confidence: float,
) -> _Slope:
    """The slope beside one more step, even one too small to tell from the noise: half of one looks like growth."""
    columns = [*columns, *(_step(times, at_s) for at_s in steps)]
    rest = _left(_centred(points), _independent(columns))
    return _slope(times, points, [*columns, _step(times, times[_jump(rest)])], confidence)


def _jump(rest: Sequence[float]) -> int:
    """Where the means of some neighbours before and after a place differ most; the place is the first one after."""
    width = max(1, len(rest) // 12)
    sums = [0.0]
    for one in rest:
        sums.append(sums[-1] + one)
    return max(range(width, len(rest) - width + 1), key=lambda at: sums[at + width] - 2 * sums[at] + sums[at - width])


def _step(times: Sequence[float], at_s: float) -> list[float]:
    return [float(time_s >= at_s) for time_s in times]


def _settled(
    times: Sequence[float], points: Sequence[float], columns: Sequence[Sequence[float]], confidence: float
) -> bool:
    """Whether what grew has stopped: the second half alone surely grows less than half as fast as the whole."""
    whole = _slope(times, points, columns, confidence)
    half = len(times) // 2
    later = [column[half:] for column in columns]
    # Its noise is taken for independent: what levels off is no line, and would seem to be all correlation.
    second = _slope(times[half:], points[half:], later, confidence, independent=True)
    return second.high < whole.value / 2


def _highest(series: Sequence[float]) -> list[float]:
    highest, found = -math.inf, []
    for one in series:
        highest = max(highest, one)
        found.append(float(highest))
    return found


def _blocks(
    times: Sequence[float], values: Sequence[float], loads: Sequence[Sequence[float]]
) -> tuple[list[float], list[float], list[list[float]]]:
    """Neighbours gathered into at most BLOCKS_MAX: medians of the values, means of the times and loads.

    What the values owe to the loads is taken off before, since a median of sums is not the sum of the medians.
    """
    size = math.ceil(len(values) / BLOCKS_MAX)
    rest = _without_loads(times, values, loads)
    # A last block of less than half the size would weigh too much.
    starts = range(0, len(values) - size // 2, size)

    def gathered(series: Sequence[float], centre: Callable[[Sequence[float]], float]) -> list[float]:
        return [float(centre(series[start : start + size])) for start in starts]

    return (
        gathered(times, statistics.fmean),
        gathered(rest, statistics.median),
        [gathered(load, statistics.fmean) for load in loads],
    )


def _without_loads(times: Sequence[float], values: Sequence[float], loads: Sequence[Sequence[float]]) -> list[float]:
    """The values less each load times its share, the shares being those beside a line over time."""
    beside = _independent(loads)
    straight = _centred(times)
    across = _left(straight, beside)
    rest = _left(_centred(values), beside)
    weight = _dot(across, across)
    if weight <= _INDEPENDENT_MIN * _dot(straight, straight):
        return _centred(values)  # nobody knows the shares then
    slope = _dot(across, rest) / weight
    return [one + slope * (time - left) for one, time, left in zip(rest, straight, across, strict=True)]


def _growth(
    verdict: str,
    slope: _Slope,
    level: float,
    level_min: float,
    confidence: float,
    samples: int,
    span_s: float,
    steps_s: tuple[float, ...] = (),
) -> Growth:
    base = max(abs(level), level_min)
    per_day, low, high = (DAY_S * one for one in (slope.value, slope.low, slope.high))
    return Growth(
        verdict,
        per_day,
        low,
        high,
        float(level),
        per_day / base,
        low / base,
        high / base,
        confidence,
        samples,
        span_s,
        steps_s,
    )
