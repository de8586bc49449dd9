"""The oracle of regions: what was replicated and is lost is a fault, what was logged and is lost is counted."""

import pytest

from tests.chaos.oracle import Kind, Oracle, Position, by_kind
from tests.chaos.regional import LoggedBook, ReplicatedBook

OLD, NEW = 3, 4


class World:
    """A channel with a member in a region that is lost, and one elsewhere."""

    def __init__(self, kind: type[LoggedBook]) -> None:
        self.oracle = Oracle()
        book = self.oracle.book("group:a", kind=kind)
        assert isinstance(book, LoggedBook)
        self.book = book
        self.near, self.far = book.reader("near"), book.reader("far")
        for reader in (self.near, self.far):
            reader.joined(Position(OLD, 0))
        self.log: list[tuple[Position, str]] = []
        for offset in (1, 2):
            self.say(Position(OLD, offset), f"old{offset}")

    def say(self, position: Position, content: str, *, answered: bool = True, lost: bool = False) -> None:
        """Published and delivered; with `lost` in the region alone that is lost."""
        if content not in self.book.published:
            self.book.publish(content, "near")
        for reader in (self.near,) if lost else (self.near, self.far):
            reader.received(position, content)
        if answered:
            self.book.acknowledge(content, position)
        if not lost:
            self.log.append((position, content))

    def go_on(self) -> None:
        """Elsewhere, behind offset 2; who heard more is told."""
        self.near.recreated(3, 3, Position(NEW, 2))

    def end(self) -> dict[Kind, int]:
        offset = self.log[-1][0].offset + 1
        self.say(Position(NEW, offset), "last")
        self.book.awaits("last")
        self.book.history("far", self.log, complete=True)
        return by_kind(self.oracle.verdict())


@pytest.mark.parametrize("kind", [LoggedBook, ReplicatedBook])
def test_what_was_not_answered_may_be_lost_and_comes_again_elsewhere(kind: type[LoggedBook]) -> None:
    world = World(kind)
    world.say(Position(OLD, 3), "old3", answered=False, lost=True)
    world.go_on()
    world.say(Position(NEW, 3), "old3")
    assert world.end() == {}
    assert world.book.lost == []


def test_what_was_logged_and_is_lost_is_counted() -> None:
    world = World(LoggedBook)
    world.say(Position(OLD, 3), "old3", lost=True)
    world.go_on()
    world.say(Position(NEW, 3), "new3")
    assert world.end() == {}
    assert world.book.lost == [Position(OLD, 3)]


def test_what_was_replicated_and_is_lost_is_a_fault() -> None:
    world = World(ReplicatedBook)
    world.say(Position(OLD, 3), "old3", lost=True)
    world.go_on()
    world.say(Position(NEW, 3), "new3")
    assert set(world.end()) == {Kind.LOSS}


def test_an_answer_is_for_good() -> None:
    world = World(ReplicatedBook)
    world.say(Position(OLD, 3), "old3", lost=True)
    world.go_on()
    world.say(Position(NEW, 3), "old3")
    assert Kind.MISPLACED in world.end()


@pytest.mark.parametrize("kind", [LoggedBook, ReplicatedBook])
def test_nothing_is_there_twice(kind: type[LoggedBook]) -> None:
    world = World(kind)
    world.say(Position(NEW, 3), "old2", answered=False)
    assert set(world.end()) == {Kind.REPETITION}


@pytest.mark.parametrize("kind", [LoggedBook, ReplicatedBook])
def test_going_on_elsewhere_in_silence_is_a_fault(kind: type[LoggedBook]) -> None:
    world = World(kind)
    world.say(Position(OLD, 3), "old3", answered=False, lost=True)
    world.say(Position(NEW, 3), "new3")
    assert set(world.end()) == {Kind.RESET}


@pytest.mark.parametrize("kind", [LoggedBook, ReplicatedBook])
def test_nobody_begins_anew_who_holds_what_is_there(kind: type[LoggedBook]) -> None:
    world = World(kind)
    world.near.resumed(Position(NEW, 2), "reset", asked=2)
    world.say(Position(NEW, 3), "new3")
    assert set(world.end()) == {Kind.RESET}


@pytest.mark.parametrize("kind", [LoggedBook, ReplicatedBook])
def test_who_holds_what_is_gone_may_be_told_so_at_its_return(kind: type[LoggedBook]) -> None:
    world = World(kind)
    world.say(Position(OLD, 3), "old3", answered=False, lost=True)
    world.near.resumed(Position(NEW, 2), "reset", asked=3)
    world.say(Position(NEW, 3), "new3")
    assert world.end() == {}


@pytest.mark.parametrize("kind", [LoggedBook, ReplicatedBook])
def test_who_does_not_say_what_he_holds_may_be_told_so_again(kind: type[LoggedBook]) -> None:
    world = World(kind)
    world.say(Position(OLD, 3), "old3", answered=False, lost=True)
    world.near.resumed(Position(NEW, 2), "reset", asked=3)
    world.say(Position(NEW, 3), "new3")
    world.near.resumed(Position(NEW, 2), "reset", asked=-1)
    world.near.received(Position(NEW, 3), "new3")
    assert world.end() == {}
