"""In which region a shard's publishers are, as its leader finds it: for placement "publishers".

Counts come by region and shard and only grow. What is old fades, and a region takes a shard only when clearly more
comes from it: a shard that moved for every fluctuation would pause its publishes each time.
"""

from collections.abc import Collection, Mapping, Sequence

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
