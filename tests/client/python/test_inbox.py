"""The queue between the transport and the application."""

import asyncio

import pytest
from holdfast_client.inbox import HARD_FACTOR, Inbox
from holdfast_client.messages import Message

DEADLINE_S = 30.0


def message(offset: int) -> Message:
    return Message("group:x", 1, offset, None)


def test_bounds_soft_and_hard() -> None:
    inbox = Inbox(2)
    room = []
    for offset in range(2 * HARD_FACTOR + 1):
        room.append((inbox.has_room(request_waits=False), inbox.has_room(request_waits=True)))
        inbox.put(message(offset))
    assert room == [(True, True)] * 2 + [(False, True)] * (2 * HARD_FACTOR - 2) + [(False, False)]


def test_a_queue_without_room_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Inbox(0)


def test_what_is_there_is_taken_before_the_end() -> None:
    async def main() -> None:
        inbox = Inbox(2)
        inbox.put(message(1))
        inbox.end()
        assert [await inbox.take(), await inbox.take(), await inbox.take()] == [message(1), None, None]

    asyncio.run(main())


def test_taking_makes_room() -> None:
    async def main() -> None:
        inbox = Inbox(1)
        inbox.put(message(1))
        waiting = asyncio.create_task(inbox.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        await inbox.take()
        async with asyncio.timeout(DEADLINE_S):
            await waiting

    asyncio.run(main())


def test_several_readers_share_the_items_and_all_see_the_end() -> None:
    async def main() -> None:
        inbox = Inbox(10)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            readers = [group.create_task(inbox.take()) for _ in range(3)]
            await asyncio.sleep(0)
            inbox.put(message(1))
            inbox.put(message(2))
            await asyncio.sleep(0)
            inbox.end()
        assert [reader.result() for reader in readers].count(None) == 1

    asyncio.run(main())
