"""The servers under test by name: how each is started, and what must be known to read its figures."""

import getpass
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from loadtest.bench.provide import BIN, NODE, PYTHON
from loadtest.bench.tokens import SECRET
from loadtest.measure import BenchError, Server, floor, free_ports, holdfast
from tools import provision

Make = Callable[[], AbstractContextManager[Server]]

# As the peers, which keep nothing on a disk either: history is in memory, and nothing outlives a restart.
WITHOUT_LOG = {"HOLDFAST_LOG_BACKEND": "none"}
# No message of a group is kept: what history costs is the difference to this.
WITHOUT_HISTORY = {
    "HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES": "0",
    "HOLDFAST_NAMESPACES_GROUP_HISTORY_BYTES": "0",
    "HOLDFAST_NAMESPACES_GROUP_ACK": "sequenced",
}
REDIS_DEADLINE_S = 10.0

# What a figure must not be read without.
DOES_NOT = {
    "floor-per-delivery": "no sessions, rights, limits, heartbeats or history; one process and one thread",
    "holdfast": "history in memory and no log (`log.backend = none`): as with the peers, nothing outlives a restart",
    "holdfast-2": "the same with two workers; in `resume` with the embedded log",
    "holdfast-logged": "as it comes: with the embedded log, and a group's message delivered when it is on the disk",
    "holdfast-no-history": "nothing of a group is kept or logged; answers are sequenced",
    "holdfast-redis": "the log is a Redis of this machine, append-only file written through once a second",
    "floor-coalesce": "the same; what one wake-up brought leaves in one call a connection",
    "nats": "no order over publishers' connections, no positions, no answer to a publish, no sessions; at most once",
    "mosquitto": "QoS 0: at most once, no answer to a publish, no positions; one thread",
    "picows": "a library with our small program on it: no sessions, rights or limits; one process, order by that alone",
    "websockets": "the same",
    "ws": "the same",
    "socketio": "rooms and acknowledgements of its own, no positions; one process, order by that alone",
    "gws": "a library with our small program on it: no sessions, rights or limits; all cores",
    "nbio": "the same; idle connections hold no goroutine",
}

NATS_CONF = """\
host: 127.0.0.1
port: {port}
websocket {{ host: 127.0.0.1, port: {ws_port}, no_tls: true }}
ping_interval: "30s"
"""
# It ends at once when it has no listener but WebSocket ones, hence the first. Without a queue's bound, which is for
# clients that were away, QoS 0 messages would be dropped in a burst.
MOSQUITTO_CONF = """\
listener {port} 127.0.0.1
listener {ws_port} 127.0.0.1
protocol websockets
allow_anonymous true
set_tcp_nodelay true
max_queued_messages 0
log_type error
user {user}
"""


@contextmanager
def configured(text: str, start: Callable[[str], Server]) -> Iterator[Server]:
    """A server that takes its settings from a file."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(text)
        file.flush()
        with start(file.name) as server:
            yield server


def nats() -> AbstractContextManager[Server]:
    port, ws_port = free_ports(2)
    text = NATS_CONF.format(port=port, ws_port=ws_port)
    return configured(
        text, lambda path: Server("nats", [str(BIN / "nats-server"), "-c", path], ws_port, protocol="nats")
    )


def mosquitto() -> AbstractContextManager[Server]:
    port, ws_port = free_ports(2)
    program = provision.find_program("mosquitto")
    if program is None:
        raise BenchError("mosquitto is not installed")
    found = provision.environment_for(program)
    settings = {name: value for name, value in found.items() if os.environ.get(name) != value}
    text = MOSQUITTO_CONF.format(port=port, ws_port=ws_port, user=getpass.getuser())
    return configured(
        text,
        lambda path: Server("mosquitto", [program, "-c", path], ws_port, protocol="mqtt", environment=settings),
    )


def on_port(name: str, *command: str | Path, protocol: str = "holdfast") -> Make:
    """A small program of ours on a peer's library, which takes its port as the last word."""

    def make() -> Server:
        (port,) = free_ports(1)
        return Server(name, [*map(str, command), str(port)], port, protocol=protocol)

    return make


def module(name: str) -> Make:
    return on_port(name, PYTHON, "-m", f"loadtest.bench.peers.{name}_server")


@contextmanager
def logged(name: str, workers: int = 1, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Holdfast as it comes, with an embedded log of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        settings = {"HOLDFAST_LOG_DIRECTORY": f"{folder}/log", **(environment or {})}
        with holdfast(workers, name, settings) as server:
            yield server


@contextmanager
def redis() -> Iterator[int]:
    """A Redis that keeps what it is told as an operator would; its port."""
    program = provision.find_program("redis-server")
    if program is None:
        raise BenchError("redis-server is not installed")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes"]
        process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, env=provision.environment_for(program))
        try:
            end = time.monotonic() + REDIS_DEADLINE_S
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise BenchError("redis-server does not start")
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()
            process.wait(REDIS_DEADLINE_S)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), REDIS_DEADLINE_S).close()
    except OSError:
        return False
    return True


@contextmanager
def over_redis() -> Iterator[Server]:
    with redis() as port:
        settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        with logged("holdfast-redis", environment=settings) as server:
            yield server


MAKE: dict[str, Make] = {
    "floor-per-delivery": lambda: floor("per-delivery"),
    "floor-coalesce": lambda: floor("coalesce"),
    "holdfast": lambda: logged("holdfast", environment=WITHOUT_LOG),
    "holdfast-2": lambda: logged("holdfast-2", 2, WITHOUT_LOG),
    "holdfast-logged": lambda: logged("holdfast-logged"),
    "holdfast-no-history": lambda: logged("holdfast-no-history", environment=WITHOUT_HISTORY),
    "holdfast-redis": over_redis,
    "nats": nats,
    "mosquitto": mosquitto,
    "picows": module("picows"),
    "websockets": module("websockets"),
    "ws": on_port("ws", "node", NODE / "ws_server.mjs"),
    "socketio": on_port("socketio", "node", NODE / "socketio_server.mjs", protocol="socketio"),
    "gws": on_port("gws", BIN / "gws"),
    "nbio": on_port("nbio", BIN / "nbio"),
}


def with_tokens(name: str) -> AbstractContextManager[Server]:
    """The server as clients that come at once meet it: Holdfast asks for tokens then."""
    if name.startswith("holdfast"):
        if name == "holdfast-2":  # of `resume`, whose sessions are in the log
            return logged(name, 2, {"HOLDFAST_AUTH_SECRET": SECRET})
        log = {} if name == "holdfast-logged" else WITHOUT_LOG
        return logged(name, environment={"HOLDFAST_AUTH_SECRET": SECRET, **log})
    return MAKE[name]()
