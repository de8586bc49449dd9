"""A WebSocket client that does one thing at a time, written from RFC 6455: frames and ends by hand."""

import json
import os
import struct
from typing import Any

import msgpack

from tests.core.edge_harness import Client

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """One frame of a client (RFC 6455 section 5.2)."""
    mask, size = os.urandom(4), len(payload)
    head = bytes([(0x80 if last else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    else:
        head += struct.pack(">BH", 0x80 | 126, size) if size < 65_536 else struct.pack(">BQ", 0x80 | 127, size)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


class WsClient(Client):
    """Like `Client`, with binary messages; `status` is that of the server's close frame."""

    websocket = True

    def __init__(self, port: int, receive_bytes: int = 0) -> None:
        super().__init__(port, receive_bytes)
        self.status: int | None = None
        self.socket.sendall(UPGRADE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert head.startswith(b"HTTP/1.1 101")

    def send(self, *frames: list[Any]) -> None:
        self.socket.sendall(b"".join(self.pack(frame) for frame in frames))

    def pack(self, frame: list[Any]) -> bytes:
        return masked(BINARY, msgpack.packb(frame))

    def send_close(self, status: int = 1000) -> None:
        self.socket.sendall(masked(CLOSE, struct.pack(">H", status)))

    def frame(self) -> Any:
        """The next frame of the protocol; None when the gateway has closed, or said close."""
        while (one := self._next()) is not None:
            opcode, payload = one
            if opcode == CLOSE:
                self.status = struct.unpack(">H", payload[:2])[0]
                return None
            if opcode == BINARY:
                return msgpack.unpackb(payload, strict_map_key=False)
        return None

    def _next(self) -> tuple[int, bytes] | None:
        head = self._exactly(2)
        if not head:
            return None
        size = head[1]
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
        return head[0] & 15, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        """Bytes of that number; none at the end of the stream."""
        while len(self._held) < size:
            data = self.socket.recv(1 << 16)
            if not data:
                assert not self._held, "closed inside a frame"
                return b""
            self._held += data
        data, self._held = self._held[:size], self._held[size:]
        return data


class TextClient(WsClient):
    """The same with text messages, which are JSON."""

    def pack(self, frame: list[Any]) -> bytes:
        return masked(TEXT, json.dumps(frame).encode())

    def frame(self) -> Any:
        while (one := self._next()) is not None:
            opcode, payload = one
            if opcode == CLOSE:
                self.status = struct.unpack(">H", payload[:2])[0]
                return None
            if opcode == TEXT:
                return json.loads(payload)
        return None
