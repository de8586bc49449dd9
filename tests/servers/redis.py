"""Real Redis servers for tests: one, a primary with replicas and sentinels, or a cluster, on loopback.

Each has a folder of its own and ends with its context; what was killed can be started again on its port.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import free_ports, wait_until
from tools import provision

START_DEADLINE_S = 45.0
WHOLE_DEADLINE_S = 60.0
COMMAND_DEADLINE_S = 5.0
# Under way at any time where a router writes.
LAG_BYTES = 1 << 20
PRIMARY = "holdfast"
# What asking a server that is just starting, or has no time, ends with.
AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)
# Writes reach the disk within a second, as Redis' own default has it.
LASTING = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
FLEETING = ("--appendonly", "no", "--save", "")
# A replica that follows a primary without writes has nothing to acknowledge before the first ping, by default after ten
# seconds, and leaves one that has said nothing for its timeout.
FOLLOWED = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "2")


def program(name: str = "redis-server") -> str:
    """The path of a program of Redis; the test is skipped where there is none."""
    found = provision.find_program(name)
    if found is None:
        pytest.skip(f"needs {name}: make provision")
    return found


class Server:
    """One `redis-server`, or a sentinel.

    Args:
        options: as on its command line.
        port: where it listens; 0 takes a free one.
        host: its address.
        inside: the words before its command, such as `ip netns exec x`.

    """

    def __init__(
        self,
        *options: str,
        port: int = 0,
        sentinel: bool = False,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> None:
        self._program = program()
        self.folder = Path(tempfile.mkdtemp(prefix="hf-redis-"))
        self.port = port or free_ports(1)[0]
        self.host, self._inside = host, inside
        self._options = options
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        self.log = self.folder / "log"

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it, also after `kill`, with whatever is in its folder."""
        where = ["--port", str(self.port), "--bind", self.host, "--dir", str(self.folder)]
        if self._sentinel:
            # It writes what it learns into its file.
            config = self.folder / "sentinel.conf"
            if not config.exists():
                config.write_text("\n".join(self._options) + "\n")
            command = [self._program, str(config), "--sentinel", *where]
        else:
            command = [*self._inside, self._program, *where, *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=provision.environment_for(self._program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, lambda: f"Redis answers\n{self.log.read_text()[-2000:]}", START_DEADLINE_S)

    def _answers(self) -> bool:
        process = self._process
        assert process is not None
        assert process.poll() is None, f"Redis ended\n{self.log.read_text()[-2000:]}"
        try:
            return self.do("PING") in (b"PONG", True)
        except AWAY:
            return False

    def do(self, *command: bytes | str | int) -> Any:
        """What it answers to a command."""
        with redis.Redis(
            self.host, self.port, socket_timeout=COMMAND_DEADLINE_S, socket_connect_timeout=COMMAND_DEADLINE_S
        ) as client:
            return client.execute_command(*command)

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


@contextlib.contextmanager
def running(*options: str, port: int = 0) -> Iterator[Server]:
    """One server."""
    server = Server(*(options or LASTING), port=port)
    try:
        server.start()
        yield server
    finally:
        server.destroy()


def errors(server: Server, kind: str) -> int:
    """How often it answered a command with such an error, `OOM` for one, since its start."""
    return int(server.do("INFO", "errorstats").get(f"errorstat_{kind}", {}).get("count", 0))


class Sentinels:
    """A primary, two replicas, three sentinels."""

    def __init__(self, *options: str) -> None:
        options = (*(options or LASTING), *FOLLOWED, "--repl-timeout", "5")
        first = Server(*options)
        replica = (*options, "--replicaof", f"127.0.0.1 {first.port}")
        self.servers = [first, Server(*replica), Server(*replica)]
        self.sentinels = [
            Server(
                f"sentinel monitor {PRIMARY} 127.0.0.1 {first.port} 2",
                f"sentinel down-after-milliseconds {PRIMARY} 500",
                f"sentinel failover-timeout {PRIMARY} 3000",
                sentinel=True,
            )
            for _ in range(3)
        ]

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{places}/{PRIMARY}"

    def start(self) -> None:
        for one in self.servers:
            one.start()
        wait_until(lambda: self._replicas(self.servers[0]) == 2, "both replicas follow", START_DEADLINE_S)
        for one in self.sentinels:
            one.start()
        wait_until(lambda: all(self._knows(one) for one in self.sentinels), "the sentinels know all", START_DEADLINE_S)

    @staticmethod
    def _replicas(server: Server, lag_bytes: int = 0) -> int:
        """How many acknowledged all that the primary has, but for `lag_bytes` while it is being written to: one is
        called online before it said that it has anything.
        """
        text = server.do("INFO", "replication")
        fields = text if isinstance(text, dict) else {}
        return sum(
            1
            for name, value in fields.items()
            if name.startswith("slave")
            and isinstance(value, dict)
            and value.get("state") == "online"
            and value.get("offset", 0) > 0
            and fields.get("master_repl_offset", 0) - value.get("offset", 0) <= lag_bytes
        )

    def _knows(self, sentinel: Server) -> bool:
        fields = sentinel.do("INFO", "sentinel")
        known = fields.get("master0", {})
        return bool(known.get("slaves") == 2 and known.get("sentinels") == 3 and known.get("status") == "ok")

    def victim(self, pick: int) -> Server:
        """Whom to kill: there is one primary, whatever `pick` says."""
        return self.primary

    def replaced(self, server: Server) -> bool:
        """Whether another one is primary now."""
        return self.primary is not server

    @property
    def primary(self) -> Server:
        """Whom the sentinels name now."""
        found = self.sentinels[0].do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY)
        port = int(found[1])
        return next(one for one in self.servers if one.port == port)

    def wait_seen(self, server: Server) -> None:
        """Wait until all sentinels take a replica for one that is well."""
        wait_until(lambda: all(self._sees(one, server) for one in self.sentinels), "it is seen", START_DEADLINE_S)

    @staticmethod
    def _sees(sentinel: Server, server: Server) -> bool:
        return any(
            int(one[b"port"]) == server.port and one[b"flags"] == b"slave"
            for one in sentinel.do("SENTINEL", "REPLICAS", PRIMARY)
        )

    def wait_whole(self) -> None:
        """Wait until the sentinels agree on a primary that two replicas follow, and none is about to replace it: one
        that was killed and came back may be followed again by both while the sentinels are replacing it.
        """
        wait_until(self._is_whole, "two replicas follow the primary again", WHOLE_DEADLINE_S)

    def _is_whole(self) -> bool:
        try:
            said = [self._primary_of(one) for one in self.sentinels]
            return (
                len({one[b"port"] for one in said}) == 1
                and all(one[b"flags"] == b"master" for one in said)
                and self._replicas(self.primary, LAG_BYTES) == 2
            )
        except AWAY:
            return False

    @staticmethod
    def _primary_of(sentinel: Server) -> dict[bytes, bytes]:
        """What a sentinel knows of the primary."""
        known: dict[bytes, bytes] = sentinel.do("SENTINEL", "MASTER", PRIMARY)
        return known

    def destroy(self) -> None:
        for one in [*self.sentinels, *self.servers]:
            one.destroy()


