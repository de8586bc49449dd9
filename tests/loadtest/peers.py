"""Small servers in the protocols of peers, over WebSocket: what the load client needs of each, and faults."""

import asyncio
import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Generator

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

DEADLINE_S = 30.0
PIECE_BYTES_MIN, PIECES = 7, 4


class Peer:
    """Members by channel, and one fault at the second member: `drop` or `repeat` of the message of number `at`."""

    subprotocol: str | None = None

    def __init__(self, fault: str = "", at: int = 0) -> None:
        self.fault, self.at = fault, at
        self.members: defaultdict[str, list[ServerConnection]] = defaultdict(list)
        self.published: defaultdict[str, int] = defaultdict(int)

    async def converse(self, connection: ServerConnection) -> None:
        raise NotImplementedError

    async def deliver(self, channel: str, message: bytes | str) -> None:
        self.published[channel] += 1
        for place, member in enumerate(self.members[channel]):
            faulty = place == 1 and self.published[channel] == self.at
            for _ in range({"drop": 0, "repeat": 2}.get(self.fault, 1) if faulty else 1):
                await self.send(member, message)

    async def send(self, connection: ServerConnection, message: bytes | str) -> None:
        """A stream may be cut anywhere: here, into frames of an odd size."""
        if isinstance(message, str):
            await connection.send(message)
            return
        step = max(PIECE_BYTES_MIN, len(message) // PIECES)
        for first in range(0, len(message), step):
            await connection.send(message[first : first + step])


class Nats(Peer):
    async def converse(self, connection: ServerConnection) -> None:
        await self.send(connection, b'INFO {"server_id":"x"}\r\n')
        stream = b""
        async for frame in connection:
            assert isinstance(frame, bytes)
            stream += frame
            while b"\r\n" in stream:
                line, _, rest = stream.partition(b"\r\n")
                words = line.decode().split()
                if words[0] == "PUB":
                    size = int(words[2])
                    if len(rest) < size + 2:
                        break
                    await self.deliver(words[1], f"MSG {words[1]} 1 {size}\r\n".encode() + rest[: size + 2])
                    rest = rest[size + 2 :]
                elif words[0] == "SUB":
                    self.members[words[1]].append(connection)
                elif words[0] == "PING":
                    await self.send(connection, b"PING\r\nPONG\r\n")
                stream = rest


class Mqtt(Peer):
    subprotocol = "mqtt"

    async def converse(self, connection: ServerConnection) -> None:
        stream = b""
        async for frame in connection:
            assert isinstance(frame, bytes)
            stream += frame
            while len(stream) >= 2:
                # Two bytes of length at most: what is sent here is shorter than 16 KiB.
                long = stream[1] >= 128 and len(stream) >= 3
                size = stream[1] % 128 + (stream[2] * 128 if long else 0)
                head = 3 if long else 2
                if len(stream) < head + size:
                    break
                await self.act(connection, stream[0], stream[: head + size], stream[head : head + size])
                stream = stream[head + size :]

    async def act(self, connection: ServerConnection, kind: int, packet: bytes, rest: bytes) -> None:
        if kind == 0x10:
            await self.send(connection, b"\x20\x02\x00\x00")
        elif kind == 0x82:
            self.members[rest[4 : 4 + rest[3]].decode()].append(connection)
            await self.send(connection, b"\x90\x03" + rest[:2] + b"\x00")
        elif kind == 0x30:
            await self.deliver(rest[2 : 2 + rest[1]].decode(), packet)


class SocketIo(Peer):
    async def converse(self, connection: ServerConnection) -> None:
        await connection.send('0{"sid":"x","pingInterval":30000,"pingTimeout":20000}')
        async for frame in connection:
            assert isinstance(frame, str)
            if frame == "40":
                await connection.send('40{"sid":"y"}')
                await connection.send("2")
            elif frame.startswith("42"):
                number, _, event = frame[2:].partition("[")
                name, channel, *data = json.loads("[" + event)
                await connection.send(f"43{number}[]")
                if name == "join":
                    self.members[channel].append(connection)
                else:
                    await self.deliver(channel, "42" + json.dumps(["message", channel, *data], separators=(",", ":")))


PEERS = {"nats": Nats, "mqtt": Mqtt, "socketio": SocketIo}


@contextlib.contextmanager
def running(peer: Peer) -> Generator[int, None, None]:
    """Serves in a thread of its own; yields the port."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ready: asyncio.Future[int] = loop.create_future()

    async def converse(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await peer.converse(connection)

    async def main() -> None:
        subprotocols = [peer.subprotocol] if peer.subprotocol else None
        async with serve(converse, "127.0.0.1", 0, subprotocols=subprotocols) as server:  # type: ignore[arg-type]
            ready.set_result(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()

    async def port() -> int:
        return await asyncio.wait_for(ready, DEADLINE_S)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(port(), loop).result(DEADLINE_S)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        loop.close()
