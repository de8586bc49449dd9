"""What is found out about a process that hangs, with real processes: by its own handlers, or by the kernel alone."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway import autopsy
from gateway.child_process import ChildProcess
from gateway.spawner import Spawner
from tests.conftest import stand_still

DEADLINE_S = 30.0
# Ready, and then hangs in two threads: one in Python, one in a system call without the GIL.
PROGRAM = """
import json, os, sys, threading, time
from core import ledger, stacks
config = json.load(sys.stdin)
stacks.install(config["stats_fd"], ledger.STATS_BYTES)
threading.Thread(target=time.sleep, args=(1000,), name="sleeper", daemon=True).start()
os.write(config["commands_fd"], b"\\x00\\x00\\x00\\x15\\x82\\xa5event\\xa5ready\\xa6fields\\x80")
def hang_in_python():
    while True:
        pass
hang_in_python()
"""


async def examined(*, stopped: bool) -> str:
    spawner = Spawner(())
    try:
        process = ChildProcess("worker-0", lambda _: None, lambda *_: None)
        await process.start(
            spawner,
            (sys.executable, "-c", PROGRAM),
            lambda stats_fd, commands_fd: b'{"stats_fd": %d, "commands_fd": %d}' % (stats_fd, commands_fd),
            (),
        )
        assert await process.until_ready(DEADLINE_S)
        pid = process.pid
        assert pid is not None
        if stopped:
            await asyncio.to_thread(stand_still, pid)
        report = await autopsy.examine(process, "it makes no turns")
        process.kill()
        assert await process.end() == -signal.SIGKILL
        assert (await autopsy.examine(process, "late")).endswith("it ended before it could be looked at")
        return report
    finally:
        spawner.close()


def test_one_that_hangs_tells_the_stacks_of_all_its_threads(run_in_loop: Any) -> None:
    report = run_in_loop(examined(stopped=False))
    assert re.match(r"worker-0 \(pid \d+\) is stuck: it makes no turns\n", report)
    native = re.findall(r"^thread (\d+) \(.*\)\n((?:.+\n)*?)end$", report, re.MULTILINE)
    assert len({thread for thread, _ in native}) == 2
    assert all(len(frames.splitlines()) > 2 for _, frames in native), native
    assert "hang_in_python" in report
    assert re.search(r"File .* in run$", report, re.MULTILINE), "the other thread's Python frames"
    assert "State" not in report
    assert re.search(r"^thread \d+ \(\S+\): R \(running\)", report, re.MULTILINE)


def test_of_one_that_stands_still_the_kernel_tells(run_in_loop: Any) -> None:
    report = run_in_loop(examined(stopped=True))
    assert len(re.findall(r"^thread \d+ \(\S+\): T \(stopped\)$", report, re.MULTILINE)) == 2
    assert len(re.findall(r"^thread \d+ does not answer$", report, re.MULTILINE)) == 3


def test_the_newest_reports_are_kept_and_nobody_else_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "reports"
    paths = [autopsy.keep(folder, f"worker-{number}", f"report {number}") for number in range(autopsy.REPORTS_KEPT + 3)]
    assert sorted(folder.iterdir()) == paths[3:]
    assert paths[-1].read_text() == f"report {autopsy.REPORTS_KEPT + 2}"
    assert os.stat(folder).st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        autopsy.keep(tmp_path / "file", "worker-0", "report")
