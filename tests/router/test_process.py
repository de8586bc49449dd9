"""The router as a process of its own: told by standard input, ready by a word to its supervisor, ended by a signal."""

import asyncio
import contextlib
import itertools
import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
import zmq

from core import log_records, records
from core.codes import Code
from core.commands import READY_FRAME, CommandClient
from core.ledger import Stats
from core.namespace_spec import BUILT_IN, NamespaceSpec
from router import process as router_process
from router.agreement import start_here
from router.client import RouterClient
from router.client import Unavailable as RouterUnavailable
from router.cluster import LeaseOver
from router.config import DirectoryConfig, RouterConfig
from router.directory.port import NotAllowed, Unavailable, now
from router.log.port import LogBroken, LogDeposed, LogError, LogInUse, LogLost, LogUnavailable
from router.process import ALONE, EXIT_CONFIG, EXIT_UNAVAILABLE, Router, exit_code, of_domain, settings_of
from tests.conftest import free_ports
from tests.core.router_harness import Worker
from tests.router.units import until
from tests.servers import etcd, redis

DEADLINE_S = 30.0
Started = tuple["subprocess.Popen[bytes]", socket.socket]
Start = Callable[..., Started]
TTL_S = 2


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a router at an endpoint; gives the process and the end of its command socket."""
    started: list[subprocess.Popen[bytes]] = []
    sockets: list[socket.socket] = []

    def begin(endpoint: str, node: str = "n", **more: Any) -> Started:
        ours, theirs = socket.socketpair()
        sockets.append(ours)
        theirs_fd = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "router.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs_fd],
        )
        theirs.close()
        started.append(process)
        assert process.stdin is not None
        process.stdin.write(
            msgspec.json.encode(RouterConfig(node=node, endpoint=endpoint, epoch=5, commands_fd=theirs_fd, **more))
        )
        process.stdin.close()
        return process, ours

    yield begin
    for process in started:
        process.kill()
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()
    for one in sockets:
        one.close()


def wait_ready(commands: socket.socket) -> bytes:
    """What it writes when it serves; nothing when it ended first."""
    assert select.select([commands], [], [], DEADLINE_S)[0], "neither ready nor ended in time"
    return commands.recv(len(READY_FRAME))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_asked_to_stop_and_leaves_nothing(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "router.sock"
    process, commands = start(f"ipc://{path}")
    assert wait_ready(commands) == READY_FRAME
    assert path.is_socket()
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    assert not path.exists()


@pytest.fixture(scope="module")
def member() -> Iterator[etcd.Member]:
    with etcd.running() as one:
        yield one


_prefixes = itertools.count(1)


class Join:
    """Starts routers of a cluster."""

    def __init__(self, start: Start, member: etcd.Member) -> None:
        self.endpoints: dict[str, str] = {}
        self.more: dict[str, Any] = {}
        self._start = start
        self._member = member
        self._prefix = f"process{next(_prefixes)}/"

    def __call__(self, node: str) -> Started:
        self.endpoints[node] = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        directory = DirectoryConfig(
            endpoints=(self._member.endpoint,), prefix=self._prefix, ttl_s=TTL_S, address=f"at {node}"
        )
        process, commands = self._start(self.endpoints[node], node, directory=directory, **self.more)
        assert wait_ready(commands) == READY_FRAME, process.stdout.read() if process.stdout else ""
        return process, commands


@pytest.fixture
def join(start: Start, member: etcd.Member) -> Join:
    return Join(start, member)


async def ask(commands: CommandClient, method: str, **arguments: Any) -> Any:
    return await commands.ask(method, deadline_s=DEADLINE_S, **arguments)


@contextlib.asynccontextmanager
async def asking(
    sock: socket.socket, hears: Callable[[str, dict[str, Any]], None] = lambda event, fields: None
) -> AsyncIterator[CommandClient]:
    commands = CommandClient(sock.dup(), hears)
    await commands.start()
    try:
        yield commands
    finally:
        await commands.close()


async def shared(commands: CommandClient, **wanted: int) -> dict[str, Any]:
    """What one says of the cluster once each leads so many."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            view: dict[str, Any] = await ask(commands, "shards")
            led = Counter(one["leader"] for one in view["shards"])
            if led == wanted:
                return view
            await asyncio.sleep(0.02)


