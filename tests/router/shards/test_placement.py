"""Placement: nobody has more than his share, as few shards as can be move, and every router finds the same."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.shards.placement import place, ranking, score

SHARDS = 256
NAMES = [f"router-{number}" for number in range(12)]
# Weights of up to eight routers, and for each shard, which of ten it is with: some of these are gone.
CLUSTERS = st.dictionaries(st.sampled_from(NAMES[:8]), st.integers(0, 4), min_size=1, max_size=8)
HELD = st.lists(st.sampled_from([*NAMES[:10], None]), min_size=1, max_size=64)
PINS = st.dictionaries(st.integers(0, 70), st.sampled_from(NAMES), max_size=10)


def _fresh(count: int) -> list[str | None]:
    return place([None] * SHARDS, dict.fromkeys(NAMES[:count], 1), {})


def _moved(before: list[str | None], after: list[str | None]) -> int:
    return sum(one != other for one, other in zip(before, after, strict=True))


def test_shards_are_spread_evenly_and_as_the_hash_says() -> None:
    placed = _fresh(6)
    assert sorted(Counter(placed).values()) == [42, 42, 43, 43, 43, 43]
    best = sum(ranking(shard, NAMES[:6])[0] == router for shard, router in enumerate(placed))
    assert best > SHARDS * 0.75


def test_the_score_never_changes() -> None:
    """It is the same on every machine and in every version: otherwise a rolling upgrade would move everything."""
    assert (score(0, "router-0"), score(255, "b")) == (0x5E3957DFB21FAA56, 0x3DAAD54DB67756FE)
    assert ranking(17, NAMES[:4]) == sorted(NAMES[:4], key=lambda name: -score(17, name))


def test_a_router_that_comes_takes_its_share_and_nothing_else_moves() -> None:
    before = _fresh(3)
    after = place(before, dict.fromkeys(NAMES[:4], 1), {})
    assert _moved(before, after) == 64
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {NAMES[3]}


def test_a_router_that_goes_gives_its_share_to_all_and_nothing_else_moves() -> None:
    before = _fresh(4)
    after = place(before, dict.fromkeys(NAMES[:3], 1), {})
    assert _moved(before, after) == 64
    assert sorted(Counter(after).values()) == [85, 85, 86]


def test_from_three_to_six_a_half_moves() -> None:
    before = _fresh(3)
    after = place(before, dict.fromkeys(NAMES[:6], 1), {})
    assert _moved(before, after) == 127
    assert max(Counter(after).values()) == 43


def test_twice_the_weight_is_twice_the_shards() -> None:
    placed = place([None] * 90, {"small": 1, "big": 2}, {})
    assert Counter(placed) == {"small": 30, "big": 60}


def test_a_cordoned_router_gives_all_away_and_keeps_it_while_there_is_nobody_else() -> None:
    before = place([None] * 10, {"a": 1, "b": 1}, {})
    assert set(place(before, {"a": 0, "b": 1}, {})) == {"b"}
    assert place(before, {"a": 0, "b": 0}, {}) == before
    assert place(["a", None, "gone"], {"a": 0}, {}) == ["a", None, None]


def test_a_pin_is_kept_to_while_its_router_takes_shards() -> None:
    before = place([None] * 10, {"a": 1, "b": 1}, {})
    shard = before.index("a")
    after = place(before, {"a": 1, "b": 1}, {shard: "b"})
    assert after[shard] == "b"
    assert Counter(after) == {"a": 5, "b": 5}
    assert place(before, {"a": 1, "b": 0}, {shard: "b"})[shard] == "a"
    assert place(before, {"a": 1, "b": 1}, {shard: "gone"}) == before


def test_who_has_more_pinned_than_its_share_has_just_that() -> None:
    placed = place([None] * 10, {"a": 1, "b": 1, "c": 1}, dict.fromkeys(range(6), "a"))
    assert Counter(placed) == {"a": 6, "b": 2, "c": 2}


@given(HELD, CLUSTERS, PINS)
def test_everybody_has_his_share_within_one(
    held: list[str | None], weights: dict[str, int], pins: dict[int, str]
) -> None:
    placed = place(held, weights, {})
    total = sum(weights.values())
    if total:
        counts = Counter(placed)
        assert set(counts) <= {name for name, weight in weights.items() if weight}
        for name, weight in weights.items():
            assert len(held) * weight // total <= counts[name] <= -(-len(held) * weight // total)
    for shard, router in pins.items():
        if shard < len(held) and weights.get(router):
            assert place(held, weights, pins)[shard] == router


@given(HELD, CLUSTERS, PINS)
def test_what_is_placed_stays(held: list[str | None], weights: dict[str, int], pins: dict[int, str]) -> None:
    placed = place(held, weights, pins)
    assert place(placed, weights, pins) == placed


@given(HELD, CLUSTERS)
def test_no_fewer_moves_would_do(held: list[str | None], weights: dict[str, int]) -> None:
    placed = place(held, weights, {})
    total = sum(weights.values())
    if not total:
        return
    counts = Counter(router for router in held if weights.get(router or ""))
    # Who holds more than his share gives the excess away, and of equal shares only so many can be rounded up.
    excess = sum(max(0, counts[name] - -(-len(held) * weight // total)) for name, weight in weights.items())
    floors = sum(len(held) * weight // total for weight in weights.values())
    at_ceiling = [
        name
        for name, weight in weights.items()
        if len(held) * weight % total and counts[name] > len(held) * weight // total
    ]
    excess += max(0, len(at_ceiling) - (len(held) - floors))
    homeless = sum(not weights.get(router or "") for router in held)
    assert _moved(held, placed) == excess + homeless


@given(HELD, CLUSTERS, st.randoms(use_true_random=False))
def test_what_is_left_of_a_plan_is_the_plan(held: list[str | None], weights: dict[str, int], chance: object) -> None:
    """Routers see each other's moves late: whoever has seen some of them wants the same as who has seen none."""
    placed = place(held, weights, {})
    partly = [new if chance.random() < 0.5 else old for old, new in zip(held, placed, strict=True)]  # type: ignore[attr-defined]
    assert place(partly, weights, {}) == placed
