"""Which worker has a connection: read from /proc, since the kernel alone decides it (SO_REUSEPORT)."""

import os
import re
from pathlib import Path
from typing import Any

from tests.process.clients import Client, open_session

ATTEMPTS = 64


def worker_of(node: Any, client: Client) -> int:
    """The pid of the worker that serves a client."""
    inode = _server_inode(client.address[1], {node.port, node.ws_port})
    for pid in node.workers:
        if inode in _socket_inodes(pid):
            return int(pid)
    raise AssertionError(f"no worker of {node.workers} has the connection from port {client.address[1]}")


def _server_inode(client_port: int, server_ports: set[int]) -> int:
    """The inode of the socket whose remote end is ours."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.split(":")[1], 16) for address in fields[1:3])
        if remote == client_port and local in server_ports and fields[9] != "0":
            return int(fields[9])
    raise AssertionError(f"nobody serves port {client_port}")


def _socket_inodes(pid: int) -> set[int]:
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path))
        except FileNotFoundError:
            continue
        if match:
            found.add(int(match[1]))
    return found


async def one_on_each_worker(node: Any, kinds: tuple[str, ...] = ("tcp",), user: str | None = None) -> list[Client]:
    """A session on each worker, in the order of `node.workers`, their kinds taken in turn."""
    found: dict[int, Client] = {}
    for _attempt in range(ATTEMPTS):
        client = await open_session(node, kinds[len(found) % len(kinds)], user)
        worker = worker_of(node, client)
        if worker in found:
            await client.close()
        else:
            found[worker] = client
        if len(found) == len(node.workers):
            return [found[pid] for pid in node.workers]
    raise AssertionError(f"{ATTEMPTS} connections reached only {len(found)} of {len(node.workers)} workers")
