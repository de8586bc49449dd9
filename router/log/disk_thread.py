"""A thread for what waits for a disk, and the way there and back from an event loop."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from core.owned import ACCOUNT, Held
from router.log.port import LogUnavailable

JOBS_MAX = 1024
CLOSED = "the log is closed"

_T = TypeVar("_T")


class DiskThread:
    """One thread that does jobs in the order in which they were put.

    Args:
        name: of the thread.
        deadline_s: after it whoever waits for a job hears LogUnavailable; the job itself is not stopped.
        around: makes what each job is done in, such as what says errors in other words.

    """

    def __init__(
        self,
        name: str,
        deadline_s: float,
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.name = name
        self._deadline_s = deadline_s
        self._around = around
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._held: Held | None = ACCOUNT.hold("handle", f"the thread {name}", object_=self)
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    async def run(self, job: Callable[..., _T], *arguments: Any) -> _T:
        """Do a job in the thread.

        Raises:
            LogUnavailable: it was not done in time, or too many wait already.
            BaseException: what the job raised.
        """
        answer: asyncio.Future[_T] = self._loop.create_future()
        if self._held is None or self._jobs.qsize() >= JOBS_MAX:
            raise LogUnavailable(CLOSED if self._held is None else f"{JOBS_MAX} calls wait for the disk")

        def do() -> None:
            try:
                with self._around():
                    result = job(*arguments)
            except BaseException as error:
                self.tell(_fail, answer, error)
            else:
                self.tell(_answer, answer, result)

        self._jobs.put(do)
        return await self.wait(answer)

    async def wait(self, answer: "asyncio.Future[_T]") -> _T:
        """What a job answers, within the deadline; the answer itself goes on when nobody waits for it any more."""
        await asyncio.wait((answer,), timeout=self._deadline_s)
        if answer.done():
            return answer.result()
        answer.add_done_callback(_forget)
        raise LogUnavailable(f"the disk did not answer within {self._deadline_s:g} s")

    def put(self, job: Callable[[], None]) -> None:
        """Do a job in the thread that answers by `tell`, and raises nothing."""
        self._jobs.put(job)

    def tell(self, call: Callable[..., None], *arguments: Any) -> None:
        """Called in the thread: call back in the event loop, if there is one still."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    async def close(self) -> None:
        """End the thread when it has done what was put before, within the deadline.

        Raises:
            LogUnavailable: the disk keeps it; it ends with the process.
        """
        if self._held is None:
            return
        held, self._held = self._held, None
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, timeout=self._deadline_s)
        held.close()
        if self._thread.is_alive():
            raise LogUnavailable(f"the disk keeps the thread {self.name} for more than {self._deadline_s:g} s")


def _work(jobs: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    # no deadline: for as long as the log is open
    while (job := jobs.get()) is not None:
        job()
        del job  # or its log could not be collected, and a leak of it be told, until the next one comes


def _answer(answer: "asyncio.Future[_T]", result: _T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: "asyncio.Future[Any]", error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)


def _forget(answer: "asyncio.Future[Any]") -> None:
    """Nobody waits for it any more, and asyncio is not to complain that nobody heard of its error."""
    if not answer.cancelled():
        answer.exception()
