"""What is forked from the zygote: whose child it is, what it holds, what it shares, and when it begins."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.child import Child, ChildSpec
from gateway.spawner import Spawner
from gateway.zygote import COMMANDS_FD, STATS_FD

DEADLINE_S = 30.0
HEAVY_BYTES = 32 * 1024 * 1024
# Says what it finds itself to be, and ends as it is told.
MODULE = f"""
import json, os, sys
heavy = None

def preload():
    global heavy
    heavy = bytearray(os.urandom(4096) * ({HEAVY_BYTES} // 4096))

def private_bytes():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))

def main(parent):
    config = json.load(sys.stdin)
    report = {{
        "parent": parent, "ppid": os.getppid(), "sid": os.getsid(0), "pid": os.getpid(),
        "fds": sorted(map(int, os.listdir("/proc/self/fd"))), "title": open("/proc/self/cmdline").read().strip("\\0"),
        "private": private_bytes(), "heavy": len(heavy),
    }}
    with open(config["report"], "w") as file:
        json.dump(report, file)
    if config["exit"] is None:
        raise ValueError("this main fails")
    return config["exit"]
"""
THREADED = """
import threading
def preload():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Makes a module that a zygote can import; returns its name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))

    def make(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return make


async def run(name: str, folder: Path, code: int | None) -> tuple[int, dict[str, Any]]:
    """Runs MODULE's main to its end; the exit code and what it reported."""
    report = folder / "report"

    def config(*fds: int) -> bytes:
        assert fds[1:] == (STATS_FD, COMMANDS_FD)
        return json.dumps({"report": str(report), "exit": code}).encode()

    spawner = Spawner([name])
    try:
        ended = await Child(ChildSpec("worker-7", (name,), config), spawner).run_once(1)
    finally:
        spawner.close()
    return ended, json.loads(report.read_text())


def test_a_forked_process_is_the_supervisors_child_and_holds_only_its_own(
    module: Any, tmp_path: Path, run_in_loop: Any
) -> None:
    code, found = run_in_loop(run(module("forked_module", MODULE), tmp_path, 5))
    assert code == 5
    assert found["parent"] == found["ppid"] == os.getpid()
    assert found["sid"] == found["pid"]
    assert found["title"] == "holdfast worker-7"
    assert found["fds"][:5] == [0, 1, 2, STATS_FD, COMMANDS_FD]
    assert len(found["fds"]) == 6, "and the one that lists them"


def test_what_was_loaded_before_is_shared(module: Any, tmp_path: Path, run_in_loop: Any) -> None:
    _, found = run_in_loop(run(module("shared_module", MODULE), tmp_path, 0))
    assert found["heavy"] == HEAVY_BYTES
    assert found["private"] < HEAVY_BYTES / 2


def test_a_main_that_fails_says_so_and_ends_with_1(
    module: Any, tmp_path: Path, run_in_loop: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _ = run_in_loop(run(module("failing_module", MODULE), tmp_path, None))
    assert code == 1
    assert "ValueError: this main fails" in capfd.readouterr().err


def test_without_a_configuration_it_ends_before_it_began(module: Any, tmp_path: Path, run_in_loop: Any) -> None:
    async def scenario() -> int:
        spawner = Spawner([module("waiting_module", MODULE)])
        reading, writing = os.pipe()
        try:
            pid = await spawner.start("worker-7", ("waiting_module",), reading, reading, reading)
            os.close(writing)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            return os.waitstatus_to_exitcode(status)
        finally:
            os.close(reading)
            spawner.close()

    assert run_in_loop(scenario()) == 75
    assert not (tmp_path / "report").exists()


def test_a_module_that_starts_a_thread_is_refused(module: Any) -> None:
    command = [sys.executable, "-P", "-m", "gateway.zygote", module("threaded_module", THREADED)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S)
    assert result.returncode == 1
    assert "2 threads after importing threaded_module: it must stay one" in result.stderr
