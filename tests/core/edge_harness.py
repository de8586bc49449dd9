"""A worker's data plane in a thread of the test, on real sockets; the test plays router and control thread."""

import collections
import itertools
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import zmq

from core import notes, records
from core.ledger import Stats
from core.loop import EdgeLoop
from core.namespace_spec import BUILT_IN, NamespaceSpec
from tests.core import wire

DEADLINE_S = 30.0
EPOCH = 5
WELCOME, REPLY, ERROR, JOIN, LEAVE, PUBLISH, MESSAGE, EVENT, FIN, FIN_ACK = 1, 2, 3, 6, 7, 8, 9, 13, 14, 15
# The ledger's kinds that only hold something while clients are there.
CLIENTS_KINDS = (
    "connection",
    "ring",
    "buffer",
    "segment",
    "timer",
    "channel",
    "membership",
    "pending",
    "request",
    "kept",
)
OPTIONS: dict[str, Any] = {
    "handshakes_max": 1000,
    "ws_path": "/ws",
    "ping_ms": 30_000,
    "misses": 3,
    "hello_timeout_ms": 5000,
    "fin_timeout_ms": 5000,
    "write_timeout_ms": 10_000,
    "frame_timeout_ms": 10_000,
    "request_timeout_ms": 5000,
    "max_frame": 65_536,
    "queue_bytes_max": 1 << 20,
    "kept_bytes_max": 1 << 24,
    "channels_max": 10,
    "publish_rate": 0,
    "publish_burst": 0,
    "worker": 0,
    "epoch": 1,
    "proxy_protocol": False,
    "development": True,
}


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Look until it is so; counters of another thread have no event to wait for."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.001)


class Router:
    """The scripted router: says what the test tells it to, and hands out the worker's records in their order."""

    def __init__(self, bus: str, secret_key: str = "", *, shards: bool = False) -> None:
        """`secret_key`: its CURVE key; it lets in who knows the public one. `shards`: records say of which shard they
        are, and SHARDS is one of them.
        """
        self.shards = shards
        self._context = zmq.Context(1)
        self._folder = tempfile.TemporaryDirectory(prefix="hf-")
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if secret_key:
            self.socket.curve_server, self.socket.curve_secretkey = True, secret_key.encode()
        self.socket.setsockopt(zmq.IPV6, bus == "tcp6")
        bound = {"tcp": "tcp://127.0.0.1:*", "tcp6": "tcp://[::1]:*"}
        self.socket.bind(bound.get(bus, f"ipc://{self._folder.name}/router"))
        self.endpoint = self.socket.getsockopt(zmq.LAST_ENDPOINT).decode()  # type: ignore[union-attr]
        self.identity = b""
        self.links = self.heard_ms = 0
        self.fresh = False
        """Whether its last LINK was the first word of a new stream."""
        self._records: collections.deque[wire.Record] = collections.deque()
        self.states: collections.deque[wire.Record] = collections.deque()

    def send(self, *said: bytes) -> None:
        """One batch."""
        self.socket.send_multipart([self.identity, b"".join(said)])

    def take(self, deadline_s: float = DEADLINE_S) -> wire.Record:
        """The worker's next record; its heartbeats only count."""
        while not self._records:
            assert self.socket.poll(int(deadline_s * 1000)), "the worker says nothing"
            self.identity, batch = self.socket.recv_multipart()
            self._keep(batch)
        return self._records.popleft()

    def _keep(self, batch: bytes) -> None:
        for one in wire.unpack(batch, shards=self.shards):
            if one["kind"] == records.LINK:
                self.links += 1
                self.heard_ms = one["now_ms"]
                self.fresh = one["aux"] == records.FRESH
            elif one["kind"] == records.STATE:
                self.states.append(one)
            else:
                self._records.append(one)

    def state(self) -> wire.Record:
        """What a session did, as it is told the store: it stands apart from what the router is asked."""
        while not self.states:
            assert self.socket.poll(int(DEADLINE_S * 1000)), "the worker says nothing"
            self.identity, batch = self.socket.recv_multipart()
            self._keep(batch)
        return self.states.popleft()

    def expect(self, kind: int) -> wire.Record:
        one = self.take()
        assert one["kind"] == kind, f"expected a record of kind {kind}, not {one}"
        return one

    def heartbeat(self) -> None:
        """Wait for one more LINK."""
        before = self.links
        while self.links == before:
            assert self.socket.poll(int(DEADLINE_S * 1000)), "the worker says nothing"
            self.identity, batch = self.socket.recv_multipart()
            self._keep(batch)

    def restart(self) -> None:
        """End the stream to the worker, and listen again at the same place as another router would."""
        self.socket.close()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.endpoint)

    def close(self) -> None:
        self.socket.close()
        self._context.term()
        self._folder.cleanup()


