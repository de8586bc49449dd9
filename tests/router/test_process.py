"""The router as a process of its own: told by standard input, ready by a pipe, ended by a signal."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from router.config import RouterConfig
from router.process import EXIT_CONFIG

DEADLINE_S = 20.0
Start = Callable[[str], tuple["subprocess.Popen[bytes]", int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a router at an endpoint; gives the process and the end of its ready pipe."""
    started: list[subprocess.Popen[bytes]] = []
    pipes: list[int] = []

    def begin(endpoint: str) -> tuple["subprocess.Popen[bytes]", int]:
        reading, writing = os.pipe()
        pipes.append(reading)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "router.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
        )
        os.close(writing)
        started.append(process)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(RouterConfig(node="n", endpoint=endpoint, epoch=5, ready_fd=writing)))
        process.stdin.close()
        return process, reading

    yield begin
    for process in started:
        process.kill()
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()
    for pipe in pipes:
        os.close(pipe)


def wait_ready(pipe: int) -> bytes:
    """What it writes when it serves; nothing when it ended first."""
    assert select.select([pipe], [], [], DEADLINE_S)[0], "neither ready nor ended in time"
    return os.read(pipe, 100)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_asked_to_stop_and_leaves_nothing(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    socket = tmp_path / "router.sock"
    process, pipe = start(f"ipc://{socket}")
    assert wait_ready(pipe) == b"ready\n"
    assert socket.is_socket()
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    assert not socket.exists()


def test_an_endpoint_that_cannot_be_bound_ends_it_with_a_word(start: Start, tmp_path: Path) -> None:
    process, pipe = start(f"ipc://{tmp_path}/no/such/folder/router.sock")
    assert process.wait(DEADLINE_S) == EXIT_CONFIG
    assert wait_ready(pipe) == b""
    assert process.stdout is not None
    said = process.stdout.read().decode()
    assert said.startswith("router: ")
    assert "Traceback" not in said


def test_it_takes_the_place_of_a_killed_one(start: Start, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/router.sock"
    first, pipe = start(endpoint)
    assert wait_ready(pipe) == b"ready\n"
    first.kill()
    first.wait(DEADLINE_S)
    second, pipe = start(endpoint)
    assert wait_ready(pipe) == b"ready\n"
    second.terminate()
    assert second.wait(DEADLINE_S) == 0
