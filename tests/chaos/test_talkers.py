"""Talkers leave again what WELCOME lists although they left it, and that is a fault but for where it may be."""

from typing import Any

import pytest

from tests.chaos import rounds, test_fleet
from tests.chaos.fleet_faults import FAULTS
from tests.chaos.habits import Habits
from tests.chaos.link import EVENT, JOIN, LEAVE, MESSAGE, REPLY, WELCOME, Link
from tests.chaos.oracle import Kind, Oracle, by_kind
from tests.chaos.talkers import Talker

GROUP = "group:a"
LISTED = {"user:ann": [1, 0, "live"], GROUP: [1, 3, "replayed"]}
RETURNS_LEFT = Habits(returns_left=True)


class Wire(Link):
    """A connection without a network: what is sent is kept."""

    def __init__(self, talker: Talker) -> None:
        super().__init__(talker)
        self.sent: list[tuple[Any, ...]] = []

    def send(self, *frame: Any) -> None:
        self.sent.append(frame)

    def of(self, kind: int) -> list[Any]:
        """What was asked of this kind, without its number."""
        return [frame[2:] for frame in self.sent if frame[0] == kind]


class Life:
    """A talker over one connection after the other."""

    def __init__(self, habits: Habits) -> None:
        self.oracle = Oracle()
        self.talker = Talker(self.oracle, lambda: ("", 0), "ann", "seed", habits)
        self.wire = Wire(self.talker)
        self.come({"user:ann": [1, 0, "live"]}, resumed=False)

    def come(self, channels: dict[str, list[Any]], resumed: bool = True) -> None:
        """The next connection, and its WELCOME."""
        self.talker.lost(self.wire)
        self.wire = Wire(self.talker)
        self.talker._links.append(self.wire)
        self.talker._hello(self.wire)
        values = {"session": "s", "resume_token": "t", "resumed": resumed, "channels": channels}
        self.hear(WELCOME, 1, values)

    def hear(self, *frame: Any) -> None:
        self.talker.hear(self.wire, list(frame))

    def answer(self, kind: int, value: dict[str, Any]) -> None:
        """The last request of this kind is answered."""
        number = [frame[1] for frame in self.wire.sent if frame[0] == kind][-1]
        self.hear(REPLY, number, value)

    def join_and_leave(self) -> None:
        self.talker.want(GROUP)
        self.answer(JOIN, {"epoch": 1, "offset": 2, "outcome": "live"})
        self.talker.leave(GROUP)
        self.answer(LEAVE, {})

    def faults(self) -> dict[Kind, int]:
        return by_kind(self.oracle.verdict())


@pytest.mark.parametrize("habits", [Habits(), RETURNS_LEFT], ids=["anywhere", "where it may be"])
def test_what_is_listed_although_it_was_left_is_left_again(habits: Habits) -> None:
    life = Life(habits)
    life.join_and_leave()
    life.oracle.book(GROUP).publish("said meanwhile", "bob")
    life.come(LISTED)
    assert life.wire.of(LEAVE) == [(GROUP,)]
    life.hear(MESSAGE, GROUP, 3, "said meanwhile", {"epoch": 1})
    life.hear(EVENT, GROUP, "gap", {"from": 4, "to": 9, "reason": "trimmed"})
    assert not life.talker.readers[GROUP].is_member
    life.answer(LEAVE, {})
    life.come({"user:ann": [1, 0, "live"]})
    assert life.wire.of(LEAVE) == []
    assert life.talker.is_settled
    assert life.talker.counts.unwanted == int(habits.returns_left)
    assert life.faults() == ({} if habits.returns_left else {Kind.UNWANTED: 1})


def test_what_was_not_answered_is_left_again_and_counted_once() -> None:
    life = Life(RETURNS_LEFT)
    life.join_and_leave()
    for _ in range(3):
        life.come(LISTED)
        assert life.wire.of(LEAVE) == [(GROUP,)]
    assert life.talker.counts.unwanted == 1
    life.answer(LEAVE, {})
    life.come(LISTED)
    assert life.talker.counts.unwanted == 2
    assert life.faults() == {}


def test_who_wants_it_again_meanwhile_is_a_member_and_hears_all() -> None:
    life = Life(RETURNS_LEFT)
    life.join_and_leave()
    life.come(LISTED)
    life.talker.want(GROUP)
    life.oracle.book(GROUP).publish("before", "bob")
    life.oracle.book(GROUP).publish("behind", "bob")
    life.hear(MESSAGE, GROUP, 3, "before", {"epoch": 1})
    life.answer(LEAVE, {})
    life.answer(JOIN, {"epoch": 1, "offset": 3, "outcome": "live"})
    life.hear(MESSAGE, GROUP, 4, "behind", {"epoch": 1})
    assert life.talker.readers[GROUP].delivered_count == 1
    assert life.talker.is_settled
    assert life.faults() == {}


def test_what_phantoms_bring_is_still_found_where_it_may_be_listed() -> None:
    """Nothing may come of a channel that was left and that WELCOME did not list."""
    life = Life(RETURNS_LEFT)
    life.join_and_leave()
    life.oracle.book(GROUP).publish("said meanwhile", "bob")
    life.hear(MESSAGE, GROUP, 3, "said meanwhile", {"epoch": 1})
    assert life.faults() == {Kind.PHANTOM: 1}


def test_it_may_be_only_where_a_router_is_cut_off_from_workers() -> None:
    names = {fault.name for fault in FAULTS if fault.cuts_workers}
    assert names == {"cut from workers", "not heard by workers", "does not hear workers", "cut from everybody"}
    habits = (Habits(), rounds.HABITS, rounds.SURE, rounds.MOVING, test_fleet.HABITS)
    assert not any(one.returns_left for one in habits)
