"""The log's writer: batches in their order, asked again until they are in the log, and what the data plane hears."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from core import notes
from router.log.port import LogDeposed, LogUnavailable, Sift
from router.log.writer import LogWriter

DEADLINE_S = 30.0


class FakeLog:
    """A log whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answers: dict[bytes, asyncio.Future[None]] = {}

    async def append(self, batch: bytes) -> None:
        self.asked.append(batch)
        self.answers[batch] = asyncio.get_running_loop().create_future()
        await self.answers[batch]

    async def sift(self, keep: Sift) -> None:
        raise NotImplementedError


class Plane:
    """A writer with its log, its data plane and its clock in the test's hands."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self.heard: list[tuple[int, int, int]] = []
        self.pauses: list[float] = []
        self.resume = asyncio.Event()
        self.writer = LogWriter(self.log, self.put, self.pause)  # type: ignore[arg-type]
        self.running = asyncio.create_task(self.writer.run())

    def put(self, kind: int, *, request: int = 0, first: int = 0, text: bytes = b"", **_: int) -> None:
        self.heard.append((kind, request, first))
        if kind == notes.LOG_SIFT:
            self.writer.on_kept(request, text[:4])

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.resume.wait()

    async def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def answer(self, batch: bytes, error: Exception | None = None) -> None:
        if error is None:
            self.log.answers[batch].set_result(None)
        else:
            self.log.answers[batch].set_exception(error)
        await self.settle()

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.writer.close()


def play(play: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await play

    asyncio.run(run())


def test_batches_are_under_way_together_and_told_in_their_order() -> None:
    async def run() -> None:
        plane = Plane()
        for number, batch in enumerate((b"one", b"two", b"three"), 1):
            plane.writer.on_batch(number, batch)
        await plane.settle()
        assert plane.log.asked == [b"one", b"two", b"three"]
        await plane.answer(b"two")
        assert plane.heard == []
        await plane.answer(b"one")
        assert plane.heard == [(notes.LOG_COMMITTED, 2, 0)]
        assert not await plane.writer.drain(0)
        await plane.answer(b"three")
        assert plane.heard[1:] == [(notes.LOG_COMMITTED, 3, 0)]
        assert await plane.writer.drain(DEADLINE_S)
        await plane.close()

    play(run())


def test_a_failed_batch_and_all_behind_it_are_asked_again_in_order() -> None:
    async def run() -> None:
        plane = Plane()
        for number, batch in enumerate((b"one", b"two"), 1):
            plane.writer.on_batch(number, batch)
        await plane.settle()
        await plane.answer(b"one", LogUnavailable("away"))
        assert plane.heard == [(notes.LOG_STATE, 0, 0)]
        await plane.answer(b"two", LogUnavailable("away"))
        plane.writer.on_batch(3, b"three")
        await plane.settle()
        assert plane.log.asked == [b"one", b"two"]
        plane.resume.set()
        await plane.settle()
        assert plane.log.asked[2:] == [b"one"]
        await plane.answer(b"one", LogUnavailable("still away"))
        assert plane.log.asked[3:] == [b"one"]
        await plane.answer(b"one")
        assert plane.heard[1:] == [(notes.LOG_COMMITTED, 1, 0), (notes.LOG_STATE, 0, 1)]
        assert plane.log.asked[4:] == [b"two", b"three"]
        await plane.answer(b"two")
        await plane.answer(b"three")
        assert plane.heard[-1] == (notes.LOG_COMMITTED, 3, 0)
        assert plane.pauses[1] > plane.pauses[0]
        await plane.close()

    play(run())


@pytest.mark.parametrize("away_first", [False, True])
def test_a_deposed_router_ends(away_first: bool) -> None:
    async def run() -> None:
        plane = Plane()
        plane.resume.set()
        plane.writer.on_batch(1, b"one")
        await plane.settle()
        if away_first:
            await plane.answer(b"one", LogUnavailable("away"))
        await plane.answer(b"one", LogDeposed("another one"))
        with pytest.raises(LogDeposed):
            await plane.running
        await plane.writer.close()

    play(run())


def test_what_no_log_should_raise_ends_the_router() -> None:
    async def run() -> None:
        plane = Plane()
        plane.writer.on_batch(1, b"one")
        await plane.settle()
        await plane.answer(b"one", RuntimeError("a bug"))
        with pytest.raises(RuntimeError, match="a bug"):
            await plane.running
        await plane.writer.close()

    play(run())


def test_batches_keep_their_order_when_some_appenders_are_idle() -> None:
    async def run() -> None:
        plane = Plane()
        for number, batch in enumerate((b"one", b"two", b"three"), 1):
            plane.writer.on_batch(number, batch)
        await plane.settle()
        for batch in (b"three", b"one"):
            await plane.answer(batch)
        later = [b"%d" % number for number in range(4, 9)]
        for number, batch in enumerate(later, 4):
            plane.writer.on_batch(number, batch)
        await plane.settle()
        assert plane.log.asked[3:] == later
        for batch in (b"two", *later):
            await plane.answer(batch)
        assert [request for _, request, _ in plane.heard] == [1, 3, *range(4, 9)]
        assert await plane.writer.drain(DEADLINE_S)
        await plane.close()

    play(run())


def test_a_sift_is_answered_by_the_data_plane() -> None:
    async def run() -> None:
        plane = Plane()
        assert await plane.writer.keep(b"recordsandmore") == b"reco"
        plane.writer.on_kept(99, b"nobody asked")
        await plane.close()

    play(run())


def test_a_log_that_is_near_its_bound_is_sifted_before_its_time() -> None:
    async def run() -> None:
        plane = Plane()
        sifts: asyncio.Queue[None] = asyncio.Queue()

        async def sift(keep: Sift) -> None:
            sifts.put_nowait(None)

        plane.log.sift = sift  # type: ignore[method-assign]
        task = asyncio.create_task(plane.writer.sift_now_and_then())
        for count in range(3):
            await plane.settle()
            assert sifts.qsize() == count
            plane.writer.sift_soon()
        task.cancel()
        await asyncio.wait([task])
        await plane.close()

    play(run())


def test_a_data_plane_without_room_hears_it_when_there_is_some() -> None:
    """Its mailbox is full of what was loaded: that ends no router."""

    class Full(Plane):
        refusals = 3

        def put(self, kind: int, *, request: int = 0, first: int = 0, text: bytes = b"", **_: int) -> None:
            if self.refusals:
                self.refusals -= 1
                raise BufferError
            super().put(kind, request=request, first=first, text=text)

    async def run() -> None:
        plane = Full()
        plane.writer.on_batch(1, b"one")
        await plane.settle()
        await plane.answer(b"one")
        while not plane.heard:
            assert not plane.running.done()
            await asyncio.sleep(0)
        assert plane.heard == [(notes.LOG_COMMITTED, 1, 0)]
        await plane.close()

    play(run())
