"""The control thread's side of the log: appends what the data plane ordered, and tells it what is in the log.

Batches are appended in their order, several under way. When one fails, nothing later counts as appended: all of them
are asked again from the failed one on, for ever, since nobody else can say what became of it. Meanwhile the data plane
knows that the log is away.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from core import notes
from core.owned import ACCOUNT, end_tasks
from router.log.port import Log, LogDeposed, LogError, LogUnavailable
from router.plane import Put, put_when_room

RETRY_FIRST_S = 0.05
RETRY_MOST_S = 2.0
SIFT_PERIOD_S = 30.0
SIFT_DEADLINE_S = 5.0
# Away for so long, it is said again.
SAY_AGAIN_S = 30.0
# Of a batch.
WAITS, UNDER_WAY, ANSWERED = range(3)

_log = logging.getLogger("holdfast.log")


class _Batch:
    """One that is not known to be in the log."""

    __slots__ = ("data", "error", "number", "state")

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.data = data
        self.state = WAITS
        self.error: Exception | None = None


class LogWriter:
    """Appends the data plane's batches to a log.

    Args:
        log: an open one.
        put: tells the data plane.
        pause: waits so many seconds before it is tried again.

    """

    def __init__(self, log: Log, put: Put, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._log = log
        self._put = put
        self._pause = pause
        self._batches: deque[_Batch] = deque()
        self._is_away = False
        # Tasks that append one batch after the other, and those of them that wait for one: a task for each batch would
        # cost as much as all that is done with it.
        self._appenders: list[asyncio.Task[None]] = []
        self._idle: deque[asyncio.Future[_Batch]] = deque()
        self._answered = asyncio.Event()
        self._nothing = asyncio.Event()
        self._nothing.set()
        self._is_crowded = asyncio.Event()
        self._sifts: dict[int, asyncio.Future[bytes]] = {}
        self._sift_count = 0
        self._held = ACCOUNT.hold("handle", "the log's writer", object_=self)

    # -------------------------------------------------------------------------------------------- from the data plane

    def on_batch(self, number: int, data: bytes) -> None:
        """The data plane handed over the batch `number`."""
        batch = _Batch(number, data)
        self._batches.append(batch)
        self._nothing.clear()
        if not self._is_away:
            self._start(batch)

    def on_kept(self, request: int, records: bytes) -> None:
        """The data plane says which records have to stay."""
        future = self._sifts.pop(request, None)
        if future is not None and not future.done():
            future.set_result(records)

    # ------------------------------------------------------------------------------------------------------- appending

    def _start(self, batch: _Batch) -> None:
        """Batches are given to the log in the order of these calls, since tasks run in the order in which they woke."""
        batch.state = UNDER_WAY
        if self._idle:
            self._idle.popleft().set_result(batch)
        else:
            self._begin(batch)

    def _begin(self, batch: _Batch | None) -> None:
        work = self._append_one_after_the_other(batch)
        task = ACCOUNT.task(work, "append to the log", owner=self._held)
        self._appenders.append(task)
        task.add_done_callback(self._appenders.remove)

    async def _append_one_after_the_other(self, batch: _Batch | None) -> None:
        """Ends when another one is idle: at rest there is one, from the start on."""
        while True:
            if batch is not None:
                try:
                    await self._log.append(batch.data)
                except Exception as error:  # for `run` to judge
                    batch.error = error
                batch.state = ANSWERED
                self._answered.set()
            if self._idle:
                return
            next_one: asyncio.Future[_Batch] = asyncio.get_running_loop().create_future()
            self._idle.append(next_one)
            batch = await next_one  # no deadline: for as long as nothing is published

    async def run(self) -> None:
        """Append until this is cancelled.

        Raises:
            LogDeposed: another router took over.
        """
        self._begin(None)
        while True:
            await self._answered.wait()  # no deadline: for as long as nothing is published; else the log's own
            self._answered.clear()
            if not self._batches or self._batches[0].state != ANSWERED:
                continue
            error = self._batches[0].error
            if error is None:
                await self._committed()
            elif isinstance(error, LogUnavailable):
                await self._again(error)
            else:
                raise error

    async def _committed(self) -> None:
        """Tell of the batches that are in the log, once for all of them."""
        number = 0
        while self._batches and self._batches[0].state == ANSWERED and self._batches[0].error is None:
            number = self._batches.popleft().number
        if self._batches and self._batches[0].state == ANSWERED:
            self._answered.set()  # and it failed
        elif not self._batches:
            self._nothing.set()
        await put_when_room(self._put, notes.LOG_COMMITTED, request=number)

    async def _again(self, error: LogUnavailable) -> None:
        """The oldest batch failed: ask again until it is in the log, then for all that came after it."""
        await self._away(error)
        while any(batch.state == UNDER_WAY for batch in self._batches):
            await self._answered.wait()  # deadline: the log's own, of each
            self._answered.clear()
        delay_s, said_s = RETRY_FIRST_S, 0.0
        while True:
            await self._pause(delay_s)  # deadline: RETRY_MOST_S at most
            try:
                await self._log.append(self._batches[0].data)
                break
            except LogUnavailable as again:
                said_s += delay_s
                delay_s = min(2 * delay_s, RETRY_MOST_S)
                if said_s >= SAY_AGAIN_S:
                    said_s = 0.0
                    _log.warning("the log is still away: %s", again)
        await self._back()

    async def _away(self, error: LogUnavailable) -> None:
        self._is_away = True
        await put_when_room(self._put, notes.LOG_STATE, first=0)
        _log.warning("the log is away, messages that have to be in it are refused until it is back: %s", error)

    async def _back(self) -> None:
        first = self._batches.popleft()
        await put_when_room(self._put, notes.LOG_COMMITTED, request=first.number)
        await put_when_room(self._put, notes.LOG_STATE, first=1)
        self._is_away = False  # from here on batches are started as they come
        _log.warning("the log is back")
        for batch in self._batches:
            batch.error = None
            self._start(batch)
        if not self._batches:
            self._nothing.set()

    async def drain(self, deadline_s: float) -> bool:
        """Wait until all that was handed over is in the log; False: it is not, and is given up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._nothing.wait()
        return not self._batches

    # --------------------------------------------------------------------------------------------------------- sifting

    def sift_soon(self) -> None:
        """The log is near its bound, and does not wait for its next sift."""
        self._is_crowded.set()

    async def sift_now_and_then(self) -> None:
        """Let the log give back the place of what is not kept any more, until this is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SIFT_PERIOD_S):
                    await self._is_crowded.wait()
            self._is_crowded.clear()
            try:
                await self._log.sift(self.keep)
            except (LogError, TimeoutError) as error:
                if isinstance(error, LogDeposed):
                    raise
                _log.warning("the log could not be sifted and grows until it can: %s", error)

    async def keep(self, records: bytes) -> bytes:
        """See `router.log.port.Sift`: the data plane knows."""
        self._sift_count += 1
        request = self._sift_count
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._sifts[request] = future
        try:
            self._put(notes.LOG_SIFT, request=request, text=records)
            async with asyncio.timeout(SIFT_DEADLINE_S):
                return await future
        except BufferError:
            raise LogUnavailable("the data plane has no room for what is to be sifted") from None
        finally:
            self._sifts.pop(request, None)

    async def close(self) -> None:
        """Let go of what is still under way."""
        await end_tasks(self._appenders, SIFT_DEADLINE_S)
        self._held.close()
