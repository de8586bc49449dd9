"""The servers under test by name: how each is started, and what must be known to read its figures."""

import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from loadtest.bench.provide import BIN, NODE, PYTHON
from loadtest.measure import BenchError, Server, floor, free_ports, holdfast
from tools import provision

SECRET = "only-for-the-benchmark-on-loopback-0123456789"
Make = Callable[[], AbstractContextManager[Server]]

# What a figure must not be read without.
DOES_NOT = {
    "floor-per-delivery": "no sessions, rights, limits, heartbeats or history; one process and one thread",
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


MAKE: dict[str, Make] = {
    "floor-per-delivery": lambda: floor("per-delivery"),
    "floor-coalesce": lambda: floor("coalesce"),
    "holdfast": lambda: holdfast(1),
    "holdfast-2": lambda: holdfast(2, "holdfast-2"),
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
    """The server as a storm meets it: Holdfast asks for tokens then."""
    if name.startswith("holdfast"):
        return holdfast(1, name, {"HOLDFAST_AUTH_SECRET": SECRET})
    return MAKE[name]()
