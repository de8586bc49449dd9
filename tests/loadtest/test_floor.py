"""The floor, seen by another WebSocket implementation: what it speaks is the real protocol."""

import socket
from typing import Any

import msgpack
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Event, Request

from .conftest import StartFloor

DEADLINE_S = 30.0


class Client:
    """A blocking client on wsproto, which checks Sec-WebSocket-Accept and every frame."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.events: list[Event] = []
        self.socket.sendall(self.protocol.send(Request(host="127.0.0.1", target="/ws")))
        assert isinstance(self._next(), AcceptConnection)

    def send(self, frame: list[Any]) -> None:
        self.socket.sendall(self.protocol.send(BytesMessage(data=msgpack.packb(frame))))

    def receive(self) -> list[Any]:
        event = self._next()
        assert isinstance(event, BytesMessage)
        frame: list[Any] = msgpack.unpackb(bytes(event.data))
        return frame

    def join(self, channel: str) -> None:
        self.send([0, 1, {"v": 1, "user": "alice"}])
        assert self.receive()[:2] == [1, 1]
        self.send([6, 2, channel, {}])
        assert self.receive()[:2] == [2, 2]

    def _next(self) -> Event:
        while not self.events:
            self.protocol.receive_data(self.socket.recv(65536))
            self.events.extend(self.protocol.events())
        return self.events.pop(0)


@pytest.mark.parametrize("mode", ["--per-delivery", "--coalesce"])
def test_a_message_is_answered_with_its_offset_and_reaches_every_member(start_floor: StartFloor, mode: str) -> None:
    port = start_floor(mode).ws_port
    publisher, member = Client(port), Client(port)
    publisher.join("group:g")
    member.join("group:g")
    for offset in (1, 2):
        publisher.send([8, 10 + offset, "group:g", b"x" * 100 * offset, {}])
        assert publisher.receive() == [2, 10 + offset, {"epoch": 1, "offset": offset}]
        for client in (publisher, member):
            kind, channel, at, data, options = client.receive()
            assert [kind, channel, at, data] == [9, "group:g", offset, b"x" * 100 * offset]
            assert set(options) == {"from", "time", "epoch"}


def test_ping_and_fin_are_answered(start_floor: StartFloor) -> None:
    client = Client(start_floor("--coalesce").ws_port)
    client.join("group:g")
    client.send([4, 7, 123456])
    assert client.receive() == [5, 7, 123456]
    client.send([14, 0, "bye", {}])
    assert client.receive() == [15]
