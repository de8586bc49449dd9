"""The control thread's door to the router's data plane."""

import asyncio
from collections import deque
from typing import Any, Protocol

ROOM_S = 0.01


class Put(Protocol):
    """How the data plane is told something: `core.router_loop.RouterLoop.put`."""

    def __call__(
        self,
        kind: int,
        *,
        request: int = 0,
        conn: int = 0,
        first: int = 0,
        second: int = 0,
        third: int = 0,
        text: bytes = b"",
    ) -> None: ...


async def put_when_room(put: Put, kind: int, **fields: Any) -> None:
    """Put a note as soon as the mailbox has room, which the data plane makes in each of its turns."""
    while True:
        try:
            put(kind, **fields)
            return
        except BufferError:
            await asyncio.sleep(ROOM_S)


class Orderly:
    """Tells the data plane things in the order in which they are said, also while its mailbox has no room."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, kind: int, **fields: Any) -> None:
        """Put a note behind those before it: at once, or as soon as there is room."""
        if self._timer is None:
            try:
                self._put(kind, **fields)
            except BufferError:
                self._wait()
            else:
                return
        self._waiting.append((kind, fields))

    async def tell_much(self, kind: int, **fields: Any) -> None:
        """The same of something large, which waits outside the queue until there is room for it."""
        while self._waiting:  # noqa: ASYNC110  the mailbox tells nobody of its room
            await asyncio.sleep(ROOM_S)
        await put_when_room(self._put, kind, **fields)

    def close(self) -> None:
        """Drop what waits: nobody takes it any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        self._timer = None
        while self._waiting:
            kind, fields = self._waiting[0]
            try:
                self._put(kind, **fields)
            except BufferError:
                self._wait()
                return
            self._waiting.popleft()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(ROOM_S, self._flush)
