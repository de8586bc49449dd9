"""Flush: what is queued leaves in few system calls, whole and in order, and a turn does not send for ever."""

from collections.abc import Callable
from typing import Any

import pytest

from core import notes
from core.audit import unpack
from tests.core import wire
from tests.core.edge_harness import EPOCH, FIN, Client, Edge, frame_of, wait_for

RINGS_MAX, RING_MS = 32, 4  # of core/edge.pxd


def fan(edge: Edge, handle: int, first: int, count: int) -> None:
    """`count` messages of one channel in one batch."""
    offsets = range(first, first + count)
    edge.router.send(*(wire.message(handle, EPOCH, offset, frame_of("group:a", offset, "x")) for offset in offsets))


def crowd(edge: Edge) -> tuple[list[Client], int]:
    """Very many members of one channel, and its handle."""
    clients = [edge.open(f"user{number}") for number in range(MANY)]
    handle = edge.join(clients[0], "group:a")
    for client in clients[1:]:
        edge.join_known(client, "group:a")
    return clients, handle


@pytest.mark.parametrize("count", [1, 2, 50])
def test_what_one_batch_brought_leaves_in_one_system_call_a_connection(edge: Edge, count: int) -> None:
    clients = [edge.open(f"user{number}") for number in range(3)]
    handle = edge.join(clients[0], "group:a")
    for client in clients[1:]:
        edge.join_known(client, "group:a")
    before = edge.counter("sends")
    fan(edge, handle, 1, count)
    for client in clients:
        assert [frame[2] for frame in client.frames(count)] == list(range(1, count + 1))
    assert edge.counter("sends") - before == 3
    assert edge.counter("messages_delivered") == 3 * count


MANY = 300


def test_a_turn_sends_for_so_long_and_looks_for_what_came_meanwhile(edges: Callable[..., Edge]) -> None:
    edge = edges(flush_us=1)  # the clock is looked at behind 32 and behind 64 connections: 64 a turn
    clients, handle = crowd(edge)
    turns = edge.counter("wakeups")
    fan(edge, handle, 1, 1)
    for client in clients:
        assert client.frame()[2] == 1
    assert edge.counter("wakeups") - turns >= MANY // 64 + 1


def test_what_waits_for_its_turn_leaves_whole_and_in_order(edges: Callable[..., Edge]) -> None:
    """Messages that come while earlier ones still leave, answers, members that go meanwhile, and an audit."""
    edge = edges(flush_us=1)
    clients, handle = crowd(edge)
    for burst in range(20):
        fan(edge, handle, burst * 3 + 1, 3)
        clients.pop(burst * 7).reset()
        clients[burst].send([4, burst, 0])  # PING
        if burst == 10:
            edge.put(notes.AUDIT, request=7)
            note = edge.note(notes.AUDITED)
            assert unpack(note[7], note[8])["findings"] == []
    for number, client in enumerate(clients):
        said: list[Any] = []
        ponged = False
        while len(said) < 60 or ponged != (number < 20):
            frame = client.frame()
            if frame[0] == 5:
                ponged = True
            else:
                said.append(frame[2])
        assert said == list(range(1, 61))
    for client in clients:
        client.close()
    edge.wait_empty()


def test_who_is_told_to_go_while_others_wait_is_told_all(edges: Callable[..., Edge]) -> None:
    edge = edges(flush_us=1)
    clients, handle = crowd(edge)
    fan(edge, handle, 1, 2)
    wait_for(lambda: edge.counter("messages_delivered") == 2 * MANY, "the messages")
    edge.put(notes.STOP)
    for client in clients:
        assert [frame[0] for frame in client.frames(3)] == [9, 9, FIN]
