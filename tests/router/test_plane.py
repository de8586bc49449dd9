"""The door to the data plane: a note waits for room, and is put once."""

import asyncio
from typing import Any

from router.plane import Orderly, put_when_room


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


def test_notes_keep_their_order_also_while_there_is_no_room() -> None:
    full, taken = [True], []

    def put(kind: int, **fields: Any) -> None:
        if full:
            raise BufferError("full")
        taken.append((kind, fields))

    async def body() -> None:
        async with asyncio.timeout(5):
            orderly = Orderly(put)
            orderly.tell(1, request=1)
            orderly.tell(2)
            much = asyncio.create_task(orderly.tell_much(3, text=b"much"))
            await asyncio.sleep(0)
            full.clear()
            await much
            orderly.tell(4)
            full.append(True)
            orderly.tell(5)
            orderly.close()

    asyncio.run(body())
    assert taken == [(1, {"request": 1}), (2, {}), (3, {"text": b"much"}), (4, {})]
