"""A fleet: nodes behind cables of their own, as many as there are, with a real etcd of three members and a real Redis.

Every node is `holdfast run` with a configuration file in a network namespace; clients reach the gateways from ours.
What is struck are whole nodes and what lies between them. Who leads what is read where it stands: in etcd.
"""

import base64
import contextlib
import itertools
import json
import os
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

from router.shards.records import NodeRecord, ShardRecord, decode
from tests.chaos.switch import Machine, Switch, running_switch
from tests.conftest import HTTP_DEADLINE_S, Node, wait_until
from tests.servers import redis
from tests.servers.etcd import SIZE, Cluster, Member, encoded

ETCD_PORTS = (2379, 2380, 2381)
REDIS_PORT, BUS_PORT = 6379, 7410
SECRET = "a secret of thirty-two bytes or so"
TOKEN = "a token of the fleet"
PREFIX = "fleet/"
READY_S = 60.0
LEAVE_S = 30.0
CONFIGURATION = """\
[node]
name = "{name}"
role = "{role}"
[gateway]
workers = {workers}
{gateway}
[router]
leave_s = {leave_s:.0f}
[admin]
host = "{host}"
token = "{token}"
[auth]
secret = "{secret}"
[log]
backend = "redis"
redis_url = "{redis}"
[directory]
endpoints = "{endpoints}"
prefix = "{prefix}"
ttl_s = {ttl_s}
shards = {shards}
{directory}
[bus]
public_key = "{public}"
secret_key = "{private}"
"""
ADVERTISED = 'advertise = "{host}:{port}"\n'


class FleetNode(Node):
    """One node in its namespace; its ports are the defaults."""

    def __init__(self, machine: Machine, name: str, role: str, configuration: str) -> None:
        self.machine, self.name, self.role = machine, name, role
        self._configuration = configuration
        super().__init__((), {}, before=machine.words)

    def _spawn(self) -> None:
        self.port, self.ws_port, self.admin_port = 7400, 7401, 7402
        path = self.folder / "holdfast.toml"
        path.write_text(self._configuration)
        self._arguments = ("--config", str(path))
        self._launch()

    @property
    def admin_url(self) -> str:
        return f"http://{self.machine.host}:{self.admin_port}"

    @property
    def is_up(self) -> bool:
        return self._process.poll() is None

    def signal(self, pid: int, number: int) -> None:
        """To one of its processes."""
        os.kill(pid, number)

    def get(self, path: str) -> tuple[int, str]:
        return self._ask(path, None)

    def audit(self) -> dict[str, Any]:
        return dict(json.loads(self._ask("/api/ledger/audit", b"{}")[1]))

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.admin_url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def redis_on(machine: Machine) -> redis.Server:
    """A Redis of its own machine, whose writes reach the disk within a second."""
    options = (*redis.LASTING, "--protected-mode", "no")
    return redis.Server(*options, host=machine.host, port=REDIS_PORT, inside=machine.words)


