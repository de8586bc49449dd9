"""Connection table: the table of states, whole, and handles that never name another connection than theirs."""

import contextlib
import itertools
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core import conn, listing, notes, records
from core.conn import ConnectionTable
from core.ledger import CHECKED, Stats
from tests.core import wire
from tests.core.edge_harness import EPOCH, Edge, wait_for

HELLO = [0, 1, {}]
# PING, PONG, JOIN, LEAVE, PUBLISH, FIN, FIN_ACK: what a client may say, in and out of turn.
SAID: list[list[Any]] = [[4, 1, 1], [5, 1, 1], [6, 2, "group:a"], [7, 3, "group:a"], [8, 4, "group:a", 1], [14, 0], [15]]
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


def test_the_diagram_of_the_architecture_page_is_the_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "ARCHITECTURE.md").read_text()
    diagram = page.partition("```mermaid\nstateDiagram-v2\n")[2].partition("```")[0]
    arrows = [line.split(":")[0].split() for line in diagram.splitlines() if "-->" in line]
    drawn = [(old, new) for old, _, new in arrows]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == conn.legal_changes() | {("[*]", conn.STATES[0]), (conn.STATES[-1], "[*]")}


class LifeMachine(RuleBasedStateMachine):
    """Whatever happens to connections, in any order, the table of states is never left."""

    @initialize()
    def start(self) -> None:
        self.edge = Edge(hello_timeout_ms=300, fin_timeout_ms=300)
        self.handles: list[int] = []

    @rule(frames=st.lists(st.sampled_from(SAID), max_size=3))
    def connects(self, frames: list[list[Any]]) -> None:
        self.edge.client().send(HELLO, *frames)

    @precondition(lambda self: self.edge.clients)
    @rule(data=st.data(), frames=st.lists(st.sampled_from([HELLO, *SAID]), max_size=3))
    def says(self, data: st.DataObject, frames: list[list[Any]]) -> None:
        with contextlib.suppress(OSError):
            data.draw(st.sampled_from(self.edge.clients)).send(*frames)

    @precondition(lambda self: self.edge.clients)
    @rule(data=st.data(), how=st.sampled_from(["closes", "resets", "shuts", "breaks"]))
    def leaves(self, data: st.DataObject, how: str) -> None:
        client = data.draw(st.sampled_from(self.edge.clients))
        with contextlib.suppress(OSError):
            if how == "shuts":
                client.socket.shutdown(socket.SHUT_WR)
            elif how == "breaks":
                client.socket.sendall(b"\xff" * 64)
            else:
                client.reset() if how == "resets" else client.close()

    @rule(lets_in=st.sampled_from([True, True, True, False]))
    def control_answers(self, lets_in: bool) -> None:
        for note in self.edge.loop.take():
            if note[0] != notes.FRAME:
                continue
            self.handles.append(note[2])
            if lets_in:
                text, extra = b"\x93\x01\x01\x81\xa8channels", msgpack.packb([[f"user:{note[2]}"]])
                self.edge.put(notes.OPEN, note[2], 1, session=note[2].to_bytes(16, "big"), text=text, extra=extra)
            else:
                self.edge.put(notes.FIN, note[2], first=602, text=b"no")

    @rule()
    def router_answers(self) -> None:
        router = self.edge.router
        while router.socket.poll(20):
            router.identity, batch = router.socket.recv_multipart()
            for one in wire.unpack(batch):
                if one["kind"] == records.SUBSCRIBE:
                    router.send(wire.subscribed(one["channel"], EPOCH, 0))
                elif one["kind"] == records.OPEN:
                    router.send(wire.opened(one["conn"], one["seq"]))

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 604]), waits=st.booleans())
    def is_told_to_leave(self, data: st.DataObject, code: int, waits: bool) -> None:
        """At any time, also when it is too late for it."""
        handle = data.draw(st.sampled_from(self.handles))
        if waits:
            self.edge.put(notes.RECLAIM, request=1, first=code, text=listing.query(conn=handle))
        else:
            self.edge.put(notes.FIN, handle, first=code, text=b"enough")

    @rule(states=st.integers(0, 15))
    def all_are_told_to_leave(self, states: int) -> None:
        self.edge.put(notes.RECLAIM, request=2, first=1, text=listing.query(states=states))

    @invariant()
    def is_legal(self) -> None:
        if not hasattr(self, "edge"):
            return
        counters = self.edge.stats.read()["counters"]
        assert counters["illegal_states"] == 0
        assert self.edge.thread.is_alive()
        # Closed is counted first: what is read was written by another thread meanwhile.
        for later, earlier in (("open", "handshaking"), ("closing", "handshaking"), ("closed", "accepted")):
            assert counters[f"entered_{later}"] <= self.edge.counter(f"entered_{earlier}")

    def teardown(self) -> None:
        if not hasattr(self, "edge"):
            return
        for client in self.edge.clients:
            client.close()
        wait_for(lambda: self.edge.live("connection") == 0, "all have ended")
        assert self.edge.counter("entered_closed") == self.edge.counter("entered_accepted")
        self.edge.close()


LifeMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestLife = LifeMachine.TestCase
