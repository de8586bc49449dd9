"""Bans on the bus: what is packed comes out the same."""

from hypothesis import given
from hypothesis import strategies as st

from core.ban_list import (
    RESUME_AGE_MAX_MS,
    Standing,
    Told,
    Wish,
    told_packed,
    told_unpacked,
    wish_packed,
    wish_unpacked,
)

MS = st.integers(0, 2**63 - 1)
STANDINGS = st.lists(st.builds(Standing, st.text(), MS, MS, st.text()))


@given(st.builds(Wish, MS, st.text(), MS, st.text()))
def test_a_wish_comes_out_as_it_went_in(wish: Wish) -> None:
    assert wish_unpacked(wish_packed(wish)) == wish


@given(MS, st.text(), STANDINGS)
def test_what_is_told_comes_out_as_it_went_in(ask: int, refusal: str, standings: list[Standing]) -> None:
    assert told_unpacked(told_packed(ask, refusal, standings)) == Told(ask, refusal, standings)


def test_a_ban_is_kept_until_no_token_of_before_it_can_be_good() -> None:
    assert Standing("eve", 5, 6, "").kept_ms == 5 + RESUME_AGE_MAX_MS
    assert Standing("eve", 5, RESUME_AGE_MAX_MS + 6, "").kept_ms == RESUME_AGE_MAX_MS + 6
