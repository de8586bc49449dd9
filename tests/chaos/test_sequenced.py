"""The oracle of `sequenced` channels: a router that dies with what it answered is no fault, hiding it is."""

from collections.abc import Callable

import pytest

from tests.chaos.oracle import Kind, Oracle, Position, by_kind
from tests.chaos.sequenced import SequencedBook, SequencedReader

CHANNEL = "quick:a"
OLD, NEW = 3, 4
"""Epochs of a router that dies with what it said behind offset 2, and of the next one."""
Break = Callable[["World"], object]


class World:
    """A channel with two members, who heard three messages of a router that died with the third."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        book = self.oracle.book(CHANNEL, kind=SequencedBook)
        assert isinstance(book, SequencedBook)
        self.book = book
        self.members: list[SequencedReader] = [book.reader(name) for name in ("ann", "bob")]
        for reader in self.members:
            reader.joined(Position(OLD, 0))
        for offset in (1, 2, 3):
            self.say(Position(OLD, offset), f"old{offset}")

    def say(self, position: Position, content: str) -> None:
        """Publish, deliver to everybody and answer."""
        if content not in self.book.published:
            self.book.publish(content, "ann")
        for reader in self.members:
            reader.received(position, content)
        self.book.acknowledge(content, position)

    def recreate(self) -> None:
        for reader in self.members:
            reader.recreated(3, 3, Position(NEW, 2))

    def end(self) -> dict[Kind, int]:
        """The last word, what HISTORY has, and the verdict."""
        held = self.members[0].held
        assert held is not None
        self.book.publish("last", "ann")
        self.book.awaits("last")
        last = Position(NEW, held.offset + 1)
        for reader in self.members:
            reader.received(last, "last")
        self.book.acknowledge("last", last)
        self.book.history("ann", [(last, "last")], complete=False)
        return by_kind(self.oracle.verdict())


def test_what_died_with_the_router_is_no_fault_once_it_is_told() -> None:
    world = World()
    world.recreate()
    world.say(Position(NEW, 3), "new3")
    world.say(Position(NEW, 4), "old3")  # published again under its key, which died as well
    assert world.end() == {}
    assert world.oracle.counts()["recreations"] == 2


def test_a_reset_says_it_to_who_comes_back_with_what_died() -> None:
    world = World()
    for reader in world.members:
        reader.resumed(Position(NEW, 2), "reset", asked=3)
    world.say(Position(NEW, 3), "new3")
    assert world.end() == {}


def test_a_stream_that_goes_on_where_members_stand_is_not_recreated() -> None:
    world = World()
    world.say(Position(NEW, 4), "new4")
    assert world.end() == {}


def test_who_does_not_say_what_it_holds_is_given_what_follows_its_ack() -> None:
    world = World()
    for reader in world.members:
        reader.resumed(Position(NEW, 3), "replayed", asked=-1)
    world.say(Position(NEW, 3), "new3")
    assert world.end() == {}


def silently(world: World) -> None:
    world.say(Position(NEW, 3), "new3")


def silently_to_who_named_it(world: World) -> None:
    for reader in world.members:
        reader.resumed(Position(NEW, 3), "replayed", asked=3)
    world.say(Position(NEW, 3), "new3")


def twice(world: World) -> None:
    world.recreate()
    world.members[1].recreated(3, 3, Position(NEW, 2))


def with_wrong_bounds(world: World) -> None:
    world.recreate()
    world.members[0].held = Position(OLD, 3)
    world.members[0].recreated(2, 3, Position(NEW, 2))


def too_little(world: World) -> None:
    world.say(Position(OLD, 4), "old4")
    world.recreate()  # of what was said up to 3


def a_hole(world: World) -> None:
    world.say(Position(OLD, 5), "old5")


def a_reset_by_the_same_router(world: World) -> None:
    world.members[0].resumed(Position(OLD, 3), "reset", asked=3)


def two_at_one_position(world: World) -> None:
    world.book.publish("other", "ann")
    world.members[0].received(Position(OLD, 3), "other")


def one_twice(world: World) -> None:
    for reader in world.members:
        reader.received(Position(OLD, 4), "old3")


def an_older_epoch_later(world: World) -> None:
    world.recreate()
    world.say(Position(NEW, 3), "new3")
    world.book.publish("late", "ann")
    for reader in world.members:
        reader.received(Position(OLD, 4), "late")


def nothing_published(world: World) -> None:
    world.members[0].received(Position(OLD, 4), "whose")
    world.members[0].held = Position(OLD, 3)


def to_nobody(world: World) -> None:
    world.recreate()
    world.members[1].left()
    world.members[1].received(Position(NEW, 3), "old3")
    world.members[1].joined(Position(NEW, 2))


def answered_elsewhere(world: World) -> None:
    world.book.publish("new4", "ann")
    for reader in world.members:
        reader.received(Position(NEW, 4), "new4")
    world.book.acknowledge("new4", Position(NEW, 3))


def the_last_word_is_kept_from_one(world: World) -> None:
    world.members.pop()


def history_without_what_was_answered(world: World) -> None:
    world.recreate()
    world.say(Position(NEW, 3), "new3")
    world.book.history("ann", [(Position(OLD, 1), "old1"), (Position(OLD, 2), "old2")], complete=True)


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (silently, Kind.RESET),
        (silently_to_who_named_it, Kind.RESET),
        (twice, Kind.FALSE_GAP),
        (with_wrong_bounds, Kind.FALSE_GAP),
        (too_little, Kind.FALSE_GAP),
        (a_hole, Kind.SILENT_GAP),
        (a_reset_by_the_same_router, Kind.RESET),
        (two_at_one_position, Kind.CONFLICT),
        (one_twice, Kind.REPETITION),
        (an_older_epoch_later, Kind.EPOCH),
        (nothing_published, Kind.PHANTOM),
        (to_nobody, Kind.PHANTOM),
        (answered_elsewhere, Kind.MISPLACED),
        (the_last_word_is_kept_from_one, Kind.LOSS),
        (history_without_what_was_answered, Kind.LOSS),
    ],
)
def test_each_fault_is_found_and_no_other(broken: Break, kind: Kind) -> None:
    world = World()
    broken(world)
    assert set(world.end()) == {kind}
