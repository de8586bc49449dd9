"""The oracle: knows all that was published, answered, delivered and told, and says what of the protocol was broken.

Clients report to it as they go (`Book` for a channel, `Reader` for a member of it); `Oracle.verdict` judges at the end,
when everybody has had time to hear everything. For channels whose namespace answers at `logged`:

- An acknowledged message is delivered to each entitled member exactly once, after the receiver's own drop rule (an
  offset that it has already is dropped; those are counted as `raw_repetitions`).
- In the order of offsets, without a hole. A hole is told as EVENT `gap` with exactly its first and last offset, and
  only where the history may have been trimmed.
- One position holds one message for everybody: members, publishers' answers and HISTORY.
- Who forgets what it heard after its last ACK is given all of that again. Nothing is sent again that the gateway was
  told of: by a position at the return, or by an ACK that it knew of. Nothing is sent twice over one connection.
- A `reset` never happens: the log survives everything that is done to it here.

Positions are told apart by their offset alone, since offsets go on over epochs when the log survived; what
stands at one offset in two epochs is a fault. It knows nothing of sockets or clocks: `at` is what the caller
counts with, and serves the stories only.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

NEIGHBOURS = 12
FOR_EVER = 1 << 62


class Kind(StrEnum):
    """What can be wrong."""

    LOSS = "loss"
    """Acknowledged, or heard by others, and never delivered to a member that was entitled to it."""
    REPETITION = "repetition"
    """One message at two positions: an application got it twice. Or sent again to one who had said that it has it."""
    REORDERING = "reordering"
    """Delivered after a later one."""
    PHANTOM = "phantom"
    """Delivered and never published there, or refused, or to somebody who was no member."""
    SILENT_GAP = "silent gap"
    """Offsets passed over without a word."""
    FALSE_GAP = "false gap"
    """A gap that was told and is none, or not with its exact bounds."""
    CONFLICT = "conflict"
    """Two messages at one position."""
    MISPLACED = "misplaced"
    """The publisher was told another position than the message has, or two of them."""
    EPOCH = "epoch"
    """A later message with an earlier epoch, or one message with two epochs."""
    RESET = "reset"
    """A member was told that the history it knows is gone."""
    FORGOTTEN = "forgotten"
    """A resumed session lacks a channel that it had joined."""
    UNWANTED = "unwanted"
    """A resumed session has a channel that it had left."""
    ZOMBIE = "zombie"
    """The older of two connections of a session went on delivering."""


class Position(NamedTuple):
    """Where a message or a member stands."""

    epoch: int
    offset: int


class Line(NamedTuple):
    """What happened, for the stories."""

    at: float
    channel: str
    who: str
    what: str
    offset: int
    content: str


@dataclass(frozen=True)
class Fault:
    """One thing that must not be, with its story."""

    kind: Kind
    channel: str
    member: str
    offset: int
    text: str
    story: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        head = f"{self.kind}: {self.channel} at {self.offset}, {self.member or 'everybody'}: {self.text}"
        return "\n    ".join((head, *self.story))


@dataclass
class Publish:
    """One message as its publisher knows it."""

    content: str
    channel: str
    by: str
    tick: int = 0
    """The oracle's time when it was about to be sent."""
    answer: Position | None = None
    refused: bool = False


