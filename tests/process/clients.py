"""Two small clients written from the protocol page and third-party libraries alone: `websockets`, and plain streams.

Neither knows the product nor its clients. Every wait has a deadline; what arrives while something else is waited for is
kept in `kept`, in order, so that nothing a test did not ask about is lost.
"""

import asyncio
import contextlib
import itertools
import json
import random
import struct
from collections import deque
from collections.abc import Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

import msgpack
import websockets
from websockets.asyncio.client import ClientConnection, connect

DEADLINE_S = 30.0
RUN_DEADLINE_S = 60.0
# For the gateway's close frame; then the client closes the transport, as the protocol page asks.
CLOSE_S = 0.1
HELLO, WELCOME, REPLY, ERROR, PING, PONG, JOIN, LEAVE, PUBLISH = range(9)
MESSAGE, ACK, HISTORY, PRESENCE, EVENT, FIN, FIN_ACK, REFRESH, CALL = range(9, 18)
KINDS = ("tcp", "binary", "text")
# Frames of the gateway's own heartbeat: they may come at any time and are answered, not handed to tests.
_BACKGROUND = (PING,)

Frame = list[Any]


class Gone(Exception):
    """The gateway closed the connection; a WebSocket's status and reason come with it."""

    def __init__(self, status: int | None = None, reason: str = "") -> None:
        super().__init__(f"closed by the gateway ({status} {reason})")
        self.status = status
        self.reason = reason


class Refused(Exception):
    """ERROR in answer to a request."""

    def __init__(self, code: int, message: str, options: dict[str, Any]) -> None:
        super().__init__(f"{code}: {message} {options}")
        self.code = code
        self.message = message
        self.options = options


def run(work: Coroutine[Any, Any, None], deadline_s: float = RUN_DEADLINE_S) -> None:
    """Run a test's coroutine; nothing in it may hang."""

    async def limited() -> None:
        opened: list[Client] = []
        _opened.set(opened)
        try:
            async with asyncio.timeout(deadline_s):
                await work
        finally:
            # A test that failed must not leave its connections to the next one.
            for client in opened:
                await client.abort()

    asyncio.run(limited())


_opened: ContextVar[list["Client"]] = ContextVar("opened")


