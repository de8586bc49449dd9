"""The pace of a drain: even, never above its bound, slower while others lag, and done in time whatever they do."""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pacer import RETURN_S, SLOWEST_PACE, TICK_S, Pacer

WINDOW_S, LIMIT_S = 10.0, 13.0
Look = Callable[[Pacer, float, int], None]


def drained(clients: int, look: Look = lambda *_: None, tick_s: float = TICK_S) -> tuple[list[float], Pacer]:
    """Each client's slot, in seconds from the beginning; `look` is called before each step with how many were told."""
    slots: list[float] = []
    pacer, now = Pacer(clients, WINDOW_S, LIMIT_S, 0.0), 0.0
    while pacer.left and now < LIMIT_S + 1:
        look(pacer, now, len(slots))
        step = pacer.step(now)
        told = min(step.count, pacer.left)
        slots += [now + step.first_s + place * step.spacing_s for place in range(told)]
        pacer.told(told)
        now += tick_s
    return slots, pacer


def most_within(slots: list[float], width_s: float) -> int:
    """The most slots in any time of that width."""
    most = first = 0
    for last, slot in enumerate(slots):
        while slot - slots[first] >= width_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_it_is_even_over_the_window() -> None:
    slots, _ = drained(1000)
    assert len(slots) == 1000
    assert slots[-1] == pytest.approx(WINDOW_S, abs=TICK_S)
    assert all(later - slot == pytest.approx(0.01, abs=1e-6) for slot, later in itertools.pairwise(slots))


@given(clients=st.integers(1, 20_000), tick_s=st.floats(0.02, 0.35), lag=st.lists(st.booleans(), max_size=200))
def test_it_is_never_above_the_fastest_pace_and_tells_everybody_in_time(
    clients: int, tick_s: float, lag: list[bool]
) -> None:
    turns = iter(lag)

    def look(pacer: Pacer, _now: float, _told: int) -> None:
        pacer.elsewhere(0, 5.0 if next(turns, False) else 0.0)

    slots, _ = drained(clients, look, tick_s)
    assert slots == sorted(slots)
    # Ticks that come late are not caught up; then the time may be over before all were told.
    assert len(slots) == clients or tick_s > TICK_S
    assert most_within(slots, 1.0) <= math.ceil(max(clients / WINDOW_S, SLOWEST_PACE)) + 1


def test_a_few_do_not_take_the_whole_window() -> None:
    slots, _ = drained(10)
    assert slots[-1] < 1.0


@pytest.mark.parametrize("signal", ["slow", "many", "absent"])
def test_it_holds_back_while_the_others_lag_and_recovers(signal: str) -> None:
    def look(pacer: Pacer, now: float, told: int) -> None:
        lagging = 2.0 <= now < 4.0
        if signal == "absent":
            pacer.taken(now, 0 if lagging else 11, 3)
        else:
            pacer.elsewhere(500 if lagging and signal == "many" else 0, 3.0 if lagging and signal == "slow" else 0.05)

    slots, _ = drained(1000, look)
    assert len(slots) == 1000
    before, during = most_within([slot for slot in slots if slot < 2.0], 1.0), [s for s in slots if 3.0 <= s < 5.0]
    assert before == pytest.approx(100, abs=2)
    assert most_within(during, 1.0) < 0.85 * before
    assert WINDOW_S < slots[-1] <= LIMIT_S


def test_clients_that_never_come_back_cost_no_more_than_the_grace_time() -> None:
    slots, _ = drained(1000, lambda pacer, now, _: pacer.taken(now, 0, 3))
    assert len(slots) == 1000
    assert WINDOW_S < slots[-1] <= LIMIT_S


def test_without_anybody_to_go_to_the_window_alone_counts() -> None:
    slots, _ = drained(1000, lambda pacer, now, _: pacer.taken(now, 0, 0))
    assert slots[-1] == pytest.approx(WINDOW_S, abs=TICK_S)


def test_those_who_come_back_a_little_late_are_no_lag() -> None:
    def look(pacer: Pacer, now: float, told: int) -> None:
        if now > RETURN_S:
            pacer.taken(now, 10, 1)

    slots, _ = drained(1000, look)
    assert slots[-1] == pytest.approx(WINDOW_S, abs=2 * TICK_S)


def test_no_window_is_at_once() -> None:
    pacer = Pacer(5000, 0.0, 3.0, 0.0)
    step = pacer.step(0.0)
    assert (step.count, step.first_s, step.spacing_s) == (5000, 0.0, 0.0)


def test_a_pace_that_is_set_is_never_exceeded_however_slow() -> None:
    pacer = Pacer(10_000, 1.0, math.inf, 0.0, 5.0)
    told = 0
    for tick in range(100):
        step = pacer.step(tick * TICK_S)
        pacer.told(step.count)
        told += step.count
    assert told in (32, 33, 34)


@pytest.mark.parametrize("pace", [1.0, 5.0, 20.0, 500.0])
@pytest.mark.parametrize("stands_still", [0.0, 0.37, 5.2, 17.77])
def test_no_second_has_more_than_the_pace_that_is_set_though_a_machine_stands_still(
    pace: float, stands_still: float
) -> None:
    """Who was to come back while it did comes when it goes on, and with those after it."""
    pacer, slots = Pacer(100_000, 1.0, math.inf, 0.0, pace), []
    for tick in range(300):
        now = tick * TICK_S
        step = pacer.step(now)
        slots += [now + step.first_s + place * step.spacing_s for place in range(step.count)]
        if tick % 7 == 0:
            slots.append(now + (pacer.slot(now, 60.0) or 0.0))
    goes_on = stands_still + 0.5
    came = sorted(goes_on if stands_still <= slot < goes_on else slot for slot in slots)
    assert len(came) > 15 * pace
    assert most_within(came, 1.0) <= pace


def test_who_is_told_beside_the_steps_has_a_slot_among_theirs_unless_it_would_be_late() -> None:
    pacer = Pacer(1_000, 1.0, math.inf, 0.0, 10.0)
    step = pacer.step(0.0)
    spacing_s = step.spacing_s
    assert pacer.slot(0.0, 1.0) == pytest.approx(step.count * spacing_s)
    assert pacer.step(TICK_S).first_s == pytest.approx((step.count + 1) * spacing_s - TICK_S)
    assert pacer.slot(0.0, 0.01) is None
    assert Pacer(5, 0.0, 3.0, 0.0).slot(0.0, 1.0) == 0.0