class Book:
    """All that is known of one channel.

    Args:
        retained: messages that its namespace keeps; what is older may be told as gap.

    """

    def __init__(self, oracle: "Oracle", channel: str, retained: int) -> None:
        self.oracle, self.channel, self.retained = oracle, channel, retained
        self.published: dict[str, Publish] = {}
        self.places: dict[int, str] = {}
        """Content by offset, as the first who heard it."""
        self.offsets: dict[str, int] = {}
        self.epochs: dict[int, int] = {}
        self.readers: list[Reader] = []
        self.refused_count = 0

    def publish(self, content: str, by: str) -> None:
        """About to be sent; sending it again under its key is no news to the oracle."""
        assert content not in self.oracle.contents, f"{content} is published twice"
        self.published[content] = self.oracle.contents[content] = Publish(content, self.channel, by, self.oracle.tick)
        self.oracle.log(self.channel, by, "publishes", 0, content)

    def awaits(self, content: str) -> None:
        """Everybody is to hear this: a matter of course here, where what is answered is not lost."""

    def acknowledge(self, content: str, position: Position) -> None:
        found = self.published[content]
        self.oracle.log(self.channel, found.by, f"is answered in epoch {position.epoch}:", position.offset, content)
        if found.answer is not None and found.answer != position:
            self.fault(Kind.MISPLACED, found.by, position.offset, f"{content} was answered {found.answer} before")
        found.answer = found.answer or position

    def refuse(self, content: str, code: int) -> None:
        """Refused for good: it may not be delivered to anybody. An `unavailable` is not that: nobody knows."""
        found = self.published[content]
        found.refused = True
        self.refused_count += 1
        self.oracle.log(self.channel, found.by, f"is refused with {code}:", 0, content)

    def reader(self, member: str) -> "Reader":
        """A member of the channel to be; call `joined` when it is one."""
        self.readers.append(reader := Reader(self, member))
        return reader

    def history(self, by: str, messages: Iterable[tuple[Position, str]], *, complete: bool) -> None:
        """What HISTORY gave, oldest first; `complete`: it is said to be all that is kept."""
        found = list(messages)
        for position, content in found:
            self.oracle.log(self.channel, by, f"reads in epoch {position.epoch}:", position.offset, content)
            self.place(by, position, content)
        offsets = [position.offset for position, _ in found]
        for before, after in pairwise(offsets):
            if after != before + 1:
                self.fault(Kind.SILENT_GAP, by, before + 1, f"HISTORY goes from {before} to {after}")
        if complete:
            last = max([self.last_acknowledged(), *offsets])
            first = max(1, last - self.retained + 1)
            missing = set(self.acknowledged_offsets()) - set(offsets)
            for offset in sorted(offset for offset in missing if offset >= first):
                self.fault(Kind.LOSS, by, offset, "acknowledged, and not in HISTORY")

    # What the readers need.

    def acknowledged_offsets(self) -> list[int]:
        return [one.answer.offset for one in self.published.values() if one.answer is not None]

    def last_acknowledged(self) -> int:
        return max(self.acknowledged_offsets(), default=0)

    def positions_at_most(self) -> int:
        """There are never more positions than messages were published."""
        return len(self.published) - self.refused_count

    def last(self) -> int:
        """The last position that anybody knows of."""
        return max(self.last_acknowledged(), max(self.places, default=0))

    def place(self, who: str, position: Position, content: str) -> bool:
        """Somebody got this message there; False: it is none at all, and has no place."""
        offset = position.offset
        found = self.published.get(content)
        if found is None:
            elsewhere = self.oracle.contents.get(content)
            text = f"{content} belongs to {elsewhere.channel}" if elsewhere else f"{content} was never published"
            self.fault(Kind.PHANTOM, who, offset, text)
            return False
        there = self.places.setdefault(offset, content)
        if there != content:
            self.fault(Kind.CONFLICT, "", offset, f"{there} for one, {content} for another, who is {who}")
            return True
        first = self.offsets.setdefault(content, offset)
        if first != offset:
            self.fault(Kind.REPETITION, "", offset, f"{content} stands at {first} too")
        epoch = self.epochs.setdefault(offset, position.epoch)
        if epoch != position.epoch:
            self.fault(Kind.EPOCH, "", offset, f"epoch {epoch} for one, {position.epoch} for {who}")
        return True

    def fault(self, kind: Kind, member: str, offset: int, text: str) -> None:
        self.oracle.fault(Fault(kind, self.channel, member, offset, text))

    def judge(self) -> None:
        """Once all is quiet."""
        answered: dict[int, str] = {}
        for publish in self.published.values():
            self._judge_publish(publish)
            if publish.answer is not None and publish.content not in self.offsets:
                # Nobody heard either of them, so that only their answers can tell.
                first = answered.setdefault(publish.answer.offset, publish.content)
                if first != publish.content:
                    self.fault(Kind.CONFLICT, "", publish.answer.offset, f"{first} and {publish.content} are there")
        for reader in self.readers:
            reader.judge()

    def _judge_publish(self, publish: Publish) -> None:
        offset, answer = self.offsets.get(publish.content), publish.answer
        if offset is not None and publish.refused:
            self.fault(Kind.PHANTOM, "", offset, f"{publish.content} was refused and delivered")
        if answer is None:
            return
        if offset is not None and offset != answer.offset:
            self.fault(Kind.MISPLACED, publish.by, answer.offset, f"{publish.content} stands at {offset}")
        elif offset is None and answer.offset in self.places:
            other = self.places[answer.offset]
            self.fault(Kind.CONFLICT, "", answer.offset, f"{publish.content} was answered so, and {other} is there")
        elif offset is not None and self.epochs[offset] != answer.epoch:
            self.fault(Kind.EPOCH, "", offset, f"answered with epoch {answer.epoch}, not {self.epochs[offset]}")


