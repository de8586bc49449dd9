"""Each offset is told apart as next, jumped to, late or repeated, against a model that remembers everything."""

from hypothesis import given
from hypothesis import strategies as st

from core import position
from core.position import JUMPED, LATE, NEXT, REPEATED, Reader


class Model:
    """The set of all offsets that came; those before the base count as come."""

    def __init__(self, base: int) -> None:
        self.last = base
        self.missing: set[int] = set()

    def take(self, offset: int) -> tuple[int, int]:
        if offset > self.last:
            jumped = offset - self.last - 1
            self.missing |= set(range(self.last + 1, offset))
            self.last = offset
            return (JUMPED, jumped) if jumped else (NEXT, 0)
        if offset in self.missing and self.last - offset < position.WINDOW:
            self.missing.remove(offset)
            return LATE, 0
        return REPEATED, 0


@given(st.integers(0, 100), st.lists(st.integers(-70, 70), max_size=60))
def test_it_agrees_with_a_model_that_forgets_nothing(base: int, steps: list[int]) -> None:
    reader, model = Reader(base), Model(base)
    for step in steps:
        offset = max(model.last + step, 1)
        assert reader.take(offset) == model.take(offset)
        assert reader.last == model.last


def test_nothing_before_the_base_is_missing() -> None:
    reader = Reader(41)
    assert reader.take(41) == (REPEATED, 0)
    assert reader.take(40) == (REPEATED, 0)
    assert reader.take(42) == (NEXT, 0)


def test_a_late_one_is_late_once() -> None:
    reader = Reader(0)
    assert reader.take(3) == (JUMPED, 2)
    assert [reader.take(2), reader.take(2), reader.take(1)] == [(LATE, 0), (REPEATED, 0), (LATE, 0)]


def test_beyond_the_window_an_old_one_is_called_repeated() -> None:
    reader = Reader(0)
    assert reader.take(position.WINDOW + 1) == (JUMPED, position.WINDOW)
    assert reader.take(1) == (REPEATED, 0)
    assert reader.take(2) == (LATE, 0)


def test_offsets_given_up_are_not_jumped_over_afterwards() -> None:
    reader = Reader(5)
    assert reader.skip(9) == 4
    assert reader.skip(9) == 0
    assert reader.take(10) == (NEXT, 0)
    assert reader.take(8) == (REPEATED, 0)
