"""What a router knows of the directory, from watches that run apart and from answers to its own claims.

Each prefix is watched by itself, so one may be ahead of another, and an answer may be ahead of both. Two rules make
this safe:

- what is older than what is known is left out: a change not above the revision up to which its prefix is known, or
  below that of an answer about the same key, was seen before;
- a node epoch is over only when the nodes are known at least up to that epoch and none of them has it. An epoch is
  never given twice, so once over it stays over, however late that is noticed.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from router.shards.placement import BY_PUBLISHERS, Preferences
from router.shards.records import (
    CORDONS,
    MOVES,
    NODES,
    PINS,
    PUBLISHERS,
    REGIONS,
    SHARDS,
    CordonRecord,
    MoveRecord,
    NodeRecord,
    PinRecord,
    PublishersRecord,
    RegionRecord,
    ShardRecord,
    Unreadable,
    decode,
)

R = TypeVar("R")


class Seen(NamedTuple, Generic[R]):
    """What stands at a key."""

    record: R | None
    """None with a revision: there is something that cannot be read, and it is somebody's."""
    revision: int
    """Of the key, for comparing; 0: there is no such key."""
    as_of: int
    """At which revision this was so."""


NOTHING: Seen[object] = Seen(None, 0, 0)


class Table(Generic[R]):
    """One prefix."""

    def __init__(self, prefix: str, kind: type[R]) -> None:
        self.prefix = prefix
        self.reached = -1
        """Up to which revision the prefix is known; -1: nothing was read yet."""
        self.complaints: list[str] = []
        self._kind = kind
        self._seen: dict[str, Seen[R]] = {}

    def get(self, name: str) -> Seen[R]:
        """What stands at `<prefix><name>`."""
        return self._seen.get(name, NOTHING)  # type: ignore[arg-type]

    def items(self) -> Iterator[tuple[str, Seen[R]]]:
        """All that is there and can be read."""
        return ((name, seen) for name, seen in self._seen.items() if seen.record is not None)

    def revisions(self) -> dict[int, str]:
        """The names of all that is there, also of what cannot be read, by revision."""
        return {seen.revision: name for name, seen in self._seen.items() if seen.revision}

    def change(self, revision: int, changes: Iterable[tuple[str, bytes | None, int]]) -> list[str]:
        """Take what a watch told; returns the names that changed."""
        changed = []
        for key, value, at in changes:
            name = key[len(self.prefix) :]
            if at > self.reached and at > self.get(name).as_of:
                self._put(name, value, at)
                changed.append(name)
        self.reached = max(self.reached, revision)
        for name in [name for name, seen in self._seen.items() if not seen.revision and seen.as_of <= self.reached]:
            del self._seen[name]
        return changed

    def snapshot(self, revision: int, items: Mapping[str, tuple[bytes, int]]) -> list[str]:
        """Take all of it anew; returns the names that may have changed."""
        if revision < self.reached:
            return []
        self.reached = revision
        before = self._seen
        self._seen = {name: seen for name, seen in before.items() if seen.as_of > revision}
        for key, (value, at) in items.items():
            name = key[len(self.prefix) :]
            if name not in self._seen:
                self._put(name, value, at)
        return [name for name in before | self._seen if before.get(name) != self._seen.get(name)]

    def learn(self, name: str, value: bytes | None, revision: int, record: R | None = None) -> bool:
        """Take what the answer to a claim told; whether it was news. `record`: what the value was made of, if known."""
        if revision <= self.reached or revision <= self.get(name).as_of:
            return False
        if record is None:
            self._put(name, value, revision)
        else:
            self._seen[name] = Seen(record, revision, revision)
        return True

    def forget_gone(self) -> None:
        """Let go of what is known to be gone, where no watch comes to say so: a claim finds out."""
        for name in [name for name, seen in self._seen.items() if not seen.revision]:
            del self._seen[name]

    def _put(self, name: str, value: bytes | None, revision: int) -> None:
        if value is None:
            # Kept until the watch is there too, so that what it tells of before does not bring the key back.
            self._seen[name] = Seen(None, 0, revision)
            return
        record: R | None = None
        try:
            record = decode(self._kind, value)
        except Unreadable as error:
            self.complaints.append(f"{self.prefix}{name} cannot be read and is left alone: {error}")
        self._seen[name] = Seen(record, revision, revision)


