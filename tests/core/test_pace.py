"""The pace of a loop: quiet traffic never waits, busy traffic is gathered, and what was busy is let go again."""

from hypothesis import given
from hypothesis import strategies as st

from core.pace import ENTER, LEAVE, TURN_NS, WINDOW_NS, TurnPace

SECOND_NS = 10**9


class Loop:
    """A loop whose events come `rate` times a second, a turn each unless it waited; turns take no time."""

    def __init__(self) -> None:
        self.pace = TurnPace()
        self.now_ns = 1000 * SECOND_NS
        self.waits: list[int] = []
        self.pending = 0.0

    def run(self, rate: int, seconds: float) -> list[int]:
        """The waits of all turns in that time."""
        self.waits = []
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        while self.now_ns < end_ns:
            step_ns = SECOND_NS // rate
            self.now_ns += step_ns
            wait_ns = self.pace.turn(1 + int(self.pending), self.now_ns)
            self.now_ns += wait_ns
            self.pending = wait_ns / step_ns
            self.waits.append(wait_ns)
        return self.waits


@given(st.integers(1, ENTER - 1))
def test_traffic_below_the_threshold_never_waits(rate: int) -> None:
    assert not any(Loop().run(rate, 0.2))


@given(st.integers(ENTER + 200, 10 * ENTER))
def test_busy_turns_come_no_faster_than_the_pace(rate: int) -> None:
    loop = Loop()
    loop.run(rate, 0.05)
    turns = len(loop.run(rate, 0.5))
    assert turns <= 0.5 * SECOND_NS / TURN_NS + 1
    assert max(loop.waits) <= TURN_NS


def test_the_first_events_after_a_quiet_time_do_not_wait() -> None:
    loop = Loop()
    loop.run(10 * ENTER, 0.1)
    assert loop.pace.turn(1, loop.now_ns + SECOND_NS) == 0
    loop.now_ns += SECOND_NS
    assert not any(loop.run(10 * ENTER, WINDOW_NS / SECOND_NS * 0.9))


def test_a_busy_loop_is_let_go_below_the_lower_threshold_only() -> None:
    loop = Loop()
    loop.run(ENTER * 2, 0.1)
    assert any(loop.run((ENTER + LEAVE) // 2, 0.1)[-5:]), "between the two it stays as it was"
    assert not any(loop.run(LEAVE - 500, 0.1)[-5:])
    assert not any(loop.run((ENTER + LEAVE) // 2, 0.1)[-5:])


def test_a_long_turn_has_earned_the_next_one() -> None:
    loop = Loop()
    loop.run(ENTER * 4, 0.1)
    for _ in range(100):
        loop.now_ns += 2 * TURN_NS
        assert loop.pace.turn(50, loop.now_ns) == 0
