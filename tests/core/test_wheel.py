"""Timer wheel: against a plain table of deadlines, with clocks that creep and clocks that leap."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core.ledger import Stats
from core.wheel import TimerWheel

TICK = 100
TURN = 1024 * TICK  # one turn of the wheel; deadlines beyond it are met early and left alone
TIMERS = 12


class WheelMachine(RuleBasedStateMachine):
    """Each timer fires exactly once, at the first look whose tick has reached its deadline, and never earlier."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = Stats()
        self.due: dict[int, int] = {}

    @initialize(start=st.sampled_from([0, 99, 100, 123_456_789, (2**31 - 500) * TICK]))
    def start(self, start: int) -> None:
        self.now = start
        self.wheel = TimerWheel(self.stats, TIMERS, start)
        self.tick = start // TICK

    @rule(
        number=st.integers(0, TIMERS - 1),
        ahead=st.sampled_from([-5000, 0, 1, 99, 100, 101, 5000, TURN - TICK, TURN, TURN + 1, 3 * TURN, 40 * TURN])
        | st.integers(0, 5 * TURN),
    )
    def set(self, number: int, ahead: int) -> None:
        deadline = max(0, self.now + ahead)
        self.wheel.set(number, deadline)
        # A deadline that has come already fires at the next tick, so that a timer set again while it fires ends.
        self.due[number] = max(-(-deadline // TICK), self.tick + 1)

    @rule(number=st.integers(0, TIMERS - 1))
    def cancel(self, number: int) -> None:
        self.wheel.cancel(number)
        self.due.pop(number, None)

    @rule(
        by=st.sampled_from([0, 1, 99, 100, 101, TURN - 1, TURN, TURN + TICK, 4 * TURN, 4 * TURN + TICK, 100 * TURN])
        | st.integers(0, 2 * TURN)
    )
    def advance(self, by: int) -> None:
        self.now += by
        fired = self.wheel.expire(self.now)
        self.tick = self.now // TICK
        expected = {number for number, tick in self.due.items() if tick <= self.tick}
        assert len(fired) == len(set(fired))
        assert set(fired) == expected
        if by < TURN:  # within one turn the order is that of the ticks
            assert [self.due[number] for number in fired] == sorted(self.due[number] for number in fired)
        for number in expected:
            del self.due[number]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "wheel"):
            return
        assert self.wheel.check()
        assert len(self.wheel) == len(self.due)
        ledger = self.stats.read()["ledger"]
        assert ledger["timer_opened"] - ledger["timer_closed"] == len(self.due)


WheelMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestWheel = WheelMachine.TestCase


@pytest.mark.parametrize("deadline", [1, 99, 100])
def test_a_timer_fires_at_the_first_tick_that_is_not_before_its_deadline(deadline: int) -> None:
    wheel = TimerWheel(Stats(), 1)
    wheel.set(0, deadline)
    assert wheel.expire(99) == []
    assert wheel.expire(100) == [0]
    assert wheel.expire(10_000) == []


def test_a_deadline_many_turns_ahead_waits_for_its_turn() -> None:
    wheel = TimerWheel(Stats(), 1)
    wheel.set(0, 10 * TURN)
    for now in range(0, 10 * TURN, TURN // 4):
        assert wheel.expire(now) == []
    assert wheel.expire(10 * TURN) == [0]


def test_setting_again_moves_a_timer_and_a_clock_that_goes_back_fires_nothing() -> None:
    wheel = TimerWheel(Stats(), 2, 50_000)
    wheel.set(0, 51_000)
    wheel.set(0, 60_000)
    wheel.set(1, 10)  # in the past: at the next tick
    assert wheel.expire(49_000) == []
    assert wheel.expire(51_000) == [1]
    assert wheel.expire(60_000) == [0]
