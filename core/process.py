"""What every process of a node does at its start: name itself, and die with its parent."""

import ctypes
import os
import signal

# To a worker: a successor listens on your sockets now; leave it what waits there, and drain.
LEAVE = signal.SIGUSR1

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
# The two fields of /proc/self/stat, counted from the state on, that say where the kernel finds the command line.
_ARGUMENTS_FIRST, _ARGUMENTS_END = 45, 46


_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def die_with_parent(parent: int) -> None:
    """Let the kernel send SIGTERM when the process that started this one ends, however it ends.

    Args:
        parent: its pid, as it was when this process started.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


def adopt_orphans(adopt: bool) -> None:
    """Become the parent of descendants whose own parent ends (a subreaper), or no longer do so."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(adopt))


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, and that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def set_title(title: str) -> None:
    """Be called `title` in the list of processes, as far as the command line that it was started with has room."""
    _prctl(_PR_SET_NAME, title.removeprefix("holdfast ").encode()[:15])
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    first, end = int(fields[_ARGUMENTS_FIRST]), int(fields[_ARGUMENTS_END])
    if end > first:  # both are 0 where /proc tells nothing
        room = end - first - 1
        ctypes.memset(first, 0, end - first)
        ctypes.memmove(first, title.encode()[:room], min(len(title.encode()), room))
