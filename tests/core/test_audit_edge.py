"""The audit of a worker's data plane: it closes when nothing leaks, and finds a leak of each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import audit, ledger, notes, records
from core.namespace_spec import BUILT_IN, NamespaceSpec
from tests.core import wire
from tests.core.edge_harness import EPOCH, JOIN, PUBLISH, REPLY, Client, Edge, frame_of, wait_for
from tests.servers.certificates import self_signed

# What a worker's data plane may leak.
KINDS = (
    "fd", "connection", "ring", "buffer", "segment", "timer", "channel", "membership", "pending", "request",
    "zmq_message", "tls", "peer", "aside", "kept", "lag",
)  # fmt: skip
NAMESPACES = (*BUILT_IN, NamespaceSpec(name="drop", domain="group", slow_consumer="drop_oldest"))


def look(edge: Edge) -> dict[str, Any]:
    """One audit of the data plane."""
    edge.put(notes.AUDIT, request=7)
    note = edge.note(notes.AUDITED)
    assert note[3] == 7
    return audit.unpack(note[7], note[8])


def open_now(report: dict[str, Any]) -> dict[str, int]:
    return {kind: one["opened"] - one["closed"] for kind, one in report["kinds"].items()}


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem."""
    folder = tmp_path_factory.mktemp("tls")
    self_signed(folder)
    return folder


def test_an_idle_worker_closes(edge: Edge) -> None:
    report = look(edge)
    assert report["findings"] == []
    assert {kind: count for kind, count in open_now(report).items() if count} == {"fd": 2, "peer": 1}


def test_every_table_is_walked(edge: Edge) -> None:
    """With clients of all sorts the walk finds exactly what is open, and there is something of most kinds."""
    members = [edge.open(f"u{number}") for number in range(5)]
    edge.join(members[0], "group:a")
    for one in members[1:]:
        edge.join_known(one, "group:a")
    members[2].socket.sendall(b"\0\0\0\x20half")  # a partial frame leases a ring
    asked = members[3].request(JOIN, "group:waits")
    edge.router.expect(records.SUBSCRIBE)
    members[4].send([PUBLISH, 900, "group:a", "x"])
    edge.router.expect(records.PUBLISH)
    wait_for(lambda: edge.live("ring") == 1, "the partial frame")
    report = look(edge)
    assert report["findings"] == []
    live = open_now(report)
    assert live == {kind: one["found"] for kind, one in report["kinds"].items()}
    assert live["connection"] == live["timer"] == 5
    assert (live["fd"], live["ring"], live["aside"], live["membership"]) == (7, 1, 1, 10)
    assert (live["pending"], live["request"], live["channel"]) == (1, 2, 7)
    assert (report["sessions"], report["channels"]) == (5, 7)
    assert asked


def test_descriptors_of_the_data_plane_are_told(edge: Edge) -> None:
    edge.open("u")
    numbers = {place * 8 + bit for place, byte in enumerate(look(edge)["fds"]) for bit in range(8) if byte >> bit & 1}
    assert len(numbers) == 8  # two listeners, epoll, two mailboxes, the reserve, the bus, and the connection


def test_slow_consumers_are_walked(edges: Callable[..., Edge]) -> None:
    """Queues of several segments, private buffers and shared ones."""
    edge = edges()
    slow = [edge.open(f"s{number}", receive_bytes=4096) for number in range(3)]
    handle = edge.join(slow[0], "group:a")
    for one in slow[1:]:
        edge.join_known(one, "group:a")
    offset = 0
    while edge.stats.read()["gauges"]["queued_bytes"] < 600_000:  # of bounds of 1 MiB each
        offset += 1
        edge.router.send(wire.message(handle, EPOCH, offset, frame_of("group:a", offset, "x" * 30_000)))
        delivered = 3 * offset

        def is_queued(wanted: int = delivered) -> bool:
            return edge.counter("messages_delivered") == wanted

        wait_for(is_queued, "the message is queued")
    report = look(edge)
    assert report["findings"] == []
    assert open_now(report)["segment"] == report["kinds"]["segment"]["found"] >= 6


