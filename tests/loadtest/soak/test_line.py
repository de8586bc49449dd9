"""A rogue's connection says and hears what the protocol says, over both transports, when it wants to."""

import asyncio
import random
import socket
import struct
from collections.abc import Coroutine
from typing import Any

import msgpack
import pytest

from core.framing_ws import WsReader
from loadtest.soak.line import FIN, FIN_ACK, PING, PONG, REPLY, WELCOME, Ended, Line

DEADLINE_S = 30.0


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work

    asyncio.run(limited())


async def pair(websocket: bool) -> tuple[Line, socket.socket]:
    """A line, connected, and the other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        line = Line("127.0.0.1", port, "127.0.0.1", random.Random(1), websocket=websocket)
        await line.dial()
        other, _ = listener.accept()
    other.settimeout(DEADLINE_S)
    return line, other


def framed(websocket: bool, *frame: Any) -> bytes:
    """A frame as a gateway sends it."""
    body: bytes = msgpack.packb(list(frame))
    if not websocket:
        return struct.pack(">I", len(body)) + body
    head = bytes([0x82, len(body)]) if len(body) < 126 else struct.pack(">BBH", 0x82, 126, len(body))
    return head + body


def heard(websocket: bool, data: bytes) -> list[Any]:
    """The frames in what a client sent."""
    if websocket:
        reader = WsReader(max_frame=1 << 20)
        return [msgpack.unpackb(body) for _, body in reader.feed(data)]
    found = []
    while data:
        size = int.from_bytes(data[:4])
        found.append(msgpack.unpackb(data[4 : 4 + size]))
        data = data[4 + size :]
    return found


@pytest.mark.parametrize("websocket", [False, True])
@pytest.mark.parametrize("size", [0, 10, 125, 126, 3_000])
def test_frames_go_both_ways(websocket: bool, size: int) -> None:
    async def body() -> None:
        line, other = await pair(websocket)
        await line.say(8, 1, "x" * size)
        got = other.recv(65_536)
        assert heard(websocket, got) == [[8, 1, "x" * size]]
        sent = framed(websocket, REPLY, 1, {"data": "y" * size})
        for place in range(0, len(sent), 7):
            other.sendall(sent[place : place + 7])
        assert (await line.hear(REPLY))[2] == {"data": "y" * size}
        other.close()
        line.close()

    run(body())


@pytest.mark.parametrize("websocket", [False, True])
def test_pings_are_answered_while_something_is_waited_for(websocket: bool) -> None:
    async def body() -> None:
        line, other = await pair(websocket)
        other.sendall(framed(websocket, PING, 7, 8) + framed(websocket, WELCOME, 1, {}))
        await line.hear(WELCOME)
        assert heard(websocket, other.recv(65_536)) == [[PONG, 7, 8]]
        other.close()
        line.close()

    run(body())


@pytest.mark.parametrize("websocket", [False, True])
def test_a_fin_is_acknowledged_and_our_direction_ended_first(websocket: bool) -> None:
    async def body() -> None:
        line, other = await pair(websocket)
        other.sendall(framed(websocket, FIN, 1, "draining", {}))
        waits = asyncio.create_task(line.ended(DEADLINE_S))
        got = await asyncio.to_thread(other.recv, 65_536)
        assert heard(websocket, got) == [[FIN_ACK]]
        assert await asyncio.to_thread(other.recv, 1) == b""
        other.close()
        fin = await waits
        assert fin is not None
        assert fin[1] == 1
        line.close()

    run(body())


def test_an_end_that_does_not_come_is_not_waited_for_for_ever() -> None:
    async def body() -> None:
        line, other = await pair(False)
        assert line.is_established()
        with pytest.raises(TimeoutError):
            await line.ended(0.05)
        other.close()
        await line.ended(DEADLINE_S)
        assert not line.is_established()
        line.close()

    run(body())


def test_a_reset_is_a_reset() -> None:
    async def body() -> None:
        line, other = await pair(False)
        line.reset()
        with pytest.raises(ConnectionResetError):
            other.recv(1)
        other.close()

    run(body())


def test_an_error_in_place_of_an_answer_is_an_end() -> None:
    async def body() -> None:
        line, other = await pair(False)
        other.sendall(framed(False, 3, 11, 402, "not joined", {}))
        with pytest.raises(Ended, match="refused: 402 not joined"):
            await line.ask(8, "group:a", b"")
        other.close()
        line.close()

    run(body())
