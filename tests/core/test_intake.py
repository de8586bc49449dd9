"""Intake: frames cut from the stream however it comes, its limits, the stages before it, and rings given back."""

import contextlib
import json
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from core import notes
from core.codes import Code
from tests.core.edge_harness import FIN, FIN_ACK, Edge, wait_for

PING, PONG = 4, 5


def packed(frame: Any) -> bytes:
    body: bytes = msgpack.packb(frame)
    return struct.pack(">I", len(body)) + body


def test_frames_come_byte_by_byte_and_many_at_once(edge: Edge) -> None:
    alice = edge.open("alice")
    stream = b"".join(packed([PING, number, 1]) for number in range(5))
    for place in range(len(stream)):
        alice.socket.sendall(stream[place : place + 1])
    assert alice.frames(5) == [[PONG, number, 1] for number in range(5)]
    alice.socket.sendall(b"".join(packed([PING, number, 1]) for number in range(2000)))
    assert alice.frames(2000) == [[PONG, number, 1] for number in range(2000)]
    wait_for(lambda: edge.live("ring") == 0, "no ring is held while nothing is partial")
    wait_for(lambda: edge.live("aside") == 0, "an idle connection has nothing aside")


def test_a_length_without_its_body_is_remembered_without_a_ring(edge: Edge) -> None:
    alice = edge.open("alice")
    frame = packed([PING, 1, 1])
    alice.socket.sendall(frame[:4])
    wait_for(lambda: edge.live("aside") == 1, "where the cutter stands is kept")
    assert edge.live("ring") == 0
    alice.socket.sendall(frame[4:])
    assert alice.frame() == [PONG, 1, 1]
    wait_for(lambda: edge.live("aside") == 0, "nothing is kept of a whole frame")


@pytest.mark.parametrize("size", [100, 4096, 5000, 60_000])
def test_a_partial_frame_holds_one_ring_until_it_is_whole(edge: Edge, size: int) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    stream = packed([8, 1, "group:a", "x" * size])
    for place in range(0, len(stream) - 1, 999):
        alice.socket.sendall(stream[place : min(place + 999, len(stream) - 1)])
    wait_for(lambda: edge.live("ring") == 1, "the rest is kept")
    alice.socket.sendall(stream[-1:])
    assert len(edge.router.take()["data"]) > size
    wait_for(lambda: edge.live("ring") == 0, "the ring is given back")


def test_a_length_over_the_limit_is_answered_from_the_length_alone(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.socket.sendall(struct.pack(">I", 65_537))
    assert alice.frame()[:2] == [FIN, Code.FRAME_TOO_LARGE]
    assert alice.frame() is None
    bob = edge.open("bob")
    bob.socket.sendall(struct.pack(">I", 0))
    assert bob.frame()[:2] == [FIN, Code.BAD_FRAME]


@pytest.mark.parametrize("text", [False, True])
def test_a_websocket_speaks_in_the_encoding_of_its_hello(edge: Edge, text: bool) -> None:
    def pack(frame: Any) -> str | bytes:
        return json.dumps(frame) if text else msgpack.packb(frame)

    with connect(f"ws://127.0.0.1:{edge.ws_port}/ws", proxy=None, compression=None) as client:
        client.send(pack([0, 1, {}]))
        conn = edge.note(notes.FRAME)[2]
        edge.put(notes.FIN, conn, first=Code.BAD_TOKEN, text="grüße".encode())
        said = client.recv(timeout=10)
        assert isinstance(said, str) is text
        fin = json.loads(said) if isinstance(said, str) else msgpack.unpackb(said)
        assert fin == [FIN, Code.BAD_TOKEN, "grüße", {"class": "stop"}]
        # Before there is a session the server may close without waiting for FIN_ACK.
        with contextlib.suppress(ConnectionClosed):
            client.send(pack([FIN_ACK]))
        with pytest.raises(ConnectionClosed, match="bad_token"):
            client.recv(timeout=10)
        assert client.close_code == 4000 + Code.BAD_TOKEN
    edge.wait_empty()


def test_changing_the_encoding_ends_the_session(edge: Edge) -> None:
    with connect(f"ws://127.0.0.1:{edge.ws_port}/ws", proxy=None, compression=None) as client:
        client.send(json.dumps([0, 1, {}]))
        edge.note(notes.FRAME)
        client.send(msgpack.packb([PING, 1, 2]))
        assert json.loads(client.recv(timeout=10))[:2] == [FIN, Code.BAD_FRAME]


def test_another_path_is_refused_by_http(edge: Edge) -> None:
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{edge.ws_port}/other", proxy=None).__enter__()
    assert caught.value.response.status_code == 404
    edge.wait_empty()


def test_a_proxy_header_comes_first_where_it_is_required(edges: Callable[..., Edge]) -> None:
    edge = edges(proxy_protocol=True)
    without, behind = edge.client(), edge.client()
    without.send([0, 1, {}])
    assert without.frame() is None
    for part in (b"PROXY TCP4 192.0.2.1 192", b".0.2.2 5", b"000 7400\r\n"):
        behind.socket.sendall(part)
    edge.hello(behind, "alice")
