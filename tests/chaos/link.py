"""Links: one connection each, from the protocol page alone. TCP and MessagePack."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Protocol

import msgpack

from tests.chaos.oracle import Position

HELLO, WELCOME, REPLY, ERROR, PING, PONG, JOIN, LEAVE, PUBLISH, MESSAGE, ACK, HISTORY = range(12)
EVENT, FIN, FIN_ACK = 13, 14, 15
NOT_JOINED, RATE_LIMITED, SESSION_EXPIRED, BAD_TOKEN, RESUMED_ELSEWHERE = 402, 403, 201, 602, 605
AGAIN_S = 0.05
"""Before a client comes back, or asks again, unless it is told to wait longer."""
_LENGTH = struct.Struct(">I")


class Hearer(Protocol):
    """Whose connection it is."""

    def hear(self, link: "Link", frame: list[Any]) -> None:
        """A frame came."""

    def lost(self, link: "Link") -> None:
        """The connection is gone."""


class Link(asyncio.Protocol):
    """One connection: cuts frames and hands them to its talker."""

    def __init__(self, talker: Hearer) -> None:
        self.talker = talker
        self.transport: asyncio.Transport | None = None
        self.ended = asyncio.Event()
        self.answered = asyncio.Event()
        """WELCOME came, or the end."""
        self.fin: tuple[int, int] | None = None
        """Code and `after` of the gateway's FIN."""
        self.resuming = False
        self.asked: dict[str, int] = {}
        """Offset by channel, as HELLO named it; -1: it was left out."""
        self.sure: dict[str, int] = {}
        """What the gateway cannot but know to be acknowledged, when HELLO was sent: it sends nothing of it again."""
        self.stands: dict[str, Position] = {}
        """What HELLO named or came over it last, by channel: nothing before it is sent over this connection again."""
        self.acked: tuple[int, dict[str, int]] = (0, {})
        """The last ACK: the number of the last request before it, and what it said."""
        self.welcome: dict[str, Position] | None = None
        self.hello_s = 0.0
        self.hello_tick = self.welcome_tick = 0
        """The oracle's times of HELLO and WELCOME."""
        self.latest: tuple[int, str, int, int] = (0, "", 0, 0)
        """The message published last of what came over this connection: when, its channel and offset, when it came."""
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if len(buffer) - start < _LENGTH.size + size:
                break
            body = bytes(buffer[start + _LENGTH.size : start + _LENGTH.size + size])
            start += _LENGTH.size + size
            self.talker.hear(self, msgpack.unpackb(body))
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self.answered.set()
        self.talker.lost(self)

    def send(self, *frame: Any) -> None:
        if self.transport is not None and not self.transport.is_closing():
            body = msgpack.packb(frame)
            self.transport.write(_LENGTH.pack(len(body)) + body)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def is_open(self) -> bool:
        return self.welcome is not None and self.fin is None and not self.ended.is_set()


def abort(links: list[Link]) -> None:
    """All of them break."""
    for link in links:
        link.abort()


def retry_s(frame: list[Any]) -> float:
    """When to ask again after an ERROR."""
    options = frame[4] if len(frame) > 4 else {}
    wait_ms: int = options.get("retry_after", 0)
    return max(AGAIN_S, min(wait_ms, 1_000) / 1000)


def settles(answer: asyncio.Future[list[Any]]) -> Callable[[Link, list[Any]], None]:
    """What makes a request's answer that of who waits for it."""

    def settle(link: Link, frame: list[Any]) -> None:
        if not answer.done():
            answer.set_result(frame)

    return settle


async def within(event: asyncio.Event, deadline_s: float) -> bool:
    """Whether it came in time."""
    try:
        async with asyncio.timeout(deadline_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
