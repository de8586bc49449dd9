"""A small gateway for tests, written from the protocol page: real sockets, both transports, one process, one history.

It serves what the page says in the plainest way. A test changes its behaviour with `script` (a handler per frame type
that comes before the ordinary one) and looks at `peers`, every connection with all frames that came over it.
"""

import asyncio
import base64
import json
import ssl as tls
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

HELLO, WELCOME, REPLY, ERROR, PING, PONG, JOIN, LEAVE, PUBLISH, MESSAGE, ACK, HISTORY, PRESENCE, EVENT, FIN, FIN_ACK = (
    range(16)
)
REFRESH = 16
DEADLINE_S = 30.0

Frame = list[Any]


def binary_to_json(value: Any) -> dict[str, str]:
    return {"$bin": base64.b64encode(value).decode()}


class Peer:
    """One connection of a client."""

    def __init__(self, write: Callable[[bytes | str], Awaitable[None]], drop: Callable[[], None]) -> None:
        self._write = write
        self.drop = drop
        # WebSocket only: close with this status.
        self.close_with: Callable[[int, str], Awaitable[None]] | None = None
        self.is_json = False
        self.user = ""
        self.session = ""
        self.channels: set[str] = set()
        self.frames: list[Frame] = []
        self._arrived = asyncio.Event()

    async def send(self, frame: Frame) -> None:
        if self.is_json:
            await self._write(json.dumps(frame, separators=(",", ":"), default=binary_to_json))
        else:
            await self._write(msgpack.packb(frame))

    async def send_raw(self, body: bytes | str) -> None:
        await self._write(body)

    def arrived(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._arrived.set()

    def of(self, kind: int) -> list[Frame]:
        return [frame for frame in self.frames if frame[0] == kind]

    async def expect(self, kind: int, count: int = 1) -> Frame:
        """The frame number `count` of this type, waiting for it."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.of(kind)) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.of(kind)[count - 1]


Handler = Callable[[Peer, Frame], Awaitable[bool]]


class ScriptedGateway:
    """See the module's text. Use as an async context manager."""

    def __init__(self, ssl: tls.SSLContext | None = None) -> None:
        self._ssl = ssl
        self.peers: list[Peer] = []
        self.paths: list[str] = []
        self.script: dict[int, Handler] = {}
        self.welcome: dict[str, Any] = {"ping": 30, "misses": 3, "max_frame": 65536}
        self.epoch = 1
        self.log: dict[str, list[Frame]] = defaultdict(list)
        self.keys: dict[str, int] = {}
        self.tcp_port = self.ws_port = 0
        self._connected = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server | Server] = []

    async def __aenter__(self) -> "ScriptedGateway":
        await self.listen()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def listen(self, tcp_port: int = 0, ws_port: int = 0) -> None:
        tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", tcp_port, ssl=self._ssl)
        ws = await serve(self._serve_ws, "127.0.0.1", ws_port, ssl=self._ssl, ping_interval=None, close_timeout=0.5)
        self._servers = [tcp, ws]
        self.tcp_port = tcp.sockets[0].getsockname()[1]
        self.ws_port = next(iter(ws.sockets)).getsockname()[1]

    async def stop(self) -> None:
        for peer in self.peers:
            peer.drop()
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DEADLINE_S)
        for server in self._servers:
            async with asyncio.timeout(DEADLINE_S):
                await server.wait_closed()

    def url(self, transport: str) -> str:
        on_tcp, on_ws = f"127.0.0.1:{self.tcp_port}", f"127.0.0.1:{self.ws_port}/ws"
        return f"{transport}://{on_tcp if transport in ('tcp', 'tls') else on_ws}"

    async def peer(self, number: int = 1) -> Peer:
        """The connection number 1, 2, 3 …, waiting for it."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.peers) < number:
                self._connected.clear()
                await self._connected.wait()
        return self.peers[number - 1]

    async def broadcast(self, channel: str, data: Any, sender: str = "") -> int:
        """Give a message its position, keep it, and send it to the members."""
        offset = len(self.log[channel]) + 1
        frame = [MESSAGE, channel, offset, data, {"from": sender, "time": 1_700_000_000_000, "epoch": self.epoch}]
        self.log[channel].append(frame)
        for peer in self.peers:
            if channel in peer.channels:
                await self._try(peer.send(frame))
        return offset

    @staticmethod
    async def _try(sending: Awaitable[None]) -> None:
        try:
            await sending
        except (OSError, ConnectionClosed):
            return

    # Transports.

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(body: bytes | str) -> None:
            assert isinstance(body, bytes)
            writer.write(struct.pack(">I", len(body)) + body)
            await writer.drain()

        peer = self._connection(write, writer.transport.abort)
        try:
            while True:
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                await self._on_frame(peer, msgpack.unpackb(await reader.readexactly(length)))
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            peer.channels.clear()
            writer.transport.abort()

    async def _serve_ws(self, connection: ServerConnection) -> None:
        peer = self._connection(connection.send, connection.transport.abort)
        peer.close_with = connection.close
        self.paths.append(connection.request.path if connection.request else "")
        try:
            async for body in connection:
                peer.is_json = isinstance(body, str)
                await self._on_frame(peer, json.loads(body) if peer.is_json else msgpack.unpackb(body))
        except ConnectionClosed:
            return
        finally:
            peer.channels.clear()

    def _connection(self, write: Callable[[bytes | str], Awaitable[None]], drop: Callable[[], None]) -> Peer:
        peer = Peer(write, drop)
        self.peers.append(peer)
        self._connected.set()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return peer

    # Frames.

    async def _on_frame(self, peer: Peer, frame: Frame) -> None:
        scripted = self.script.get(frame[0])
        handled = scripted is not None and await scripted(peer, frame)
        if not handled:
            await ORDINARY[frame[0]](self, peer, frame)
        peer.arrived(frame)

    async def on_hello(self, peer: Peer, frame: Frame) -> None:
        peer.user = frame[2].get("user") or frame[2].get("token") or "nobody"
        peer.session = f"s{len(self.peers)}"
        values = {
            "session": peer.session,
            "user": peer.user,
            "resume_token": f"resume-{peer.session}",
            "node": "test",
            "resumed": False,
            "channels": {f"user:{peer.user}": [self.epoch, 0, "live"]},
        }
        await peer.send([WELCOME, frame[1], values | self.welcome])

    async def on_ping(self, peer: Peer, frame: Frame) -> None:
        await peer.send([PONG, *frame[1:]])

    async def on_nothing(self, peer: Peer, frame: Frame) -> None:
        """PONG, ACK and FIN_ACK ask for nothing."""

    async def on_join(self, peer: Peer, frame: Frame) -> None:
        since = frame[3].get("since") if len(frame) > 3 else None
        if since is not None and since != [self.epoch, len(self.log[frame[2]])]:
            await peer.send([ERROR, frame[1], 406, "bad_request: no replay here", {}])
            return
        peer.channels.add(frame[2])
        position = {"epoch": self.epoch, "offset": len(self.log[frame[2]]), "outcome": "live"}
        await peer.send([REPLY, frame[1], position])

    async def on_leave(self, peer: Peer, frame: Frame) -> None:
        peer.channels.discard(frame[2])
        await peer.send([REPLY, frame[1], {}])

    async def on_publish(self, peer: Peer, frame: Frame) -> None:
        if frame[2] not in peer.channels:
            await peer.send([ERROR, frame[1], 402, "not_joined: join the channel first", {}])
            return
        key: str = frame[4].get("key", "")
        offset = self.keys.get(key) or await self.broadcast(frame[2], frame[3], peer.user)
        if key:
            self.keys[key] = offset
        await peer.send([REPLY, frame[1], {"epoch": self.epoch, "offset": offset}])

    async def on_history(self, peer: Peer, frame: Frame) -> None:
        values = frame[3] if len(frame) > 3 else {}
        ordered = self.log[frame[2]][:: -1 if values.get("reverse") else 1]
        kept = ordered[: values.get("limit", 100)]
        past = [{"offset": m[2], "data": m[3], **m[4]} for m in kept]
        await peer.send([REPLY, frame[1], {"messages": past, "epoch": self.epoch, "offset": len(self.log[frame[2]])}])

    async def on_presence(self, peer: Peer, frame: Frame) -> None:
        members = [{"session": p.session, "user": p.user} for p in self.peers if frame[2] in p.channels]
        users = len({member["user"] for member in members})
        await peer.send([REPLY, frame[1], {"sessions": members, "users": users, "count": len(members)}])

    async def on_fin(self, peer: Peer, frame: Frame) -> None:
        peer.channels.clear()
        await peer.send([FIN_ACK])


Ordinary = Callable[[ScriptedGateway, Peer, Frame], Awaitable[None]]
ORDINARY: dict[int, Ordinary] = {
    HELLO: ScriptedGateway.on_hello,
    PING: ScriptedGateway.on_ping,
    PONG: ScriptedGateway.on_nothing,
    JOIN: ScriptedGateway.on_join,
    LEAVE: ScriptedGateway.on_leave,
    PUBLISH: ScriptedGateway.on_publish,
    ACK: ScriptedGateway.on_nothing,
    HISTORY: ScriptedGateway.on_history,
    PRESENCE: ScriptedGateway.on_presence,
    FIN: ScriptedGateway.on_fin,
    FIN_ACK: ScriptedGateway.on_nothing,
}