def test_routers_of_a_cluster_share_its_shards_and_take_over_from_one_that_is_killed(join: Join) -> None:
    first, first_socket = join("a")
    second, _ = join("b")

    async def body() -> None:
        async with asking(first_socket) as commands:
            view = await shared(commands, a=128, b=128)
            assert [one["address"] for one in view["routers"]] == ["at a", "at b"]
            second.kill()
            began = time.monotonic()
            view = await shared(commands, a=256)
            assert time.monotonic() - began < TTL_S + 2
            assert {one["how"] for one in view["shards"]} <= {"claimed", "handed", "taken"}

    asyncio.run(body())
    assert first.poll() is None


def test_a_router_that_is_stopped_hands_over_and_the_last_one_just_ends(join: Join) -> None:
    first, first_socket = join("a")
    second, second_socket = join("b")

    async def body() -> None:
        async with asking(first_socket) as commands, asking(second_socket) as others:
            await shared(commands, a=128, b=128)
            assert await ask(commands, "move", shard=7, to="x") != ""
            assert await ask(commands, "cordon", node="b", on=True) == ""
            await shared(others, a=256)
            assert await ask(others, "cordon", node="b", on=False) == ""
            await shared(others, a=128, b=128)
            before = {one["shard"]: one["epoch"] for one in (await ask(commands, "shards"))["shards"]}
            second.terminate()
            view = await shared(commands, a=256)
            assert "taken" not in {one["how"] for one in view["shards"]}
            assert all(one["epoch"] - before[one["shard"]] <= 1 for one in view["shards"])

    asyncio.run(body())
    assert second.wait(DEADLINE_S) == 0
    first.terminate()
    assert first.wait(DEADLINE_S) == 0


class Publisher:
    """Publishes to channels in many shards, each time to whichever router leads, until it is answered."""

    def __init__(self, endpoints: list[str]) -> None:
        self.positions: dict[str, list[tuple[int, int]]] = {f"group:{number}": [] for number in range(16)}
        self._clients = [RouterClient(endpoint, f"test{number}") for number, endpoint in enumerate(endpoints)]
        self._stops = asyncio.Event()

    async def run(self) -> None:
        for client in self._clients:
            await client.start()
        try:
            await asyncio.gather(*map(self._publish, self.positions))
        finally:
            for client in self._clients:
                await client.close()

    async def go_on(self, count: int, running: "asyncio.Task[None]") -> None:
        """Go on until so many more are published to each channel, and end."""
        counts = {channel: len(found) for channel, found in self.positions.items()}
        found_now = self.positions.items()
        await until(lambda: all(len(found) >= counts[name] + count for name, found in found_now), "it goes on")
        self._stops.set()
        async with asyncio.timeout(DEADLINE_S):
            await running

    async def _publish(self, channel: str) -> None:
        for number in itertools.count():
            if self._stops.is_set():
                return
            self.positions[channel].append(await self._answered(channel, number))

    async def _answered(self, channel: str, number: int) -> tuple[int, int]:
        while True:
            for client in self._clients:
                if client.shard_of(channel.encode()) in client.led and client.linked:
                    with contextlib.suppress(RouterUnavailable):
                        key = f"{channel} {number}"
                        return await client.publish(channel, b"\x01", key=key, sender="t", deadline_s=1)
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis.running(*redis.FLEETING) as server:
        yield server.url


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_router_nothing_that_was_answered_is_lost(
    join: Join, redis_url: str, end: signal.Signals
) -> None:
    kept = NamespaceSpec(name="group", domain="group", history_messages=100_000, ack="logged")
    join.more = {
        "namespaces": (*(one for one in BUILT_IN if one.name != "group"), kept),
        "log_backend": "redis",
        "log_redis_url": redis_url,
        "log_redis_prefix": f"process{next(_prefixes)}:",
    }
    _, first_socket = join("a")
    second, _ = join("b")

    async def body() -> None:
        async with asking(first_socket) as commands:
            await shared(commands, a=128, b=128)
            publisher = Publisher([join.endpoints[name] for name in "ab"])
            publishing = asyncio.create_task(publisher.run())
            await until(lambda: min(map(len, publisher.positions.values())) >= 20, "all channels are published to")
            second.send_signal(end)
            await shared(commands, a=256)
            await publisher.go_on(20, publishing)
            client = RouterClient(join.endpoints["a"], "reader")
            await client.start()
            found = await client.survey(list(publisher.positions), records.MESSAGES, deadline_s=DEADLINE_S)
            await client.close()
            for survey, positions in zip(found, publisher.positions.values(), strict=True):
                assert positions == sorted(set(positions))
                assert survey.position == positions[-1]
                assert survey.kept == len(positions), "each once"

    asyncio.run(body())
    assert second.wait(DEADLINE_S) == (0 if end == signal.SIGTERM else -end)


