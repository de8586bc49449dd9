"""One connection of a rogue: the protocol over TCP or WebSocket on a bare socket, to which every wrong can be done."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgpack

HELLO, WELCOME, REPLY, ERROR, PING, PONG, JOIN, LEAVE, PUBLISH, MESSAGE = range(10)
EVENT, FIN, FIN_ACK = 13, 14, 15
ANSWER_S = 15.0
RECEIVE_BYTES = 65_536
SMALL_BUFFER_BYTES = 4_096
# struct tcp_info begins with the state (linux/tcp.h).
TCP_ESTABLISHED = 1
_BINARY, _CLOSE, _PING = 0x82, 0x8, 0x9

Frame = list[Any]


class Ended(Exception):
    """The gateway ended the connection."""


@contextlib.asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """A deadline whose TimeoutError says what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"no {what} within {seconds:g} s") from None


class Line:
    """A connection; every wait has a deadline (TimeoutError), and its end is told by Ended."""

    def __init__(self, host: str, port: int, source: str, rng: random.Random, *, websocket: bool) -> None:
        self._address, self._source = (host, port), source
        self._rng, self._websocket = rng, websocket
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self._requests = 0
        self.socket = socket.socket()
        self.socket.setblocking(False)

    # ---- connecting

    async def dial(self, *, small: bool = False) -> None:
        """Connect, with a receive buffer as small as it may be if `small`."""
        if small:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The port is chosen at connect(), per destination: bind() alone would take one from all of them.
        self.socket.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        self.socket.bind((self._source, 0))
        async with within(ANSWER_S, "connection"):
            await self._loop.sock_connect(self.socket, self._address)  # deadline: that of `within`

    def upgrade_request(self) -> bytes:
        """What begins a WebSocket; nothing over TCP."""
        if not self._websocket:
            return b""
        return (
            b"GET /ws HTTP/1.1\r\nHost: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )

    async def upgrade(self) -> None:
        """The WebSocket's handshake."""
        if not self._websocket:
            return
        await self.write(self.upgrade_request())
        async with within(ANSWER_S, "upgrade"):
            while b"\r\n\r\n" not in self._held:
                await self._receive()
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise Ended(f"upgrade refused: {head[:40]!r}")

    async def hello(self, **options: Any) -> dict[str, Any]:
        """Connect and say HELLO; what WELCOME told."""
        await self.upgrade()
        await self.say(HELLO, 1, {"v": 1, **options})
        welcome: dict[str, Any] = (await self.hear(WELCOME))[2]
        return welcome

    async def ask(self, kind: int, *rest: Any) -> dict[str, Any]:
        """A request, and its answer."""
        self._requests += 1
        number = 10 + self._requests
        await self.say(kind, number, *rest)
        async with within(ANSWER_S, f"answer to {kind}"):
            while (frame := await self._next())[0] not in (REPLY, ERROR) or frame[1] != number:
                await self._answer(frame)
        if frame[0] == ERROR:
            raise Ended(f"refused: {frame[2]} {frame[3]}")
        answer: dict[str, Any] = frame[2]
        return answer

    async def leave(self, code: int = 0) -> None:
        """FIN, its FIN_ACK, and the end, by our hand first."""
        await self.say(FIN, code, "bye", {})
        await self.hear(FIN_ACK)
        self.close()

    # ---- frames

    async def say(self, *frame: Any) -> None:
        await self.write(self.wire(msgpack.packb(list(frame))))

    def wire(self, body: bytes) -> bytes:
        """A body as it travels."""
        if not self._websocket:
            return struct.pack(">I", len(body)) + body
        head = struct.pack("!BB", _BINARY, 0x80 | len(body)) if len(body) < 126 else b""
        if not head:
            head = struct.pack("!BBH", _BINARY, 0x80 | 126, len(body))
        mask = self._rng.randbytes(4)
        whole = (mask * (len(body) // 4 + 1))[: len(body)]
        return head + mask + (int.from_bytes(body) ^ int.from_bytes(whole)).to_bytes(len(body))

    async def hear(self, kind: int, within_s: float = ANSWER_S) -> Frame:
        """The next frame of this type; PING is answered, all else passed over."""
        async with within(within_s, f"frame {kind}"):
            while (frame := await self._next())[0] != kind:
                await self._answer(frame)
        return frame

    async def ended(self, within_s: float) -> Frame | None:
        """Wait for the gateway's end of the connection; its FIN, if it said one."""
        fin = None
        with contextlib.suppress(Ended):
            async with within(within_s, "end"):
                while True:
                    frame = await self._next()
                    fin = frame if frame[0] == FIN else fin
                    if frame[0] == FIN:
                        await self.say(FIN_ACK)
                        self.half_close()
        return fin

    async def _answer(self, frame: Frame) -> None:
        if frame[0] == PING:
            await self.say(PONG, *frame[1:])
        elif frame[0] == FIN:
            raise Ended(f"FIN {frame[1]} {frame[2]}")

    async def _next(self) -> Frame:
        while (body := self._cut()) is None:
            await self._receive()
        frame: Frame = msgpack.unpackb(body, strict_map_key=False)
        return frame

    def _cut(self) -> bytes | None:
        """The next whole body, or None; a WebSocket's control frames are passed over, its close is an end."""
        while True:
            head, size, opcode = self._head()
            if not head or len(self._held) < head + size:
                return None
            body, self._held = self._held[head : head + size], self._held[head + size :]
            if opcode == _CLOSE:
                raise Ended(f"closed: {int.from_bytes(body[:2])} {body[2:].decode(errors='replace')}")
            if opcode != _PING:
                return body

    def _head(self) -> tuple[int, int, int]:
        """Bytes of the header and of the body, and the opcode; 0 bytes: the header is not whole."""
        held = self._held
        if not self._websocket:
            return (4, int.from_bytes(held[:4]), 2) if len(held) >= 4 else (0, 0, 0)
        if len(held) < 2:
            return 0, 0, 0
        size, opcode = held[1] & 127, held[0] & 15
        extra = {126: 2, 127: 8}.get(size, 0)
        if len(held) < 2 + extra:
            return 0, 0, 0
        return 2 + extra, int.from_bytes(held[2 : 2 + extra]) if extra else size, opcode

    # ---- bytes

    async def write(self, data: bytes) -> None:
        try:
            async with within(ANSWER_S, "room to send"):
                await self._loop.sock_sendall(self.socket, data)  # deadline: that of `within`
        except OSError as error:
            raise Ended(str(error)) from error

    async def _receive(self) -> None:
        try:
            data = await self._loop.sock_recv(self.socket, RECEIVE_BYTES)  # no deadline: whoever waits has one
        except OSError as error:
            raise Ended(str(error)) from error
        if not data:
            raise Ended("closed without a word")
        self._held += data

    # ---- ends

    def is_established(self) -> bool:
        """Whether the kernel has heard no end from the gateway; nothing is read."""
        return self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED

    def reset(self) -> None:
        """RST: what is under way in either direction is gone."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()
