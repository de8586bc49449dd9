"""When a suspicion is raised and when it is taken back."""

from dataclasses import replace

import pytest

from gateway.growth import DAY_S, GROWING, STEADY, Growth
from gateway.suspicion import CLEAR_AFTER, RAISE_AFTER, Suspicion

LEAK = Growth(GROWING, 3.0, 2.0, 4.0, 100.0, 0.03, 0.02, 0.04, 0.95, 100, DAY_S)
STILL = replace(LEAK, verdict=STEADY, relative_low=-0.01)
BETWEEN = replace(LEAK, relative_per_day=0.008, relative_low=0.006)


def seen(suspicion: Suspicion, *fits: Growth) -> list[str | None]:
    return [suspicion.see(found) for found in fits]


def test_it_takes_some_fits_in_a_row_to_suspect_and_to_clear() -> None:
    suspicion = Suspicion(0.01)
    assert seen(suspicion, *[LEAK] * RAISE_AFTER) == [None] * (RAISE_AFTER - 1) + ["raised"]
    assert suspicion.suspected
    assert seen(suspicion, LEAK, STILL, STILL, LEAK) == [None] * 4
    assert seen(suspicion, *[STILL] * CLEAR_AFTER) == [None] * (CLEAR_AFTER - 1) + ["cleared"]
    assert not suspicion.suspected


def test_one_fit_that_does_not_agree_starts_the_count_anew() -> None:
    assert seen(Suspicion(0.01), LEAK, STILL, LEAK, STILL, LEAK) == [None] * 5


def test_between_half_the_threshold_and_all_of_it_nothing_changes() -> None:
    suspicion = Suspicion(0.01)
    assert seen(suspicion, *[BETWEEN] * 10) == [None] * 10
    assert seen(suspicion, LEAK, LEAK)[-1] == "raised"
    assert seen(suspicion, *[BETWEEN] * 10) == [None] * 10


@pytest.mark.parametrize(
    "found",
    [
        replace(LEAK, verdict=STEADY),
        replace(LEAK, relative_low=0.009),
        replace(LEAK, relative_per_day=0.2, relative_low=0.1, span_s=DAY_S / 24),
    ],
    ids=["steady", "perhaps less than the threshold", "not much yet"],
)
def test_what_is_not_sure_or_not_much_is_not_suspected(found: Growth) -> None:
    assert seen(Suspicion(0.01), *[found] * 10) == [None] * 10
