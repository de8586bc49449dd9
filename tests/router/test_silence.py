"""Who is asked and says nothing is noticed, whatever the deadline of each question is."""

from router.silence import Silence


class Clock:
    time = 100.0

    def __call__(self) -> float:
        return self.time


def looked(silence: Silence, clock: Clock, seconds: float) -> bool:
    """What it says after so long, looked at all the while."""
    for _ in range(round(seconds / 0.25)):
        clock.time += 0.25
        said = silence.is_long()
    return said


def test_silence_is_long_when_nothing_was_heard_since_the_first_of_the_questions() -> None:
    clock = Clock()
    silence = Silence(2.0, clock)
    assert not looked(silence, clock, 10)
    silence.asked()
    assert not looked(silence, clock, 1.75)
    silence.asked()
    assert looked(silence, clock, 0.25)


def test_each_answer_begins_it_anew_and_a_question_that_ends_without_one_does_not() -> None:
    clock = Clock()
    silence = Silence(2.0, clock)
    for _ in range(3):
        silence.asked()
    assert not looked(silence, clock, 1.5)
    silence.ended(heard=True)
    assert not looked(silence, clock, 1.5)
    silence.ended(heard=False)
    assert looked(silence, clock, 0.5)
    silence.ended(heard=False)
    assert not looked(silence, clock, 0.25)


def test_while_this_process_itself_stood_still_nobody_was_silent() -> None:
    clock = Clock()
    silence = Silence(2.0, clock)
    silence.asked()
    clock.time += 60
    assert not silence.is_long()
    assert looked(silence, clock, 2)
