"""What a process says of itself: held tasks, objects, the heap, and the lines that allocate, each by name."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from core import introspect

DEADLINE_S = 30.0


@pytest.fixture
def tracing_ends() -> Iterator[None]:
    yield
    tracemalloc.stop()


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await work()

    return asyncio.run(limited())


class Kept:
    """An object that the collector follows."""

    def __init__(self) -> None:
        self.more = [self]


def test_a_held_task_is_counted_and_named_with_the_line_it_waits_at() -> None:
    async def inner(event: asyncio.Event) -> None:
        await event.wait()

    async def held(event: asyncio.Event) -> None:
        await inner(event)

    async def work() -> None:
        before = introspect.own_sample()["tasks"]
        event = asyncio.Event()
        tasks = [asyncio.create_task(held(event)) for _ in range(3)]
        await asyncio.sleep(0)
        assert introspect.own_sample()["tasks"] == before + 3
        found = {name: count for name, count in introspect.tasks().items() if "held" in name}
        ((name, count),) = found.items()
        assert count == 3
        # The line is where it really waits: inside Event.wait, not where it was made.
        assert "held at " in name
        assert "locks.py:" in name
        event.set()
        await asyncio.gather(*tasks)
        assert introspect.own_sample()["tasks"] == before

    run(work)


def test_objects_are_counted_and_named() -> None:
    async def work() -> None:
        before = introspect.own_sample()
        kept = [Kept() for _ in range(500)]
        after = introspect.own_sample()
        assert after["objects"] - before["objects"] >= 1_000
        assert after["blocks"] - before["blocks"] >= 1_000
        assert introspect.types()[f"{__name__}.Kept"] == len(kept)

    gc.collect()
    run(work)


def test_threads_are_counted_by_name() -> None:
    ended = threading.Event()
    held = [threading.Thread(target=ended.wait, args=(DEADLINE_S,), name=f"held-{number}") for number in range(3)]
    for thread in held:
        thread.start()
    try:
        assert introspect.threads()["held-N"] == 3
    finally:
        ended.set()
        for thread in held:
            thread.join(DEADLINE_S)
    assert introspect.threads()["held-N"] == 0


def test_the_heap_grows_with_what_is_held() -> None:
    before = introspect.heap()
    held = bytearray(64 << 20)
    assert introspect.heap()["heap_used_bytes"] - before["heap_used_bytes"] >= len(held)
    assert before["heap_free_bytes"] >= 0


@pytest.mark.usefixtures("tracing_ends")
def test_the_line_that_allocates_is_named() -> None:
    async def work() -> list[dict[str, Any]]:
        commands = introspect.handlers(trace_frames=1)
        await commands["sample_mark"]()
        kept.extend(bytes(1_000) for _ in range(1_000))  # the line
        found: list[dict[str, Any]] = (await commands["sample_detail"]())["allocations"]
        return found

    kept: list[bytes] = []
    first = run(work)[0]
    assert "# the line" in first["code"]
    assert __file__ in first["line"]
    assert first["bytes"] >= 1_000_000
    assert first["blocks"] >= 1_000


@pytest.mark.usefixtures("tracing_ends")
def test_allocations_are_compared_with_the_mark_before_the_last() -> None:
    async def grown(commands: dict[str, Any]) -> int:
        found = (await commands["sample_detail"]())["allocations"]
        return sum(one["bytes"] for one in found if "# kept here" in one["code"])

    async def work() -> None:
        commands = introspect.handlers(trace_frames=1)
        kept: list[bytes] = []
        for _ in range(3):
            await commands["sample_mark"]()
            kept.append(bytes(100_000))  # kept here
        # Two of the three came after the mark before the last.
        assert 200_000 <= await grown(commands) < 210_000

    run(work)


def test_without_tracing_there_are_no_allocations() -> None:
    async def work() -> None:
        commands = introspect.handlers()
        await commands["sample_mark"]()
        detail = await commands["sample_detail"]()
        assert detail["allocations"] == []
        assert set(detail) == {"tasks", "types", "python threads", "heap", "allocations"}
        assert set(await commands["sample"]()) >= {"tasks", "objects", "blocks"}

    run(work)
    assert not tracemalloc.is_tracing()