class Nodes:
    """Gateways and routers with one directory, wherever they are.

    Attributes:
        etcd: the directory.
        gateways, routers: the nodes that run, by name.

    """

    def __init__(self, etcd: Cluster, *, shards: int, ttl_s: int, workers: int = 1) -> None:
        self.etcd, self.shards, self.ttl_s, self.workers = etcd, shards, ttl_s, workers
        self.gateways: dict[str, FleetNode] = {}
        self.routers: dict[str, FleetNode] = {}
        self._gone: list[FleetNode] = []
        self._turn = itertools.count()
        self._keys = zmq.curve_keypair()

    # ---- nodes come and go

    def begin_on(
        self,
        machine: Machine,
        name: str,
        role: str,
        redis_url: str,
        endpoints: Sequence[str],
        *,
        gateway: str = "",
        directory: str = "",
        more: str = "",
    ) -> FleetNode:
        """Start a node; returns before it serves. `gateway`, `directory`: further lines of these sections of its
        configuration; `more`: further sections.
        """
        configuration = CONFIGURATION.format(
            name=name,
            role=role,
            workers=self.workers,
            leave_s=LEAVE_S,
            host=machine.host,
            token=TOKEN,
            secret=SECRET,
            redis=redis_url,
            endpoints=",".join(endpoints),
            prefix=PREFIX,
            ttl_s=self.ttl_s,
            shards=self.shards,
            gateway=gateway,
            directory=directory,
            public=self._keys[0].decode(),
            private=self._keys[1].decode(),
        )
        if role != "gateway":
            configuration += ADVERTISED.format(host=machine.host, port=BUS_PORT)
        nodes = self.gateways if role == "gateway" else self.routers
        nodes[name] = node = FleetNode(machine, name, role, configuration + more)
        return node

    def leave(self, *names: str) -> None:
        """Routers are told to end (SIGTERM), one beside the other; each must end by itself, in order."""
        nodes = [self.routers.pop(name) for name in names]
        self._gone += nodes
        for node in nodes:
            os.kill(node.pid, signal.SIGTERM)
        for node in nodes:
            node.expect_end(0)

    def kill(self, name: str) -> None:
        """SIGKILL to all processes of a router's node."""
        node = self.routers.pop(name)
        self._gone.append(node)
        node.crash()

    def move(self, shard: int, to: str | None) -> None:
        """As an operator does: have a shard led by this router; None: wherever it belongs."""
        node = next(iter(self.gateways.values()))
        status, text = node.post("/api/shards/move", {"shard": shard, "to": to})
        assert status == 202, text

    # ---- how it is

    def place(self) -> tuple[str, int]:
        """Where to dial next: the gateways in turn."""
        nodes = list(self.gateways.values())
        node = nodes[next(self._turn) % len(nodes)]
        return node.machine.host, node.port

    def leaders(self) -> dict[int, str]:
        """By shard the node that leads it, as etcd has it; without those whose leader's life is over."""
        nodes = {revision: name for name, (_, revision) in self._items("nodes/").items()}
        found = {}
        for number, (value, _) in self._items("shards/").items():
            record = decode(ShardRecord, value)
            if nodes.get(record.node_epoch) == record.node:
                found[int(number)] = record.node
        return found

    def pins(self) -> list[int]:
        """The shards that an operator placed."""
        return [int(number) for number in self._items("pins/")]

    def weights(self) -> dict[str, int]:
        """The nodes that are registered, with their weights."""
        return {name: decode(NodeRecord, value).weight for name, (value, _) in self._items("nodes/").items()}

    def _items(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        """All keys under a prefix: value and the revision that made them."""
        start = PREFIX + prefix
        end = start[:-1] + chr(ord(start[-1]) + 1)
        for member in self.etcd.members:
            with contextlib.suppress(OSError):
                found = member.do("kv/range", key=encoded(start), range_end=encoded(end)).get("kvs", [])
                return {
                    base64.b64decode(one["key"]).decode().removeprefix(start): (
                        base64.b64decode(one.get("value", "")),
                        int(one["create_revision"] if prefix == "nodes/" else one["mod_revision"]),
                    )
                    for one in found
                }
        return {}

    def is_balanced(self) -> bool:
        """Whether each router leads its share: no two differ by more than one."""
        counts = Counter(self.leaders().values())
        shares = [counts[name] for name in self.routers]
        return sum(shares) == self.shards and max(shares) - min(shares) <= 1

    def is_ready(self) -> bool:
        try:
            return all(node.get("/readyz")[0] == 200 for node in (*self.routers.values(), *self.gateways.values()))
        except OSError:
            return False

    def is_up(self) -> bool:
        """Whether nobody that is to run has ended."""
        return all(node.is_up for node in (*self.routers.values(), *self.gateways.values()))

    def wait_led(self) -> None:
        """Until every shard has a leader that lives."""
        wait_until(lambda: len(self.leaders()) == self.shards, lambda: f"all is led\n{self.told()}", READY_S)

    def wait_whole(self) -> None:
        """Until all nodes serve, and each router leads its share."""
        wait_until(self.is_ready, lambda: f"all nodes are ready\n{self.told()}", READY_S)
        wait_until(self.is_balanced, lambda: f"the shards are spread\n{self.told()}", READY_S)

    def told(self, lines: int = 25) -> str:
        """What the nodes said last, those that are gone as well, and who leads what."""
        nodes = (*self.routers.values(), *self.gateways.values(), *self._gone)
        tails = "\n".join(f"---- {node.name}\n{node.log_tail(lines)}" for node in nodes)
        return f"{tails}\n---- shards led: {dict(Counter(self.leaders().values()))}"

    # ---- the end

    def stop(self) -> None:
        """In order: the gateways without clients and with their ledgers closed, then the routers."""
        for node in self.gateways.values():
            node.expect_lost()
            node.check_ledger()
        for node in self.gateways.values():
            node.stop()
        for name in list(self.routers):
            self.leave(name)

    def destroy(self) -> None:
        """Whatever happened before: nothing of it stays."""
        for node in (*self.gateways.values(), *self.routers.values(), *self._gone):
            node.destroy()
        self.etcd.destroy()


class Fleet(Nodes):
    """Nodes on one switch.

    Attributes:
        redis: the log of all; `etcd_machine` and `redis_machine` are where the servers are.

    """

    def __init__(self, switch: Switch, *, shards: int, ttl_s: int, workers: int = 1) -> None:
        self.switch = switch
        self.etcd_machine, self.redis_machine = switch.add("etcd", SIZE), switch.add("redis")
        hosts, words = self.etcd_machine.hosts, self.etcd_machine.words
        etcd = Cluster([Member(f"m{one}", host, ETCD_PORTS, inside=words) for one, host in enumerate(hosts)])
        super().__init__(etcd, shards=shards, ttl_s=ttl_s, workers=workers)
        self.redis = redis_on(self.redis_machine)

    def start(self, gateways: int, routers: int) -> None:
        """All of them at once; returns when they serve."""
        self.etcd.start()
        self.redis.start()
        for number in range(routers):
            self.begin(f"r{number}", "router")
        for number in range(gateways):
            self.begin(f"g{number}", "gateway")
        self.wait_whole()

    def begin(self, name: str, role: str) -> FleetNode:
        """Start a node; returns before it serves."""
        return self.begin_on(self.switch.add(name), name, role, self.redis.url, self.etcd.endpoints)

    def destroy(self) -> None:
        super().destroy()
        self.redis.destroy()


@contextlib.contextmanager
def running_fleet(gateways: int, routers: int, *, shards: int, ttl_s: int) -> Iterator[Fleet]:
    """A fleet that serves; gone afterwards. Needs root (see `tests.chaos.switch.why_not`)."""
    with running_switch() as switch:
        fleet = Fleet(switch, shards=shards, ttl_s=ttl_s)
        try:
            fleet.start(gateways, routers)
            yield fleet
        finally:
            fleet.destroy()
