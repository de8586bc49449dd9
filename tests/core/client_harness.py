"""A client thread under test, and the scripted gateway that it talks to, byte by byte if need be."""

import base64
import collections
import hashlib
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack

from core import client_loop
from core.client_loop import ClientLoop
from core.framing_ws import WsReader
from core.ledger import Stats

DEADLINE_S = 30.0
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
(HELLO, WELCOME, REPLY, ERROR, PING, PONG, JOIN, LEAVE, PUBLISH, MESSAGE, ACK, HISTORY, _, EVENT, FIN, FIN_ACK) = range(
    16
)
TRANSPORTS = ("ws", "tcp")


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Look until it is so; counters of another thread have no event to wait for."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.0005)


class Session:
    """The gateway's side of one connection."""

    def __init__(self, sock: socket.socket, tcp: bool) -> None:
        self.socket, self.tcp = sock, tcp
        self.socket.settimeout(DEADLINE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = b""
        self._reader = WsReader(max_frame=1 << 20)
        self._held = b""
        self._frames: collections.deque[tuple[int, bytes]] = collections.deque()

    def upgrade(self, answer: bytes | None = None) -> None:
        """Read the request, check it, and answer it, rightly unless told otherwise."""
        while not self.request.endswith(b"\r\n\r\n"):
            got = self.socket.recv(4096)
            assert got, "closed before the upgrade"
            self.request += got
        self.socket.sendall(self.accepted() if answer is None else answer)

    def accepted(self) -> bytes:
        """The right answer to the request."""
        found = re.search(rb"\r\nSec-WebSocket-Key: (\S{24})\r\n", self.request)
        assert found, self.request
        accept = base64.b64encode(hashlib.sha1(found[1] + GUID).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        return head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"

    def wire(self, *frames: list[Any], opcode: int = 2) -> bytes:
        """Frames as they travel."""
        found = b""
        for body in map(msgpack.packb, frames):
            if self.tcp:
                found += struct.pack(">I", len(body)) + body
            elif len(body) < 126:
                found += bytes([0x80 | opcode, len(body)]) + body
            else:
                found += bytes([0x80 | opcode, 126]) + struct.pack(">H", len(body)) + body
        return found

    def send(self, *frames: list[Any]) -> None:
        self.socket.sendall(self.wire(*frames))

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def opcode_and_body(self) -> tuple[int, bytes] | None:
        """The next frame; None when the client has closed."""
        while not self._frames:
            if self.tcp and len(self._held) >= 4:
                size = 4 + int.from_bytes(self._held[:4], "big")
                if len(self._held) >= size:
                    self._frames.append((2, self._held[4:size]))
                    self._held = self._held[size:]
                    continue
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                assert not self._held, "closed inside a frame"
                return None
            if self.tcp:
                self._held += data
            else:
                self._frames.extend(self._reader.feed(data))
                assert not self._reader.error
        return self._frames.popleft()

    def frame(self) -> Any:
        """The next frame as a list; None when the client has closed."""
        found = self.opcode_and_body()
        return None if found is None else msgpack.unpackb(found[1])

    def welcome(self, **told: Any) -> Any:
        """Take HELLO and answer it; what HELLO asked."""
        kind, number, asked = self.frame()
        assert kind == HELLO
        self.send([WELCOME, number, {"session": "s1", "resume_token": "r1", "ping": 30, "misses": 3, **told}])
        return asked

    def joined(self, channel: str, offset: int = 0, epoch: int = 5) -> None:
        """Take JOIN of this channel and answer it."""
        kind, number, name, _ = self.frame()
        assert (kind, name) == (JOIN, channel)
        self.send([REPLY, number, {"epoch": epoch, "offset": offset, "outcome": "live"}])

    def close(self) -> None:
        self.socket.close()


class Driver:
    """A client thread; `sessions` are the connections that it made to the scripted gateway."""

    def __init__(self, **options: Any) -> None:
        self.stats = Stats()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.settimeout(DEADLINE_S)
        endpoint = self.listener.getsockname()
        self.loop = ClientLoop(self.stats, [endpoint], **{"connections_max": 100, **options})
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()
        self.told: collections.deque[tuple[int, int, int, int, int, str]] = collections.deque()
        self.sessions: list[Session] = []

    def open(self, *channels: str, tcp: bool = False, **options: Any) -> int:
        """A new connection that joins channels."""
        handle = self.loop.open(tcp=tcp, **{"user": "alice", **options})
        for channel in channels:
            self.loop.join(handle, channel)
        self.loop.flush()
        return handle

    def accept(self, tcp: bool = False) -> Session:
        sock, _ = self.listener.accept()
        self.sessions.append(Session(sock, tcp))
        return self.sessions[-1]

    def connect(self, *channels: str, transport: str = "ws", **options: Any) -> tuple[int, Session]:
        """A session that is open and has joined, each channel from offset 0 on."""
        tcp = transport == "tcp"
        handle = self.open(*channels, tcp=tcp, **options)
        session = self.accept(tcp)
        if not tcp:
            session.upgrade()
        session.welcome()
        self.expect(client_loop.CONNECTED)
        for channel in channels:
            session.joined(channel)
            self.expect(client_loop.JOINED)
        return handle, session

    def expect(self, kind: int) -> tuple[int, int, int, int, str]:
        """The next thing told, which must be of this kind: (handle, first, second, third, text)."""
        found = self.expect_any()
        assert found[0] == kind, found
        return found[1:]

    def expect_any(self) -> tuple[int, int, int, int, int, str]:
        """The next thing told."""
        end = time.monotonic() + DEADLINE_S
        while not self.told:
            assert select.select([self.loop.event_fd], [], [], max(0, end - time.monotonic()))[0], "nothing is told"
            self.told.extend(self.loop.take())
        return self.told.popleft()

    def publish(self, handle: int, channel: str, size: int = 40) -> None:
        self.loop.publish(handle, channel, size)
        self.loop.flush()

    def audit(self, final: bool = False) -> tuple[int, int, int]:
        """(messages missing, requests under way, sessions open)."""
        self.loop.audit(final)
        self.loop.flush()
        _, missing, under_way, sessions, _ = self.expect(client_loop.AUDITED)
        return missing, under_way, sessions

    def command(self, name: str, *arguments: Any) -> None:
        getattr(self.loop, name)(*arguments)
        self.loop.flush()

    def count(self, name: str) -> int:
        return self.loop.counts()[name]

    def wait_count(self, name: str, value: int) -> None:
        wait_for(lambda: self.count(name) == value, f"{name} == {value}: {self.loop.counts()}")

    def live(self, kind: str) -> int:
        ledger = self.stats.read()["ledger"]
        return ledger[f"{kind}_opened"] - ledger[f"{kind}_closed"]

    def close(self) -> None:
        """Stop; nothing may be left, and no illegal change of state have happened."""
        try:
            self.loop.stop()
            self.thread.join(DEADLINE_S)
            assert not self.thread.is_alive(), "the client thread does not stop"
            read = self.stats.read()
            kinds = {name.removesuffix("_opened") for name in read["ledger"] if name.endswith("_opened")}
            assert {kind: self.live(kind) for kind in kinds} == dict.fromkeys(kinds, 0)
            assert read["counters"]["illegal_states"] == 0
        finally:
            for session in self.sessions:
                session.close()
            self.listener.close()
