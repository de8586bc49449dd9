"""The node's run directory: private, held by a lock, gone at the end; those of nodes that were killed are swept.

The lock (flock) says whether a directory is in use. A process id alone would not: numbers are used again, and another
container that shares the directory has numbers of its own.
"""

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

from core.owned import ACCOUNT
from gateway.errors import RunDirectoryError

SOCKET_NAME = "router.sock"
_LOCK_NAME = "lock"
_NAME = re.compile(r"holdfast-([0-9]+)-.+")


class RunDirectory:
    """A directory that only this node uses, until `close`.

    Args:
        configured: the directory to use; empty: a new one in the system's directory for temporary files.

    Raises:
        RunDirectoryError: it is in use by another node or cannot be made.

    """

    def __init__(self, configured: str = "") -> None:
        sweep(Path(tempfile.gettempdir()))
        try:
            self._created = not configured or not Path(configured).exists()
            if configured:
                self.path = Path(configured)
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            else:
                self.path = Path(tempfile.mkdtemp(prefix=f"holdfast-{os.getpid()}-"))
            self._lock = _lock(self.path)
        except OSError as error:
            raise RunDirectoryError(f"cannot use the run directory {configured}: {error.strerror}") from error
        if self._lock is None:
            raise RunDirectoryError(f"the run directory {self.path} is in use by another node: give each its own")
        self._held = ACCOUNT.hold("lease", f"the run directory {self.path}", object_=self, fd=self._lock)

    @property
    def socket_path(self) -> Path:
        return self.path / SOCKET_NAME

    def close(self) -> None:
        """Removes what the node put there, and the directory if the node made it; more than once does nothing."""
        if self._lock is None:
            return
        if self._created:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            for name in (SOCKET_NAME, _LOCK_NAME):
                (self.path / name).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None
        self._held.close()


def sweep(parent: Path) -> list[Path]:
    """Removes the run directories in `parent` that nodes of this user left behind; returns them."""
    swept = []
    for path in parent.glob("holdfast-*-*"):
        match = _NAME.fullmatch(path.name)
        if match and _is_ours(path) and not _is_alive(int(match[1])):
            lock = _try_lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)
                swept.append(path)
    return swept


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return path.is_dir() and not path.is_symlink() and status.st_uid == os.geteuid()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _try_lock(path: Path) -> int | None:
    try:
        return _lock(path)
    except OSError:
        return None


def _lock(path: Path) -> int | None:
    """The descriptor that holds the directory's lock, or None when another process holds it."""
    fd = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
