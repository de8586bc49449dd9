"""What the oracle asks of channels whose namespace answers at `sequenced`: what is answered may die with the router,
and whoever notices is told.

- One position holds one message for everybody. Positions are told apart by epoch and offset: a later router goes on
  below what an earlier one gave, where nobody could tell it.
- In the order of offsets, without a hole that is not told. Before a message of a later epoch whose offset is not above
  what is held, `recreated` says so, once, with the place from where on it goes; a resume may say `reset` instead.
- Within one epoch a message has one position: its key dies with the router as it does.
- The last word, said when all is whole again, comes to every member; what was answered in its epoch is in HISTORY.
"""

from collections.abc import Iterable
from itertools import pairwise

from tests.chaos.oracle import Book, Kind, Oracle, Position, Reader


class SequencedBook(Book):
    """All that is known of such a channel."""

    def __init__(self, oracle: Oracle, channel: str, retained: int) -> None:
        super().__init__(oracle, channel, retained)
        self.positions: dict[Position, str] = {}
        self.last_word = ""
        """Every member is to hear it."""

    def reader(self, member: str) -> "SequencedReader":
        self.readers.append(reader := SequencedReader(self, member))
        return reader

    def awaits(self, content: str) -> None:
        self.last_word = content

    def acknowledge(self, content: str, position: Position) -> None:
        found = self.published[content]
        if found.answer is not None and found.answer.epoch < position.epoch:
            found.answer = None  # the router that gave it is dead
        super().acknowledge(content, position)

    def place(self, who: str, position: Position, content: str) -> bool:
        found = self.published.get(content)
        if found is None:
            return super().place(who, position, content)  # a phantom
        there = self.positions.setdefault(position, content)
        if there != content:
            self.fault(Kind.CONFLICT, "", position.offset, f"{there} for one, {content} for another, who is {who}")
        return True

    def history(self, by: str, messages: Iterable[tuple[Position, str]], *, complete: bool) -> None:
        found = list(messages)
        for position, content in found:
            self.oracle.log(self.channel, by, f"reads in epoch {position.epoch}:", position.offset, content)
            self.place(by, position, content)
        positions = [position for position, _ in found]
        for before, after in pairwise(positions):
            if after.offset <= before.offset or after.epoch < before.epoch:
                self.fault(Kind.REORDERING, by, after.offset, f"HISTORY goes from {before} to {after}")
        epoch = max((position.epoch for position in positions), default=0)
        for publish in self.published.values():
            answer = publish.answer
            if complete and answer is not None and answer.epoch >= epoch and answer not in positions:
                self.fault(Kind.LOSS, by, answer.offset, "acknowledged by the living router, and not in HISTORY")

    def judge(self) -> None:
        places: dict[tuple[int, str], Position] = {}
        for position, content in sorted(self.positions.items()):
            first = places.setdefault((position.epoch, content), position)
            if first != position:
                self.fault(Kind.REPETITION, "", position.offset, f"{content} stands at {first} too")
        for publish in self.published.values():
            answer = publish.answer
            if publish.refused and publish.content in self.positions.values():
                self.fault(Kind.PHANTOM, "", 0, f"{publish.content} was refused and delivered")
            if answer is None:
                continue
            other = self.positions.get(answer, publish.content)
            if other != publish.content:
                self.fault(Kind.CONFLICT, "", answer.offset, f"{publish.content} was answered so, and {other} is there")
            at = places.get((answer.epoch, publish.content), answer)
            if at != answer:
                self.fault(Kind.MISPLACED, publish.by, answer.offset, f"{publish.content} stands at {at}")
        for reader in self.readers:
            reader.judge()


class SequencedReader(Reader):
    """One member of such a channel."""

    book: SequencedBook

    def __init__(self, book: SequencedBook, member: str) -> None:
        super().__init__(book, member)
        self._contents: set[str] = set()

    def resumed(self, position: Position, outcome: str, asked: int | None = None) -> None:
        if outcome == "reset" and self.held is not None and position.epoch > self.held.epoch:
            self._log(f"resumes at {self.held}, {outcome}, up to", position.offset)
            self._asked, self.held = asked, position
            return
        super().resumed(position, outcome, asked)

    def recreated(self, first: int, last: int, position: Position) -> None:
        self._log(f"is told that it goes on in epoch {position.epoch} behind", position.offset)
        held = self.held
        if first != position.offset + 1 or last < first:
            self._fault(Kind.FALSE_GAP, first, f"recreated from {first} to {last} is no range behind {position}")
        elif held is not None and not (position.epoch > held.epoch and position.offset <= held.offset <= last):
            self._fault(Kind.FALSE_GAP, first, f"recreated behind {position} up to {last}, after {held}")
        self.recreations += 1
        self.held = position

    def gap(self, first: object, last: object, reason: object) -> None:
        assert isinstance(first, int)
        assert isinstance(last, int)
        self._log(f"is told of a gap, {reason}, from {first} to", last)
        if self.held is not None and last <= self.held.offset:
            return  # said again, like a message
        if last < first or not self._goes_on_at(first):
            self._fault(Kind.FALSE_GAP, first, f"from {first} to {last}, after {self.held}, asked for {self._asked}")
        elif reason not in ("trimmed", "lost", "router_lost"):
            self._fault(Kind.FALSE_GAP, first, f"from {first} to {last}, {reason}")
        self.held = Position(0 if self.held is None else self.held.epoch, last)

    def received(self, position: Position, content: str) -> bool:
        self._log(f"hears in epoch {position.epoch}:", position.offset, content)
        if not self.is_member:
            self._fault(Kind.PHANTOM, position.offset, f"{content} came to somebody who is no member")
            return False
        self.book.place(self.member, position, content)
        held = self.held
        if held is not None and position.offset <= held.offset:
            if position.epoch <= held.epoch:
                self.raw_repetitions += 1
                return False
            # Who did not say what it holds is given what follows its last ACK, of whatever epoch that is now.
            if self._asked != -1:
                self._fault(
                    Kind.RESET, position.offset, f"in epoch {position.epoch}, after {held}, and nothing was said"
                )
        elif held is not None and position.offset > held.offset + 1:
            self._fault(Kind.SILENT_GAP, held.offset + 1, f"passed over by {position.offset}, and nothing was said")
        if held is not None and position.epoch < held.epoch:
            self._fault(Kind.EPOCH, position.offset, f"epoch {position.epoch} after {held.epoch}")
        self.held = position
        self._contents.add(content)
        self.delivered_count += 1
        return True

    def misses(self) -> int:
        return int(self.is_member and bool(self.book.last_word) and self.book.last_word not in self._contents)

    def judge(self) -> None:
        if self.misses():
            self._fault(Kind.LOSS, 0, f"{self.book.last_word} never came; it stands at {self.held}")
