"""The worker's copy of the bans: who is out, whose sessions have to end, and which resume tokens stay dead."""

import pytest

from core.ban_list import FOREVER_MS, RESUME_AGE_MAX_MS, Standing, told_packed
from core.codes import Code
from gateway.bans import Bans
from gateway.identity import AuthError

NOW = 1_793_491_200.0
NOW_MS = int(NOW * 1000)


def told(*standings: Standing) -> bytes:
    return told_packed(0, "", standings)


def eve(since_ms: int = NOW_MS, until_ms: int = FOREVER_MS, reason: str = "spam") -> Standing:
    return Standing("eve", since_ms, until_ms, reason)


def refusal(bans: Bans, *arguments: object) -> int | None:
    try:
        bans.check("eve", *arguments)  # type: ignore[arg-type]
    except AuthError as refused:
        return refused.code
    return None


def test_only_a_new_ban_that_holds_ends_sessions() -> None:
    bans = Bans()
    assert bans.take(told(eve()), NOW, all_=True) == ["eve"]
    assert bans.take(told(eve()), NOW, all_=True) == []
    assert bans.take(told(eve(since_ms=NOW_MS + 1)), NOW, all_=False) == ["eve"]
    assert bans.take(told(eve(until_ms=NOW_MS)), NOW, all_=False) == []
    assert bans.take(told(eve(until_ms=NOW_MS + 1)), NOW, all_=False) == ["eve"]


def test_a_ban_holds_until_its_time_is_over() -> None:
    bans = Bans()
    bans.take(told(eve(until_ms=NOW_MS + 10_000)), NOW, all_=False)
    assert refusal(bans, NOW + 9.9) == Code.BANNED
    assert bans.holds("eve", NOW + 9.9) == eve(until_ms=NOW_MS + 10_000)
    assert refusal(bans, NOW + 10) is None
    assert bans.holds("eve", NOW + 10) is None
    assert refusal(Bans(), NOW, 0) is None


def test_a_resume_token_of_before_a_ban_is_dead_for_good() -> None:
    bans = Bans()
    bans.take(told(eve(until_ms=NOW_MS)), NOW, all_=False)
    assert refusal(bans, NOW, NOW_MS) == Code.SESSION_EXPIRED
    assert refusal(bans, NOW, NOW_MS + 1) is None


def test_who_is_not_among_all_is_not_banned_and_a_change_leaves_the_others() -> None:
    bans = Bans()
    bans.take(told(eve(), Standing("mallory", NOW_MS, FOREVER_MS, "")), NOW, all_=True)
    bans.take(told(Standing("mallory", NOW_MS, NOW_MS, "")), NOW, all_=False)
    assert refusal(bans, NOW) == Code.BANNED
    bans.take(told(), NOW, all_=True)
    assert refusal(bans, NOW) is None
    assert len(bans) == 0


def test_nothing_is_kept_for_longer_than_a_token_may_be_good() -> None:
    bans = Bans()
    bans.take(told(eve(until_ms=NOW_MS)), NOW, all_=False)
    bans.take(told(), NOW + RESUME_AGE_MAX_MS / 1000 - 1, all_=False)
    assert len(bans) == 1
    bans.take(told(), NOW + RESUME_AGE_MAX_MS / 1000, all_=False)
    assert len(bans) == 0


def test_who_is_banned_is_told_why() -> None:
    bans = Bans()
    bans.take(told(eve(reason="spam")), NOW, all_=True)
    with pytest.raises(AuthError, match="spam"):
        bans.check("eve", NOW)
