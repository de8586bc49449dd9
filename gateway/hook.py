"""Tells the world outside of an event: JSON posted to a URL, and on the standard input of a command.

Events wait in a queue of QUEUE_MAX and are delivered one after the other by one task, each with a deadline an attempt
and some attempts, the pauses doubling. Whoever tells never waits; an event beyond the bound is dropped, counted and
logged, as is one that was never delivered.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from gateway import logs

QUEUE_MAX = 100
ATTEMPTS = 5
BACKOFF_FIRST_S = 1.0
STOP_DEADLINE_S = 5.0

_log = logs.get("hook")


class Hook:
    """The events' way out; `start` it in the running loop, `close` it.

    Args:
        url: where to post to; empty: nowhere.
        command: what to run; empty: nothing.
        timeout_s: for each attempt.
        attempts: how often an event is tried.
        backoff_first_s: the pause after the first failed attempt.

    """

    def __init__(
        self,
        url: str,
        command: str,
        timeout_s: float,
        *,
        attempts: int = ATTEMPTS,
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self._ways: dict[str, Callable[[bytes], Awaitable[None]]] = {}
        if url:
            self._ways["url"] = lambda event: _post(url, event, timeout_s)
        if command:
            self._ways["command"] = lambda event: _run(shlex.split(command), event, timeout_s, self._groups)
        self._attempts = attempts
        self._backoff_first_s = backoff_first_s
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MAX)
        self._delivering: asyncio.Task[None] | None = None
        self._groups: set[int] = set()  # of commands that ended, in which something may live on
        self.delivered = 0
        self.failed = 0
        """Deliveries given up after all attempts, or not taken for want of room."""

    def start(self) -> None:
        if self._ways:
            self._delivering = asyncio.create_task(self._deliver_all(), name="hook")

    def tell(self, event: Mapping[str, Any]) -> None:
        """Deliver an event later; never waits."""
        if not self._ways:
            return
        try:
            self._queue.put_nowait(msgspec.json.encode(event))
        except asyncio.QueueFull:
            self.failed += len(self._ways)
            _log.error("hook_event_dropped", waiting=QUEUE_MAX)

    def bury(self) -> None:
        """What a command left running is this process's child by now (`adopt_orphans`): bury what of it has ended."""
        for group in list(self._groups):
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-group, os.WNOHANG) != (0, 0):
                    pass
                continue
            self._groups.discard(group)

    async def close(self) -> None:
        """Give up what is not delivered yet."""
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait({self._delivering}, timeout=STOP_DEADLINE_S)

    async def _deliver_all(self) -> None:
        while True:
            event = await self._queue.get()  # no deadline: for as long as the node lives
            # The ways do not wait for each other: a command must run though nobody answers at the URL.
            await asyncio.gather(*(self._deliver(name, event) for name in self._ways))

    async def _deliver(self, name: str, event: bytes) -> None:
        pause_s = self._backoff_first_s
        for attempt in range(1, self._attempts + 1):
            try:
                await self._ways[name](event)  # deadline: that of _post and _run
            except Exception as error:  # whatever an operator's URL or command may do, the next event comes
                _log.warning("hook_failed", way=name, attempt=attempt, error=repr(error))
            else:
                self.delivered += 1
                return
            if attempt < self._attempts:
                await asyncio.sleep(pause_s)
                pause_s *= 2
        self.failed += 1
        _log.error("hook_gave_up", way=name, attempts=self._attempts)


async def _post(url: str, event: bytes, timeout_s: float) -> None:
    import httpx  # here: a node that tells nobody starts faster without it

    # No proxy and no redirect: events go where the operator said.
    async with asyncio.timeout(timeout_s), httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client:
        # Its body is not read: it may have no end.
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", url, content=event, headers=headers) as answer:
            answer.raise_for_status()


async def _run(command: list[str], event: bytes, timeout_s: float, groups: set[int]) -> None:
    # Not the loop's own subprocesses: uvloop raises RuntimeError when one has ended before it was given its input.
    async with asyncio.timeout(timeout_s + STOP_DEADLINE_S):
        process = await asyncio.to_thread(_started, command)
        try:
            await asyncio.to_thread(_finish, process, event, timeout_s)
        finally:
            if process.poll() is None:
                _kill(process)  # ends the thread that waits for it as well
            groups.add(process.pid)
    if process.returncode != 0:
        raise ChildProcessError(f"{command[0]} ended with {process.returncode}")


def _started(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _finish(process: "subprocess.Popen[bytes]", event: bytes, timeout_s: float) -> None:
    """Gives the process its input and waits for its end.

    Raises:
        TimeoutError: it was killed after its deadline.

    """
    try:
        process.communicate(event, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill(process)
        process.wait(STOP_DEADLINE_S)
        raise TimeoutError(f"no end within {timeout_s:g} s") from error


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kills a command that has not been reaped, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
