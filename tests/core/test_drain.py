"""The data plane of a drain: nothing new, FIN in steps with a slot for each client, and what the time did not do."""

import socket
import threading
from collections.abc import Callable

import pytest

from core import notes, records
from core.codes import Code
from core.ledger import Stats
from core.loop import EdgeLoop
from tests.core.edge_harness import DEADLINE_S, FIN, FIN_ACK, OPTIONS, Client, Edge, Router, wait_for

LEAVES = 1
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def drained(edge: Edge, count: int, first_ms: int = 0, spacing_ms: int = 0) -> tuple[int, bool, int]:
    """One step: how many were told, whether that were all, and how many connections there are."""
    edge.put(notes.DRAIN_STEP, first=count, request=first_ms * 1000, second=spacing_ms * 1000, third=7)
    note = edge.note(notes.DRAIN_SENT)
    return note[4], bool(note[5]), note[3]


def after(client: Client) -> int:
    """When this client is to come back, in ms, from its FIN."""
    kind, code, reason, options = client.frame()
    assert (kind, code, options["class"]) == (FIN, Code.DRAINING, "resume")
    assert reason
    return int(options.get("after", 0))


def test_each_client_has_its_slot_and_is_told_once(edge: Edge) -> None:
    clients = [edge.open(f"user{number}") for number in range(5)]
    edge.put(notes.DRAIN)
    assert drained(edge, 0) == (0, False, 5)
    assert drained(edge, 3, 10, 20) == (3, False, 5)
    assert [after(client) for client in clients[:3]] == [10, 30, 50]
    assert edge.stats.read()["gauges"]["drain_pace"] == 7
    assert drained(edge, 100, 5, 1) == (2, True, 5)
    assert [after(client) for client in clients[3:]] == [5, 6]
    assert drained(edge, 100) == (0, True, 5)
    for client in clients:
        client.send([FIN_ACK])
        client.close()
    assert edge.note(notes.STOPPED)
    assert edge.counter("drain_cut") == 0


def test_the_router_hears_which_sessions_were_sent_away(edge: Edge) -> None:
    told, other = edge.open("alice"), edge.open("bob")
    other.send([FIN, 0, "bye", {}])
    assert other.frame() == [FIN_ACK]
    edge.put(notes.DRAIN)
    assert drained(edge, 10)[0] == 1
    assert after(told) == 0
    sessions: dict[bytes, int] = {}
    while len(sessions) < 2:
        one = edge.router.take()
        if one["kind"] == records.CLOSE:
            sessions[one["session"]] = one["aux"]
    assert sessions == {told.session: 1, other.session: 2}  # comes back; is over


def test_a_connection_that_has_not_said_hello_is_sent_away_too(edge: Edge) -> None:
    half = edge.client()
    wait_for(lambda: edge.live("connection") == 1, "it is connected")
    edge.put(notes.DRAIN)
    assert drained(edge, 10) == (1, True, 1)
    assert after(half) == 0


def test_who_is_in_the_middle_of_a_handshake_is_told_behind_it(edge: Edge) -> None:
    early = socket.create_connection(("127.0.0.1", edge.ws_port), DEADLINE_S)
    other = edge.open("alice")
    wait_for(lambda: edge.live("connection") == 2, "both are connected")
    edge.put(notes.DRAIN)
    assert drained(edge, 10) == (1, False, 2)
    assert after(other) == 0
    assert drained(edge, 10)[:2] == (0, False)
    early.sendall(UPGRADE)
    assert early.recv(12) == b"HTTP/1.1 101"
    assert drained(edge, 10, 20)[:2] == (1, True)
    answer = b""
    while b"this gateway is about to stop" not in answer:
        answer += early.recv(4096)
    early.close()
    other.send([FIN_ACK])
    other.close()
    assert edge.note(notes.STOPPED)


