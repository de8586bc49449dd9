"""The ring of requests: against a dict, also where the 32-bit seq wraps around."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core._testing import Requests
from core.ledger import Stats

REQUESTS_MAX = 65536
WRAP = 2**32


class RequestsMachine(RuleBasedStateMachine):
    """Each open request is found under its seq, which is never 0; a seq that was answered finds nothing."""

    @initialize(first=st.sampled_from([1, 60, WRAP - 1, WRAP - 40, WRAP - 64, WRAP - 200]))
    def start(self, first: int) -> None:
        self.stats = Stats()
        self.ring = Requests(self.stats, first)
        self.open: dict[int, int] = {}
        self.closed: set[int] = set()
        self.id = 0

    @rule(count=st.integers(1, 90))
    def ask(self, count: int) -> None:
        for _ in range(count):
            self.id += 1
            seq = self.ring.open(self.id)
            assert seq != 0
            assert seq not in self.open
            self.open[seq] = self.id

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        for seq in data.draw(st.lists(st.sampled_from(list(self.open)), unique=True, max_size=60)):
            self.ring.done(seq)
            del self.open[seq]
            self.closed.add(seq)

    @precondition(lambda self: self.open)
    @rule()
    def answer_all(self) -> None:
        for seq in list(self.open):
            self.ring.done(seq)
            self.closed.add(seq)
        self.open.clear()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "ring"):
            return
        for seq, id in self.open.items():
            assert self.ring.peek(seq) == id
        assert all(self.ring.peek(seq) is None for seq in self.closed)
        assert self.ring.peek(0) is None
        ledger = self.stats.read()["ledger"]
        assert ledger["request_opened"] - ledger["request_closed"] == len(self.open)
        assert self.ring.span >= len(self.open)
        if not self.open:
            assert self.ring.span == 0


RequestsMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestRequests = RequestsMachine.TestCase


def test_the_oldest_is_an_open_request_also_after_the_numbers_wrapped() -> None:
    """The overdue are looked for from the oldest on, so a place that was skipped must not stand there."""
    ring = Requests(Stats(), WRAP - 1)
    ring.done(ring.open(1))
    assert ring.open(2) == 1
    assert ring.span == 1


@pytest.mark.parametrize("first", [1, WRAP - 100])
def test_too_many_under_way_are_refused_and_room_comes_back(first: int) -> None:
    ring = Requests(Stats(), first)
    seqs: list[int] = []
    while seq := ring.open(len(seqs) + 1):
        seqs.append(seq)
    # A ring that runs over the end of the numbers has one place less: seq 0 means "no answer wanted".
    assert len(seqs) == REQUESTS_MAX - (first != 1)
    assert ring.open(1) == 0
    ring.done(seqs[0])
    assert ring.open(77) != 0
    assert ring.peek(seqs[-1]) == len(seqs)