class Client:
    """What the two clients share: frames in and out, request numbers, and the usual requests."""

    address: tuple[str, int]

    def __init__(self) -> None:
        _opened.get().append(self)
        self.kept: deque[Frame] = deque()
        self.session = ""
        self.user = ""
        self.resume_token = ""
        self.welcome: dict[str, Any] = {}
        self.answers_pings = True
        self._ids: Iterator[int] = itertools.count(1)

    # What a transport provides.

    async def send_body(self, frame: Frame) -> None:
        raise NotImplementedError

    async def read_body(self) -> Frame:
        """The next frame, or Gone."""
        raise NotImplementedError

    async def shut(self) -> None:
        """Close this side: the gateway leaves it to the client to close first."""
        raise NotImplementedError

    async def abort(self) -> None:
        """Close without a word of the protocol."""
        raise NotImplementedError

    # Frames.

    async def send(self, *frame: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.send_body(list(frame))

    async def receive(self, deadline_s: float = DEADLINE_S) -> Frame:
        """The next frame in the order of arrival."""
        if self.kept:
            return self.kept.popleft()
        return await self._read(deadline_s)

    async def _read(self, deadline_s: float = DEADLINE_S) -> Frame:
        async with asyncio.timeout(deadline_s):
            while True:
                frame = await self.read_body()
                if frame[0] not in _BACKGROUND or not self.answers_pings:
                    return frame
                await self.send_body([PONG, *frame[1:]])

    async def expect(self, kind: int, deadline_s: float = DEADLINE_S) -> Frame:
        """The next frame of this type; others stay in `kept`."""
        for frame in list(self.kept):
            if frame[0] == kind:
                self.kept.remove(frame)
                return frame
        async with asyncio.timeout(deadline_s):
            while (frame := await self._read(deadline_s))[0] != kind:
                self.kept.append(frame)
        return frame

    async def answer(self, request: int) -> dict[str, Any]:
        """The REPLY to a request, or Refused."""
        async with asyncio.timeout(DEADLINE_S):
            while (frame := await self._read())[:2] not in ([REPLY, request], [ERROR, request]):
                self.kept.append(frame)
        if frame[0] == ERROR:
            raise Refused(*frame[2:])
        assert len(frame) == 3
        answer: dict[str, Any] = frame[2]
        return answer

    async def ask(self, kind: int, *rest: Any) -> dict[str, Any]:
        """Send a request under a new number and wait for its answer."""
        request = next(self._ids)
        await self.send(kind, request, *rest)
        return await self.answer(request)

    async def settle(self) -> list[Frame]:
        """Everything that the gateway sent before it read what was sent so far: the frames before our PING's echo.

        What this client caused is among it; what another caused may still be on its way between the processes.
        """
        seq = next(self._ids)
        await self.send(PING, seq, 1)
        async with asyncio.timeout(DEADLINE_S):
            while (frame := await self._read())[:2] != [PONG, seq]:
                self.kept.append(frame)
        settled = list(self.kept)
        self.kept.clear()
        return settled

    # The protocol's usual requests.

    async def hello(self, **options: Any) -> "Client":
        await self.send(HELLO, next(self._ids), {"v": 1, **options})
        return await self.welcomed()

    async def welcomed(self) -> "Client":
        frame = await self.expect(WELCOME)
        self.welcome = frame[2]
        self.session, self.user = self.welcome["session"], self.welcome["user"]
        self.resume_token = self.welcome["resume_token"]
        return self

    async def join(self, channel: str, **options: Any) -> dict[str, Any]:
        return await self.ask(JOIN, channel, options)

    async def publish(self, channel: str, data: Any, **options: Any) -> dict[str, Any]:
        return await self.ask(PUBLISH, channel, data, options)

    async def message(self, deadline_s: float = DEADLINE_S) -> Frame:
        return await self.expect(MESSAGE, deadline_s)

    async def messages(self, count: int, deadline_s: float = DEADLINE_S) -> list[Frame]:
        return [await self.message(deadline_s) for _ in range(count)]

    async def ended(self, deadline_s: float = DEADLINE_S) -> Gone:
        """Wait for the end of the connection; whatever came before it is in `kept`."""
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    self.kept.append(await self.read_body())
        except Gone as gone:
            return gone

    async def fin(self, deadline_s: float = DEADLINE_S) -> Frame:
        """The gateway's FIN; what comes before it is in `kept`."""
        return await self.expect(FIN, deadline_s)

    async def close(self) -> Gone:
        """FIN, its FIN_ACK, the end."""
        await self.send(FIN, 0, "bye", {})
        await self.expect(FIN_ACK)
        await self.shut()
        return await self.ended()

    async def acknowledge(self) -> Gone:
        """FIN_ACK to the gateway's FIN, and the end; what came before it is in `kept`."""
        await self.send(FIN_ACK)
        await self.shut()
        return await self.ended()


class TcpClient(Client):
    """Length-prefixed MessagePack over asyncio's streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader, self._writer = reader, writer
        self.address = writer.get_extra_info("sockname")[:2]

    @classmethod
    async def dial(cls, port: int, first: bytes = b"") -> "TcpClient":
        """Connect; `first` goes before everything (a PROXY header)."""
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        writer.write(first)
        return cls(reader, writer)

    async def send_body(self, frame: Frame) -> None:
        await self.send_bytes(framed(msgpack.packb(frame)))

    async def send_bytes(self, data: bytes) -> None:
        """Bytes as they are, for what a well-behaved client does not say."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Gone from error

    async def read_body(self) -> Frame:
        try:
            size = struct.unpack(">I", await self._reader.readexactly(4))[0]
            body: Frame = msgpack.unpackb(await self._reader.readexactly(size), strict_map_key=False)
        except (asyncio.IncompleteReadError, OSError) as error:
            await self.abort()
            raise Gone from error
        return body

    async def read_raw(self, deadline_s: float = DEADLINE_S) -> bytes:
        """Everything until the end of the stream."""
        async with asyncio.timeout(deadline_s):
            try:
                return await self._reader.read(-1)
            except OSError:
                return b""

    def end(self) -> None:
        """Say nothing more, and go on reading: the transport's own end of this side."""
        self._writer.write_eof()

    def stop_reading(self) -> None:
        """Take nothing more from the socket, as a stuck client does."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def start_reading(self) -> None:
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def shut(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def abort(self) -> None:
        self._writer.transport.abort()


class WebSocketClient(Client):
    """The `websockets` library, in JSON (text) or MessagePack (binary)."""

    def __init__(self, socket: ClientConnection, encoding: str) -> None:
        super().__init__()
        self.socket = socket
        self.encoding = encoding
        self.address = socket.local_address[:2]

    @classmethod
    async def dial(cls, url: str, encoding: str = "text") -> "WebSocketClient":
        socket = await connect(
            url,
            open_timeout=DEADLINE_S,
            close_timeout=CLOSE_S,
            ping_interval=None,
            max_size=1 << 24,
            proxy=None,
            compression=None,
        )
        return cls(socket, encoding)

    async def send_body(self, frame: Frame) -> None:
        await self.send_raw(json.dumps(frame) if self.encoding == "text" else msgpack.packb(frame))

    async def send_raw(self, message: str | bytes | list[str] | list[bytes]) -> None:
        """One message as it is; a list goes out as its fragments."""
        try:
            await self.socket.send(message)
        except websockets.ConnectionClosed as closed:
            raise _gone(closed) from closed

    async def read_raw(self) -> str | bytes:
        try:
            return await self.socket.recv()
        except websockets.ConnectionClosed as closed:
            raise _gone(closed) from closed

    async def read_body(self) -> Frame:
        raw = await self.read_raw()
        assert isinstance(raw, str) == (self.encoding == "text"), f"{self.encoding} session got {raw!r}"
        frame: Frame = json.loads(raw) if isinstance(raw, str) else msgpack.unpackb(raw, strict_map_key=False)
        return frame

    async def shut(self) -> None:
        # The library leaves it to the gateway to close first, for as long as `close_timeout`.
        await self.socket.close(4000)

    async def abort(self) -> None:
        self.socket.transport.abort()


def _gone(closed: websockets.ConnectionClosed) -> Gone:
    return Gone(closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else Gone()


def framed(body: bytes) -> bytes:
    """A body as it travels over TCP."""
    return struct.pack(">I", len(body)) + body


async def dial(node: Any, kind: str) -> Client:
    """A connection that has not said HELLO: `tcp`, `binary` or `text`."""
    if kind == "tcp":
        return await TcpClient.dial(node.port)
    return await WebSocketClient.dial(node.ws_url, kind)


async def open_session(node: Any, kind: str = "tcp", user: str | None = None, **options: Any) -> Client:
    """A session of a user in development mode; a random user when none is named."""
    client = await dial(node, kind)
    return await client.hello(**({} if user is None else {"user": user}), **options)


def unique(name: str) -> str:
    """A name that no other test of the same node uses."""
    return f"{name}-{random.getrandbits(48):012x}"


def group(name: str = "room") -> str:
    return f"group:{unique(name)}"
