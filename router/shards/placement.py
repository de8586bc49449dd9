"""Which router leads which shard: rendezvous hashing with bounded load, moving as few shards as can be.

A pure function of what stands in the directory, so that every router that sees the same finds the same. It starts from
where the shards are: a shard moves only when its router is gone, cordoned or has more than its share, so a balanced
placement is left alone, and one that is not becomes so in the least number of moves. Which shards move, and where to,
says the hash: of those that may move, each goes where it scores highest.

A placement that forgets where shards are (hash, then a cap) moves up to a third more, because the caps of all the
others change when a router comes or goes (docs/adr/0102). This one is also indifferent to the order of its own moves:
done in part, what is left of the plan is the plan (tests/router/shards/test_placement.py), so routers that see the
moves of others late agree all the same.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=65_536)
def score(shard: int, router: str) -> int:
    """How much a shard belongs to a router: 64 bits, the same on every machine."""
    return int.from_bytes(blake2b(f"{shard}/{router}".encode(), digest_size=8).digest(), "big")


def ranking(shard: int, routers: Sequence[str]) -> list[str]:
    """Routers in the order in which a shard would go to them."""
    return sorted(routers, key=lambda router: (-score(shard, router), router))


def place(current: Sequence[str | None], weights: Mapping[str, int], pins: Mapping[int, str]) -> list[str | None]:
    """The placement that is wanted.

    Args:
        current: by shard, the router that leads it; None: nobody does.
        weights: of the routers that live; twice the weight, twice the shards. 0: it gets none (cordoned), and keeps
            those that it has only while there is nobody else.
        pins: shards that an operator wants to be somewhere, as long as that router lives and takes shards.

    Returns:
        By shard, the router that is to lead it; None: there is no router for it.
    """
    takers = {router: weight for router, weight in weights.items() if weight > 0}
    if not takers:
        return [router if router in weights else None for router in current]
    pinned = {shard: to for shard, to in pins.items() if to in takers and shard < len(current)}
    wanted: list[str | None] = [pinned.get(shard, router) for shard, router in enumerate(current)]
    held = dict.fromkeys(weights, 0)
    for router in wanted:
        if router in held:
            held[router] += 1
    fixed = dict.fromkeys(takers, 0)
    for to in pinned.values():
        fixed[to] += 1
    shares = _shares(len(current), takers, fixed, held)
    room = {router: shares.get(router, 0) - count for router, count in held.items()}
    for shard, taker in _order(len(current), tuple(sorted(takers))):
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
    return wanted


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
def _order(count: int, routers: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """All pairs of a shard and a router, those first that belong together most."""
    pairs = [(shard, router) for shard in range(count) for router in routers]
    pairs.sort(key=lambda pair: (-score(*pair), pair))
    return tuple(pairs)
