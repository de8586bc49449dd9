"""What each malformed input is answered with, the limits of a frame, and the ways a session ends, over real sockets."""

import asyncio
import os
import socket
import struct
from typing import Any

import msgpack
import pytest

from tests.conftest import Node
from tests.process.clients import (
    DEADLINE_S,
    FIN,
    FIN_ACK,
    HELLO,
    HISTORY,
    JOIN,
    KINDS,
    MESSAGE,
    PING,
    PONG,
    PUBLISH,
    Client,
    Refused,
    TcpClient,
    WebSocketClient,
    dial,
    framed,
    group,
    open_session,
    run,
)

BAD_FRAME, FRAME_TOO_LARGE, VERSION = 600, 601, 606
NAMES = {BAD_FRAME: "bad_frame", FRAME_TOO_LARGE: "frame_too_large", VERSION: "version"}
MAX_FRAME = 65_536


async def expect_end(client: Client, code: int) -> None:
    """FIN with this code and class `stop`, then the end at once, a WebSocket's with the status that says the same."""
    _, found, reason, options = await client.fin()
    assert found == code, f"FIN {found} {reason!r}"
    assert reason
    assert options == {"class": "stop"}
    gone = await client.ended()
    assert not list(client.kept), "nothing is sent after FIN"
    if isinstance(client, WebSocketClient):
        assert (gone.status, gone.reason) == (4000 + code, NAMES[code])


async def tcp_session(node: Node) -> TcpClient:
    client = await TcpClient.dial(node.port)
    await client.hello()
    return client


async def ws_session(node: Node, encoding: str) -> WebSocketClient:
    client = await WebSocketClient.dial(node.ws_url, encoding)
    await client.hello()
    return client


NO_FRAMES: list[Any] = [
    5,
    "text",
    {},
    None,
    [],
    ["6"],
    [-1],
    [1.5],
    [18],
    [99, 1],
    [2**63],
    [1, 1, {}],
    [2, 1, {}],
    [3, 1, 400, "x", {}],
    [9, "group:x", 1, "x", {}],
    [13, "group:x", "gap", {}],
    [4],
    [4, 1],
    [4, -1, 1],
    [4, 1, 1, 1],
    [5, "1", 1],
    [10],
    [10, 5],
    [10, {"group:x": -1}],
    [10, {"group:x": 1}, 1],
    [14],
    [14, "bye"],
    [14, 0, "bye", {}, 1],
    [6],
    [6, "1", "group:x"],
    [6, -1, "group:x"],
    [8, None, "group:x", 1],
    [11, 1.5, "group:x", {}],
]


@pytest.mark.parametrize("frame", NO_FRAMES, ids=repr)
def test_what_is_no_frame_ends_the_session_with_bad_frame(node: Node, frame: Any) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind)
            await client.send_body(frame)
            await expect_end(client, BAD_FRAME)

    run(body())


@pytest.mark.parametrize(
    "data",
    [
        framed(b""),
        framed(b"\xc1"),
        framed(b"\x92\x04"),
        framed(msgpack.packb([4, 1, 1]) + b"\x00"),
        framed(msgpack.packb([8, 1, "group:x", None])[:-1] + b"\x91" * 65 + b"\x90"),
        framed(b"\xdd\xff\xff\xff\xff"),
    ],
    ids=["no body", "reserved byte", "cut off", "left over", "too deep", "too many"],
)
def test_broken_messagepack_over_tcp_is_a_bad_frame(node: Node, data: bytes) -> None:
    async def body() -> None:
        client = await tcp_session(node)
        await client.send_bytes(data)
        await expect_end(client, BAD_FRAME)

    run(body())


@pytest.mark.parametrize("text", ["", "{", "[4,1,1]]", "[4,1,1] x", "[4,01,1]", "nul", '["\\ud800"]', "[4,1,1,]"])
def test_broken_json_is_a_bad_frame(node: Node, text: str) -> None:
    async def body() -> None:
        client = await ws_session(node, "text")
        await client.send_raw(text)
        await expect_end(client, BAD_FRAME)

    run(body())


@pytest.mark.parametrize("encoding", ["text", "binary"])
def test_an_encoding_cannot_be_changed_within_a_session(node: Node, encoding: str) -> None:
    async def body() -> None:
        client = await ws_session(node, encoding)
        await client.send_raw(msgpack.packb([4, 1, 1]) if encoding == "text" else "[4,1,1]")
        await expect_end(client, BAD_FRAME)

    run(body())