class Reader:
    """One member of one channel: what came to it, in order, whatever connections it came over."""

    def __init__(self, book: Book, member: str) -> None:
        self.book, self.member = book, member
        self.is_member = False
        self.held: Position | None = None
        """The last position; None: the gateway knows from where on it is a member, the first message will tell."""
        self.acked: Position | None = None
        """The last that it acknowledged as a member; before it does, where it joined."""
        self.delivered_count = 0
        self.raw_repetitions = 0
        self.recreations = 0
        self._had: set[int] = set()
        self._passed_over: dict[int, int] = {}
        """Offsets that did not come: by which one they were passed over."""
        self._told: set[int] = set()
        """Offsets that a gap said would not come."""
        self._gaps: list[tuple[int, int, int]] = []
        """First, last, and how many messages there could have been when it was told."""
        self._entered = 0
        """The last offset before it became a member."""
        self._asked: int | None = None
        """The offset from which it asked to go on, when that is another than the one it holds; -1: its last ACK."""

    def joined(self, position: Position | None) -> None:
        """Member from the message after this position on; None: see `held`."""
        self._log("joins", 0 if position is None else position.offset)
        self.is_member, self.held, self.acked = True, position, position
        self._entered = 0 if position is None else position.offset

    def left(self) -> None:
        """LEAVE was answered: nothing may come any more, and nothing is due."""
        self._log("has left", 0)
        self.is_member = False

    def forgotten(self) -> None:
        """A resumed session does not have this channel any more."""
        self._fault(Kind.FORGOTTEN, 0 if self.held is None else self.held.offset, "the session lacks its channel")
        self.is_member = False

    def unwanted(self, position: Position, since_s: float) -> None:
        """A resumed session has this channel, and LEAVE was answered so long before its HELLO."""
        self._fault(Kind.UNWANTED, position.offset, f"the session has it, and had left it {since_s:.3f} s before")

    def resumed(self, position: Position, outcome: str, asked: int | None = None) -> None:
        """What WELCOME, or the answer to JOIN with `since`, said; `asked` is the offset that the client named, and -1
        when it named none.
        """
        self._asked = asked
        self._log(f"resumes at {None if self.held is None else self.held.offset}, {outcome}, up to", position.offset)
        if outcome == "reset":
            self._fault(Kind.RESET, position.offset, f"held {self.held}")
            self.held = position
        elif outcome == "live" and self.held is None:
            self.joined(position)

    def acknowledges(self) -> int | None:
        """All that it holds; the offset to say, None: it holds nothing that it knows of."""
        if not self.is_member or self.held is None:
            return None
        self.acked = self.held
        return self.held.offset

    def begins_anew(self) -> None:
        """It knows nothing of what it heard after its last ACK: all of that is due again."""
        assert self.acked is not None
        self._log("has forgotten all behind its last ACK", self.acked.offset)
        self.held = self.acked
        self._had = {offset for offset in self._had if offset <= self.acked.offset}
        self._told = {offset for offset in self._told if offset <= self.acked.offset}

    def repeated(self, offset: int, text: str) -> None:
        """It came although the gateway was told that it had come before, or had sent it over the same connection."""
        self._fault(Kind.REPETITION, offset, f"sent again, {text}")

    def zombie(self, offset: int, text: str) -> None:
        self._fault(Kind.ZOMBIE, offset, text)

    def recreated(self, first: int, last: int, position: Position) -> None:
        """EVENT gap with that reason: the channel goes on behind this position."""
        self.gap(first, last, "recreated")

    def gap(self, first: object, last: object, reason: object) -> None:
        """EVENT gap."""
        if not (isinstance(first, int) and isinstance(last, int)):
            self._fault(Kind.FALSE_GAP, 0, f"from {first!r} to {last!r} is no range")
            return
        self._log(f"is told of a gap, {reason}, from {first} to", last)
        if reason == "recreated":
            self._fault(Kind.RESET, first, "the channel goes on from below what was held")
        if self.held is not None and last <= self.held.offset:
            return  # said again, like a message
        if last < first or not self._goes_on_at(first):
            self._fault(Kind.FALSE_GAP, first, f"from {first} to {last}, after {self.held}, asked for {self._asked}")
        elif reason not in ("trimmed", "router_lost"):
            # The second is a worker's that linked anew: it cannot know that the history was trimmed meanwhile, which
            # is judged in the end.
            self._fault(Kind.FALSE_GAP, first, f"from {first} to {last}, {reason}")
        self._gaps.append((first, last, self.book.positions_at_most()))
        self._told.update(range(first, last + 1))
        epoch = 0 if self.held is None else self.held.epoch
        self.held = Position(epoch, last)

    def _goes_on_at(self, first: int) -> bool:
        """Whether this is the first offset that may be missing: after what it holds, or after what it asked for."""
        if self.held is None or first == self.held.offset + 1:
            return True
        return first <= self.held.offset and self._asked is not None and self._asked in (-1, first - 1)

    def received(self, position: Position, content: str) -> bool:
        """A MESSAGE came; whether the application gets it."""
        self._log(f"hears in epoch {position.epoch}:", position.offset, content)
        offset = position.offset
        if not self.is_member:
            self._fault(Kind.PHANTOM, offset, f"{content} came to somebody who is no member")
            return False
        if not self.book.place(self.member, position, content):
            # It took an offset from a message: that one is not looked for as well.
            self._advance(position)
            return True
        if self.held is not None and offset <= self.held.offset:
            self._old(offset)
            return False
        if self.held is not None:
            for missed in range(self.held.offset + 1, offset):
                self._passed_over[missed] = offset
            if position.epoch < self.held.epoch:
                self.book.fault(Kind.EPOCH, "", offset, f"epoch {position.epoch} after {self.held.epoch}")
        else:
            self._entered = offset - 1
        self._advance(position)
        return True

    def _advance(self, position: Position) -> None:
        self._had.add(position.offset)
        if self.held is None or position.offset > self.held.offset:
            self.held = position
        self.delivered_count += 1

    def _old(self, offset: int) -> None:
        """Something at or before the position: had already, or out of order."""
        self.raw_repetitions += 1
        if offset in self._had or offset <= self._entered:
            return
        if offset in self._told:
            self._fault(Kind.FALSE_GAP, offset, "came after it was told that it would not")
        else:
            self._fault(Kind.REORDERING, offset, f"came after {self._passed_over.get(offset, '?')}")
        self._had.add(offset)
        self._passed_over.pop(offset, None)

    def misses(self) -> int:
        """How many messages are still to come."""
        if not self.is_member:
            return 0
        return max(0, self.book.last_acknowledged() - (0 if self.held is None else self.held.offset))

    def judge(self) -> None:
        for offset, by in sorted(self._passed_over.items()):
            self._fault(Kind.SILENT_GAP, offset, f"passed over by {by}, and nothing was said")
        for first, last, positions in self._gaps:
            if last > min(positions, self.book.last()) - self.book.retained:
                self._fault(Kind.FALSE_GAP, first, f"from {first} to {last}, where all is kept")
        if not self.is_member:
            return
        due = set(self.book.acknowledged_offsets()) | self.book.places.keys()
        held = self._entered if self.held is None else self.held.offset
        for offset in sorted(offset for offset in due if offset > held):
            self._fault(Kind.LOSS, offset, f"never came; it stands at {held}")

    def _fault(self, kind: Kind, offset: int, text: str) -> None:
        self.book.fault(kind, self.member, offset, text)

    def _log(self, what: str, offset: int, content: str = "") -> None:
        self.book.oracle.log(self.book.channel, self.member, what, offset, content)


