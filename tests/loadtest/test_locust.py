"""Locust with our users: its counts agree with the server's to the message, and a fault made on purpose is reported."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CORE, ROOT, Node, free_ports

StartFloor = Callable[..., str]

FLOOR_PROGRAM = ROOT / "loadtest" / "bin" / "floor"
LOCUST = ROOT / ".cache" / "locust-venv" / "bin" / "locust"
RUN = ROOT / "loadtest" / "run_locust.py"
DEADLINE_S = 90
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LOCUST.exists(), reason="make locust has not installed locust"),
]
QUICK = ("--spawn-rate", "50", "--connect-rate", "0", "--only-summary")
FLOOR = ("Chatter", "--groups", "1", "--users", "2", "--connections-per-user", "20", "--publish-rate", "5")


@pytest.fixture
def start_floor() -> Iterator[StartFloor]:
    """Start a floor with the given flags; its WebSocket's address."""
    with ExitStack() as stack:

        def start(*flags: str) -> str:
            # One send a delivery: in the other mode who joins in the very wake-up of a message gets it, too.
            command = [str(FLOOR_PROGRAM), "--per-delivery", "--port", "0", *flags]
            floor = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(floor.terminate)
            assert floor.stdout is not None
            word, port = floor.stdout.readline().split()
            assert word == "ready"
            return f"ws://127.0.0.1:{port}/ws"

        yield start


def environment() -> dict[str, str]:
    """The build under test goes before the sources."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(CORE.parent), str(ROOT)])}


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(RUN), *QUICK, *arguments]


def locust(folder: Path, *arguments: str) -> tuple[int, str, dict[str, dict[str, Any]]]:
    """A run: exit code, what it said, and its statistics by name."""
    file = folder / "stats"
    done = subprocess.run(
        command("--json-file", str(file), *arguments),
        cwd=folder,  # locust puts it in front of the module path
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    said = done.stdout + done.stderr
    written = file.with_suffix(".json")
    entries = json.loads(written.read_text()) if written.exists() else []
    return done.returncode, said, {entry["name"]: entry for entry in entries}


def told(said: str, name: str) -> tuple[int, int]:
    """The clients' and the server's count of the summary."""
    found = re.search(rf"{name} +([\d,]+) +([\d,]+)$", said, re.MULTILINE)
    assert found, said
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


def test_locust_runs_the_build_under_test(tmp_path: Path) -> None:
    (tmp_path / "who.py").write_text(
        "from core import client_loop\nfrom locust import User\nprint(client_loop.__file__)\nclass Any(User): pass\n"
    )
    done = subprocess.run(
        [str(LOCUST), "-f", "who.py", "--list"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert Path(done.stdout.decode().splitlines()[0]).parent == CORE


def test_mixed_users_agree_with_the_server_to_the_message(holdfast: Callable[..., Node], tmp_path: Path) -> None:
    node = holdfast("--workers", "2")
    at = ("--host", node.ws_url, "--admin", node.admin_url)
    load = ("--users", "10", "--connections-per-user", "30", "--groups", "5", "--publish-rate", "2", "--flaps", "2")
    code, said, entries = locust(tmp_path, *at, *load, "--away", "0.5", "--run-time", "8s")
    assert code == 0, said
    for name in ("published", "accepted", "delivered"):
        clients, server = told(said, name)
        assert clients == server > 0
    assert told(said, "delivered")[0] == node.metric("holdfast_messages_delivered_total")
    assert entries["delivery"]["num_requests"] == told(said, "delivered")[0]
    assert entries["publish"]["num_requests"] == told(said, "accepted")[0]
    assert entries["connect"]["num_requests"] > 300, "flappers come back"
    assert entries["history"]["num_requests"] > 0
    assert entries["delivery"]["num_failures"] == 0
    assert entries["delivery"]["max_response_time"] > 0


@pytest.mark.parametrize(
    ("fault", "counted"), [("drop", "lost: 1"), ("repeat", "repeated: 1"), ("swap", "out_of_order: 1")]
)
def test_a_fault_made_on_purpose_is_reported(start_floor: StartFloor, tmp_path: Path, fault: str, counted: str) -> None:
    host = start_floor("--inject", fault, "--inject-at", "10")
    code, said, entries = locust(tmp_path, *FLOOR, "--host", host, "--run-time", "3s")
    assert code == 3, said
    assert re.findall(r"WRONG: (.*)", said) == [counted]
    assert entries["delivery"]["num_failures"] == 1
    assert "not compared" in said


def test_a_floor_without_a_fault_is_right(start_floor: StartFloor, tmp_path: Path) -> None:
    code, said, entries = locust(tmp_path, *FLOOR, "--host", start_floor(), "--run-time", "3s")
    assert (code, re.findall(r"WRONG: (.*)", said)) == (0, []), said
    assert entries["delivery"]["num_requests"] > entries["publish"]["num_requests"] * 20


def test_a_run_that_was_over_before_it_began_measured_nothing(tmp_path: Path) -> None:
    program = (
        "from locust.env import Environment\n"
        "from loadtest.locust_users import hooks\n"
        "environment = Environment()\n"
        "hooks.on_test_stopping(environment)\n"
        "hooks.on_test_stop(environment)\n"
        "hooks.on_quitting(environment)\n"
        "print(environment.process_exit_code)\n"
    )
    python = [str(LOCUST.with_name("python")), "-c", program]
    done = subprocess.run(python, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout.split() == ["2"], done.stderr
    assert "nothing was measured" in done.stderr


def test_a_master_sums_its_workers(holdfast: Callable[..., Node], tmp_path: Path) -> None:
    node = holdfast()
    (port,) = free_ports(1)
    at = ("--host", node.ws_url, "--admin", node.admin_url, "--master-bind-port", str(port))
    join = command("--worker", "--master-host", "127.0.0.1", "--master-port", str(port))
    with (tmp_path / "workers").open("w") as log:
        workers = [
            subprocess.Popen(join, cwd=tmp_path, env=environment(), stdout=log, stderr=log, start_new_session=True)
            for _ in range(2)
        ]
        try:
            load = ("--users", "10", "--connections-per-user", "20", "--groups", "5", "--publish-rate", "2")
            master = ("--master", "--expect-workers", "2", "--run-time", "6s")
            code, said, entries = locust(tmp_path, *at, *load, *master)
            codes = [worker.wait(DEADLINE_S) for worker in workers]
        finally:
            for worker in workers:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait(DEADLINE_S)
    said += (tmp_path / "workers").read_text()
    assert (code, codes) == (0, [0, 0]), said
    for name in ("published", "accepted", "delivered"):
        clients, server = told(said, name)
        assert clients == server > 0
    assert entries["connect"]["num_requests"] >= 200
    assert entries["delivery"]["num_requests"] == told(said, "delivered")[0]


def test_a_gateway_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    code, said, _ = locust(tmp_path, "--host", "ws://127.0.0.1:1/ws", "--admin", f"http://127.0.0.1:{port}")
    assert code == 1
    assert "locust: " in said
    assert "Connection refused" in said
    code, said, _ = locust(tmp_path, "--host", "http://127.0.0.1")
    assert (code, "give the gateway's WebSocket" in said) == (1, True)
