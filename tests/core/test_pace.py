"""The pace of a loop: quiet traffic never waits, busy traffic gets its turns evenly, time lost is given back."""

from hypothesis import given
from hypothesis import strategies as st

from core.pace import TURNS, TurnPace

START_NS = 10**12
TURN_NS = 400_000


def test_after_a_quiet_time_a_burst_does_not_wait() -> None:
    pace = TurnPace(TURN_NS)
    assert [pace.turn(START_NS) for _ in range(TURNS)] == [0] * TURNS
    assert pace.turn(START_NS) == TURN_NS


@given(st.integers(TURN_NS, TURN_NS * 100))
def test_traffic_slower_than_the_pace_never_waits(apart_ns: int) -> None:
    pace = TurnPace(TURN_NS)
    assert all(pace.turn(START_NS + number * apart_ns) == 0 for number in range(100))


@given(st.lists(st.integers(0, TURN_NS), min_size=50, max_size=200))
def test_busy_turns_come_no_faster_than_the_pace_and_no_wait_is_longer(work_ns: list[int]) -> None:
    pace = TurnPace(TURN_NS)
    now_ns, begun = START_NS, []
    for one in work_ns:
        wait_ns = pace.turn(now_ns)
        assert 0 <= wait_ns <= TURN_NS
        now_ns += wait_ns
        begun.append(now_ns)
        now_ns += one
    turns = len(begun) - TURNS
    assert begun[-1] - begun[0] >= (turns - 1) * TURN_NS


def test_a_wait_that_took_too_long_is_given_back() -> None:
    pace = TurnPace(TURN_NS)
    for _ in range(TURNS):
        pace.turn(START_NS)
    assert pace.turn(START_NS) == TURN_NS
    # It slept twice as long as it was told: the next turn may begin at once.
    assert pace.turn(START_NS + 2 * TURN_NS) == 0


def test_a_long_turn_has_earned_the_next_one() -> None:
    pace = TurnPace(TURN_NS)
    now_ns = START_NS
    for _ in range(100):
        assert pace.turn(now_ns) == 0
        now_ns += 2 * TURN_NS
