"""Clients that claim and watch, all they were told, and a checker of that: no claim wins twice, no watch has a gap.

The directory's own history, read at the end by a watch from its beginning, is what everything is held against.
"""

import asyncio
import random
from bisect import bisect_right
from contextlib import aclosing
from dataclasses import dataclass, field

from router.directory.port import Change, Changes, Claim, Directory, Lost, Result, Snapshot, Unavailable, Won, now
from tests.contract.places import Place

PREFIX = "random/"
MARK = f"{PREFIX}mark"
END = b"end"


@dataclass
class Told:
    """One claim, and what its client was told."""

    claim: Claim
    floor: int
    """The highest revision that anybody had been told when it was asked."""
    result: Result | None = None
    """None: not known."""


@dataclass
class Seen:
    """What one watch told."""

    start: int
    said: list[Changes | Snapshot] = field(default_factory=list)


@dataclass
class History:
    """All that was told to all clients."""

    claims: list[Told] = field(default_factory=list)
    watches: list[Seen] = field(default_factory=list)
    floor: int = 0
    wins: int = 0
    silence_s: float = 0.0
    """The longest time for which nobody won anything."""
    truth: list[Change] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What cannot be, in words."""
        return [*self._claims(), *(one for seen in self.watches for one in self._watch(seen))]

    # ---------------------------------------------------------------------------------------------------------- claims

    def _claims(self) -> list[str]:
        found = []
        chains: dict[str, list[Change]] = {}
        for change in self.truth:
            chains.setdefault(change.key, []).append(change)
        winners: dict[tuple[str, int], Told] = {}
        for told in self.claims:
            if isinstance(told.result, Won):
                place = (told.claim.key, told.result.revision)
                if place in winners:
                    found.append(f"two winners: {winners[place]} and {told}")
                winners[place] = told
                if told.result.revision <= told.floor:
                    found.append(f"won before it was asked: {told}")
            elif isinstance(told.result, Lost):
                found += self._lost(told, told.result, chains.get(told.claim.key, []))
        unknown = {told.claim.value for told in self.claims if told.result is None}
        lost = {told.claim.value for told in self.claims if isinstance(told.result, Lost)}
        for key, chain in chains.items():
            before = 0
            for change in chain:
                found += _link(before, change, winners.pop((key, change.revision), None), unknown, lost)
                before = 0 if change.value is None else change.revision
        return [*found, *(f"won, and nothing was changed: {told}" for told in winners.values())]

    @staticmethod
    def _lost(told: Told, lost: Lost, chain: list[Change]) -> list[str]:
        """Whether who has the key according to a loser had it at a time while it was asked."""
        if lost.revision == told.claim.expected_revision:
            return [f"lost against what it expected: {told}"]
        revisions = [change.revision for change in chain]
        if lost.revision == 0:
            gone = [0] + [change.revision for change in chain if change.value is None]
            if any(_next(revisions, at) > told.floor for at in gone):
                return []
            return [f"was never absent meanwhile: {told}"]
        if Change(told.claim.key, lost.value, lost.revision) not in chain:
            return [f"lost against what never was: {told}"]
        return [f"lost against what was over: {told}"] if _next(revisions, lost.revision) <= told.floor else []

    # --------------------------------------------------------------------------------------------------------- watches

    def _watch(self, seen: Seen) -> list[str]:
        """Whether a watch told all changes once, in order, but for those that a snapshot stands for."""
        at, found = seen.start, []
        revisions = [change.revision for change in self.truth]
        for said in seen.said:
            if isinstance(said, Snapshot):
                state: dict[str, tuple[bytes, int]] = {}
                for change in self.truth:
                    if change.revision <= said.revision:
                        state.pop(change.key, None)
                        state |= {} if change.value is None else {change.key: (change.value, change.revision)}
                if said.items != state:
                    found.append(f"a snapshot at {said.revision} is not what was there")
            else:
                wanted = self.truth[bisect_right(revisions, at) : bisect_right(revisions, said.revision)]
                if list(said.changes) != wanted:
                    found.append(f"after {at} a watch told {said.changes}, and there was {wanted}")
            if said.revision <= at:
                found.append(f"a watch went back from {at} to {said.revision}")
            at = said.revision
        return found


def _next(revisions: list[int], revision: int) -> int:
    """The revision after one; far away when there is none."""
    place = bisect_right(revisions, revision)
    return revisions[place] if place < len(revisions) else 1 << 62


def _link(
    before: int, change: Change, winner: Told | None, unknown: set[bytes | None], lost: set[bytes | None]
) -> list[str]:
    """Whether a change follows from what its claim expected, and belongs to one that was not told to have lost."""
    if winner is not None:
        if winner.claim.expected_revision != before or winner.claim.value != change.value:
            return [f"{winner} won after {before}, and made {change}"]
    elif change.key != MARK and change.value not in unknown:
        return [f"nobody won {change}{', who had it lost' if change.value in lost else ''}"]
    return []


class Traffic:
    """Clients on one place, until `stop`.

    Args:
        place: where.
        seed: of all choices.
        clients: how many, each with a directory, claims and a watch.
        keys: how many they fight for.

    """

    def __init__(self, place: Place, seed: int, *, clients: int = 3, keys: int = 6) -> None:
        self.history = History()
        self._place = place
        self._random = random.Random(seed)
        self._clients = clients
        self._keys = [f"{PREFIX}{number}" for number in range(keys)]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self._remembered = 0
        """The revision up to which the truth is known."""
        self._won = asyncio.Event()
        self._last_won = now()

    async def start(self) -> None:
        self._remembered = (await (await self._place.directory()).read(PREFIX)).revision
        for number in range(self._clients):
            directory = await self._place.directory()
            snapshot = await directory.read(PREFIX)
            seen = Seen(snapshot.revision)
            self.history.watches.append(seen)
            rng = random.Random(self._random.random())
            self._tasks.append(asyncio.create_task(self._claim(directory, number, rng)))
            self._tasks.append(asyncio.create_task(self._watch(directory, seen)))

    async def progress(self, wins: int, deadline_s: float = 30.0) -> None:
        """Until so many more claims have won."""
        wanted = self.history.wins + wins
        async with asyncio.timeout(deadline_s):
            while self.history.wins < wanted:
                self._won.clear()
                await self._won.wait()
                for task in self._tasks:
                    if task.done():
                        task.result()

    async def stop(self) -> History:
        """End it when every watch has seen the last change."""
        self._stopped = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks[::2])
            await self.remember(END)
            await asyncio.gather(*self._tasks[1::2])
        return self.history

    async def remember(self, value: bytes = b"") -> int:
        """Read the history up to now, before it may be forgotten; up to which revision."""
        truth = self.history.truth
        directory = await self._place.directory()
        while True:
            try:
                marked = (await directory.read(MARK)).items.get(MARK)
                [mark] = await directory.transact([Claim(MARK, marked.revision if marked else 0, value)])
                break
            except Unavailable:
                continue
        async with aclosing(directory.watch(PREFIX, self._remembered)) as watch:
            while self._remembered < mark.revision:
                said = await anext(watch)
                assert isinstance(said, Changes), "the history was forgotten before it was read"
                truth += said.changes
                self._remembered = said.revision
        return mark.revision

    async def _watch(self, directory: Directory, seen: Seen) -> None:
        async with aclosing(directory.watch(PREFIX, seen.start)) as watch:
            async for said in watch:
                seen.said.append(said)
                if isinstance(said, Snapshot):
                    values: set[bytes | None] = {item.value for item in said.items.values()}
                else:
                    values = {change.value for change in said.changes}
                if END in values:
                    return

    async def _claim(self, directory: Directory, number: int, rng: random.Random) -> None:
        known: dict[str, int] = {}
        count = 0
        while not self._stopped:
            batch = []
            for key in rng.sample(self._keys, rng.randint(1, 3)):
                count += 1
                expected = known.get(key, 0)
                deletes = expected and rng.random() < 0.1
                batch.append(Claim(key, expected, None if deletes else b"%d:%d" % (number, count)))
            await self._ask(directory, batch, known)
            await asyncio.sleep(rng.random() * 0.01)

    async def _ask(self, directory: Directory, batch: list[Claim], known: dict[str, int]) -> None:
        history = self.history
        told = [Told(one, history.floor) for one in batch]
        history.claims += told
        results: list[Result | None]
        try:
            results = [*await directory.transact(batch)]
        except Unavailable as error:
            results = [*error.results] if error.results else [None] * len(batch)
        for one, result in zip(told, results, strict=True):
            one.result = result
            if result is None:
                continue
            known[one.claim.key] = 0 if isinstance(result, Won) and one.claim.value is None else result.revision
            history.floor = max(history.floor, result.revision)
            if isinstance(result, Won):
                history.wins += 1
                self._last_won, before = now(), self._last_won
                history.silence_s = max(history.silence_s, self._last_won - before)
                self._won.set()
