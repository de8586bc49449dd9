"""The shadow table of where things were acquired: a random history against a plain dictionary."""

import random

from core.sites import SiteTable

KINDS = (0, 1, 31)


def test_a_random_history_is_kept() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    table = SiteTable()
    expected: dict[tuple[int, int], int] = {}
    for _ in range(20_000):
        place = draw.choice(KINDS), draw.randrange(3000) << draw.choice((0, 12))
        if place in expected:
            assert table.line(*place) == expected.pop(place)
            table.remove(*place)
        else:
            expected[place] = draw.randrange(2)
            table.add(*place, expected[place])
    assert len(table) == len(expected)
    assert {place: table.line(*place) for place in expected} == expected
    assert table.faults == (0, 0)


def test_what_is_acquired_or_released_twice_is_counted() -> None:
    table = SiteTable()
    table.add(1, 7, 0)
    table.add(1, 7, 1)
    assert table.line(1, 7) == 0
    table.remove(1, 7)
    table.remove(1, 7)
    assert table.line(1, 7) is None
    assert table.faults == (1, 1)
