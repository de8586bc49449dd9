"""Events reach a URL and a command, again and again until they do, and never hold up who tells them."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.process import adopt_orphans
from gateway.hook import ATTEMPTS, QUEUE_MAX, Hook
from tests.conftest import children, wait_until

Run = Callable[[Coroutine[Any, Any, Any]], Any]
EVENT = {"event": "leak_suspected", "process": "worker-0"}


class Receiver:
    """An HTTP server that keeps what is posted to it, and first answers with the statuses it is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.statuses: list[int] = []
        self.hangs = threading.Event()
        self.hangs.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.hangs.wait(10)
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                if status == 204:
                    receiver.events.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/events"

    def close(self) -> None:
        self.hangs.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


async def told(hook: Hook, events: int, until: Callable[[], bool]) -> None:
    """Tells so many events, and waits until something is so."""
    hook.start()
    try:
        for number in range(events):
            hook.tell({**EVENT, "number": number})
        await asyncio.to_thread(wait_until, until, lambda: f"delivered {hook.delivered}, failed {hook.failed}")
    finally:
        await hook.close()


def test_an_event_is_posted_as_json(run_in_loop: Run, receiver: Receiver) -> None:
    hook = Hook(receiver.url, "", 5)
    run_in_loop(told(hook, 2, lambda: hook.delivered == 2))
    assert receiver.events == [("application/json", {**EVENT, "number": number}) for number in (0, 1)]


def test_a_command_gets_it_on_its_standard_input(run_in_loop: Run, tmp_path: Path) -> None:
    path = tmp_path / "events with spaces"
    program = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"
    hook = Hook("", f'"{sys.executable}" -c "{program}" "{path}"', 20)
    run_in_loop(told(hook, 2, lambda: hook.delivered == 2))
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_refused_event_is_tried_again(run_in_loop: Run, receiver: Receiver) -> None:
    receiver.statuses = [503, 500]
    hook = Hook(receiver.url, "", 5, backoff_first_s=0.01)
    run_in_loop(told(hook, 1, lambda: hook.delivered == 1))
    assert len(receiver.events) == 1
    assert hook.failed == 0


def test_an_event_is_given_up_in_the_end_and_the_next_one_delivered(run_in_loop: Run, receiver: Receiver) -> None:
    receiver.statuses = [500] * ATTEMPTS
    hook = Hook(receiver.url, "", 5, backoff_first_s=0.01)
    run_in_loop(told(hook, 2, lambda: hook.delivered == 1))
    assert hook.failed == 1
    assert [event["number"] for _, event in receiver.events] == [1]


def test_who_hangs_is_given_up_after_the_deadline_and_the_other_way_goes_on(
    run_in_loop: Run, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.hangs.clear()
    hook = Hook(receiver.url, f"cp /dev/stdin {tmp_path}/event", 2, attempts=2, backoff_first_s=0.01)
    hook_failed = lambda: hook.failed == 1 and hook.delivered == 1  # noqa: E731 - both ways have come to their end
    run_in_loop(told(hook, 1, hook_failed))
    assert json.loads((tmp_path / "event").read_text())["number"] == 0


def test_a_command_that_hangs_is_killed(run_in_loop: Run, tmp_path: Path) -> None:
    program = "import os, sys, time; open(sys.argv[1], 'a').write(str(os.getpid()) + chr(10)); time.sleep(100)"
    hook = Hook("", f'{sys.executable} -S -c "{program}" {tmp_path}/pids', 1, attempts=2, backoff_first_s=0.01)
    run_in_loop(told(hook, 1, lambda: hook.failed == 1))
    pids = (tmp_path / "pids").read_text().split()
    assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_what_a_command_started_is_killed_with_it_and_buried(run_in_loop: Run, tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    hangs = f"sh -c 'sleep 60 & echo $! > {noted}; wait'"
    leaves = "sh -c 'sleep 0.1 & exit 0'"
    others = set(children(os.getpid()))

    async def scenario() -> None:
        adopt_orphans(True)
        try:
            for command in (hangs, leaves):
                hook = Hook("", command, 0.3, attempts=1)
                await told(hook, 1, lambda hook=hook: hook.delivered + hook.failed == 1)  # type: ignore[misc]
                assert (hook.delivered, hook.failed) == ((0, 1) if command is hangs else (1, 0))
                async with asyncio.timeout(10.0):
                    while hook._groups:
                        hook.bury()
                        await asyncio.sleep(0.01)
        finally:
            adopt_orphans(False)

    run_in_loop(scenario())
    assert set(children(os.getpid())) <= others
    assert not Path(f"/proc/{noted.read_text().strip()}").exists()


@pytest.mark.parametrize("command", ["false", "/nowhere/such-a-command"])
def test_a_command_that_fails_is_a_failure(run_in_loop: Run, command: str) -> None:
    hook = Hook("", command, 5, backoff_first_s=0.01)
    run_in_loop(told(hook, 1, lambda: hook.failed == 1))
    assert hook.delivered == 0


def test_beyond_the_bound_events_are_dropped_and_counted_and_nobody_waits(receiver: Receiver, run_in_loop: Run) -> None:
    async def work() -> int:
        hook = Hook(receiver.url, "", 5)
        for _ in range(QUEUE_MAX + 3):  # nobody delivers yet
            hook.tell(EVENT)
        return hook.failed

    assert run_in_loop(work()) == 3


def test_without_ways_it_does_nothing(run_in_loop: Run) -> None:
    async def work() -> tuple[int, int]:
        hook = Hook("", "", 5)
        hook.start()
        for _ in range(QUEUE_MAX + 1):
            hook.tell(EVENT)
        await hook.close()
        return hook.delivered, hook.failed

    assert run_in_loop(work()) == (0, 0)
