"""The worker as a process of its own, with and without a router behind it."""

import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from core import records
from core.commands import READY_FRAME, packed
from gateway.cluster_config import RouterLink
from gateway.config import WorkerConfig
from gateway.ports import listening
from gateway.worker import EXIT_CONFIG, bus_keys
from router.config import RouterConfig
from tests.conftest import free_ports, wait_until
from tests.core import wire
from tests.core.edge_harness import Router

DEADLINE_S = 30.0
UNAVAILABLE, DRAINING = 5, 1
Start = Callable[..., tuple["subprocess.Popen[bytes]", socket.socket]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `python -m MODULE` with a configuration; gives the process and the end of its command socket."""
    started: list[subprocess.Popen[bytes]] = []
    sockets: list[socket.socket] = []

    def begin(module: str, make: Callable[[int], msgspec.Struct]) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        ours, theirs = socket.socketpair()
        sockets.append(ours)
        theirs_fd = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs_fd],
        )
        theirs.close()
        started.append(process)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(make(theirs_fd)))
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


def worker_part(folder: Path, ports: list[int], **options: Any) -> Callable[[int], WorkerConfig]:
    def make(commands_fd: int) -> WorkerConfig:
        given: dict[str, Any] = {"request_timeout_ms": 200, "drain_ms": 2_000}
        given |= {"router_endpoint": f"ipc://{folder}/router.sock", **options}
        return WorkerConfig(
            node="n",
            index=0,
            epoch=1,
            host="127.0.0.1",
            port=ports[0],
            ws_port=ports[1],
            secret=None,
            connections_max=100,
            handshakes_max=100,
            commands_fd=commands_fd,
            **given,
        )

    return make


def router_part(folder: Path, endpoint: str = "", epoch: int = 2) -> Callable[[int], RouterConfig]:
    endpoint = endpoint or f"ipc://{folder}/router.sock"
    return lambda commands_fd: RouterConfig(node="n", endpoint=endpoint, epoch=epoch, commands_fd=commands_fd)


def is_ready(commands: socket.socket, deadline_s: float = DEADLINE_S) -> bool:
    return bool(select.select([commands], [], [], deadline_s)[0]) and commands.recv(100) == READY_FRAME


def dial(port: int) -> socket.socket:
    """Connect, as soon as somebody listens, and say HELLO."""
    connection = wait_until(lambda: _connected(port), f"somebody listens on {port}", DEADLINE_S)
    assert isinstance(connection, socket.socket)
    body = msgpack.packb([0, 1, {"v": 1, "user": "alice"}])
    connection.sendall(len(body).to_bytes(4, "big") + body)
    return connection


def _connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    except ConnectionRefusedError:
        return None


def read_frame(connection: socket.socket) -> list[Any]:
    with connection.makefile("rb") as stream:
        frame: list[Any] = msgpack.unpackb(stream.read(int.from_bytes(stream.read(4), "big")))
    return frame


def test_listeners_of_one_gateway_share_a_port_and_others_are_refused() -> None:
    (port,) = free_ports(1)
    with listening("127.0.0.1", port, 16), listening("127.0.0.1", port, 16):
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{taken}"):
            listening("127.0.0.1", taken, 16)


def test_what_is_accepted_sends_small_frames_at_once() -> None:
    (port,) = free_ports(1)
    with listening("127.0.0.1", port, 16) as listener, socket.create_connection(("127.0.0.1", port), DEADLINE_S):
        assert select.select([listener], [], [], DEADLINE_S)[0]
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_ends_it_with_a_word_and_the_code_that_means_so(start: Start, tmp_path: Path) -> None:
    for place in (0, 1):
        ports = free_ports(2)
        with socket.socket() as other:
            other.bind(("127.0.0.1", ports[place]))
            other.listen()
            process, commands = start("gateway.worker", worker_part(tmp_path, ports))
            assert process.wait(DEADLINE_S) == EXIT_CONFIG
            assert not is_ready(commands)
            assert process.stdout is not None
            said = process.stdout.read().decode()
            assert f"cannot listen on 127.0.0.1:{ports[place]}" in said
            assert "Traceback" not in said


def test_without_a_router_it_is_not_ready_and_says_unavailable(start: Start, tmp_path: Path) -> None:
    ports = free_ports(2)
    process, commands = start("gateway.worker", worker_part(tmp_path, ports))
    with dial(ports[0]) as connection:
        kind, code, reason, options = read_frame(connection)
        assert (kind, code, options["class"]) == (14, UNAVAILABLE, "resume")
        assert reason
        assert options["after"] > 0
    assert not select.select([commands], [], [], 0)[0]
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_with_a_router_it_serves_and_drains_at_the_signal(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    ports = free_ports(2)
    worker, commands = start("gateway.worker", worker_part(tmp_path, ports))
    _, router_commands = start("router.process", router_part(tmp_path))
    assert is_ready(router_commands)
    assert is_ready(commands)
    with dial(ports[0]) as connection:
        assert read_frame(connection)[0] == 1
        worker.send_signal(number)
        kind, code, _, options = read_frame(connection)
        assert (kind, code, options["class"]) == (14, DRAINING, "resume")
        assert 0 <= options["after"] < 2_000
    assert worker.wait(DEADLINE_S) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]), DEADLINE_S)


def test_a_client_that_does_not_answer_its_fin_does_not_hold_up_the_end(start: Start, tmp_path: Path) -> None:
    ports = free_ports(2)
    worker, commands = start("gateway.worker", worker_part(tmp_path, ports, drain_ms=500))
    start("router.process", router_part(tmp_path))
    assert is_ready(commands)
    with dial(ports[0]) as connection:
        assert read_frame(connection)[0] == 1
        worker.terminate()
        assert worker.wait(DEADLINE_S) == 0


def test_with_a_router_of_another_version_it_says_so_and_is_not_ready(start: Start, tmp_path: Path) -> None:
    router = Router("ipc")
    try:
        part = worker_part(tmp_path, free_ports(2))
        worker, commands = start(
            "gateway.worker", lambda fd: msgspec.structs.replace(part(fd), router_endpoint=router.endpoint)
        )
        router.heartbeat()
        router.send(wire.linked(7, ask=True, version=records.VERSION + 1))
        why = f"this router speaks version {records.VERSION + 1} of the link and this worker version {records.VERSION}"
        assert select.select([commands], [], [], DEADLINE_S)[0], "it says nothing"
        said = msgpack.unpackb(commands.recv(1000)[4:])
        assert (said["event"], said["fields"]["why"].startswith(why)) == ("waits", True), said
        worker.terminate()
        assert worker.wait(DEADLINE_S) == 0
        assert worker.stdout is not None
        assert why in worker.stdout.read().decode()
    finally:
        router.close()


def told(commands: socket.socket, links: list[RouterLink]) -> None:
    """Tell a worker which routers there are."""
    arguments = {"routers": [msgspec.to_builtins(link) for link in links]}
    commands.sendall(packed({"id": 1, "method": "routers", "arguments": arguments}))


def heard(commands: socket.socket, wanted: bytes) -> bool:
    """Whether a frame comes in time among what it says."""
    said = b""
    commands.settimeout(DEADLINE_S)
    while wanted not in said:
        said += commands.recv(1000)
    return True


@pytest.mark.parametrize("at_start", [True, False], ids=["known at its start", "told later"])
def test_in_a_cluster_it_links_to_the_routers_that_it_is_told_of(start: Start, tmp_path: Path, at_start: bool) -> None:
    links = [
        RouterLink(name=f"r{epoch}", epoch=epoch, bus=f"tcp://127.0.0.1:{port}")
        for epoch, port in enumerate(free_ports(2), 7)
    ]
    for link in links:
        _, router_commands = start("router.process", router_part(tmp_path, link.bus, link.epoch))
        assert is_ready(router_commands)
    ports = free_ports(2)
    known = tuple(links) if at_start else ()
    worker, commands = start("gateway.worker", worker_part(tmp_path, ports, router_endpoint="", routers=known))
    if not at_start:
        told(commands, links)
    assert heard(commands, READY_FRAME)
    with dial(ports[0]) as connection:
        assert read_frame(connection)[0] == 1
    worker.terminate()
    assert worker.wait(DEADLINE_S) == 0


def test_in_a_cluster_it_goes_on_with_the_routers_that_are_left(start: Start, tmp_path: Path) -> None:
    """The one that leads everything goes; the other one, which says that it leads it, is told all."""
    one, other = (
        RouterLink(name=f"r{epoch}", epoch=epoch, bus=f"tcp://127.0.0.1:{port}")
        for epoch, port in zip((8, 7), free_ports(2), strict=True)
    )
    _, router_commands = start("router.process", router_part(tmp_path, one.bus, one.epoch))
    assert is_ready(router_commands)
    ports = free_ports(2)
    worker, commands = start("gateway.worker", worker_part(tmp_path, ports, router_endpoint="", routers=(one,)))
    assert heard(commands, READY_FRAME)
    _, router_commands = start("router.process", router_part(tmp_path, other.bus, other.epoch + 2))
    assert is_ready(router_commands)
    told(commands, [other])
    assert heard(commands, packed({"id": 1, "result": None}))
    with dial(ports[0]) as connection:
        assert read_frame(connection)[0] == 1
    worker.terminate()
    assert worker.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("endpoint", "keys"),
    [("tcp://10.0.0.5:7410", ("p" * 40, "p" * 40, "s" * 40)), ("ipc:///run/x", ("", "", "")), ("", ("", "", ""))],
)
def test_a_router_over_tcp_is_spoken_to_with_the_keys_that_there_are(
    tmp_path: Path, endpoint: str, keys: tuple[str, str, str]
) -> None:
    options = {"router_endpoint": endpoint, "bus_public_key": "p" * 40, "bus_secret_key": "s" * 40}
    assert bus_keys(worker_part(tmp_path, [1, 2], **options)(-1)) == keys
