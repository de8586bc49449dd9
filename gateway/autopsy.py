"""What the threads of a process that hangs are doing: the stacks that they write themselves, and the kernel's view.

A process that only hangs answers the signals (`core/stacks.pyx`). One that is stopped or in an uninterruptible wait
does not, and what the kernel tells has to do. Nothing here may take long: the process is in the way of its successor.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from core.stacks import NATIVE, PYTHON
from gateway.child_process import ChildProcess

THREAD_DEADLINE_S = 0.5
PYTHON_DEADLINE_S = 0.5
THREADS_MAX = 64
REPORTS_KEPT = 20
_POLL_S = 0.01
_END = b"end\n"

_libc = ctypes.CDLL(None, use_errno=True)


async def examine(process: ChildProcess, why: str) -> str:
    """The report, for people; takes a second or two at most.

    Args:
        process: it must not have ended.
        why: the first line's reason.

    """
    pid = process.pid
    lines = [
        f"{process.name} (pid {pid}) is stuck: {why}",
        f"written {datetime.now(UTC).isoformat(timespec='seconds')}",
    ]
    if pid is None:
        return "\n".join([*lines, "it ended before it could be looked at"])
    threads = _threads(pid)[:THREADS_MAX]
    for thread in threads:
        lines += ["", *_kernels_view(pid, thread)]
    lines += ["", "--- native stacks"]
    for thread in threads:
        lines.append(await _answer(process, pid, thread, NATIVE, THREAD_DEADLINE_S, lambda text: text.endswith(_END)))
    lines.append("--- Python stacks")
    lines.append(await _answer(process, pid, pid, PYTHON, PYTHON_DEADLINE_S, _is_settled()))
    return "\n".join(lines) + "\n"


def keep(folder: Path, name: str, report: str) -> Path:
    """Writes a report into a folder, which is made if it is not there, and forgets the oldest beyond REPORTS_KEPT.

    Raises:
        OSError: it cannot be written.

    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"stuck-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{name}.txt"
    path.write_text(report)
    for old in sorted(folder.glob("stuck-*.txt"))[:-REPORTS_KEPT]:
        old.unlink(missing_ok=True)
    return path


def _threads(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []


def _kernels_view(pid: int, thread: int) -> list[str]:
    """What /proc says of a thread, as far as this process may read it."""

    def read(name: str) -> str:
        try:
            return Path(f"/proc/{pid}/task/{thread}/{name}").read_text().strip()
        except OSError as error:
            return f"({error.strerror})"

    state = next((line.partition(":")[2].strip() for line in read("status").splitlines() if line[:5] == "State"), "?")
    found = [f"thread {thread} ({read('comm')}): {state}"]
    found += [f"  {name}: {read(name)}" for name in ("wchan", "syscall")]
    return [*found, "  stack: " + read("stack").replace("\n", "\n         ")]


async def _answer(
    process: ChildProcess, pid: int, thread: int, number: int, deadline_s: float, is_whole: Callable[[bytes], bool]
) -> str:
    """What a thread's handler writes for a signal, up to the deadline."""
    before = len(process.notes())
    if _libc.tgkill(pid, thread, number) != 0:
        return f"thread {thread}: cannot be asked: {os.strerror(ctypes.get_errno())}"
    end = time.monotonic() + deadline_s
    written = b""
    while time.monotonic() < end and not is_whole(written):
        await asyncio.sleep(_POLL_S)  # a signal handler cannot wake anybody
        written = process.notes()[before:]
    return written.decode(errors="replace") or f"thread {thread} does not answer\n"


def _is_settled() -> Callable[[bytes], bool]:
    """Whether a text has not grown since it was asked last: faulthandler writes no end mark."""
    last = b""

    def is_settled(text: bytes) -> bool:
        nonlocal last
        last, before = text, last
        return bool(text) and text == before

    return is_settled
