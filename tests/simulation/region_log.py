"""The log of one region: histories of shards, fenced by their epochs, that leaders append to and followers repeat in.

A model of what the scripts in Redis promise (router/log): each method is one atomic step. Entries are named by the
epoch of the shard and a number that counts within it, so that one name means one entry everywhere.
"""

from collections.abc import Sequence

from tests.simulation.world import Violation, World

Id = tuple[int, int]
START: Id = (0, 0)
BRIDGE_ENTRIES = 16


class RegionLog:
    """What one region's Redis has."""

    def __init__(self, world: World, region: str, dropped: set[tuple[int, Id]]) -> None:
        self.world = world
        self.region = region
        self.up_at = 0.0
        """What is asked before waits until then."""
        self.dead_until = 0.0
        """What arrives before is lost."""
        self.dropped = dropped
        """Of all regions: what a region had that is no part of the history, by shard."""
        self._epochs: dict[int, int] = {}
        self._histories: dict[int, list[Id]] = {}

    @property
    def down(self) -> bool:
        """Whether nothing reaches it."""
        return self.world.now < max(self.dead_until, self.up_at)

    def history(self, shard: int) -> list[Id]:
        """All entries of a shard, in order."""
        return self._histories.setdefault(shard, [])

    def last(self, shard: int) -> Id:
        """The position of the shard here."""
        history = self.history(shard)
        return history[-1] if history else START

    def epoch(self, shard: int) -> int:
        """The lowest epoch that is not refused."""
        return self._epochs.get(shard, 0)

    def fence(self, shard: int, epoch: int) -> int | None:
        """Refuse lower epochs from now on; None, or the higher one that is known."""
        if epoch < self.epoch(shard):
            return self.epoch(shard)
        self._epochs[shard] = epoch
        return None

    def append(self, shard: int, entry: Id, who: str) -> bool:
        """What a leader orders; False: it is deposed."""
        epoch, number = entry
        if epoch < self.epoch(shard):
            return False
        last = self.last(shard)
        expected = last[1] + 1 if last[0] == epoch else 1
        if last[0] > epoch or number != expected:
            raise Violation(f"{who} appended {entry} to shard {shard} of {self.region}, which is at {last}")
        self._epochs[shard] = epoch
        self.history(shard).append(entry)
        return True

    def read(self, shard: int, after: Id) -> tuple[bool, list[Id]]:
        """What comes after an entry; whether that is all there is, since the entry is none of ours or too old."""
        history = self.history(shard)
        newest = history[-BRIDGE_ENTRIES:]
        if after in newest:
            return False, newest[newest.index(after) + 1 :]
        if after == START and len(history) == len(newest):
            return False, list(history)
        return True, list(history)

    def repeat(self, shard: int, under: int, whole: bool, entries: Sequence[Id], after: Id) -> bool:
        """What a follower read under the epoch `under` of its leader; whether all of it is here now."""
        if under < self.epoch(shard):
            return False
        self._epochs[shard] = under
        history = self.history(shard)
        if whole:
            self.become(shard, entries)
            return True
        if after != START and after not in history:
            return False  # dropped meanwhile
        at = history.index(after) + 1 if after != START else 0
        common = _common(history[at:], entries)
        if common < len(entries) and at + common < len(history):
            return False  # it went another way meanwhile: read again
        history.extend(entries[common:])
        return True

    def become(self, shard: int, entries: Sequence[Id]) -> None:
        """Have this history; what it has beyond the last common entry is dropped, if it went another way from there."""
        history = self.history(shard)
        common = _common(history, entries)
        if common == len(entries):
            return  # older than what is here, or the same: nothing says that the rest is wrong
        self.drop(shard, common)
        history.extend(entries[common:])

    def drop(self, shard: int, kept: int) -> None:
        """Remove what is behind so many entries, and say so."""
        history = self.history(shard)
        self.dropped.update((shard, entry) for entry in history[kept:])
        if history[kept:]:
            self.world.note(self.region, "drops", shard, tuple(history[kept:]))
        del history[kept:]


def _common(one: Sequence[Id], other: Sequence[Id]) -> int:
    """How many entries they have in common from the beginning."""
    return next(
        (at for at, (mine, yours) in enumerate(zip(one, other, strict=False)) if mine != yours),
        min(len(one), len(other)),
    )