def test_nothing_more_is_accepted(edge: Edge) -> None:
    edge.put(notes.DRAIN)
    assert edge.note(notes.STOPPED), "there was nobody"
    for port in (edge.port, edge.ws_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    assert edge.live("fd") == 0


class Queue:
    """A data plane that has not begun, and a listening socket that the test holds too, with `count` clients waiting."""

    def __init__(self, count: int) -> None:
        self.router = Router("ipc")
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.stats = Stats()
        self.loop = EdgeLoop(
            self.stats,
            endpoint=self.router.endpoint,
            identity="test/0/1",
            tcp_fd=self.listener.dup().detach(),
            ws_fd=-1,
            connections_max=1000,
            **OPTIONS,
        )
        self.clients = [self.dial() for _ in range(count)]

    def dial(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), DEADLINE_S)

    def live(self) -> int:
        ledger = self.stats.read()["ledger"]
        return int(ledger["connection_opened"] - ledger["connection_closed"])

    def run(self) -> threading.Thread:
        self.loop.flush()
        thread = threading.Thread(target=self.loop.run, daemon=True)
        thread.start()
        return thread

    def close(self, thread: threading.Thread) -> None:
        self.loop.put(notes.STOP)
        self.loop.flush()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        for client in self.clients:
            client.close()
        self.listener.close()
        self.router.close()


def test_what_waits_to_be_accepted_is_taken_first_however_much_it_is() -> None:
    queue = Queue(300)
    queue.listener.close()
    queue.loop.put(notes.DRAIN)
    thread = queue.run()
    wait_for(lambda: queue.live() == 300, "all were accepted")
    queue.loop.put(notes.DRAIN_STEP, first=1000)
    queue.loop.flush()
    assert {client.recv(1)[:1] for client in queue.clients} == {b"\0"}, "each was told, and none reset"
    queue.close(thread)


def test_a_worker_that_leaves_does_not_touch_what_is_its_successors() -> None:
    queue = Queue(0)
    queue.loop.put(notes.DRAIN, flags=LEAVES)
    queue.loop.put(notes.DRAIN_STEP)
    thread = queue.run()
    wait_for(lambda: queue.stats.read()["ledger"]["fd_closed"] >= 1, "it does not listen any more")
    before = queue.stats.read()["counters"]["wakeups"]
    queue.clients.append(queue.dial())
    accepted, _ = queue.listener.accept()
    queue.clients.append(accepted)
    wait_for(lambda: queue.stats.read()["counters"]["wakeups"] > before, "it lives")
    # A socket that others hold stays in an epoll set after its close unless it is taken out: that would spin.
    assert queue.stats.read()["counters"]["wakeups"] < before + 100
    assert queue.live() == 0
    queue.close(thread)


def test_who_was_not_told_in_time_is_told_at_the_end_and_counted(edges: Callable[..., Edge]) -> None:
    edge = edges()
    clients = [edge.open(f"user{number}") for number in range(3)]
    edge.put(notes.DRAIN)
    assert drained(edge, 1, 40)[0] == 1
    edge.put(notes.STOP)
    edge.thread.join(DEADLINE_S)
    assert after(clients[0]) == 40
    assert all(0 <= after(client) < 1000 for client in clients[1:])
    assert edge.counter("drain_cut") == 2


def test_clients_of_an_evacuated_region_are_told_where_to_go(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.put(notes.DRAIN_STEP, first=1, flags=1, text=b"wss://b.example/ws\0tcp://b.example:7400")
    assert edge.note(notes.DRAIN_SENT)[4] == 1
    kind, code, reason, options = alice.frame()
    assert (kind, code, reason) == (FIN, Code.MOVED, "this region is evacuated")
    assert options == {"class": "resume", "after": 0, "target": "tcp://b.example:7400"}
    bob = edge.open("bob")
    edge.put(notes.DRAIN_STEP, first=1, flags=1, text=b"wss://b.example/ws\0")
    assert edge.note(notes.DRAIN_SENT)[4] == 1
    assert "target" not in bob.frame()[3], "nobody named one for this transport"


def test_steps_of_an_evacuation_that_come_together_have_their_slots_one_after_another(edge: Edge) -> None:
    clients = [edge.open(f"user{number}") for number in range(4)]
    for _ in range(2):  # of which the second should have come 20 s later
        edge.put(notes.DRAIN_STEP, first=2, flags=1, second=10_000_000)
    for _ in range(2):
        assert edge.note(notes.DRAIN_SENT)[4] == 2
    found = [client.frame()[3]["after"] for client in clients]
    assert found[:2] == [0, 10_000]
    assert 15_000 < found[2] <= 20_000, "behind those that were given before"
    assert found[3] == pytest.approx(found[2] + 10_000, abs=1)
