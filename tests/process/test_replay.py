"""Real texts of many languages through mixed clients: what `make replay` does with all lines, here with some."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from loadtest.replay import GROUPS, Listener, Progress, ReplayError, replay, share
from tools.provision import FORTUNE_LINES_MIN, fortune_lines

LINES = 2_000
DEADLINE_S = 60.0


@pytest.mark.slow
def test_every_line_arrives_at_every_member_in_order_and_once(holdfast: Any) -> None:
    if fortune_lines() < FORTUNE_LINES_MIN:
        pytest.skip("the fortunes packages are not installed; run: make provision")
    node = holdfast("--workers", "4")

    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            result = await replay(node.port, node.ws_port, LINES)
        print(result)
        assert result.lines >= LINES
        assert result.members == 4 * len(GROUPS)
        # Every line reaches the four members of its group.
        assert result.deliveries == 4 * result.lines
        assert len(result.languages) >= 8

    asyncio.run(limited())


def listener(**sent: list[str]) -> Listener:
    return Listener("member", GROUPS[0], {"python": [], "js": [], "raw": [], **sent}, Progress(), epoch=1)


def test_lines_are_dealt_out_whole_and_in_order() -> None:
    lines = [str(number) for number in range(100)]
    dealt = [share_ for group in share(lines).values() for share_ in group.values()]
    assert Counter(line for share_ in dealt for line in share_) == Counter(lines)
    assert all([int(line) for line in share_] == sorted(int(line) for line in share_) for share_ in dealt)


@pytest.mark.parametrize(
    "heard",
    [
        [(1, 2, "js-0", "a")],
        [(1, 1, "js-0", "a"), (1, 1, "js-0", "a")],
        [(1, 1, "js-0", "a"), (1, 3, "js-0", "b")],
        [(2, 1, "js-0", "a")],
        [(1, 1, "js-0", "b")],
        [(1, 1, "js-0", "a ")],
        [(1, 1, "js-0", b"a")],
        [(1, 1, "raw-0", "a")],
        [(1, 1, "js-0", "a"), (1, 2, "js-0", "b"), (1, 3, "js-0", "b")],
    ],
)
def test_a_member_finds_what_is_missing_changed_twice_or_out_of_order(heard: list[tuple[int, int, str, Any]]) -> None:
    member = listener(js=["a", "b"])
    for message in heard[:-1]:
        member.hear(*message)
    with pytest.raises(ReplayError):
        member.hear(*heard[-1])


def test_a_member_is_complete_when_it_heard_everything() -> None:
    member = listener(js=["a"], raw=["b"])
    member.hear(1, 1, "raw-0", "b")
    assert not member.is_complete
    member.hear(1, 2, "js-0", "a")
    assert member.is_complete
