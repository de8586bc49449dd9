"""The thread that waits for a disk."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from core.owned import ACCOUNT
from router.log.disk_thread import JOBS_MAX, DiskThread
from router.log.port import LogUnavailable

DEADLINE_S = 30.0


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body()

    before = set(ACCOUNT.held)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())
    assert ACCOUNT.held - before == set()


def test_jobs_are_done_in_their_order_in_one_thread_that_ends() -> None:
    async def body() -> None:
        thread = DiskThread("log-test", DEADLINE_S)
        done: list[int] = []
        names = await asyncio.gather(*(thread.run(lambda one: _note(done, one), number) for number in range(50)))
        assert done == list(range(50))
        assert set(names) == {"log-test"}
        await thread.close()
        await thread.close()
        assert "log-test" not in {each.name for each in threading.enumerate()}
        with pytest.raises(LogUnavailable, match="closed"):
            await thread.run(lambda: None)

    run(body)


def wait(go: threading.Event, started: threading.Event | None = None) -> None:
    """A disk that takes its time."""
    if started is not None:
        started.set()
    assert go.wait(DEADLINE_S)


def fail(done: threading.Event) -> None:
    done.set()
    raise OSError(5, "Input/output error")


def test_errors_are_said_in_the_words_of_what_jobs_are_done_in() -> None:
    @contextlib.contextmanager
    def translated() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LogUnavailable(f"in other words: {error.strerror}") from error

    async def body() -> None:
        thread = DiskThread("log-test", DEADLINE_S, translated)
        with pytest.raises(LogUnavailable, match="in other words: Input/output error"):
            await thread.run(fail, threading.Event())
        assert await thread.run(lambda: 7) == 7
        await thread.close()

    run(body)


def _note(done: list[int], number: int) -> str:
    done.append(number)
    return threading.current_thread().name


def test_what_a_job_raises_is_raised_to_who_asked() -> None:
    async def body() -> None:
        thread = DiskThread("log-test", DEADLINE_S)
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda: 1 // 0)
        assert await thread.run(lambda: 5) == 5
        await thread.close()

    run(body)


def test_whoever_waits_too_long_is_told_and_the_job_goes_on() -> None:
    async def body() -> None:
        thread = DiskThread("log-test", 0.05)
        go, done = threading.Event(), threading.Event()
        jobs = [lambda: wait(go), lambda: fail(done)]
        for answer in await asyncio.gather(*(thread.run(job) for job in jobs), return_exceptions=True):
            assert isinstance(answer, LogUnavailable)
            assert "did not answer within 0.05 s" in str(answer)
        go.set()
        assert await asyncio.to_thread(done.wait, DEADLINE_S)
        thread._deadline_s = DEADLINE_S
        await thread.close()

    run(body)


def test_a_disk_that_keeps_the_thread_does_not_keep_who_closes() -> None:
    async def body() -> None:
        thread = DiskThread("log-test", 0.05)
        go = threading.Event()
        thread.put(lambda: wait(go))
        with pytest.raises(LogUnavailable, match="keeps the thread log-test for more than"):
            await thread.close()
        go.set()

    run(body)


def test_more_jobs_than_the_bound_are_refused() -> None:
    async def body() -> None:
        thread = DiskThread("log-test", DEADLINE_S)
        go, started = threading.Event(), threading.Event()
        thread.put(lambda: wait(go, started))
        assert await asyncio.to_thread(started.wait, DEADLINE_S)
        for _ in range(JOBS_MAX):
            thread.put(lambda: None)
        with pytest.raises(LogUnavailable, match=f"{JOBS_MAX} calls wait"):
            await thread.run(lambda: None)
        go.set()
        await thread.close()

    run(body)


def test_one_that_is_dropped_without_close_is_a_leak_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        thread = DiskThread("log-test", DEADLINE_S)
        await thread.run(lambda: None)
        jobs = thread._jobs
        del thread
        while "was collected while open" not in caplog.text:  # within run's deadline
            gc.collect()
            await asyncio.sleep(0)
        jobs.put(None)

    before = set(ACCOUNT.held)
    with pytest.raises(AssertionError):
        run(body)
    assert "handle the thread log-test was collected while open" in caplog.text
    for held in ACCOUNT.held - before:
        held.close()
