"""What the oracle asks where regions are lost: what another region confirmed is never lost, the rest is counted.

As in tests/chaos/sequenced.py positions are told apart by epoch and offset, since another region goes on below what the
lost one gave; whoever holds something of that is told. Beyond it:

- At `replicated` all that was answered is in HISTORY for good, at the place that was answered, and once.
- Nobody is told `reset` who says that he holds something that is in HISTORY: a region that is behind has him wait. For
  who says nothing of it his session's last ACK counts, which may be of what was lost, or have been lost itself.
- At `logged` what was answered may be missing in the end. All that is missing has to be among what the region that came
  back says that it dropped; a test compares that.
"""

from collections.abc import Iterable

from tests.chaos.oracle import Book, Kind, Oracle, Position
from tests.chaos.sequenced import SequencedBook, SequencedReader


class RegionalReader(SequencedReader):
    """One member of such a channel.

    Attributes:
        resets: what it said that it holds whenever it was told that this is gone.

    """

    def __init__(self, book: "LoggedBook", member: str) -> None:
        super().__init__(book, member)
        self.resets: list[Position] = []

    def resumed(self, position: Position, outcome: str, asked: int | None = None) -> None:
        if outcome == "reset" and asked == -1:
            self._log(f"resumes where it acknowledged last, {outcome}, up to", position.offset)
            self._asked, self.held = asked, position
            return
        if outcome == "reset" and self.held is not None:
            self.resets.append(self.held)
        super().resumed(position, outcome, asked)


class LoggedBook(SequencedBook):
    """Of a channel that answers once the leader's region has it.

    Attributes:
        lost: what was answered, and is not in HISTORY in the end.

    """

    def __init__(self, oracle: Oracle, channel: str, retained: int) -> None:
        super().__init__(oracle, channel, retained)
        self.lost: list[Position] = []

    def reader(self, member: str) -> RegionalReader:
        self.readers.append(reader := RegionalReader(self, member))
        return reader

    def history(self, by: str, messages: Iterable[tuple[Position, str]], *, complete: bool) -> None:
        found = list(messages)
        super().history(by, found, complete=complete)
        places: dict[str, Position] = {}
        for position, content in found:
            first = places.setdefault(content, position)
            if first != position:
                self.fault(Kind.REPETITION, by, position.offset, f"HISTORY has {content} at {first} too")
        if complete and found:
            there = {position for position, _ in found}
            answers = [one.answer for one in self.published.values() if one.answer is not None]
            self.lost = sorted(one for one in answers if one not in there and one > found[0][0])
            self.judge_lost(by)
            for reader in self.readers:
                for held in reader.resets if isinstance(reader, RegionalReader) else ():
                    if held in there:
                        text = f"was told that {held} is gone, and HISTORY has it"
                        self.fault(Kind.RESET, reader.member, held.offset, text)

    def judge_lost(self, by: str) -> None:
        """Whoever counts it does."""


class ReplicatedBook(LoggedBook):
    """Of a channel that answers once another region has it, too."""

    def acknowledge(self, content: str, position: Position) -> None:
        Book.acknowledge(self, content, position)  # an answer is for good, whatever happens to its region

    def judge_lost(self, by: str) -> None:
        for position in self.lost:
            self.fault(Kind.LOSS, by, position.offset, f"answered at {position}, and not in HISTORY")