def test_while_a_router_hands_over_every_publish_is_answered_and_positions_go_on(join: Join) -> None:
    _, first_socket = join("a")
    second, _ = join("b")

    async def body() -> None:
        async with asking(first_socket) as commands:
            await shared(commands, a=128, b=128)
            publisher = Publisher([join.endpoints[name] for name in "ab"])
            publishing = asyncio.create_task(publisher.run())
            await until(lambda: min(map(len, publisher.positions.values())) >= 20, "all channels are published to")
            second.terminate()
            await shared(commands, a=256)
            await publisher.go_on(20, publishing)
            for found in publisher.positions.values():
                assert found == sorted(set(found))
            assert len({epoch for found in publisher.positions.values() for epoch, _ in found}) > 1

    asyncio.run(body())
    assert second.wait(DEADLINE_S) == 0


def test_a_router_whose_life_is_over_ends_so_that_it_is_started_anew(join: Join, member: etcd.Member) -> None:
    first, _ = join("a")
    again, _ = join("a")  # the same name: the directory counts the first as gone
    assert first.wait(DEADLINE_S) == EXIT_UNAVAILABLE
    assert first.stdout is not None
    assert b"has ended: what it led is others' now" in first.stdout.read()
    assert again.poll() is None


def test_a_router_that_is_started_twice_waits_for_the_end_of_the_first_and_says_why(
    start: Start, member: etcd.Member
) -> None:
    prefix = f"process{next(_prefixes)}/"

    def begin(start_: str) -> Started:
        address = json.dumps({"bus": "tcp://10.0.0.5:7410", "start": start_})  # the same: somebody copied a file
        directory = DirectoryConfig(endpoints=(member.endpoint,), prefix=prefix, ttl_s=TTL_S, address=address)
        return start(f"tcp://127.0.0.1:{free_ports(1)[0]}", "a", directory=directory)

    first, first_socket = begin(start_here())
    assert wait_ready(first_socket) == READY_FRAME
    second, second_socket = begin("elsewhere/pid:[1]/1/1")
    heard: list[tuple[str, str]] = []

    async def body() -> None:
        async with asking(second_socket, lambda event, fields: heard.append((event, fields.get("why", "")))):
            await until(lambda: heard, "it says what it waits for")
            assert heard[0][0] == "waits"
            assert "another start of this node is registered" in heard[0][1]
            assert first.poll() is None
            first.kill()
            await until(lambda: "ready" in [event for event, _ in heard], "it has its turn")

    asyncio.run(body())
    assert second.poll() is None


