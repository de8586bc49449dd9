"""The end of a session's credentials: told in time, put off by REFRESH, and kept."""

import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core import registry_views, wire
from tests.core.edge_harness import EVENT, FIN, REPLY, WELCOME, Client, Edge, wait_for

EXPIRED = [EVENT, "user:alice", "expired"]
NOTICE_MS = 300


@pytest.fixture
def edge(edges: Callable[..., Edge]) -> Edge:
    return edges(expiry_notice_ms=NOTICE_MS)


def opened(edge: Edge, ms: int, user: str = "alice", **more: Any) -> Client:
    """A session whose credentials end in so many ms."""
    client = edge.client()
    client.send([0, 1, {}])
    client.conn = edge.note(notes.FRAME)[2]
    edge.put(
        notes.OPEN,
        client.conn,
        1,
        third=ms,
        session=user.encode().ljust(16, b"\0"),
        text=b"\x93\x01\x01\x81" + msgpack.packb("channels"),
        extra=msgpack.packb([[f"user:{user}"]]),
        **more,
    )
    subscribe = edge.router.take()
    edge.router.send(wire.subscribed(subscribe["channel"], 5, 0))
    edge.router.send(wire.opened(client.conn, edge.router.take()["seq"]))
    assert client.frame()[0] == WELCOME
    return client


def refresh(edge: Edge, client: Client, ms: int, text: bytes = b"") -> None:
    edge.put(notes.REFRESH, client.conn, third=ms, text=text)


def test_the_client_is_told_once_and_then_ended(edge: Edge) -> None:
    began = time.monotonic()
    client = opened(edge, 700)
    *event, told = client.frame()
    assert event == EXPIRED
    assert 0 < told["after"] <= NOTICE_MS + 200
    kind, code, reason, options = client.frame()
    took_ms = (time.monotonic() - began) * 1000
    assert (kind, code, options["class"]) == (FIN, Code.TOKEN_EXPIRED, "fresh")
    assert reason
    assert took_ms >= 700


def test_refresh_puts_the_end_off_and_is_answered(edge: Edge) -> None:
    client = opened(edge, 400)
    assert client.frame()[:3] == EXPIRED
    refresh(edge, client, 60_000, msgpack.packb([REPLY, 9, {"expires": 1}]))
    assert client.frame() == [REPLY, 9, {"expires": 1}]
    refresh(edge, client, 400)
    assert client.frame()[:3] == EXPIRED
    refresh(edge, client, 0)
    other = opened_other(edge)
    assert other.frame()[:2] == [FIN, Code.TOKEN_EXPIRED]
    client.send([4, 1, 1])
    assert client.frame() == [5, 1, 1]


def opened_other(edge: Edge) -> Client:
    """Another session, whose end comes later than the one that was put off would have; past its notice."""
    client = opened(edge, 900, "other")
    assert client.frame()[:3] == [EVENT, "user:other", "expired"]
    return client


def test_credentials_without_an_end_are_never_spoken_of(edge: Edge) -> None:
    clients = [opened(edge, ms, f"u{ms}") for ms in (0, 2**50)]
    other = opened_other(edge)
    assert other.frame()[:2] == [FIN, Code.TOKEN_EXPIRED]
    for client in clients:
        client.send([4, 1, 1])
        assert client.frame() == [5, 1, 1]


def test_what_is_shorter_than_the_notice_is_told_at_once(edge: Edge) -> None:
    client = opened(edge, NOTICE_MS - 50)
    assert client.frame()[:3] == EXPIRED
    assert client.frame()[:2] == [FIN, Code.TOKEN_EXPIRED]


def test_a_slot_keeps_no_end_of_its_former_connection(edge: Edge) -> None:
    first = opened(edge, NOTICE_MS)
    assert first.frame()[:3] == EXPIRED
    first.close()
    edge_is_empty(edge)
    second = opened(edge, 0)
    other = opened_other(edge)
    assert other.frame()[:2] == [FIN, Code.TOKEN_EXPIRED]
    second.send([4, 1, 1])
    assert second.frame() == [5, 1, 1]


def edge_is_empty(edge: Edge) -> None:
    wait_for(lambda: edge.stats.read()["gauges"]["open_connections"] == 0, "the connection is freed")
    assert [edge.router.take()["kind"] for _ in range(2)] == [records.UNSUBSCRIBE, records.CLOSE]


def test_the_class_of_the_device_is_kept_and_changes_with_a_refresh(edge: Edge) -> None:
    client = opened(edge, 0, flags=7 * notes.OPEN_DEVICE)
    assert registry_views.vitals(edge, client.conn)["device"] == 7
    edge.put(notes.REFRESH, client.conn, flags=8 * notes.OPEN_DEVICE)
    assert registry_views.vitals(edge, client.conn)["device"] == 8
