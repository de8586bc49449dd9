"""Who comes in and how much they may do: tokens, PROXY headers, and the bounds of a session; a node for each."""

import asyncio
import json
import struct
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.conftest import Node, free_ports
from tests.process.clients import (
    DEADLINE_S,
    HELLO,
    JOIN,
    KINDS,
    LEAVE,
    Client,
    Gone,
    Refused,
    TcpClient,
    WebSocketClient,
    dial,
    group,
    run,
)

SECRET = "a secret of more than thirty-two bytes, for tests"
TOKEN_EXPIRED, NOT_ALLOWED, RATE_LIMITED, TOO_MANY_CHANNELS, BAD_TOKEN = 200, 400, 403, 404, 602
NAMES = {TOKEN_EXPIRED: "token_expired", BAD_TOKEN: "bad_token"}


def token(secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode(claims, secret, algorithm="HS256")


def unsigned(**claims: Any) -> str:
    parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
    return b".".join([*parts, b""]).decode()


async def refused_hello(node: Node, kind: str, code: int, **options: Any) -> None:
    client = await dial(node, kind)
    await client.send(HELLO, 1, {"v": 1, **options})
    _, found, reason, told = await client.fin()
    assert (found, told["class"]) == (code, "stop" if code == BAD_TOKEN else "fresh")
    assert reason
    assert SECRET not in reason
    gone = await client.ended()
    if isinstance(client, WebSocketClient):
        assert (gone.status, gone.reason) == (4000 + code, NAMES[code])


def test_with_a_secret_only_signed_tokens_come_in(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET)
    now = int(time.time())
    bad: list[dict[str, Any]] = [
        {},
        {"user": "alice"},
        {"token": None, "user": "alice"},
        {"token": "alice"},
        {"token": unsigned(sub="alice")},
        {"token": token("another secret of more than 32 bytes, of others", sub="alice")},
        {"token": token(exp=now + 60)},
        {"token": token(sub="")},
        {"token": token(sub="alice", nbf=now + 600)},
    ]

    async def body() -> None:
        for kind in KINDS:
            await asyncio.gather(
                *(refused_hello(node, kind, BAD_TOKEN, **options) for options in bad),
                refused_hello(node, kind, TOKEN_EXPIRED, token=token(sub="alice", exp=now - 1)),
            )
            client = await dial(node, kind)
            await client.hello(token=token(sub="alice", exp=now + 60), user="mallory")
            assert client.user == "alice"
            # Global channels are not for clients to write to here.
            with pytest.raises(Refused) as refused:
                await client.publish("global:news", "x")
            assert refused.value.code == NOT_ALLOWED
            # A resume token is signed with the same secret, and is no HELLO token.
            await refused_hello(node, kind, BAD_TOKEN, token=client.resume_token)
            again = await dial(node, kind)
            await again.hello(session=client.session, token=client.resume_token)
            assert again.user == "alice"
            await client.fin()
            await client.acknowledge()
            await again.close()

    run(body())


def test_without_a_secret_only_loopback_is_listened_on(tmp_path: Path) -> None:
    ports = [str(port) for port in free_ports(3)]
    flags = ["--port", ports[0], "--ws-port", ports[1], "--admin-port", ports[2]]
    program = Path(sys.executable).parent / "holdfast"
    done = subprocess.run(
        [program, "run", "--host", "0.0.0.0", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "loopback" in done.stderr
    assert "Traceback" not in done.stderr


# ---- PROXY protocol ----

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
V1_UNKNOWN = b"PROXY UNKNOWN\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2 = SIGNATURE + b"\x21\x11" + struct.pack(">H4s4sHH", 12, bytes([192, 0, 2, 7]), bytes([192, 0, 2, 1]), 4711, 443)
V2_IPV6 = SIGNATURE + b"\x21\x21" + struct.pack(">H16s16sHH", 36, bytes(16), bytes(16), 4711, 443)
V2_LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_a_proxy_header_is_required_when_configured(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_PROXY_PROTOCOL="true")

    async def taken(header: bytes) -> None:
        client = await TcpClient.dial(node.port, header)
        await client.hello(user="alice")
        await client.close()
        # Byte by byte as well, and in front of an HTTP request.
        slow = await TcpClient.dial(node.port)
        for at in range(len(header)):
            await slow.send_bytes(header[at : at + 1])
        await slow.hello(user="bob")
        await slow.close()
        web = await TcpClient.dial(node.ws_port, header + UPGRADE)
        async with asyncio.timeout(DEADLINE_S):
            assert (await web._reader.readline()).startswith(b"HTTP/1.1 101 ")
        await web.abort()

    async def closed(port: int, data: bytes) -> None:
        client = await TcpClient.dial(port, data)
        assert await client.read_raw() == b"", "not a word to whom the balancer did not introduce"

    async def body() -> None:
        await asyncio.gather(*(taken(header) for header in (V1, V1_UNKNOWN, V2, V2_IPV6, V2_LOCAL)))
        wrong = [
            b"\x00\x00\x00\x04\x93\x00\x01\x80",
            UPGRADE,
            b"PROXY TCP4 192.0.2.7\r\n",
            b"PROXY TCP4 192.0.2.777 192.0.2.1 4711 443\r\n",
            b"PROXY " + b"x" * 200,
            SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
            SIGNATURE + b"\x21\x11\x00\x02" + bytes(2),
        ]
        await asyncio.gather(*(closed(port, data) for port in (node.port, node.ws_port) for data in wrong))

    run(body())


def test_without_that_setting_a_proxy_header_is_no_frame(node: Node) -> None:
    async def body() -> None:
        client = await TcpClient.dial(node.port, V1)
        _, code, _, _ = await client.fin()
        assert code == 601, "read as a length, it is far over max_frame"
        await client.ended()

    run(body())


# ---- bounds of a session ----


def test_a_session_publishes_as_fast_as_it_may_and_is_told_when_to_go_on(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_PUBLISH_RATE="10", HOLDFAST_GATEWAY_PUBLISH_BURST="20")

    async def body() -> None:
        client, other, channel = await dial(node, "text"), await dial(node, "tcp"), group()
        await client.hello()
        await other.hello()
        await client.join(channel)
        await other.join(channel)
        taken, refused = 0, None
        while refused is None and taken < 100:
            try:
                await client.publish(channel, taken)
                taken += 1
            except Refused as error:
                refused = error
        assert refused is not None
        assert 20 <= taken <= 25
        assert refused.code == RATE_LIMITED
        assert refused.options["retry_after"] > 0
        # One's bucket is one's own, and it fills again: what retry_after promises holds.
        await other.publish(channel, "mine")
        async with asyncio.timeout(refused.options["retry_after"] / 1000 + 1):
            while await published(client, channel) == RATE_LIMITED:
                pass
        await asyncio.gather(client.close(), other.close())

    run(body())


async def published(client: Client, channel: str) -> int:
    """0, or the code that a publish was refused with."""
    try:
        await client.publish(channel, "again")
    except Refused as refused:
        return refused.code
    return 0


def test_a_session_joins_as_many_groups_as_it_may(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_CHANNELS_PER_SESSION_MAX="3")

    async def body() -> None:
        for kind in KINDS:
            client = await dial(node, kind)
            await client.hello()
            channels = [group() for _ in range(4)]
            for channel in channels[:3]:
                await client.join(channel)
            with pytest.raises(Refused) as refused:
                await client.join(channels[3])
            assert refused.value.code == TOO_MANY_CHANNELS
            await client.join(channels[0])
            await client.ask(LEAVE, channels[0])
            await client.join(channels[3])
            # Asked for all at once, it is the same bound.
            eager = await dial(node, kind)
            await eager.hello()
            for number, channel in enumerate(group() for _ in range(6)):
                await eager.send(JOIN, 100 + number, channel, {})
            answers = [await outcome(eager, 100 + number) for number in range(6)]
            assert answers == [0, 0, 0, TOO_MANY_CHANNELS, TOO_MANY_CHANNELS, TOO_MANY_CHANNELS]
            await asyncio.gather(client.close(), eager.close())

    run(body())


async def outcome(client: Client, request: int) -> int:
    """0, or the code of the refusal."""
    for frame in list(client.kept):
        if frame[0] in (2, 3) and frame[1] == request:
            client.kept.remove(frame)
            return 0 if frame[0] == 2 else int(frame[2])
    try:
        await client.answer(request)
    except Refused as refused:
        return refused.code
    return 0


def test_connections_beyond_the_bound_are_refused_and_the_others_stay(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_CONNECTIONS_MAX="3")

    async def body() -> None:
        clients = []
        for _ in range(3):
            client = await dial(node, "tcp")
            clients.append(await client.hello())
        more = await dial(node, "tcp")
        with pytest.raises(Gone):
            await more.hello()
        for client in clients:
            assert await client.settle() == []
        await asyncio.gather(*(client.close() for client in clients))

    run(body())
    assert node.metric("holdfast_connections_refused_total") >= 1