def test_a_router_tells_until_when_its_lease_lives_each_time_that_it_is_renewed(join: Join) -> None:
    _, sock = join("a")
    told: list[float] = []

    async def body() -> None:
        async with asking(sock, lambda event, fields: told.append(fields["until"]) if event == "lease" else None):
            await until(lambda: len(told) >= 3, "it was renewed")
            assert told == sorted(set(told))
            assert now() < told[-1] <= now() + TTL_S

    asyncio.run(body())


def test_a_second_signal_ends_a_router_that_is_handing_over(join: Join) -> None:
    join("a")
    second, second_socket = join("b")

    async def body() -> None:
        async with asking(second_socket) as commands:
            await shared(commands, a=128, b=128)

    asyncio.run(body())
    began = time.monotonic()
    second.terminate()
    second.send_signal(signal.SIGINT)
    assert second.wait(DEADLINE_S) == 0
    assert time.monotonic() - began < DirectoryConfig(endpoints=()).leave_s


def test_alone_it_leads_all_and_has_nothing_to_move(start: Start, tmp_path: Path) -> None:
    _, sock = start(f"ipc://{tmp_path}/router.sock")
    assert wait_ready(sock) == READY_FRAME

    async def body() -> None:
        async with asking(sock) as commands:
            await shared(commands, n=256)
            assert await ask(commands, "move", shard=1, to="n") == ALONE
            assert await ask(commands, "cordon", node="n", on=True) == ALONE

    asyncio.run(body())


def heard(worker: Worker) -> dict[str, Any]:
    """What a worker is told next, but for bans: the router tells these when it has read them."""
    while (one := worker.take())["kind"] == records.BANS:
        pass
    return one


@pytest.mark.parametrize(
    ("login", "devices", "kicked"),
    [
        ("one", ("phone", "desktop"), True),
        ("one_per_device_class", ("phone", "phone"), True),
        ("one_per_device_class", ("phone", "desktop"), False),
        ("many", ("phone", "phone"), False),
    ],
)
def test_by_the_login_policy_a_later_login_at_another_gateway_ends_the_former_and_says_who_it_was(
    start: Start, tmp_path: Path, login: str, devices: tuple[str, str], kicked: bool
) -> None:
    user = NamespaceSpec(name="user", domain="session", publish="anyone", login=login)
    endpoint = f"ipc://{tmp_path}/router.sock"
    _, commands = start(endpoint, namespaces=(*(one for one in BUILT_IN if one.name != "user"), user))
    assert wait_ready(commands) == READY_FRAME
    sessions = [b"s" * 16, b"s" + b"t" * 15]  # of one user, so of one shard
    with zmq.Context() as context:
        first, second = (Worker(context, endpoint, f"gateway-{name}/0/1", 0, 1) for name in "ab")
        for worker in (first, second):
            worker.link(everybody=False)
        for worker, session, device, number in zip((first, second), sessions, devices, (10, 20), strict=True):
            stored = msgpack.packb({"user": "ann", "device": device})
            worker.say.session(records.OPEN, session, number, 1, body=stored)
            worker.flush()
            if worker is first:
                answer = heard(worker)
                assert (answer["kind"], answer["aux"]) == (records.OPENED, 0)
        if kicked:
            evicted = heard(first)
            assert evicted["kind"] == records.EVICT
            assert (evicted["conn"], evicted["session"], evicted["aux"]) == (10, sessions[0], Code.KICKED)
            why = f"ann logged in from a device of class {devices[1]}, on node gateway-b"
            assert evicted["body"] == why.encode()
            first.say.session(records.CLOSE, sessions[0], 10, aux=records.OVER)
            first.flush()
        answer = heard(second)
        assert (answer["kind"], answer["conn"], answer["aux"]) == (records.OPENED, 20, 0)
        assert [one for one in first.rest() if one["kind"] != records.BANS] == []
        for worker in (first, second):
            worker.socket.close()