@contextlib.contextmanager
def running_sentinels(*options: str) -> Iterator[Sentinels]:
    """A primary with replicas, and sentinels that replace it within about two seconds."""
    made = Sentinels(*options)
    try:
        made.start()
        yield made
    finally:
        made.destroy()


class Cluster:
    """Three primaries, with `replicas` of each of the first `replicated`."""

    SIZE = 3
    SLOTS = 16_384

    def __init__(self, *options: str, replicas: int = 0, replicated: int = SIZE) -> None:
        self._count = self.SIZE + replicas * replicated
        self._replicated = replicated
        # The bus listens 10,000 above unless it is told otherwise, which may be above every port there is.
        self.servers = []
        for port, bus in zip(*[iter(free_ports(2 * self._count))] * 2, strict=True):
            extra = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "2000"]
            extra += [*FOLLOWED, "--cluster-replica-validity-factor", "0"]
            self.servers.append(Server(*(options or LASTING), *extra, port=port))
        self._buses: list[int] = [int(one._options[one._options.index("--cluster-port") + 1]) for one in self.servers]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in self.servers)

    def start(self) -> None:
        for one in self.servers:
            one.start()
        bounds = [self.SLOTS * number // self.SIZE for number in range(self.SIZE + 1)]
        for number, one in enumerate(self.servers):
            if number < self.SIZE:
                one.do("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            one.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for other, bus in zip(self.servers[1:], self._buses[1:], strict=True):
            self.servers[0].do("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        wait_until(lambda: all(self._is_whole(one) for one in self.servers), "the cluster is whole", START_DEADLINE_S)
        for number, one in enumerate(self.servers[self.SIZE :]):
            one.do("CLUSTER", "REPLICATE", self.servers[number % self._replicated].do("CLUSTER", "MYID"))
        self.wait_whole()

    def primaries(self) -> list[Server]:
        """Who says of itself that it is one."""
        return [one for one in self.servers if self._replication(one)["role"] == "master"]

    def replaced(self, server: Server) -> bool:
        """Whether as many are primaries without this one, which is down, as there were with it."""
        others = [one for one in self.servers if one is not server]
        return bool(sum(self._replication(one)["role"] == "master" for one in others) == self.SIZE)

    def victim(self, pick: int) -> Server:
        """Whom to kill."""
        found = self.primaries()
        return found[pick % len(found)]

    def wait_whole(self) -> None:
        """Wait until every slot is served, and each primary's replicas have all that it has."""
        wait_until(self._is_all_whole, "the cluster is whole, with all replicas", WHOLE_DEADLINE_S)

    def _is_all_whole(self) -> bool:
        try:
            primaries = self.primaries()
            replicas = sum(Sentinels._replicas(one, LAG_BYTES) for one in primaries)
            return (
                len(primaries) == self.SIZE
                and replicas == self._count - self.SIZE
                and all(self._is_whole(one) for one in self.servers)
            )
        except AWAY:
            return False

    @staticmethod
    def _replication(server: Server) -> dict[str, Any]:
        fields: dict[str, Any] = server.do("INFO", "replication")
        return fields

    def owner(self, slot: int) -> Server:
        """Who has a slot, as the first node sees it."""
        ranges = self.servers[0].do("CLUSTER", "SLOTS")
        if isinstance(ranges, dict):
            port = next(int(found["primary"][1]) for (first, last), found in ranges.items() if first <= slot <= last)
        else:
            port = next(int(found[2][1]) for found in ranges if found[0] <= slot <= found[1])
        return next(one for one in self.servers if one.port == port)

    def move(self, slot: int, away: Server, here: Server) -> None:
        """Move a slot with its keys, as `redis-cli --cluster reshard` does."""
        names = {one: one.do("CLUSTER", "MYID") for one in (away, here)}
        here.do("CLUSTER", "SETSLOT", slot, "IMPORTING", names[away])
        away.do("CLUSTER", "SETSLOT", slot, "MIGRATING", names[here])
        while keys := away.do("CLUSTER", "GETKEYSINSLOT", slot, 100):
            away.do("MIGRATE", "127.0.0.1", here.port, "", 0, 5_000, "KEYS", *keys)
        for one in (here, away):
            one.do("CLUSTER", "SETSLOT", slot, "NODE", names[here])

    def _is_whole(self, server: Server) -> bool:
        said = bytes(server.do("CLUSTER", "INFO"))
        return b"cluster_state:ok" in said and b"cluster_known_nodes:%d" % self._count in said

    def destroy(self) -> None:
        for one in self.servers:
            one.destroy()


@contextlib.contextmanager
def running_cluster(*options: str, replicas: int = 0, replicated: int = Cluster.SIZE) -> Iterator[Cluster]:
    """A cluster of three primaries, with so many replicas of each of the first ones."""
    made = Cluster(*options, replicas=replicas, replicated=replicated)
    try:
        made.start()
        yield made
    finally:
        made.destroy()