@pytest.mark.parametrize(
    "frame", [[JOIN, 1, "group:x"], [PUBLISH, 1, "group:x", 1], [PING, 1, 1], [PONG, 1, 1], [10, {}]]
)
def test_another_frame_before_hello_is_a_bad_frame(node: Node, frame: list[Any]) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await dial(node, kind)
            await client.send_body(frame)
            await expect_end(client, BAD_FRAME)

    run(body())


def test_a_second_hello_before_welcome_is_a_bad_frame(node: Node) -> None:
    async def body() -> None:
        client = await TcpClient.dial(node.port)
        hello = framed(msgpack.packb([HELLO, 1, {}]))
        await client.send_bytes(hello + hello)
        await expect_end(client, BAD_FRAME)

    run(body())


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_another_version_is_told_so(node: Node, version: Any) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await dial(node, kind)
            await client.send(HELLO, 1, {"v": version})
            await expect_end(client, VERSION)

    run(body())


# ---- the limits of a frame ----


def tcp_frame_of(size: int) -> bytes:
    """A PING-like frame that is no larger than `size`: PUBLISH whose data fills it up."""
    body = msgpack.packb([JOIN, 7, "group:x", {"unknown": b""}])
    filled = msgpack.packb([JOIN, 7, "group:x", {"unknown": bytes(size - len(body) - 1)}])
    if len(filled) != size:
        filled = msgpack.packb([JOIN, 7, "group:x", {"unknown": bytes(size - len(body) - 1 - (len(filled) - size))}])
    assert len(filled) == size
    return bytes(filled)


def test_a_frame_of_exactly_max_frame_is_read_and_one_byte_more_is_not(node: Node) -> None:
    async def body() -> None:
        client = await tcp_session(node)
        await client.send_bytes(framed(tcp_frame_of(MAX_FRAME)))
        assert (await client.answer(7))["outcome"] == "live"
        # Told from the length alone: the body need not come.
        await client.send_bytes(struct.pack(">I", MAX_FRAME + 1))
        await expect_end(client, FRAME_TOO_LARGE)
        for encoding in ("binary", "text"):
            web = await ws_session(node, encoding)
            exact: str | bytes = tcp_frame_of(MAX_FRAME)
            if encoding == "text":
                exact = '[6,7,"group:x",{"unknown":"' + "x" * (MAX_FRAME - 30) + '"}]'
                assert len(exact) == MAX_FRAME
            await web.send_raw(exact)
            assert (await web.answer(7))["outcome"] == "live"
            await web.send_raw(exact + " " if isinstance(exact, str) else exact + b"\x00")
            await expect_end(web, FRAME_TOO_LARGE)

    run(body())


def test_fragments_count_together_against_max_frame(node: Node) -> None:
    async def body() -> None:
        client = await ws_session(node, "binary")
        await client.send_raw([b"\x00" * 30_000] * 3)
        await expect_end(client, FRAME_TOO_LARGE)

    run(body())


def test_data_that_no_member_could_be_sent_is_too_large(node: Node) -> None:
    async def body() -> None:
        for kind in KINDS:
            client, channel = await open_session(node, kind), group()
            await client.join(channel)
            with pytest.raises(Refused) as refused:
                await client.publish(channel, "x" * (MAX_FRAME - 200))
            assert refused.value.code == 405
            await client.publish(channel, "x" * (MAX_FRAME - 2000))
            assert len((await client.message())[3]) == MAX_FRAME - 2000
            await client.close()

    run(body())


# ---- WebSocket's own frames ----


def test_fragmented_messages_with_pings_inside_are_whole_messages(node: Node) -> None:
    async def body() -> None:
        client, channel = await ws_session(node, "text"), group()
        await client.join(channel)
        text = f'[8,9,"{channel}","ä漢🚀",{{}}]'.encode()
        sock = client.socket.transport
        pong = await client.socket.ping(b"outside")
        async with asyncio.timeout(DEADLINE_S):
            await pong
        for at, byte in enumerate(text):
            last = at == len(text) - 1
            sock.write(masked((0x80 if last else 0) | (1 if at == 0 else 0), bytes([byte])))
            if at % 7 == 0:
                sock.write(masked(0x89, b"inside"))
        assert (await client.answer(9))["offset"] == 1
        assert (await client.message())[3] == "ä漢🚀"
        await client.close()

    run(body())


