"""The client's side of a fuzzed connection: sends bytes as told, and reads what comes back to its end."""

import asyncio
import json
import socket
import struct
from typing import Any, cast

import msgpack

from tests.fuzz import reference

DEADLINE_S = 60.0


def unpacked(body: bytes) -> Any:
    """A frame of the gateway; the slow way for extensions that the library takes for broken timestamps."""
    try:
        return msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError):
        try:
            return reference.unpack(body)[0]
        except reference.NotAValue as error:
            raise ValueError(f"{error}: {body[:200].hex()} of {len(body)} bytes") from error


class Peer(asyncio.Protocol):
    """Reads the gateway's stream; `changed` is set whenever something came.

    Attributes:
        frames: what the gateway sent, in order.
        pongs: payloads of WebSocket PONGs.
        close: payload of its WebSocket close frame.
        status: of its HTTP answer, and `head` all of it.
        ended: how the stream ended: "eof", "reset", or "" while it lasts.
        fault: what was wrong with the stream itself.

    """

    def __init__(self, websocket: bool) -> None:
        self.websocket = websocket
        self.upgraded = not websocket
        self.buffer = bytearray()
        self.frames: list[list[Any]] = []
        self.pongs: list[bytes] = []
        self.close: bytes | None = None
        self.status = 0
        self.head = b""
        self.ended = ""
        self.fault = ""
        self.lost = False
        self.changed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        try:
            while self._cut():
                pass
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error} in {bytes(self.buffer[:80])!r}"
        self.changed.set()

    def eof_received(self) -> bool:
        self.ended = "eof"
        self.changed.set()
        return True  # our side stays open until it is closed here

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self.ended:
            self.ended = "reset" if error else "eof"
        self.writable.set()
        self.changed.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def _cut(self) -> bool:
        if not self.upgraded:
            return self._http()
        return self._ws() if self.websocket else self._tcp()

    def _http(self) -> bool:
        head, ended, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not ended:
            return False
        self.head = head
        self.status = int(head.split(b" ", 2)[1])
        self.buffer = bytearray(rest)
        self.upgraded = self.status == 101
        return self.upgraded

    def _tcp(self) -> bool:
        if len(self.buffer) < 4:
            return False
        size = int.from_bytes(self.buffer[:4], "big")
        if len(self.buffer) < 4 + size:
            return False
        self._frame(unpacked(bytes(self.buffer[4 : 4 + size])))
        del self.buffer[: 4 + size]
        return True

    def _ws(self) -> bool:
        if len(self.buffer) < 2:
            return False
        opcode, length = self.buffer[0], self.buffer[1]
        start = 2 + {126: 2, 127: 8}.get(length, 0)
        if opcode not in (0x81, 0x82, 0x88, 0x8A) or length > 127:
            raise ValueError("no frame that a server may send")
        if len(self.buffer) < start:
            return False
        size = length if start == 2 else int.from_bytes(self.buffer[2:start], "big")
        if len(self.buffer) < start + size:
            return False
        payload = bytes(self.buffer[start : start + size])
        del self.buffer[: start + size]
        if self.close is not None:
            raise ValueError("a frame after the close frame")
        if opcode == 0x88:
            self.close = payload
        elif opcode == 0x8A:
            self.pongs.append(payload)
        else:
            text = opcode == 0x81
            self._frame(json.loads(payload) if text else unpacked(payload))
        return True

    def _frame(self, frame: list[Any]) -> None:
        if frame[0] not in (1, 2, 3, 4, 5, 9, 13, 14, 15):
            raise ValueError(f"no server sends {frame!r}")
        if frame[0] != 15 and self.frames and self.frames[-1][0] == 14:
            raise ValueError(f"{frame!r} after FIN")
        self.frames.append(frame)

    async def write(self, data: bytes) -> None:
        """Send; waits while the gateway takes nothing."""
        if self.transport.is_closing():
            return
        self.transport.write(data)
        if not self.writable.is_set():
            async with asyncio.timeout(DEADLINE_S):
                await self.writable.wait()

    async def until(self, condition: Any, deadline_s: float = DEADLINE_S) -> bool:
        """Wait until the condition holds; False when the stream ended or faulted first, or the deadline passed."""
        try:
            async with asyncio.timeout(deadline_s):
                while not condition():
                    if self.ended or self.fault:
                        return False
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    def reset(self) -> None:
        """Break the connection with RST, if it still is one."""
        if self.lost:
            return
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()
