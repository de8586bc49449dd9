"""The growth fit: leaks in synthetic series are found, and what only looks like one is not accused too often."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.growth import DAY_S, GROWING, SAMPLES_MIN, STEADY, TOO_FEW, Growth, fit, student_t

LEVEL = 1_000.0
Series = Callable[[random.Random, list[float]], list[float]]


def days(samples: int, span_days: float = 1.0) -> list[float]:
    """Equally spaced times, in days."""
    return [span_days * place / (samples - 1) for place in range(samples)]


def fitted(series: Series, seed: int, samples: int = 288) -> Growth:
    at = days(samples)
    return fit([DAY_S * day for day in at], series(random.Random(seed), at))


def share_growing(series: Series, seeds: int = 100, samples: int = 288) -> float:
    return sum(fitted(series, seed, samples).growing for seed in range(seeds)) / seeds


def noise(rng: random.Random, count: int, deviation: float, memory: float = 0.0) -> list[float]:
    """An autoregressive process of first order; `memory` 0 is white, 1 a random walk."""
    value, found = 0.0, []
    for _ in range(count):
        value = memory * value + rng.gauss(0, deviation)
        found.append(value)
    return found


def leak(per_day: float, deviation: float, memory: float = 0.0) -> Series:
    def series(rng: random.Random, at: list[float]) -> list[float]:
        noises = noise(rng, len(at), deviation, memory)
        return [LEVEL * (1 + per_day * day) + one for day, one in zip(at, noises, strict=True)]

    return series


def wave(periods: float) -> Series:
    def series(rng: random.Random, at: list[float]) -> list[float]:
        phase = rng.uniform(0, math.tau)
        return [LEVEL + 100 * math.sin(phase + math.tau * periods * day) + rng.gauss(0, 1) for day in at]

    return series


def saw_tooth(periods: float) -> Series:
    def series(rng: random.Random, at: list[float]) -> list[float]:
        phase = rng.random()
        return [LEVEL + 100 * ((phase + periods * day) % 1) + rng.gauss(0, 1) for day in at]

    return series


def step(height: float) -> Series:
    def series(rng: random.Random, at: list[float]) -> list[float]:
        place = rng.random()
        return [LEVEL + height * (day >= place) + rng.gauss(0, 1) for day in at]

    return series


def warm_up(share: float) -> Series:
    """Growth that levels off, within `share` of the window by two thirds."""

    def series(rng: random.Random, at: list[float]) -> list[float]:
        return [LEVEL + 100 * (1 - math.exp(-day / share)) + rng.gauss(0, 1) for day in at]

    return series


def stairs(count: int) -> Series:
    """A leak that an allocator shows in `count` steps."""

    def series(rng: random.Random, at: list[float]) -> list[float]:
        phase = rng.random()
        return [LEVEL + 50 * math.floor(phase + count * day) + rng.gauss(0, 1) for day in at]

    return series


@pytest.mark.parametrize("per_day", [0.005, 0.01, 0.1, 2.0])
def test_a_leak_with_noise_is_found(per_day: float) -> None:
    assert share_growing(leak(per_day, deviation=1.0), seeds=50) > 0.9


def test_a_leak_with_correlated_noise_is_found() -> None:
    assert share_growing(leak(0.05, deviation=1.0, memory=0.8), seeds=50) > 0.9


def test_the_interval_holds_the_true_growth() -> None:
    fits = [fitted(leak(0.01, deviation=1.0), seed) for seed in range(200)]
    holds = sum(one.low <= 0.01 * LEVEL <= one.high for one in fits) / len(fits)
    assert 0.9 <= holds <= 0.99
    assert all(abs(one.relative_per_day - 0.01) < 0.003 for one in fits)


@pytest.mark.parametrize("samples", [24, 60, 288])
def test_noise_is_accused_no_oftener_than_stated(samples: int) -> None:
    assert share_growing(leak(0, deviation=10.0), seeds=300, samples=samples) <= 0.025
    assert share_growing(leak(0, deviation=10.0, memory=0.7), seeds=300, samples=samples) <= 0.025


def test_a_random_walk_is_seldom_accused() -> None:
    # It does drift, only without end in one direction; the rate is above the stated one and known.
    assert share_growing(leak(0, deviation=1.0, memory=1.0), seeds=300) <= 0.06


@pytest.mark.parametrize("periods", [1, 1.5, 2, 3, 7])
def test_a_daily_wave_is_no_growth(periods: float) -> None:
    assert share_growing(wave(periods)) <= 0.025


@pytest.mark.parametrize("periods", [2, 3, 5, 12])
def test_the_saw_tooth_of_a_cache_is_no_growth(periods: float) -> None:
    assert share_growing(saw_tooth(periods)) <= 0.025


@pytest.mark.parametrize(("height", "samples"), [(3, 288), (10, 288), (100, 288), (10, 60), (100, 60)])
def test_a_step_is_no_growth(height: float, samples: int) -> None:
    assert share_growing(step(height), samples=samples) <= 0.025


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_warm_up_is_no_growth(share: float) -> None:
    assert share_growing(warm_up(share)) <= 0.025


@pytest.mark.parametrize("count", [5, 10])
def test_a_leak_in_steps_is_found(count: int) -> None:
    assert share_growing(stairs(count), seeds=50) > 0.9


def test_a_step_is_told() -> None:
    at = days(288)
    found = fit([DAY_S * day for day in at], [LEVEL + 100 * (day >= 0.5) + (place % 3) for place, day in enumerate(at)])
    assert found.verdict == STEADY
    assert found.steps_s[0] == pytest.approx(DAY_S / 2, abs=DAY_S / 24)


def test_bursts_do_not_hide_or_make_growth() -> None:
    def bursts(rng: random.Random, day: float) -> float:
        return 500.0 if rng.random() < 0.02 else rng.gauss(0, 1)

    def steady(rng: random.Random, at: list[float]) -> list[float]:
        return [LEVEL + bursts(rng, day) for day in at]

    def leaking(rng: random.Random, at: list[float]) -> list[float]:
        return [LEVEL * (1 + 0.02 * day) + bursts(rng, day) for day in at]

    assert share_growing(steady) <= 0.025
    assert share_growing(leaking) > 0.9


# ------------------------------------------------------------------------------------------------------------ the load


def loaded(rng: random.Random, at: list[float], connections: list[float], per_day: float, keeps: bool) -> Growth:
    """Memory of 20 a connection, over those open now or over the most there ever were."""
    shares, most = [], 0.0
    for count in connections:
        most = max(most, count)
        shares.append(most if keeps else count)
    values = [
        10_000 * (1 + per_day * day) + 20 * share + rng.gauss(0, 10) for day, share in zip(at, shares, strict=True)
    ]
    return fit([DAY_S * day for day in at], values, load=[connections])


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("shape", ["wave", "ramp"])
def test_what_follows_the_connections_is_no_leak_and_a_leak_beside_them_is_found(shape: str, keeps: bool) -> None:
    accused, found = 0, 0
    for seed in range(60):
        rng, at = random.Random(seed), days(288)
        phase = rng.uniform(0, math.tau)
        connections = [
            1_000 + rng.gauss(0, 20) + 500 * (math.sin(phase + math.tau * day) if shape == "wave" else day)
            for day in at
        ]
        accused += loaded(rng, at, connections, 0.0, keeps).growing
        found += loaded(rng, at, connections, 0.1, keeps).growing
    assert accused <= 3
    assert found >= 54


def test_without_the_load_the_same_series_is_accused() -> None:
    at = days(288)
    connections = [1_000 + 500 * day for day in at]
    rng = random.Random(1)
    values = [10_000 + 20 * count + rng.gauss(0, 10) for count in connections]
    times = [DAY_S * day for day in at]
    assert fit(times, values).growing
    assert not fit(times, values, load=[connections]).growing


def test_growth_that_is_the_loads_as_well_is_not_claimed() -> None:
    at = days(100)
    connections = [100 + 50 * day for day in at]
    found = fit([DAY_S * day for day in at], [2 * count for count in connections], load=[connections])
    assert found.verdict == STEADY
    assert found.low < 0 < found.high


# ------------------------------------------------------------------------------------------------------- edges, shapes


def test_too_few_samples_are_said() -> None:
    assert fit([], []).verdict == TOO_FEW
    few = fit([float(place) for place in range(SAMPLES_MIN - 1)], [float(place) for place in range(SAMPLES_MIN - 1)])
    assert (few.verdict, few.samples, few.per_day) == (TOO_FEW, SAMPLES_MIN - 1, 0)
    enough = fit([float(place) for place in range(SAMPLES_MIN)], [float(place) for place in range(SAMPLES_MIN)])
    assert enough.verdict == GROWING
    assert enough.per_day == pytest.approx(DAY_S)


def test_a_series_that_does_not_change_is_steady_without_doubt() -> None:
    found = fit([float(place) for place in range(50)], [7.0] * 50)
    assert (found.verdict, found.low, found.per_day, found.high, found.level) == (STEADY, 0, 0, 0, 7)


def test_shrinking_is_not_growing() -> None:
    found = fitted(leak(-0.1, deviation=1.0), seed=1)
    assert found.verdict == STEADY
    assert found.high < 0


def test_the_share_of_a_small_level_is_that_of_the_least_level() -> None:
    times = [float(place) for place in range(20)]
    assert fit(times, times, level_min=1_000).relative_per_day == pytest.approx(DAY_S / 1_000)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        fit([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="confidence"):
        fit([1.0, 2.0], [1.0, 2.0], 1.0)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-1e12, 1e12), min_size=SAMPLES_MIN, max_size=120),
    gaps=st.lists(st.floats(0.1, 1e4), min_size=120, max_size=120),
    confidence=st.floats(0.5, 0.999),
)
def test_any_series_has_a_finite_fit(values: list[float], gaps: list[float], confidence: float) -> None:
    times = [math.fsum(gaps[: place + 1]) for place in range(len(values))]
    found = fit(times, values, confidence, load=[[abs(value) for value in values]])
    assert all(map(math.isfinite, (found.per_day, found.low, found.high, found.relative_low, found.relative_high)))
    assert found.low <= found.per_day <= found.high
    assert found.verdict in (GROWING, STEADY)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1_000), scale=st.floats(0.01, 1e6), shift_s=st.floats(0, 2e9))
def test_units_and_the_epoch_do_not_matter(seed: int, scale: float, shift_s: float) -> None:
    at, rng = days(60), random.Random(seed)
    values = leak(0.02, deviation=3.0)(rng, at)
    one = fit([DAY_S * day for day in at], values)
    other = fit([DAY_S * day + shift_s for day in at], [scale * value for value in values])
    assert other.verdict == one.verdict
    assert other.per_day == pytest.approx(scale * one.per_day, rel=1e-3, abs=1e-6 * scale)


@pytest.mark.parametrize(
    ("confidence", "freedom", "quantile"),
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 10, 2.228), (0.99, 4, 4.604), (0.95, 1e6, 1.960)],
)
def test_students_t_is_that_of_the_tables(confidence: float, freedom: float, quantile: float) -> None:
    assert student_t(confidence, freedom) == pytest.approx(quantile, abs=6e-4)
