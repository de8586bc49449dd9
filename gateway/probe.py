"""What the kernel says of a process, from /proc: its memory, descriptors and threads, and what these are.

Reads files only, so it may run in any thread; a process that has gone gives None.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator

_MEMORY = {"Private_Clean": "private_bytes", "Private_Dirty": "private_bytes", "Swap": "private_bytes",
           "Pss": "pss_bytes", "Rss": "resident_bytes"}  # fmt: skip
_SMAPS = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_DIGITS = re.compile(r"\d+")
# States of TCP as /proc/net/tcp numbers them (include/net/tcp_states.h).
_TCP_STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
               "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING")  # fmt: skip


def sample(pid: int) -> dict[str, int] | None:
    """Memory in bytes, and how many descriptors and threads a process has.

    `private_bytes` is what would be free if the process ended (also what of it is swapped out): unlike the resident
    memory, it does not count the pages that forked processes share.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read()
        found = dict.fromkeys(_MEMORY.values(), 0)
        for name, kilobytes in _SMAPS.findall(lines):
            resource = _MEMORY.get(name.decode())
            if resource is not None:
                found[resource] += int(kilobytes) * 1024
        found["fds"] = len(os.listdir(f"/proc/{pid}/fd"))
        found["threads"] = len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return found


def detail(pid: int) -> dict[str, Counter[str]]:
    """Descriptors by what they lead to, threads by their names; empty when the process is gone."""
    return {"fds": Counter(_descriptors(pid)), "threads": Counter(_threads(pid))}


def _descriptors(pid: int) -> Iterator[str]:
    sockets: set[str] = set()
    for fd in _names(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        match = _SOCKET.fullmatch(link)
        if match:
            sockets.add(match[1])
        else:
            # Numbers in names tell one apart from the next, which is not wanted here: pipe:[17], part-17.log.
            yield _DIGITS.sub("N", link)
    # Of the network's sockets, which may be a hundred times as many, only its own are kept in memory.
    for inode, name in _sockets(pid) if sockets else ():
        if inode in sockets:
            sockets.remove(inode)
            yield name
    yield from ("socket" for _ in sockets)


def _sockets(pid: int) -> Iterator[tuple[str, str]]:
    """The sockets of the process's network, by inode; TCP with its state and own port."""
    for name in ("tcp", "tcp6"):
        for fields in _rows(f"/proc/{pid}/net/{name}"):
            state = _TCP_STATES[int(fields[3], 16)]
            yield fields[9], f"socket {name} {state} of port {int(fields[1].rpartition(':')[2], 16)}"
    for name in ("udp", "udp6"):
        for fields in _rows(f"/proc/{pid}/net/{name}"):
            yield fields[9], f"socket {name}"
    for fields in _rows(f"/proc/{pid}/net/unix"):
        path = f" {_DIGITS.sub('N', fields[7])}" if len(fields) > 7 else ""
        yield fields[6], f"socket unix{path}"


def _rows(path: str) -> Iterator[list[str]]:
    try:
        with open(path) as file:
            next(file, None)
            for line in file:
                yield line.split()
    except OSError:
        return


def _threads(pid: int) -> Iterator[str]:
    for thread in _names(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/comm") as file:
                yield file.read().strip()
        except OSError:
            continue


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
