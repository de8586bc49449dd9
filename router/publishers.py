"""In which region a shard's publishers are, as its leader finds it: for placement "publishers".

Counts come by region and shard and only grow. What is old fades, and a region takes a shard only when clearly more
comes from it: a shard that moved for every fluctuation would pause its publishes each time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from router.claims_keeper import UNIT

FADES = 0.9
"""What is left of a count from one look to the next; every 5 s, a half in 33 s."""
LEAST = 50.0
"""Messages, faded, below which nothing is concluded."""
MORE = 1.5
"""Times as many as from where the shard belongs now."""


class Publishers:
    """What one router finds about the shards that it leads."""

    def __init__(self) -> None:
        self._before: dict[str, list[int]] = {}
        self._scores: dict[int, dict[str, float]] = {}

    def look(
        self, counts: Mapping[str, Sequence[int]], led: Collection[int], homes: Mapping[int, str]
    ) -> dict[int, str]:
        """The shards that belong to another region than they did, and to which.

        Args:
            counts: by region, how many messages were ordered so far that were published there, by shard.
            led: the shards that are led here: of others nothing is known.
            homes: by shard, the region that it belongs to; those without belong to none yet.

        """
        self._scores = {shard: self._scores.get(shard, {}) for shard in led}
        for region, now in counts.items():
            before = self._before.get(region) or [0] * len(now)
            for shard, scores in self._scores.items():
                more = now[shard] - before[shard]
                scores[region] = scores.get(region, 0.0) * FADES + more
            self._before[region] = list(now)
        found = {}
        for shard, scores in self._scores.items():
            best = max(scores, key=lambda region: (scores[region], region), default="")
            home = homes.get(shard, "")
            if best and best != home and scores[best] >= max(LEAST, MORE * scores.get(home, 0.0)):
                found[shard] = best
        return found


class Published:
    """Counts that only grow, whoever comes and goes.

    Args:
        counts: messages of each worker that were ordered here, {identity on the bus: [by shard]}.
        region_of: of a unit, as the directory says; empty: it is not known.

    """

    def __init__(
        self, counts: Callable[[], Mapping[bytes, Sequence[int]]], region_of: Callable[[str], str | None]
    ) -> None:
        self._counts = counts
        self._region_of = region_of
        self._before: dict[bytes, Sequence[int]] = {}
        self._sums: dict[str, list[int]] = {}

    def __call__(self) -> Mapping[str, Sequence[int]]:
        """By region, how many messages of each shard so far."""
        now = self._counts()
        for worker, counts in now.items():
            region = self._region_of(worker.partition(b"/")[0].decode(errors="replace") + UNIT)
            before = self._before.get(worker, [0] * len(counts))
            if region and any(count < old for count, old in zip(counts, before, strict=True)):
                before = [0] * len(counts)  # it is known anew
            if region:
                sums = self._sums.setdefault(region, [0] * len(counts))
                for shard, (count, old) in enumerate(zip(counts, before, strict=True)):
                    sums[shard] += count - old
        self._before = dict(now)
        return self._sums
