"""Connection table: the table of states, whole, and handles that never name another connection than theirs."""

import collections
import contextlib
import itertools
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core import conn, listing, notes, records
from core.conn import ConnectionTable
from core.ledger import CHECKED, Stats
from tests.core import wire
from tests.core.edge_harness import EPOCH, Edge, wait_for

LIVES = 8
HELLO = [0, 1, {}]
# PING, PONG, JOIN, LEAVE, PUBLISH, FIN, FIN_ACK: what a client may say, in and out of turn.
SAID: list[list[Any]] = [
    [4, 1, 1],
    [5, 1, 1],
    [6, 2, "group:a"],
    [7, 3, "group:a"],
    [8, 4, "group:a", 1],
    [14, 0],
    [15],
]
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


class Lives:
    """Connections of a real data plane to which things happen in a random order."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.edge = Edge(hello_timeout_ms=300, fin_timeout_ms=300)
        self.handles: list[int] = []
        self.steps = [
            *[self.connects] * 5,
            *[self.says] * 3,
            self.leaves,
            *[self.control_answers] * 5,
            *[self.router_answers] * 5,
            self.is_told_to_leave,
            self.all_are_told_to_leave,
        ]

    def connects(self) -> None:
        self.edge.client().send(HELLO, *self.random.choices(SAID, k=self.random.randrange(3)))

    def says(self) -> None:
        if self.edge.clients:
            with contextlib.suppress(OSError):
                self.random.choice(self.edge.clients).send(*self.random.choices([HELLO, *SAID], k=2))

    def leaves(self) -> None:
        if not self.edge.clients:
            return
        client = self.random.choice(self.edge.clients)
        ways: list[Callable[[], object]] = [
            client.close,
            client.reset,
            lambda: client.socket.shutdown(socket.SHUT_WR),
            lambda: client.socket.sendall(b"\xff" * 64),
        ]
        with contextlib.suppress(OSError):
            self.random.choice(ways)()

    def control_answers(self) -> None:
        select.select([self.edge.loop.control_fd], [], [], 0.01)
        for note in self.edge.loop.take():
            if note[0] != notes.FRAME:
                continue
            self.handles.append(note[2])
            if self.random.random() < 0.8:
                text, extra = b"\x93\x01\x01\x81\xa8channels", msgpack.packb([[f"user:{note[2]}"]])
                self.edge.put(notes.OPEN, note[2], 1, session=note[2].to_bytes(16, "big"), text=text, extra=extra)
            else:
                self.edge.put(notes.FIN, note[2], first=602, text=b"no")

    def router_answers(self) -> None:
        router = self.edge.router
        while router.socket.poll(10):
            router.identity, batch = router.socket.recv_multipart()
            for one in wire.unpack(batch):
                if one["kind"] == records.SUBSCRIBE:
                    router.send(wire.subscribed(one["channel"], EPOCH, 0))
                elif one["kind"] == records.OPEN:
                    router.send(wire.opened(one["conn"], one["seq"]))

    def is_told_to_leave(self) -> None:
        """At any time, also when it is too late for it."""
        if not self.handles:
            return
        handle, code = self.random.choice(self.handles), self.random.choice([0, 1, 604])
        if self.random.random() < 0.5:
            self.edge.put(notes.RECLAIM, request=1, first=code, text=listing.query(conn=handle))
        else:
            self.edge.put(notes.FIN, handle, first=code, text=b"enough")

    def all_are_told_to_leave(self) -> None:
        states = self.random.randrange(16)
        self.edge.put(notes.RECLAIM, request=2, first=1, text=listing.query(states=states))

    def end(self) -> None:
        for client in self.edge.clients:
            client.close()
        wait_for(lambda: self.edge.live("connection") == 0, "all have ended")


def test_no_life_of_a_connection_leaves_the_table_of_states() -> None:
    """Each seed is one run; what the threads make of it may differ, what is legal may not."""
    entered: collections.Counter[str] = collections.Counter()
    for seed in range(LIVES):
        lives = Lives(seed)
        try:
            for _ in range(60):
                lives.random.choice(lives.steps)()
                assert lives.edge.thread.is_alive(), f"seed {seed}"
            lives.end()
            counters = lives.edge.stats.read()["counters"]
            assert counters["illegal_states"] == 0, f"seed {seed}"
            assert counters["entered_closed"] == counters["entered_accepted"], f"seed {seed}"
            entered.update({state: counters[f"entered_{state}"] for state in conn.STATES})
        finally:
            lives.edge.close()
    # They have been everywhere: what happens before HELLO, in sessions and after FIN is all in it.
    assert entered["accepted"] > entered["open"] > LIVES // 2
    assert entered["closing"] > LIVES


@pytest.mark.parametrize("last", [0xFFFFFFFF, 0xDDDDDDDC])
def test_no_generation_is_one_that_marks_a_free_slot(last: int) -> None:
    """0, and the poison of released memory."""
    stats = Stats()
    table = ConnectionTable(stats, 8, last)
    handle = table.acquire()
    assert handle is not None
    assert handle >> 32 not in {0, 0xDDDDDDDD}
    assert table.state(handle) == "accepted"
    assert table.release(handle)