class Client:
    """A TCP client: frames as lists."""

    websocket = False

    def __init__(self, port: int, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.conn = 0
        self.session = bytes(16)
        self._ids = itertools.count(100)
        self._unpacked: collections.deque[Any] = collections.deque()
        self._held = b""

    def send(self, *frames: list[Any]) -> None:
        self.socket.sendall(b"".join(self.pack(frame) for frame in frames))

    def pack(self, frame: list[Any]) -> bytes:
        body: bytes = msgpack.packb(frame)
        return struct.pack(">I", len(body)) + body

    def request(self, kind: int, *rest: Any) -> int:
        """Send a request; its id."""
        number = next(self._ids)
        self.send([kind, number, *rest])
        return number

    def frame(self) -> Any:
        """The next frame; None when the gateway has closed."""
        while True:
            if len(self._held) >= 4:
                size = 4 + int.from_bytes(self._held[:4], "big")
                if len(self._held) >= size:
                    body, self._held = self._held[4:size], self._held[size:]
                    return msgpack.unpackb(body, strict_map_key=False)
            data = self.socket.recv(1 << 16)
            if not data:
                assert not self._held, "closed inside a frame"
                return None
            self._held += data

    def frames(self, count: int) -> list[Any]:
        return [self.frame() for _ in range(count)]

    def shut(self) -> None:
        """Send no more, and go on receiving."""
        self.socket.shutdown(socket.SHUT_WR)

    def ended(self) -> bool:
        """Wait until the gateway has closed its side."""
        while self.socket.recv(1 << 16):
            continue
        return True

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """End the connection by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Edge:
    """The data plane under test; `notes` are what it tells the control thread."""

    def __init__(
        self,
        *,
        connections_max: int = 1000,
        link: bool = True,
        bus: str = "ipc",
        bus_keys: tuple[str, str, str] = ("", "", ""),
        through: Callable[[str], str] = lambda endpoint: endpoint,
        namespaces: Sequence[NamespaceSpec] = BUILT_IN,
        **options: int | str | bool,
    ) -> None:
        """`bus_keys`: the router's public CURVE key and the worker's pair, which is the router's as well; `through`:
        where to connect to instead of the router's endpoint.
        """
        self.stats, self.router = Stats(), Router(bus, bus_keys[2])
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.port, self.ws_port = (one.getsockname()[1] for one in listeners)
        for one in listeners:
            one.setblocking(False)
        tcp, websocket = (one.detach() for one in listeners)
        self.loop = EdgeLoop(
            self.stats,
            endpoint=through(self.router.endpoint),
            bus_keys=bus_keys,
            identity="test/0/1",
            tcp_fd=tcp,
            ws_fd=websocket,
            connections_max=connections_max,
            namespaces=namespaces,
            **{**OPTIONS, **options},
        )
        self.notes: collections.deque[tuple[Any, ...]] = collections.deque()
        self.clients: list[Client] = []
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()
        self.put(notes.SEND)  # wakes it, so that its first LINK leaves at once
        self.router.heartbeat()
        if link:
            self.link(EPOCH)

    def link(self, epoch: int) -> list[wire.Record]:
        """Ask the worker for everything it holds; what it said between BEGIN and END."""
        self.router.send(wire.linked(epoch, ask=True), wire.leads(epoch))
        self.router.expect(records.BEGIN)
        said = []
        while (one := self.router.take())["kind"] != records.END:
            said.append(one)
        assert self.note(notes.LINKED)[4] == epoch
        return said

    def put(self, kind: int, *positional: int, **named: Any) -> None:
        self.loop.put(kind, *positional, **named)
        self.loop.flush()

    def note(self, kind: int) -> tuple[Any, ...]:
        """The next note of the data plane."""
        end = time.monotonic() + DEADLINE_S
        while not self.notes:
            assert select.select([self.loop.control_fd], [], [], end - time.monotonic())[0], "no note in time"
            self.notes.extend(self.loop.take())
        found = self.notes.popleft()
        assert found[0] == kind, f"expected a note of kind {kind}, not {found}"
        return found

    def client(self, kind: type[Client] = Client, **options: int) -> Client:
        self.clients.append(kind(self.ws_port if kind.websocket else self.port, **options))
        return self.clients[-1]

    def hello(
        self, client: Client, user: str, channels: list[list[Any]] | None = None, rights: bytes = b""
    ) -> wire.Record:
        """Up to where the router is asked for the session; the OPEN record. Channels new here are in the backlog."""
        self.greet(client, user, channels, rights)
        while (one := self.router.take())["kind"] != records.OPEN:
            # Connections that ended before may still be giving up what they had.
            assert one["kind"] in (records.SUBSCRIBE, records.UNSUBSCRIBE, records.CLOSE)
            if one["kind"] == records.SUBSCRIBE:
                self.router.send(wire.subscribed(one["channel"], EPOCH, 0))
        assert (one["conn"], one["session"]) == (client.conn, client.session)
        return one

    def greet(self, client: Client, user: str, channels: list[list[Any]] | None = None, rights: bytes = b"") -> None:
        """HELLO, and what the control thread says to that."""
        client.send([0, 1, {}])
        client.conn = self.note(notes.FRAME)[2]
        client.session = user.encode()[:16].ljust(16, b"\0")
        self.put(
            notes.OPEN,
            client.conn,
            1,
            session=client.session,
            text=b"\x93\x01\x01\x81" + msgpack.packb("channels"),
            first=len(rights),
            extra=msgpack.packb([[f"user:{user}"], *(channels or [])]) + rights,
        )

    def open(self, user: str, kind: type[Client] = Client, *, rights: bytes = b"", **options: int) -> Client:
        """A client whose session is open, with the lists of a token (core/rights.pxd)."""
        client = self.client(kind, **options)
        one = self.hello(client, user, rights=rights)
        self.router.send(wire.opened(client.conn, one["seq"]))
        assert client.frame() == [WELCOME, 1, {"channels": {f"user:{user}": [EPOCH, 0, "live"]}}]
        return client

    def ask(self, client: Client, kind: int, note: int, channel: str, **named: Any) -> int:
        """A request that the control thread passes on; its id."""
        number = client.request(kind, channel)
        assert self.note(notes.FRAME)[2] == client.conn
        self.put(note, client.conn, number, text=channel.encode(), **named)
        return number

    def join(self, client: Client, channel: str, offset: int = 0) -> int:
        """Join a channel that the worker does not know yet; its handle."""
        number = client.request(JOIN, channel)
        one = self.router.expect(records.SUBSCRIBE)
        assert one["name"] == channel.encode()
        self.router.send(wire.subscribed(one["channel"], EPOCH, offset))
        assert client.frame() == [REPLY, number, {"epoch": EPOCH, "offset": offset, "outcome": "live"}]
        handle: int = one["channel"]
        return handle

    def join_known(self, client: Client, channel: str) -> None:
        """Join a channel that the worker has already: no word to the router."""
        number = client.request(JOIN, channel)
        answer = client.frame()
        assert answer[:2] == [REPLY, number]
        assert answer[2]["outcome"] == "live"

    def counter(self, name: str) -> int:
        return self.stats.read()["counters"][name]

    def live(self, kind: str) -> int:
        ledger = self.stats.read()["ledger"]
        return ledger[f"{kind}_opened"] - ledger[f"{kind}_closed"]

    def wait_empty(self) -> None:
        """Everything of clients must be gone, and their memory given back."""
        wait_for(
            lambda: not any(self.live(kind) for kind in CLIENTS_KINDS),
            f"an empty ledger: {self.stats.read()['ledger']}",
        )
        assert self.live("fd") == 2  # the listeners
        assert self.stats.read()["gauges"]["queued_bytes"] == 0

    def stop(self) -> None:
        if self.thread.is_alive():
            self.put(notes.STOP)
            self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the data plane does not stop"

    def close(self) -> None:
        try:
            self.stop()
            assert self.counter("illegal_states") == 0
        finally:
            for client in self.clients:
                client.close()
            self.router.close()


def frame_of(channel: str, offset: int, data: Any, epoch: int = EPOCH) -> bytes:
    """A MESSAGE frame as the router writes it."""
    packed: bytes = msgpack.packb([MESSAGE, channel, offset, data, {"from": "x", "time": 1, "epoch": epoch}])
    return packed
