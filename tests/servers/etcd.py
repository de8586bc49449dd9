"""Real etcd servers for tests: one, or a cluster of three, on loopback or each behind a cable of its own.

Each has a folder of its own and ends with its context; what was killed can be started again where it was.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_ports, wait_until
from tools import provision

START_DEADLINE_S = 60.0
HTTP_DEADLINE_S = 5.0
SIZE = 3
ROOT_PASSWORD = "secret"


def program() -> str:
    """The path of etcd; the test is skipped where there is none."""
    found = provision.find_program("etcd")
    if found is None:
        pytest.skip("needs etcd: make provision")
    return found


class Member:
    """One etcd server.

    Args:
        name: of the member.
        host: its address.
        ports: for clients, for other members, and for its health.
        inside: the words before its command, such as `ip netns exec x`.
        tls: certificates for clients: its own, its key, the authority of theirs.

    """

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        ports: Sequence[int] = (),
        *,
        inside: Sequence[str] = (),
        options: Sequence[str] = (),
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        self._program = program()
        self.name, self.host = name, host
        self.port, self._peer_port, self._health_port = ports or free_ports(3)
        self.folder = Path(tempfile.mkdtemp(prefix="hf-etcd-"))
        self.log = self.folder / "log"
        self.members: list[Member] = [self]
        self._inside, self._options, self._tls = inside, options, tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.host}:{self._peer_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def _command(self) -> list[str]:
        scheme = "https" if self._tls else "http"
        client, health = f"{scheme}://{self.endpoint}", f"http://{self.host}:{self._health_port}"
        named = {
            "name": self.name,
            "data-dir": self.folder / "data",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "listen-metrics-urls": health,
            "initial-cluster": ",".join(f"{one.name}={one.peer_url}" for one in self.members),
            "logger": "zap",
        }
        if self._tls:
            own, key, authority = self._tls
            named |= {"cert-file": own, "key-file": key, "trusted-ca-file": authority, "client-cert-auth": "true"}
        return [*self._inside, self._program, *(f"--{key}={value}" for key, value in named.items()), *self._options]

    def start(self, *, wait: bool = True) -> None:
        """Start it, also after `kill`, with whatever is in its folder."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env=provision.environment_for(self._program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until it answers for the whole cluster."""
        wait_until(self.is_healthy, lambda: f"etcd answers\n{self.log.read_text()[-3000:]}", START_DEADLINE_S)

    def is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"etcd ended\n{self.log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(
                f"http://{self.host}:{self._health_port}/health", timeout=HTTP_DEADLINE_S
            ) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, urllib.error.URLError):
            return False

    def do(self, path: str, token: str = "", **body: Any) -> dict[str, Any]:
        """What it answers to a request of its JSON interface, such as `kv/compaction`."""
        request = urllib.request.Request(
            f"http://{self.endpoint}/v3/{path}", json.dumps(body).encode(), {"Authorization": token} if token else {}
        )
        with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def revision(self) -> int:
        return int(self.do("kv/range", key=encoded("nothing"))["header"]["revision"])

    def compact(self, revision: int = 0) -> int:
        """Forget what was before a revision, or before now; which."""
        revision = revision or self.revision()
        self.do("kv/compaction", revision=revision, physical=True)
        return revision

    def is_leader(self) -> bool:
        found = self.do("maintenance/status")
        return bool(found["leader"] == found["header"]["member_id"])

    def kill(self) -> None:
        """SIGKILL: it has no time for anything."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(START_DEADLINE_S)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def destroy(self) -> None:
        """End it, whatever became of it, and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def secure(self, user: str, password: str, prefix: str) -> None:
        """Switch authentication on, with root and one user who may do everything under a prefix."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rights = {"permType": "READWRITE", "key": encoded(prefix), "range_end": encoded(end)}
        self.do("auth/user/add", name="root", password=ROOT_PASSWORD)
        self.do("auth/role/add", name="root")
        self.do("auth/user/grant", user="root", role="root")
        self.do("auth/user/add", name=user, password=password)
        self.do("auth/role/add", name="ours")
        self.do("auth/role/grant", name="ours", perm=rights)
        self.do("auth/user/grant", user=user, role="ours")
        self.do("auth/enable")

    def as_root(self, path: str, **body: Any) -> dict[str, Any]:
        """`do`, once authentication is on."""
        token = self.do("auth/authenticate", name="root", password=ROOT_PASSWORD)["token"]
        return self.do(path, token, **body)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@contextlib.contextmanager
def running(*options: str, tls: tuple[Path, Path, Path] | None = None) -> Iterator[Member]:
    """One server."""
    member = Member("only", options=options, tls=tls)
    try:
        member.start()
        yield member
    finally:
        member.destroy()


class Cluster:
    """Three members that know one another."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        for one in members:
            one.members = members

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(one.endpoint for one in self.members)

    @property
    def leader(self) -> Member:
        """Who leads now."""
        found: Member = wait_until(self._leader, "the members have a leader", START_DEADLINE_S)
        return found

    def _leader(self) -> Member | None:
        with contextlib.suppress(OSError):
            return next((one for one in self.members if one.is_leader()), None)
        return None

    def start(self) -> None:
        for one in self.members:
            one.start(wait=False)
        self.wait()

    def wait(self) -> None:
        for one in self.members:
            one.wait()

    def destroy(self) -> None:
        for one in self.members:
            one.destroy()


@contextlib.contextmanager
def running_cluster(*options: str) -> Iterator[Cluster]:
    """A cluster on loopback."""
    cluster = Cluster([Member(f"m{number}", options=options) for number in range(SIZE)])
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.destroy()