# --------------------------------------------------------------------------------------------------- leaks on purpose


def refuses(stats: ledger.Stats, kind: str) -> None:
    """A release build cannot leak on purpose."""
    with pytest.raises(RuntimeError, match="checked"):
        stats.leak(kind)


def _leave(edge: Edge, client: Client) -> None:
    """A client ends, and all that is its own with it."""
    client.reset()
    wait_for(lambda: edge.stats.read()["counters"]["entered_closed"] > 0, "the end of the connection")


def _provoke(edge: Edge, kind: str) -> None:
    """Let one thing of the kind come and go, its release being forgotten."""
    if kind == "tls":
        client = edge.client()
        client.socket.sendall(b"\x16\x03\x01\x02\x00")  # a handshake's first bytes
        wait_for(lambda: edge.live("tls") == 1, "the TLS state")
        edge.stats.leak(kind)
        _leave(edge, client)
        return
    client = edge.open("u", receive_bytes=4096)
    if kind == "timer":
        edge.stats.leak(kind)
        edge.put(notes.FIN, client.conn, first=100, text=b"end")  # the wait for FIN_ACK gets no deadline
        return
    if kind in ("ring", "aside"):
        client.socket.sendall(b"\0\0\0\x20half")
        wait_for(lambda: edge.live("ring") == 1, "the partial frame")
    if kind == "pending":
        client.request(JOIN, "group:a")
        one = edge.router.expect(records.SUBSCRIBE)
        edge.stats.leak(kind)
        edge.router.send(wire.subscribed(one["channel"], EPOCH, 0))
        assert client.frame()[0] == REPLY
        return
    if kind in ("request", "kept"):
        edge.join(client, "group:a")
        client.send([PUBLISH, 900, "group:a", "x"])
        one = edge.router.expect(records.PUBLISH)
        edge.stats.leak(kind)
        edge.router.send(wire.published(one["seq"], EPOCH, 1))
        client.frame()
        return
    if kind == "lag":
        handle = edge.join(client, "drop:a")
        for offset in range(1, 400):
            edge.router.send(wire.message(handle, EPOCH, offset, frame_of("drop:a", offset, "x" * 10_000)))
        wait_for(lambda: edge.live("lag") == 1, "the member is behind")
    edge.stats.leak(kind)
    if kind == "zmq_message":
        edge.router.send(wire.linked(EPOCH, ask=False))
    elif kind == "peer":
        edge.router.socket.close()
    else:
        if kind in ("segment", "buffer"):
            edge.put(notes.SEND, client.conn, text=b"\x92\x05\x00")
            client.frame()
        _leave(edge, client)


@pytest.mark.parametrize("kind", KINDS)
def test_a_leak_of_each_kind_is_found_and_named(edges: Callable[..., Edge], tls_files: Path, kind: str) -> None:
    files = {"tls_certificate": str(tls_files / "cert.pem"), "tls_key": str(tls_files / "key.pem")}
    edge = edges(namespaces=NAMESPACES, **(files if kind == "tls" else {}))
    if not ledger.CHECKED:
        refuses(edge.stats, kind)
        return
    _provoke(edge, kind)
    found: list[dict[str, Any]] = []

    def is_found() -> bool:
        found[:] = [one for one in look(edge)["findings"] if one["kind"] == kind and one["place"]]
        return bool(found)

    wait_for(is_found, f"the leak of a {kind}")
    assert "core/" in found[0]["place"]


def test_a_leak_on_purpose_happens_once() -> None:
    stats = ledger.Stats()
    if ledger.CHECKED:
        stats.leak("ring")
        assert stats.leaks_now("ring")
    else:
        refuses(stats, "ring")
    assert not stats.leaks_now("ring")
