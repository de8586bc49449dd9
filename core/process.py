"""What every process of a node does at its start: die with its parent, and say that it is ready."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent: int) -> None:
    """Let the kernel send SIGTERM when the process that started this one ends, however it ends.

    Args:
        parent: its pid, as it was when this process started.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


def say_ready(ready_fd: int) -> None:
    """Tell whoever started this process that it serves; -1: nobody asked."""
    if ready_fd >= 0:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