class Oracle:
    """All channels of one run. `clock` gives the times of the stories."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.contents: dict[str, Publish] = {}
        self.faults: dict[tuple[Kind, str, str, int], Fault] = {}
        self._books: dict[str, Book] = {}
        self._lines: list[Line] = []
        self._clock = clock
        self.router_killed_tick = self.linked_tick = -1
        """When the last router was killed, and when all workers had linked to the next one."""

    @property
    def tick(self) -> int:
        """Its own time: how much was reported to it."""
        return len(self._lines)

    def book(self, channel: str, retained: int = 1_000, kind: type[Book] = Book) -> Book:
        """The one of a channel, made as said when it is first asked for."""
        if channel not in self._books:
            self._books[channel] = kind(self, channel, retained)
        return self._books[channel]

    def note(self, what: str) -> None:
        """Something that concerns everybody: a fault was made, a process is back."""
        if what == "kill router":
            self.router_killed_tick, self.linked_tick = self.tick, FOR_EVER
        elif what == "all is whole again":
            self.linked_tick = self.tick
        self.log("", "", what, 0, "")

    def log(self, channel: str, who: str, what: str, offset: int, content: str) -> None:
        self._lines.append(Line(self._clock(), channel, who, what, offset, content))

    def fault(self, fault: Fault) -> None:
        self.faults.setdefault((fault.kind, fault.channel, fault.member, fault.offset), fault)

    def verdict(self) -> list[Fault]:
        """Everything that was wrong, each with the history of the message it is about; call it once all is quiet."""
        for book in self._books.values():
            book.judge()
        return [
            Fault(one.kind, one.channel, one.member, one.offset, one.text, tuple(self._story(one)))
            for one in self.faults.values()
        ]

    def counts(self) -> dict[str, int]:
        """What was proven, in numbers."""
        readers = [reader for book in self._books.values() for reader in book.readers]
        answered = sum(publish.answer is not None for publish in self.contents.values())
        return {
            "published": len(self.contents),
            "acknowledged": answered,
            "delivered": sum(reader.delivered_count for reader in readers),
            "raw_repetitions": sum(reader.raw_repetitions for reader in readers),
            "recreations": sum(reader.recreations for reader in readers),
            "readers": len(readers),
        }

    def _story(self, fault: Fault) -> list[str]:
        """All that was said of the offset, its messages, and what its member saw just before and after."""
        channel = [line for line in self._lines if line.channel in ("", fault.channel)]
        contents = {line.content for line in channel if line.offset == fault.offset and line.content}
        wanted = {line for line in channel if line.offset == fault.offset or line.content in contents}
        if fault.member:
            own = [line for line in channel if line.who in ("", fault.member)]
            places = [index for index, line in enumerate(own) if line in wanted and line.who] or [len(own) - 1]
            near = range(max(0, places[0] - NEIGHBOURS), places[-1] + NEIGHBOURS)
            wanted.update(line for index, line in enumerate(own) if index in near)
        lines = [line for line in channel if line in wanted or not line.channel]
        return [f"{line.at:9.3f} {line.who} {line.what} {line.offset or ''} {line.content}".rstrip() for line in lines]


def by_kind(faults: Iterable[Fault]) -> dict[Kind, int]:
    """How many of each."""
    found: dict[Kind, int] = defaultdict(int)
    for fault in faults:
        found[fault.kind] += 1
    return dict(found)
