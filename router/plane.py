"""The control thread's door to the router's data plane."""

import asyncio
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