def test_an_endpoint_that_cannot_be_bound_ends_it_with_a_word(start: Start, tmp_path: Path) -> None:
    process, commands = start(f"ipc://{tmp_path}/no/such/folder/router.sock")
    assert process.wait(DEADLINE_S) == EXIT_CONFIG
    assert wait_ready(commands) == b""
    assert process.stdout is not None
    said = process.stdout.read().decode()
    assert said.startswith("router: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LogDeposed("another has it"), 70),  # the node ends
        (LogLost("its directory is gone"), 74),  # it is started again
        (LogUnavailable("away"), 75),  # likewise, for ever
        (LogInUse("by process 1"), 78),
        (LogBroken("damaged"), 78),
        (OSError("taken"), 78),
    ],
)
def test_its_exit_code_says_what_the_supervisor_is_to_make_of_it(error: LogError | OSError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LogDeposed("another has a shard"), 75),  # it is started anew
        (LeaseOver("gone"), 75),
        (Unavailable("away"), 75),
        (NotAllowed("who are you?"), 78),
    ],
)
def test_in_a_cluster_a_router_that_lost_its_part_begins_anew(error: Exception, code: int) -> None:
    assert exit_code(error, clustered=True) == code


def test_it_takes_the_place_of_a_killed_one(start: Start, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/router.sock"
    first, commands = start(endpoint)
    assert wait_ready(commands) == READY_FRAME
    first.kill()
    first.wait(DEADLINE_S)
    second, commands = start(endpoint)
    assert wait_ready(commands) == READY_FRAME
    second.terminate()
    assert second.wait(DEADLINE_S) == 0


def test_a_start_that_reads_its_log_for_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor gives up a start that takes long, unless it says what it waits for."""

    class Large:
        async def recover(self) -> AsyncIterator[bytes]:
            for _ in range(3):
                yield bytes(1 << 20)

    class Plane:
        knows_all = True

        def recover(self, batch: bytes) -> int:
            return 1

    async def run(said: list[str]) -> None:
        router = Router(RouterConfig(node="n", endpoint="ipc:///nowhere", epoch=1), Stats())
        router.loop = Plane()  # type: ignore[assignment]
        await router._recover(Large(), said.append)  # type: ignore[arg-type]

    said: list[str] = []
    asyncio.run(run(said))
    assert said == []
    monkeypatch.setattr(router_process, "RECOVERY_SAID_S", 0.0)
    asyncio.run(run(said))
    assert said == [f"it reads its log, {number} MiB so far" for number in (1, 2, 3)]


def test_what_is_kept_for_redis_is_a_gauge_beside_its_bound() -> None:
    stats = Stats()
    config = RouterConfig(
        node="n",
        endpoint="ipc:///nowhere",
        epoch=1,
        log_backend="redis",
        log_redis_url="redis://127.0.0.1:1/0",
        log_redis_kept_bytes_max=1_000,
    )

    async def run() -> None:
        router = Router(config, stats)
        assert router.log is not None
        with pytest.raises(LogUnavailable):  # nobody is there: it is kept until somebody is
            await router.log.append(log_records.pack(log_records.MESSAGE, b"group:a", 1, 1, body=bytes(5_000)))
        await router.log.close()

    asyncio.run(run())
    gauges = stats.read()["gauges"]
    assert gauges["log_redis_kept_bytes"] > 5_000
    assert gauges["log_redis_kept_bytes_max"] == 1_000


def test_the_machine_is_told_the_regions_and_where_shards_are_led() -> None:
    directory = DirectoryConfig(endpoints=(), shards=8, region="eu", placement="eu,us")
    config = RouterConfig(node="n", endpoint="e", epoch=1, directory=directory, log_regions={"us": "redis://us"})
    settings = settings_of(config, directory)
    assert (settings.shards, settings.region, settings.regions) == (8, "eu", frozenset({"us"}))
    assert settings.placement == ("eu", "us")


def test_namespaces_are_told_apart_by_their_domain() -> None:
    config = RouterConfig(node="n", endpoint="e", epoch=1)
    assert of_domain(config, "global") == ["global"]
    assert of_domain(config, "session") == ["user"]
