"""The router as a process of its own: told by standard input, ready by a word to its supervisor, ended by a signal."""

import asyncio
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from core import log_records
from core.commands import READY_FRAME
from core.ledger import Stats
from router import process as router_process
from router.config import RouterConfig
from router.log.port import LogBroken, LogDeposed, LogError, LogInUse, LogLost, LogUnavailable
from router.process import EXIT_CONFIG, Router, exit_code

DEADLINE_S = 30.0
Start = Callable[[str], tuple["subprocess.Popen[bytes]", socket.socket]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a router at an endpoint; gives the process and the end of its command socket."""
    started: list[subprocess.Popen[bytes]] = []
    sockets: list[socket.socket] = []

    def begin(endpoint: str) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        ours, theirs = socket.socketpair()
        sockets.append(ours)
        theirs_fd = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "router.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs_fd],
        )
        theirs.close()
        started.append(process)
        assert process.stdin is not None
        process.stdin.write(
            msgspec.json.encode(RouterConfig(node="n", endpoint=endpoint, epoch=5, commands_fd=theirs_fd))
        )
        process.stdin.close()
        return process, ours

    yield begin
    for process in started:
        process.kill()
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()
    for one in sockets:
        one.close()


def wait_ready(commands: socket.socket) -> bytes:
    """What it writes when it serves; nothing when it ended first."""
    assert select.select([commands], [], [], DEADLINE_S)[0], "neither ready nor ended in time"
    return commands.recv(100)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_asked_to_stop_and_leaves_nothing(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "router.sock"
    process, commands = start(f"ipc://{path}")
    assert wait_ready(commands) == READY_FRAME
    assert path.is_socket()
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    assert not path.exists()


def test_an_endpoint_that_cannot_be_bound_ends_it_with_a_word(start: Start, tmp_path: Path) -> None:
    process, commands = start(f"ipc://{tmp_path}/no/such/folder/router.sock")
    assert process.wait(DEADLINE_S) == EXIT_CONFIG
    assert wait_ready(commands) == b""
    assert process.stdout is not None
    said = process.stdout.read().decode()
    assert said.startswith("router: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LogDeposed("another has it"), 70),  # the node ends
        (LogLost("its directory is gone"), 74),  # it is started again
        (LogUnavailable("away"), 75),  # likewise, for ever
        (LogInUse("by process 1"), 78),
        (LogBroken("damaged"), 78),
        (OSError("taken"), 78),
    ],
)
def test_its_exit_code_says_what_the_supervisor_is_to_make_of_it(error: LogError | OSError, code: int) -> None:
    assert exit_code(error) == code


def test_it_takes_the_place_of_a_killed_one(start: Start, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/router.sock"
    first, commands = start(endpoint)
    assert wait_ready(commands) == READY_FRAME
    first.kill()
    first.wait(DEADLINE_S)
    second, commands = start(endpoint)
    assert wait_ready(commands) == READY_FRAME
    second.terminate()
    assert second.wait(DEADLINE_S) == 0


def test_a_start_that_reads_its_log_for_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor gives up a start that takes long, unless it says what it waits for."""

    class Large:
        async def recover(self) -> AsyncIterator[bytes]:
            for _ in range(3):
                yield bytes(1 << 20)

    class Plane:
        knows_all = True

        def recover(self, batch: bytes) -> int:
            return 1

    async def run(said: list[str]) -> None:
        router = Router(RouterConfig(node="n", endpoint="ipc:///nowhere", epoch=1), Stats())
        router.loop = Plane()  # type: ignore[assignment]
        await router._recover(Large(), said.append)  # type: ignore[arg-type]

    said: list[str] = []
    asyncio.run(run(said))
    assert said == []
    monkeypatch.setattr(router_process, "RECOVERY_SAID_S", 0.0)
    asyncio.run(run(said))
    assert said == [f"it reads its log, {number} MiB so far" for number in (1, 2, 3)]


def test_what_is_kept_for_redis_is_a_gauge_beside_its_bound() -> None:
    stats = Stats()
    config = RouterConfig(
        node="n",
        endpoint="ipc:///nowhere",
        epoch=1,
        log_backend="redis",
        log_redis_url="redis://127.0.0.1:1/0",
        log_redis_kept_bytes_max=1_000,
    )

    async def run() -> None:
        router = Router(config, stats)
        assert router.log is not None
        with pytest.raises(LogUnavailable):  # nobody is there: it is kept until somebody is
            await router.log.append(log_records.pack(log_records.MESSAGE, b"group:a", 1, 1, body=bytes(5_000)))
        await router.log.close()

    asyncio.run(run())
    gauges = stats.read()["gauges"]
    assert gauges["log_redis_kept_bytes"] > 5_000
    assert gauges["log_redis_kept_bytes_max"] == 1_000
