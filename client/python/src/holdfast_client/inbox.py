"""What was received and not yet taken by the application: bounded, and the bound stops the reading.

Two bounds. At `soft` the transport is no longer read, unless a request waits for its answer, which stands behind the
messages in the same stream: an application that publishes from inside its `async for` would otherwise wait for itself.
At `hard` it is not read in any case.
"""

import asyncio
from collections import deque

from .messages import Event, Message

HARD_FACTOR = 8


class Inbox:
    """A queue with one consumer or several; its end is a value too."""

    def __init__(self, soft: int) -> None:
        if soft < 1:
            raise ValueError("the queue must hold at least one message")
        self._soft = soft
        self._hard = soft * HARD_FACTOR
        self._items: deque[Message | Event] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Message | Event) -> None:
        self._items.append(item)
        self._changed.set()

    def end(self) -> None:
        """Nothing more will come; what is there can still be taken."""
        self._ended = True
        self._changed.set()

    def has_room(self, request_waits: bool) -> bool:
        return len(self._items) < (self._hard if request_waits else self._soft)

    async def wait_for_room(self) -> None:
        """Until something was taken or `look_again` was called; the caller then asks `has_room` once more."""
        self._room.clear()
        # no deadline: how fast an application takes its messages is its own affair
        await self._room.wait()

    def look_again(self) -> None:
        """A request was made: the reader may go on."""
        self._room.set()

    async def take(self) -> Message | Event | None:
        """The next item; None at the end."""
        while not self._items:
            if self._ended:
                return None
            self._changed.clear()
            # no deadline: messages come when they come, and the end of the session is one of them
            await self._changed.wait()
        item = self._items.popleft()
        self._room.set()
        return item
