"""What a process of a node does at its start, seen from outside."""

import os
import signal
import subprocess
import sys

import pytest

CHILD = """
import os, signal, sys
from core.process import die_with_parent
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
die_with_parent(int(sys.argv[1]) or os.getppid())
os.write(1, b"up ")
signal.alarm(30)
signal.sigwait({signal.SIGTERM})
os.write(1, b"ended")
os._exit(0)
"""
# Starts CHILD, waits until it says that it is up, and dies without a word to it.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "0"], stdout=subprocess.PIPE)
os.write(1, child.stdout.read(3))
os.read(0, 1)
os.kill(os.getpid(), 9)
"""


def test_a_child_is_ended_when_its_parent_is_killed() -> None:
    reader, writer = os.pipe()
    program = PARENT.replace("stdout=subprocess.PIPE", f"stdout={writer}, pass_fds=({writer},)").replace(
        "os.write(1, child.stdout.read(3))", "pass"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, CHILD], stdin=subprocess.PIPE, pass_fds=(writer,), bufsize=0
    )
    os.close(writer)
    assert os.read(reader, 3) == b"up "
    assert parent.stdin is not None
    parent.stdin.write(b"x")
    assert parent.wait(10) == -signal.SIGKILL
    with os.fdopen(reader, "rb") as output:
        assert output.read() == b"ended"
    parent.stdin.close()


def test_a_parent_that_ended_before_the_call_is_noticed() -> None:
    result = subprocess.run([sys.executable, "-c", CHILD, "1"], capture_output=True, timeout=30)
    assert result.stdout == b"up ended"


@pytest.mark.parametrize("title", ["holdfast worker-0", "holdfast " + "x" * 5000])
def test_a_title_takes_the_place_of_the_command_line_as_far_as_there_is_room(title: str) -> None:
    program = (
        "import sys; from core.process import set_title; set_title(sys.argv[1]);"
        "print(open('/proc/self/cmdline').read().rstrip(chr(0)), open('/proc/self/comm').read(), sep=';', end='')"
    )
    command = [sys.executable, "-c", program, title]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    shown, _, name = result.stdout.strip().partition(";")
    assert title.startswith(shown)
    assert len(shown) >= 17
    assert name == title.removeprefix("holdfast ")[:15]


def test_a_terminal_is_there_until_it_is_closed() -> None:
    program = """
import os, pty, signal, sys, time
from core.process import has_terminal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
pid, master = pty.fork()
if pid == 0:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    had = has_terminal()
    os.write(1, b"ready")
    end = time.monotonic() + 10
    while has_terminal() and time.monotonic() < end:
        time.sleep(0.01)
    os._exit(10 * had + has_terminal())
assert b"ready" in os.read(master, 100)
os.close(master)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "10"
