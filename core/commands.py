"""What a process is asked by its supervisor: requests and answers over one socket, and what it tells unasked.

One stream of frames each way, a frame being a u32 (big-endian) and so many bytes of a MessagePack map. The supervisor
sends {"id", "method", "arguments"} and gets {"id", "result"} or {"id", "error"}; {"event", "fields"} needs no answer.
Requests are answered as they get done, in any order. Invariant: every request ends by its answer, by its asker's
deadline, or by the end of the socket, which fails all that wait.
"""

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgpack

from core.owned import ACCOUNT, Held

FRAME_BYTES_MAX = 64 * 1024 * 1024
UNDER_WAY_MAX = 1024
SEND_DEADLINE_S = 10.0
_LENGTH = struct.Struct(">I")

Handler = Callable[..., Awaitable[Any]]
"""Takes a request's arguments by name; what it returns must be something that MessagePack can say."""


class CommandError(Exception):
    """The other side answered that it could not; the message is its own."""


def packed(frame: Mapping[str, Any]) -> bytes:
    """A frame with its length before it."""
    body: bytes = msgpack.packb(frame)
    return _LENGTH.pack(len(body)) + body


READY_FRAME = packed({"event": "ready", "fields": {}})


async def _read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next frame, None at the end; the peer is a process of this node and is waited for as long as it lives."""
    try:
        # no deadline: there is a frame when the peer has something to say, and the peer's end is the end of this
        size = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
        if size > FRAME_BYTES_MAX:
            return None
        # deadline: the peer's own for writing a frame, SEND_DEADLINE_S, after which it closes
        frame: dict[str, Any] = msgpack.unpackb(await reader.readexactly(size), strict_map_key=False)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return frame


async def _write(writer: asyncio.StreamWriter, frame: Mapping[str, Any]) -> None:
    """Send one frame.

    Raises:
        ConnectionError: the other side is gone, or took nothing for SEND_DEADLINE_S.

    """
    writer.write(packed(frame))
    try:
        async with asyncio.timeout(SEND_DEADLINE_S):
            await writer.drain()
    except TimeoutError as error:
        writer.transport.abort()
        raise ConnectionResetError("the other side takes nothing") from error


class CommandServer:
    """The child's end. `fd` is owned from here on; -1: nobody asks, and nobody is told.

    Args:
        fd: the socket to the supervisor.
        handlers: what answers each method.

    """

    def __init__(self, fd: int, handlers: Mapping[str, Handler]) -> None:
        self._fd = fd
        self._handlers = handlers
        self._writer: asyncio.StreamWriter | None = None
        self._serving: asyncio.Task[None] | None = None
        self._held: list[Held] = []
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Answer requests from now on, in the running loop."""
        if self._fd < 0:
            return
        sock = socket.socket(fileno=self._fd)
        sock.setblocking(False)
        self._held = [
            ACCOUNT.hold("handle", "the server of commands", object_=self),
            ACCOUNT.hold("control_fd", "the socket of commands", fd=self._fd),
        ]
        async with asyncio.timeout(SEND_DEADLINE_S):
            reader, self._writer = await asyncio.open_unix_connection(sock=sock)
        self._serving = ACCOUNT.task(self._serve(reader), "commands", owner=self._held[0])

    def tell(self, event: str, **fields: Any) -> None:
        """Tell the supervisor something that it did not ask for. Dropped when it takes nothing any more."""
        writer = self._writer
        if writer is not None and writer.transport.get_write_buffer_size() < FRAME_BYTES_MAX:
            writer.write(packed({"event": event, "fields": fields}))

    async def close(self) -> None:
        """Give up what is under way and close the socket once what was told has left."""
        tasks = [*self._answering, *([self._serving] if self._serving else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=SEND_DEADLINE_S)
        if self._writer is not None:
            await _close(self._writer)
            self._writer = None
        for held in self._held:
            held.close()

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        while (frame := await _read(reader)) is not None:
            if len(self._answering) >= UNDER_WAY_MAX:
                # Waiting here would keep from being read what asks whether this process is alive.
                await self._say({"id": frame["id"], "error": "busy: too much is asked of this process at once"})
                continue
            task = ACCOUNT.task(self._answer(frame), f"command {frame['method']}", owner=self._held[0])
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, frame: dict[str, Any]) -> None:
        handler = self._handlers.get(frame["method"])
        answer = {"id": frame["id"]}
        try:
            if handler is None:
                raise LookupError(f"this process does not know the command {frame['method']}")
            # deadline: that of each wait in the handler, which is a coroutine of the tree
            answer["result"] = await handler(**frame["arguments"])
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        await self._say(answer)

    async def _say(self, answer: dict[str, Any]) -> None:
        writer = self._writer
        assert writer is not None
        with contextlib.suppress(ConnectionError):  # who asked may be gone
            await _write(writer, answer)


class CommandClient:
    """The supervisor's end.

    Args:
        sock: the socket to the process; owned from here on.
        on_event: called with what the process tells unasked: the event's name and its fields.

    """

    def __init__(self, sock: socket.socket, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._sock = sock
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._held = [
            ACCOUNT.hold("handle", "the asker of commands", object_=self),
            ACCOUNT.hold("control_fd", "the socket of commands", fd=sock.fileno()),
        ]

    async def start(self) -> None:
        """Listen to the process from now on, in the running loop."""
        self._sock.setblocking(False)
        async with asyncio.timeout(SEND_DEADLINE_S):
            reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
        self._reading = ACCOUNT.task(self._read_all(reader), "answers to commands", owner=self._held[0])

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        """The process's answer.

        Raises:
            CommandError: it could not do it; says why.
            ConnectionError: it has ended.
            TimeoutError: it did not answer in time.

        """
        if self._writer is None or self._reading is None or self._reading.done():
            raise ConnectionResetError("the process has ended")
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(deadline_s):
                await _write(self._writer, {"id": number, "method": method, "arguments": arguments})
                return await future
        finally:
            del self._waiting[number]
            if future.done() and not future.cancelled():
                future.exception()  # the process ended while the question was sent: that failed as well, and says so

    async def close(self, linger_s: float = 0.0) -> None:
        """Close the socket; what still waits for an answer fails.

        Args:
            linger_s: how long to go on listening for what an ended process told last.

        """
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=linger_s)
            self._reading.cancel()
            await asyncio.wait({self._reading}, timeout=SEND_DEADLINE_S)
        self._fail_waiting()
        if self._writer is None:
            self._sock.close()
        else:
            self._writer.transport.abort()
            await _close(self._writer)
            self._writer = None
        for held in self._held:
            held.close()

    async def _read_all(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await _read(reader)) is not None:
                self._take(frame)
        finally:
            self._fail_waiting()

    def _take(self, frame: dict[str, Any]) -> None:
        if "event" in frame:
            self._on_event(frame["event"], frame["fields"])
            return
        future = self._waiting.get(frame["id"])
        if future is None or future.done():
            return  # overdue
        if "error" in frame:
            future.set_exception(CommandError(frame["error"]))
        else:
            future.set_result(frame["result"])

    def _fail_waiting(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the process has ended"))


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(SEND_DEADLINE_S):
            await writer.wait_closed()
    except (ConnectionError, TimeoutError):
        writer.transport.abort()
