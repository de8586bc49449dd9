"""What /proc says of a process, against what the process did."""

import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import probe


@pytest.fixture
def ended() -> int:
    """The pid of a process that has gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)
    return process.pid


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_memory_and_descriptors_are_counted() -> None:
    before = probe.sample(os.getpid())
    assert before is not None
    held = mmap.mmap(-1, 32 << 20)  # from the kernel; an allocator may have had it already
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    with open(os.devnull) as _:
        after = probe.sample(os.getpid())
    assert after is not None
    assert after["fds"] == before["fds"] + 1
    grown = after["private_bytes"] - before["private_bytes"]
    assert 30 << 20 < grown < 40 << 20
    assert after["resident_bytes"] >= after["pss_bytes"]
    assert after["threads"] >= 1
    held.close()


def test_descriptors_are_named_by_what_they_lead_to(tmp_path: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with (
        open(tmp_path / "part-1.log", "w") as _,
        open(tmp_path / "part-2.log", "w") as _,
        socket.create_connection(("127.0.0.1", port), 5) as client,
        socket.socket(socket.AF_UNIX) as _,
    ):
        accepted, _ = listener.accept()
        with accepted:
            client.close()
            found = probe.detail(os.getpid())["fds"]
    assert [count for name, count in found.items() if name.endswith("/part-N.log")] == [2]
    assert found[f"socket tcp LISTEN of port {port}"] == 1
    assert found[f"socket tcp CLOSE_WAIT of port {port}"] == 1
    assert found["socket unix"] >= 1


def test_threads_are_named() -> None:
    assert sum(probe.detail(os.getpid())["threads"].values()) == len(os.listdir("/proc/self/task"))


def test_a_process_that_is_gone_has_nothing(ended: int) -> None:
    assert probe.sample(ended) is None
    assert probe.detail(ended) == {"fds": {}, "threads": {}}
