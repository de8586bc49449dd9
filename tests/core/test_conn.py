"""Connection table: the table of states, whole, and handles that never name another connection than theirs."""

import itertools
import signal
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core import conn
from core.conn import ConnectionTable
from core.ledger import CHECKED, Stats

LEGAL = {
    ("accepted", "handshaking"),
    ("accepted", "closed"),
    ("handshaking", "open"),
    ("handshaking", "closing"),
    ("handshaking", "closed"),
    ("open", "closing"),
    ("open", "closed"),
    ("closing", "closed"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(conn.STATES, conn.STATES)))
def test_each_change_of_state_is_legal_or_not_as_the_table_says(old: str, new: str) -> None:
    assert ((old, new) in conn.legal_changes()) is ((old, new) in LEGAL)


def test_no_state_leads_back_and_every_state_leads_to_closed() -> None:
    order = {state: place for place, state in enumerate(conn.STATES)}
    assert all(order[old] < order[new] for old, new in conn.legal_changes())
    assert {old for old, new in conn.legal_changes() if new == "closed"} == set(conn.STATES) - {"closed"}


def test_a_connection_costs_two_cache_lines() -> None:
    assert conn.CONNECTION_BYTES == 128


class TableMachine(RuleBasedStateMachine):
    """Stale handles never match, however often their slots are used again."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = Stats()
        self.table = ConnectionTable(self.stats, 40)
        self.live: list[int] = []
        self.stale: list[int] = []

    @rule(count=st.integers(1, 15))
    def acquire(self, count: int) -> None:
        for _ in range(count):
            handle = self.table.acquire()
            if len(self.live) == 40:
                assert handle is None
            else:
                assert handle is not None
                assert handle not in self.live
                assert handle not in self.stale
                # What epoll is given beside handles (listeners, the bus) is below 2**32.
                assert handle >> 32
                self.live.append(handle)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        for handle in data.draw(st.lists(st.sampled_from(self.live), unique=True)):
            assert self.table.release(handle)
            assert not self.table.release(handle)
            self.live.remove(handle)
            self.stale.append(handle)

    @invariant()
    def agrees(self) -> None:
        assert all(self.table.state(handle) == "accepted" for handle in self.live)
        assert all(self.table.state(handle) is None for handle in self.stale)
        ledger = self.stats.read()["ledger"]
        assert ledger["connection_opened"] - ledger["connection_closed"] == len(self.live)
        assert ledger["fd_opened"] - ledger["fd_closed"] == len(self.live)


TableMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestTable = TableMachine.TestCase


@pytest.mark.parametrize("handle", [0, 1, 4, 2**32 - 1, 2**32, 2**64 - 1, 7 << 32 | 0xFFFFFFFF, 0xDDDDDDDD << 32])
def test_numbers_that_are_no_handles_find_nothing(handle: int) -> None:
    table = ConnectionTable(Stats())
    kept = [table.acquire() for _ in range(3)]
    assert table.state(handle) is None or handle in kept
    empty = ConnectionTable(Stats())
    assert empty.state(handle) is None


def test_an_illegal_change_is_counted_and_stops_a_checked_process_at_once() -> None:
    program = "import core._testing as t; print(t.change_state('closing', 'open'))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    if CHECKED:
        assert result.returncode == -signal.SIGABRT
        assert "broken invariant" in result.stderr
    else:
        assert result.stdout == "1\n"  # illegal_states
