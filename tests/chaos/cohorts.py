"""Cohorts: a seed's own channels and talkers, that live on a node while faults are made to it, and what was broken.

Many cohorts live on one node side by side and share its faults; each meets them at another moment of its own life. What
a cohort does by its own will is in its seed alone.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.chaos.endpoints import Place
from tests.chaos.habits import Habits
from tests.chaos.oracle import Book, Fault, Oracle
from tests.chaos.talkers import SETTLE_S, Talker

COME_S = 30.0
CHANNELS, TALKERS = (1, 2), (3, 4)


class Cohort:
    """One seed's talkers and channels, with an oracle of their own.

    Args:
        place: where they dial.
        kind: of the channels' books.
        own: of those of the users' channels.
        places: where each dials, by its number; instead of `place`.

    """

    def __init__(
        self,
        seed: str,
        place: Place,
        habits: Habits,
        *,
        namespace: str = "group",
        retained: int = 1_000,
        secret: str = "",
        kind: type[Book] = Book,
        own: type[Book] = Book,
        places: Callable[[int], Place] | None = None,
    ) -> None:
        self.seed = seed
        self.faults: list[Fault] = []
        rng = random.Random(seed)
        began = time.monotonic()
        self.oracle = Oracle(clock=lambda: time.monotonic() - began)
        self.channels = [f"{namespace}:{seed}-{number}" for number in range(rng.randint(*CHANNELS))]
        for channel in self.channels:
            self.oracle.book(channel, retained, kind)
        self.talkers: list[Talker] = []
        for number in range(rng.randint(*TALKERS)):
            name = f"{seed}.{number}"
            self.oracle.book(f"user:{name}", kind=own)
            # The first never leaves: what its channels hold in full is known through it. Nobody leaves a global one.
            one = replace(habits, leaves=0 if number == 0 or namespace == "global" else habits.leaves)
            dialled = place if places is None else places(number)
            self.talkers.append(Talker(self.oracle, dialled, name, name, one, secret))
        for talker in self.talkers:
            talker.mates = [mate.own for mate in self.talkers]
        self._silent = False
        self._acting: list[asyncio.Task[None]] = []

    async def come(self) -> None:
        """All are there and members."""
        for talker in self.talkers:
            for channel in self.channels:
                talker.want(channel)
            talker.start()
        await self._until_settled(COME_S)
        # Everybody hears the first word of each channel: nobody's place in it is unknown.
        self._say_to_all(self.channels)
        await self._until_settled(COME_S)

    def _say_to_all(self, channels: list[str]) -> None:
        for channel in channels:
            self.oracle.book(channel).awaits(self.talkers[0].say(channel))

    def act(self) -> None:
        self._acting = [asyncio.create_task(self._act(talker)) for talker in self.talkers]

    async def _act(self, talker: Talker) -> None:
        while not self._silent:
            await talker.act()

    async def settle(self, *, history: bool = True) -> None:
        """Fall silent, wait until all that is due has come, judge, and go."""
        self._silent = True
        found = await asyncio.gather(*self._acting, return_exceptions=True)
        broken = [one for one in found if isinstance(one, Exception)]
        for talker in self.talkers:
            for channel in self.channels:
                talker.want(channel)
        text = await self._until_settled(SETTLE_S)
        self._say_to_all([*self.channels, *self.talkers[0].mates] if not text else [])
        text = text or await self._until_settled(SETTLE_S)
        if history and not text:
            for channel in self.channels:
                await self.talkers[0].read(channel)
            for talker in self.talkers:
                await talker.read(talker.own)
        self.faults = self.oracle.verdict()
        await asyncio.gather(*(talker.stop() for talker in self.talkers))
        assert not broken, broken
        if text and not self.faults:
            raise AssertionError(f"seed {self.seed} does not come to rest: {text}")

    async def give_up(self) -> None:
        """Go without a word; there is nothing to judge."""
        for task in self._acting:
            task.cancel()
        await asyncio.gather(*self._acting, return_exceptions=True)
        await asyncio.gather(*(talker.stop(bye=False) for talker in self.talkers))

    async def _until_settled(self, deadline_s: float) -> str:
        """Empty, or why it is not settled."""
        end = time.monotonic() + deadline_s
        for talker in self.talkers:
            while not talker.is_settled:
                talker.news.clear()
                try:
                    async with asyncio.timeout(end - time.monotonic()):
                        await talker.news.wait()
                except TimeoutError:
                    return "; ".join(one.complaint() for one in self.talkers if not one.is_settled)
        return ""


class Tally:
    """What many cohorts proved together."""

    def __init__(self) -> None:
        self.seeds = 0
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.refusals: Counter[int] = Counter()

    def add(self, cohorts: Sequence[Cohort]) -> None:
        for cohort in cohorts:
            self.seeds += 1
            self.counts.update(cohort.oracle.counts())
            for talker in cohort.talkers:
                self.counts["returns"] += talker.counts.returns
                self.counts["expired"] += talker.counts.expired
                self.counts["forgets"] += talker.counts.forgets
                self.counts["lacks"] += talker.counts.lacks
                self.counts["unwanted"] += talker.counts.unwanted
                self.counts["evicted"] += len(talker.evicted)
                self.counts["at_once"] += talker.counts.at_once
                self.outcomes.update(talker.counts.outcomes)
                self.refusals.update(talker.counts.refusals)

    def merge(self, other: "Tally") -> None:
        self.seeds += other.seeds
        self.counts.update(other.counts)
        self.outcomes.update(other.outcomes)
        self.refusals.update(other.refusals)

    def __str__(self) -> str:
        parts = [f"{self.seeds} seeds", *(f"{value:,} {name}" for name, value in sorted(self.counts.items()))]
        return f"{', '.join(parts)}; outcomes {dict(self.outcomes)}; refusals {dict(self.refusals)}"


def complaint(cohorts: Sequence[Cohort], most: int = 6) -> str:
    """All that was broken, the first few with their stories; empty when nothing was."""
    faults = [(cohort.seed, fault) for cohort in cohorts for fault in cohort.faults]
    if not faults:
        return ""
    kinds = Counter(f"{fault.kind} in seed {seed}" for seed, fault in faults)
    stories = [f"seed {seed}: {fault}" for seed, fault in faults[:most]]
    return "\n".join([f"{len(faults)} faults: {dict(kinds)}", *stories])
