"""Stacks are written where they belong, by the thread that is asked, whatever it is doing."""

import os
import subprocess
import sys
import tempfile

import pytest

from core import stacks

PROGRAM = """
import ctypes, os, sys, threading, time
from core import stacks
fd = int(sys.argv[1])
stacks.install(fd, 100)
sleeper = threading.Thread(target=time.sleep, args=(60,), daemon=True)
sleeper.start()
libc = ctypes.CDLL(None)
for thread in (sleeper.native_id, threading.get_native_id()):
    before = os.fstat(fd).st_size
    assert libc.tgkill(os.getpid(), thread, stacks.NATIVE) == 0
    while not os.pread(fd, 1 << 20, before).endswith(b"end\\n"):
        time.sleep(0.001)
os.kill(os.getpid(), stacks.PYTHON)
print(sleeper.native_id, threading.get_native_id())
"""


def test_each_thread_writes_its_own_and_python_those_of_all() -> None:
    with tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), 100)
        command = [sys.executable, "-c", PROGRAM, str(file.fileno())]
        done = subprocess.run(command, pass_fds=[file.fileno()], capture_output=True, text=True, check=True, timeout=30)
        text = os.pread(file.fileno(), 1 << 20, 0)
    assert text[:100] == bytes(100), "what stands before is not touched"
    said = text[100:].decode()
    for thread in done.stdout.split():
        assert f"thread {thread} (" in said
    native, _, python = said.partition("Thread 0x")
    assert native.count("end\n") == 2
    assert native.count("[0x") > 4
    assert 'File "<string>"' in python


def test_without_a_descriptor_nothing_is_installed() -> None:
    stacks.install(-1, 0)
    assert stacks.NATIVE != stacks.PYTHON


def test_a_descriptor_that_cannot_be_written_at_a_place_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek"):
            stacks.install(writing, 100)
    finally:
        os.close(reading)
        os.close(writing)