def masked(first: int, payload: bytes) -> bytes:
    mask = os.urandom(4)
    return bytes([first, 0x80 | len(payload)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


@pytest.mark.parametrize(
    "data",
    [
        bytes([0x81, 7]) + b"[4,1,1]",
        masked(0xC1, b"[4,1,1]"),
        masked(0x83, b"x"),
        masked(0x80, b"x"),
        masked(0x09, b"x"),
        masked(0x01, b"[4,") + masked(0x81, b"1,1]"),
        bytes([0x89, 0xFE, 0, 126, 0, 0, 0, 0]) + bytes(126),
        masked(0x81, b'["\xff"]'),
        masked(0x81, b"\xed\xa0\x80"),
    ],
    ids=[
        "no mask",
        "reserved bit",
        "opcode",
        "continuation",
        "cut ping",
        "new inside",
        "long ping",
        "utf8",
        "surrogate",
    ],
)
def test_broken_websocket_framing_is_a_bad_frame(node: Node, data: bytes) -> None:
    async def body() -> None:
        client = await ws_session(node, "text")
        client.socket.transport.write(data)
        await expect_end(client, BAD_FRAME)

    run(body())


def test_a_close_frame_without_fin_is_echoed_and_ends_the_session(node: Node) -> None:
    async def body() -> None:
        client = await ws_session(node, "text")
        async with asyncio.timeout(DEADLINE_S):
            await client.socket.close(1000, "going")
        assert (client.socket.close_code, client.socket.close_reason) == (1000, "going")

    run(body())


# ---- leaving ----


@pytest.mark.parametrize("kind", KINDS)
def test_fin_is_answered_by_fin_ack_and_nothing_more(node: Node, kind: str) -> None:
    async def body() -> None:
        channel = group()
        leaving, staying = await open_session(node, kind), await open_session(node, "tcp")
        await leaving.join(channel)
        await staying.join(channel)
        await leaving.send(FIN, 0, "bye", {})
        await leaving.send(PUBLISH, 5, channel, "after FIN")
        await leaving.send(PING, 1, 1)
        gone = await leaving.ended()
        assert list(leaving.kept) == [[FIN_ACK]]
        if kind != "tcp":
            assert (gone.status, gone.reason) == (4000, "bye")
        await staying.publish(channel, "still here")
        assert [frame[3] for frame in await staying.settle() if frame[0] == MESSAGE] == ["still here"]
        await staying.close()

    run(body())


def test_who_sends_no_more_is_answered_and_closed_well_before_a_requests_deadline(node: Node) -> None:
    async def body() -> None:
        channel = group()
        client = await tcp_session(node)
        await client.join(channel)
        position = await client.publish(channel, "x")
        began = asyncio.get_running_loop().time()
        await client.send(HISTORY, 901, channel, {})
        await client.shut()
        answer = await client.answer(901)
        assert answer["offset"] == position["offset"]
        await client.ended()
        assert asyncio.get_running_loop().time() - began < 4.0  # without the control thread's word it would be 5 s

    run(body())


def test_a_fin_ack_without_fin_is_nothing(node: Node) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind)
            await client.send(FIN_ACK)
            assert await client.settle() == []
            await client.close()

    run(body())


def test_after_a_bad_frame_what_still_comes_is_thrown_away(node: Node) -> None:
    async def body() -> None:
        channel = group()
        bad, witness = await tcp_session(node), await tcp_session(node)
        await bad.join(channel)
        await witness.join(channel)
        await bad.send_bytes(framed(b"\xc1") + framed(msgpack.packb([PUBLISH, 1, channel, "too late"])))
        await expect_end(bad, BAD_FRAME)
        assert await witness.settle() == []
        await witness.close()

    run(body())


# ---- HTTP ----


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400),
        (b"GET /ws HTTP/1.1\r\n\r\n", 400),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /ws HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        (b"GET /ws HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
    ],
)
def test_http_that_opens_no_websocket_gets_its_own_answer(node: Node, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", node.ws_port), DEADLINE_S) as connection:
        connection.sendall(request_)
        with connection.makefile("rb") as stream:
            answer = stream.read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nSec-WebSocket-Version: 13\r\n" in answer) == (status == 426)


def test_a_peer_that_vanishes_in_the_middle_of_anything_leaves_nothing(node: Node) -> None:
    for port, parts in (
        (node.port, (b"", b"\x00", b"\x00\x00\x00\x10\x93", framed(msgpack.packb([HELLO, 1, {}])))),
        (node.ws_port, (b"", b"GET /ws HT", b"GET /ws HTTP/1.1\r\nHost: x\r\n")),
    ):
        for part in parts:
            with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection:
                connection.sendall(part)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # That the ledger closes again is what the fixture asserts.