class View:
    """All prefixes that say who leads what."""

    def __init__(self) -> None:
        self.nodes: Table[NodeRecord] = Table(NODES, NodeRecord)
        self.shards: Table[ShardRecord] = Table(SHARDS, ShardRecord)
        self.moves: Table[MoveRecord] = Table(MOVES, MoveRecord)
        self.pins: Table[PinRecord] = Table(PINS, PinRecord)
        self.cordons: Table[CordonRecord] = Table(CORDONS, CordonRecord)
        self.regions: Table[RegionRecord] = Table(REGIONS, RegionRecord)
        self.publishers: Table[PublishersRecord] = Table(PUBLISHERS, PublishersRecord)
        self.tables: dict[str, Table[Any]] = {
            table.prefix: table
            for table in (
                self.nodes,
                self.shards,
                self.moves,
                self.pins,
                self.cordons,
                self.regions,
                self.publishers,
            )
        }
        self.alive: dict[int, str] = {}
        """The nodes that live, by epoch."""

    def ready(self) -> bool:
        """Whether everything was read once."""
        return all(table.reached >= 0 for table in self.tables.values())

    def count_nodes(self) -> None:
        """Find again who lives; to be called when the nodes changed."""
        self.alive = self.nodes.revisions()

    def over(self, epoch: int) -> bool:
        """Whether a life of a node is certainly over."""
        return epoch not in self.alive and self.nodes.reached >= epoch

    def weights(self) -> dict[str, int]:
        """The routers that live, with their weights; 0: cordoned, or its region is evacuated.

        Where nobody else is left that could lead, those of evacuated regions count as ever: rather there than nowhere.
        """
        routers = {name: seen.record for name, seen in self.nodes.items() if seen.record and seen.record.weight > 0}
        open_ = {name for name in routers if not self.cordoned(name)}
        leads = {name for name in open_ if not self.evacuated(routers[name].region)} or open_
        return {name: record.weight if name in leads else 0 for name, record in routers.items()}

    def cordoned(self, name: str) -> bool:
        """Whether a node is to lead nothing."""
        cordon = self.cordons.get(name)
        if not cordon.revision:
            return False
        return cordon.record is None or cordon.record.epoch in (0, self.nodes.get(name).revision)

    def evacuated(self, region: str) -> bool:
        """Whether a region is to lead nothing; what cannot be read counts as that."""
        return bool(region) and self.regions.get(region).revision > 0

    def routers_of(self, region: str) -> dict[str, int]:
        """The routers of a region that live, with their own weights, whatever they are to lead."""
        return {
            name: seen.record.weight
            for name, seen in self.nodes.items()
            if seen.record is not None and seen.record.weight > 0 and seen.record.region == region
        }

    def region_of(self, name: str) -> str:
        """The region of a node that lives; empty: it has none, or is not there."""
        record = self.nodes.get(name).record
        return record.region if record is not None else ""

    def preferred(self, placement: tuple[str, ...]) -> Preferences | None:
        """What placement goes by beside weights; None: by nothing.

        Args:
            placement: regions in order; of PUBLISHERS alone, each shard's own.

        """
        if not placement:
            return None
        regions = {name: seen.record.region for name, seen in self.nodes.items() if seen.record is not None}
        if placement != (BY_PUBLISHERS,):
            return Preferences(regions, placement, {})
        return Preferences(
            regions,
            (),
            {
                int(name): seen.record.region
                for name, seen in self.publishers.items()
                if seen.record and name.isdecimal()
            },
        )

    def pinned(self) -> dict[int, str]:
        """Shards that an operator placed."""
        return {int(name): seen.record.node for name, seen in self.pins.items() if seen.record and name.isdecimal()}

    def complaints(self) -> list[str]:
        """What could not be read since this was asked last."""
        found = [text for table in self.tables.values() for text in table.complaints]
        if found:
            for table in self.tables.values():
                table.complaints.clear()
        return found
