"""The lock of a log's directory: one process at a time, and whoever is refused hears who has it."""

import fcntl
import os
import secrets
import time
from pathlib import Path

from core.owned import ACCOUNT
from router.log.port import LogInUse

POLL_S = 0.05


class DirectoryLock:
    """Held from the moment it is made until `release`, or until its process ends, however that ends.

    Args:
        path: of the lock file. It stays, so that nobody locks a file that another is about to remove.
        deadline_s: how long to wait for one who is just about to end.

    Raises:
        LogInUse: another has it.

    """

    def __init__(self, path: Path, deadline_s: float) -> None:
        self._path = path
        self.is_taken = False
        """Whether `lost` found that another process has it."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held = ACCOUNT.hold("control_fd", f"the log's {path.name}", fd=self._fd)
        self._mine = f"{os.getpid()} {secrets.token_hex(8)}\n".encode()
        try:
            self._acquire(deadline_s)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._mine, 0)
        except BaseException:
            self.release()
            raise

    def _acquire(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise LogInUse(
                        f"{self._path.parent} is in use by process {self._holder()}: stop it, or give this node "
                        f"another folder as log.directory"
                    ) from None
            time.sleep(POLL_S)

    def _holder(self) -> str:
        words = os.pread(self._fd, 100, 0).split()
        return words[0].decode(errors="replace") if words else "unknown"

    def lost(self) -> str:
        """Why it counts for nothing any more, or nothing while it does.

        Somebody may have removed the file, alone or with its folder, and another may have locked one of the same name.
        """
        if self._fd < 0:
            return f"{self._path} was given up"
        own = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            what = self._path if self._path.parent.exists() else self._path.parent
            return (
                f"{what} was removed while this process used it: what is written now would not be found again. "
                f"What is missing has to come from a backup; the next start begins with what is there then"
            )
        except OSError as error:
            return f"{self._path} cannot be read any more: {error.strerror}"
        same = (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)
        if same and os.pread(self._fd, len(self._mine) + 1, 0) == self._mine:
            return ""
        self.is_taken = True
        return f"another process took {self._path}{self._taker()}"

    def _taker(self) -> str:
        """Who that is, as far as the file says."""
        try:
            words = self._path.read_bytes().split()
        except OSError:
            words = []
        return f": process {words[0].decode(errors='replace')}" if words else ""

    def is_mine(self) -> bool:
        """Whether it still counts."""
        return not self.lost()

    def release(self) -> None:
        """Give it up; again does nothing."""
        if self._fd >= 0:
            self._held.close()
            os.close(self._fd)
            self._fd = -1
