"""Which router leads which shard: rendezvous hashing with bounded load, moving as few shards as can be.

A pure function of what stands in the directory, so that every router that sees the same finds the same. It starts from
where the shards are: a shard moves only when its router is gone, cordoned or has more than its share, so a balanced
placement is left alone, and one that is not becomes so in the least number of moves. Which shards move, and where to,
says the hash: of those that may move, each goes where it scores highest.

A placement that forgets where shards are (hash, then a cap) moves up to a third more, because the caps of all the
others change when a router comes or goes (docs/adr/0102). This one is also indifferent to the order of its own moves:
done in part, what is left of the plan is the plan (tests/router/shards/test_placement.py), so routers that see the
moves of others late agree all the same.

Where there are regions, shards may have one in which they are rather led (`Preferences`): those with the same region
share its routers as above, whatever the others do. A region without routers that take shards is passed over.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

BY_PUBLISHERS = "publishers"
SPREAD = "spread"


@lru_cache(maxsize=65_536)
def score(shard: int, router: str) -> int:
    """How much a shard belongs to a router: 64 bits, the same on every machine."""
    return int.from_bytes(blake2b(f"{shard}/{router}".encode(), digest_size=8).digest(), "big")


def ranking(shard: int, routers: Sequence[str]) -> list[str]:
    """Routers in the order in which a shard would go to them."""
    return sorted(routers, key=lambda router: (-score(shard, router), router))


def placement_of(text: str) -> tuple[str, ...]:
    """What `directory.placement` says: regions in order, of BY_PUBLISHERS alone each shard's own; empty: SPREAD."""
    return () if text == SPREAD else tuple(text.split(","))


class Preferences(NamedTuple):
    """In which region shards are rather led, where that is not all the same."""

    regions: Mapping[str, str]
    """By router."""
    order: tuple[str, ...]
    """Regions in order: all shards go to the first that has takers."""
    homes: Mapping[int, str]
    """By shard, the region it belongs to, while that has takers. Before the order."""


def place(
    current: Sequence[str | None],
    weights: Mapping[str, int],
    pins: Mapping[int, str],
    preferences: Preferences | None = None,
) -> list[str | None]:
    """The placement that is wanted.

    Args:
        current: by shard, the router that leads it; None: nobody does.
        weights: of the routers that live; twice the weight, twice the shards. 0: it gets none (cordoned), and keeps
            those that it has only while there is nobody else.
        pins: shards that an operator wants to be somewhere, as long as that router lives and takes shards.
        preferences: where shards are rather; None: all routers share all shards.

    Returns:
        By shard, the router that is to lead it; None: there is no router for it.
    """
    takers = {router: weight for router, weight in weights.items() if weight > 0}
    if not takers:
        return [router if router in weights else None for router in current]
    pinned = {shard: to for shard, to in pins.items() if to in takers and shard < len(current)}
    wanted: list[str | None] = [pinned.get(shard, router) for shard, router in enumerate(current)]
    for home, shards in _by_home(len(current), takers, preferences).items():
        ours = takers
        if home and preferences is not None:
            ours = {router: weight for router, weight in takers.items() if preferences.regions.get(router) == home}
            shards = [shard for shard in shards if pinned.get(shard, next(iter(ours))) in ours]
        _place_some(shards, wanted, weights, ours, pinned)
    return wanted


def _by_home(count: int, takers: Mapping[str, int], preferences: Preferences | None) -> dict[str, list[int]]:
    """The shards that share the same routers: by region, those of no region under an empty name."""
    if preferences is None:
        return {"": list(range(count))}
    there = {preferences.regions.get(router, "") for router in takers}
    first = next((region for region in preferences.order if region in there), "")
    found: dict[str, list[int]] = {}
    for shard in range(count):
        home = preferences.homes.get(shard, "")
        found.setdefault(home if home in there else first, []).append(shard)
    return found


def _place_some(
    shards: Sequence[int],
    wanted: list[str | None],
    weights: Mapping[str, int],
    takers: Mapping[str, int],
    pinned: Mapping[int, str],
) -> None:
    """Place these shards among these routers, in the fewest moves."""
    held = dict.fromkeys(weights, 0)
    fixed = dict.fromkeys(takers, 0)
    for shard in shards:
        router = wanted[shard]
        if router in held:
            held[router] += 1
        if shard in pinned:
            fixed[pinned[shard]] += 1
    shares = _shares(len(shards), takers, fixed, held)
    room = {router: shares.get(router, 0) - count for router, count in held.items()}
    for shard, taker in _order(tuple(shards), tuple(sorted(takers))):
        if room[taker] <= 0 or shard in pinned:
            continue
        holder = wanted[shard]
        if holder not in room:
            room[taker] -= 1
            wanted[shard] = taker
        elif room[holder] < 0:
            room[holder] += 1
            room[taker] -= 1
            wanted[shard] = taker


def _shares(count: int, takers: Mapping[str, int], fixed: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    """How many shards each is to have: its part by weight, rounded up for those that hold most, down for the others.

    Who has more pinned to it than its part has just these, and the others share what is left.
    """
    shares: dict[str, int] = {}
    rest = dict(takers)
    left = count
    while True:
        total = sum(rest.values())
        over = [router for router, weight in rest.items() if fixed[router] * total > left * weight]
        if not over:
            break
        for router in over:
            shares[router] = fixed[router]
            left -= fixed[router]
            del rest[router]
    lower = {router: left * weight // total for router, weight in rest.items()}
    uneven = [router for router, weight in rest.items() if left * weight % total]
    uneven.sort(key=lambda router: (held[router] <= lower[router], router))
    for router in uneven[: left - sum(lower.values())]:
        lower[router] += 1
    return shares | lower


@lru_cache(maxsize=64)
def _order(shards: tuple[int, ...], routers: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """All pairs of a shard and a router, those first that belong together most."""
    pairs = [(shard, router) for shard in shards for router in routers]
    pairs.sort(key=lambda pair: (-score(*pair), pair))
    return tuple(pairs)


def follower(shard: int, routers: Mapping[str, int]) -> str | None:
    """Which of a region's routers follows a shard that is led elsewhere: rendezvous hashing by weight; None: nobody.

    A router that comes or goes changes nothing for the others' shards. Nothing is counted, so the parts are even only
    nearly (Thaler and Ravishankar 1998); to follow is cheaper than to lead, and two that do it at once do no harm.
    """

    def drawn(router: str) -> tuple[float, str]:
        return -routers[router] / math.log((score(shard, router) + 1) / (2**64 + 1)), router

    return max(routers, key=drawn, default=None)
