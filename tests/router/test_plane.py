"""The door to the data plane: a note waits for room, and is put once."""

import asyncio
from typing import Any

from router.plane import put_when_room


def test_a_note_waits_for_room_and_is_put_once() -> None:
    refusals, taken = [BufferError("full"), BufferError("full")], []

    def put(kind: int, **fields: Any) -> None:
        if refusals:
            raise refusals.pop()
        taken.append((kind, fields))

    async def body() -> None:
        async with asyncio.timeout(5):
            await put_when_room(put, 7, request=3, text=b"x")

    asyncio.run(body())
    assert taken == [(7, {"request": 3, "text": b"x"})]
