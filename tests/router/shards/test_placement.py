"""Placement: nobody has more than his share, as few shards as can be move, and every router finds the same."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.shards.placement import BY_PUBLISHERS, Preferences, follower, place, placement_of, ranking, score

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


EU, US = dict.fromkeys(NAMES[:2], 1), dict.fromkeys(NAMES[2:4], 1)
REGIONS = dict.fromkeys(EU, "eu") | dict.fromkeys(US, "us")
PREFERENCES = st.builds(
    Preferences,
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["eu", "us", "ap"])),
    st.lists(st.sampled_from(["eu", "us", "ap"]), unique=True).map(tuple),
    st.dictionaries(st.integers(0, 63), st.sampled_from(["eu", "us", "ap"])),
)


def test_the_policy_is_a_word_or_regions_in_order() -> None:
    assert placement_of("spread") == ()
    assert placement_of("publishers") == (BY_PUBLISHERS,)
    assert placement_of("eu,us") == ("eu", "us")


def test_all_shards_go_to_the_first_region_that_has_routers_which_take_any() -> None:
    ordered = Preferences(REGIONS, ("ap", "us", "eu"), {})
    placed = place([None] * SHARDS, EU | US, {}, ordered)
    assert Counter(placed) == dict.fromkeys(US, 128)
    evacuated = place(placed, EU | dict.fromkeys(US, 0), {}, ordered)
    assert Counter(evacuated) == dict.fromkeys(EU, 128)
    assert place(evacuated, EU | US, {}, ordered) == placed, "they come back to where they were"


def test_a_shard_is_in_the_region_of_its_publishers_and_the_others_are_anywhere() -> None:
    spread = place([None] * SHARDS, EU | US, {})
    homes = dict.fromkeys(range(16), "eu") | dict.fromkeys(range(16, 24), "ap")
    placed = place(spread, EU | US, {}, Preferences(REGIONS, (), homes))
    assert Counter(placed[:16]) == dict.fromkeys(EU, 8)
    assert max(Counter(placed[16:]).values()) - min(Counter(placed[16:]).values()) <= 1
    # No more moves than there have to be.
    there = Counter(router for router in spread[:16] if router in EU)
    assert _moved(spread[:16], placed[:16]) == 16 - sum(min(8, count) for count in there.values())


def test_what_an_operator_pinned_stays_whatever_its_region() -> None:
    placed = place([None] * 8, EU | US, {3: NAMES[0]}, Preferences(REGIONS, ("us",), {}))
    assert placed[3] == NAMES[0]
    assert set(placed[:3] + placed[4:]) == set(US)


@given(HELD, CLUSTERS, PINS, PREFERENCES, st.randoms(use_true_random=False))
def test_with_regions_a_plan_done_in_part_is_the_plan(
    held: list[str | None],
    weights: dict[str, int],
    pins: dict[int, str],
    preferences: Preferences,
    chance: object,
) -> None:
    placed = place(held, weights, pins, preferences)
    partly = [new if chance.random() < 0.5 else old for old, new in zip(held, placed, strict=True)]  # type: ignore[attr-defined]
    assert place(partly, weights, pins, preferences) == placed
    if any(weights.values()):
        assert all(weights.get(router or "") for router in placed)


@given(HELD, CLUSTERS, PINS)
def test_without_preferences_nothing_is_preferred(
    held: list[str | None], weights: dict[str, int], pins: dict[int, str]
) -> None:
    assert place(held, weights, pins, Preferences({}, (), {})) == place(held, weights, pins)


def test_followers_share_by_weight_and_only_the_shards_of_who_goes_move() -> None:
    routers = {"a": 1, "b": 1, "c": 2}
    chosen = [follower(shard, routers) for shard in range(SHARDS * 4)]
    counts = Counter(chosen)
    assert counts["c"] > 1.6 * max(counts["a"], counts["b"])
    without = [follower(shard, {"a": 1, "c": 2}) for shard in range(SHARDS * 4)]
    assert {old for old, new in zip(chosen, without, strict=True) if old != new} == {"b"}
    assert follower(0, {}) is None
