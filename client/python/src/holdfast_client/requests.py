"""Requests under way: numbered, each with a deadline, kept over a reconnect when repeating them does no harm."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .codec import Encoding, body_bytes, encode
from .errors import FrameTooLarge
from .frames import FrameType


@dataclass(slots=True)
class Request:
    """One request.

    Attributes:
        id: its number, > 0.
        body: the encoded frame.
        frame_type: JOIN, LEAVE, PUBLISH, HISTORY, PRESENCE or REFRESH.
        channel: what it is about.
        read: turns the REPLY's map into the answer.
        deadline: seconds of the session's clock.
        repeatable: may be sent again on a new connection without doing it twice.
        own: made by this client itself (joining again), no application waits for it.
        sent: went out on some connection.
    """

    id: int
    body: bytes | str
    frame_type: FrameType
    channel: str
    read: Callable[[dict[str, Any]], Any]
    deadline: float
    repeatable: bool
    own: bool = False
    sent: bool = False


class Requests:
    """The table of requests, and whose deadline is next."""

    def __init__(self, encoding: Encoding) -> None:
        self.bytes_max: int | None = None
        """What the gateway takes; None: nothing was said of it yet."""
        self._encoding = encoding
        self._by_id: dict[int, Request] = {}
        self._by_deadline: list[tuple[float, int]] = []
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def make(
        self,
        frame_type: FrameType,
        channel: str,
        rest: list[Any],
        read: Callable[[dict[str, Any]], Any],
        deadline: float,
        repeatable: bool = True,
        own: bool = False,
    ) -> Request:
        """Register a request; whoever sends it says so in `sent`."""
        request_id = self.next_id()
        body = encode([frame_type, request_id, channel, *rest], self._encoding)
        if self.bytes_max is not None and body_bytes(body) > self.bytes_max:
            bound = self.bytes_max
            raise FrameTooLarge(f"{frame_type.name} of {body_bytes(body)} bytes; the gateway takes at most {bound}")
        request = Request(request_id, body, frame_type, channel, read, deadline, repeatable, own)
        self._by_id[request_id] = request
        heapq.heappush(self._by_deadline, (deadline, request_id))
        return request

    def pop(self, request_id: int) -> Request | None:
        """The request, which is over now; None if it was over before."""
        return self._by_id.pop(request_id, None)

    def unsent(self) -> list[Request]:
        """In the order in which they were made."""
        return [request for request in self._by_id.values() if not request.sent]

    def leaving(self) -> tuple[dict[str, Request], set[str]]:
        """Of each channel the LEAVE of which nothing else waits before it, and the channels where something does."""
        first: dict[str, Request] = {}
        behind = set()
        for request in self._by_id.values():
            before = first.setdefault(request.channel, request)
            if request.frame_type is FrameType.LEAVE and before.frame_type is not FrameType.LEAVE:
                behind.add(request.channel)
        return {name: one for name, one in first.items() if one.frame_type is FrameType.LEAVE}, behind

    def deadline(self) -> float | None:
        """The next deadline; those of answered requests are dropped on the way."""
        while self._by_deadline and self._by_deadline[0][1] not in self._by_id:
            heapq.heappop(self._by_deadline)
        return self._by_deadline[0][0] if self._by_deadline else None

    def expired(self, now: float) -> list[Request]:
        """Take out the requests whose time is over."""
        over = []
        while (deadline := self.deadline()) is not None and deadline <= now:
            request = self._by_id.pop(heapq.heappop(self._by_deadline)[1])
            over.append(request)
        return over

    def connection_lost(self) -> list[Request]:
        """Take out what may not be sent twice, and what was our own; the rest waits for the next connection."""
        broken = [r for r in self._by_id.values() if r.own or (r.sent and not r.repeatable)]
        for request in broken:
            del self._by_id[request.id]
        for request in self._by_id.values():
            request.sent = False
        return broken

    def clear(self) -> list[Request]:
        """Take out all."""
        every = list(self._by_id.values())
        self._by_id.clear()
        self._by_deadline.clear()
        return every
