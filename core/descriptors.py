"""The descriptors that this process has open, as the kernel tells them, and whose they are."""

import os
import socket
import stat
from typing import NamedTuple

PROC = "/proc/self/fd"


class Descriptor(NamedTuple):
    """One open descriptor; the same number with another identity is another one."""

    identity: tuple[int, int]
    """Device and inode. Event descriptors share one; sockets and files have each their own."""
    link: str
    """What /proc calls it: `socket:[4711]`, `/dev/null`, `anon_inode:[eventpoll]`."""


def look(fd: int) -> Descriptor | None:
    """One descriptor; None when it is not open."""
    try:
        status = os.fstat(fd)
        link = os.readlink(f"{PROC}/{fd}")
    except OSError:
        return None
    return Descriptor((status.st_dev, status.st_ino), link)


def listed() -> set[int]:
    """The numbers of all open descriptors, but for the one that the listing itself needed."""
    return {fd for fd in map(int, os.listdir(PROC)) if os.path.lexists(f"{PROC}/{fd}")}


def is_unnamed(fd: int) -> bool:
    """Whether it is an event descriptor or an epoll, all of which look alike."""
    found = look(fd)
    return found is not None and found.link.startswith("anon_inode:")


def others_of(fd: int) -> list[int]:
    """Other numbers of the same file, such as the one that a memory map keeps for itself."""
    wanted = look(fd)
    return sorted(other for other in listed() if other != fd and look(other) == wanted)


def from_bits(bits: bytes) -> set[int]:
    """The numbers in a set of one bit a descriptor, as a data plane's audit gives it."""
    return {place * 8 + bit for place, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1}


def is_bus(fd: int, endpoint: str) -> bool:
    """Whether a socket may be libzmq's, which opens and closes its own and tells nobody: one to, or from, the endpoint,
    or one that still connects.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as one:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return _ends_at(one.getsockname(), endpoint)
            try:
                return _ends_at(one.getpeername(), endpoint) or _ends_at(one.getsockname(), endpoint)
            except OSError:
                return True
    except OSError:
        return False


def _ends_at(address: object, endpoint: str) -> bool:
    if isinstance(address, tuple):
        return endpoint.startswith("tcp://") and endpoint.rpartition(":")[2] == str(address[1])
    return isinstance(address, str) and address != "" and endpoint == f"ipc://{address}"
