"""Both ports under TLS, with real certificates and clients that know nothing of our code."""

import asyncio
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect

from tests.conftest import Node, wait_until
from tests.servers.certificates import self_signed

Start = Callable[..., Node]
DEADLINE_S = 25.0
LARGE = 60 * 1024


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed P-256 certificate for 127.0.0.1, and its key."""
    return self_signed(tmp_path_factory.mktemp("certificate"))


def start(holdfast: Start, certificate: tuple[Path, Path], *arguments: str, **settings: str) -> Node:
    chain, key = map(str, certificate)
    return holdfast(*arguments, HOLDFAST_GATEWAY_TLS_CERTIFICATE=chain, HOLDFAST_GATEWAY_TLS_KEY=key, **settings)


def context(certificate: tuple[Path, Path], version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=certificate[0])
    made.minimum_version = made.maximum_version = version
    return made


def run(work: Any) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await work

    return asyncio.run(limited())


class Tcp:
    """Length-prefixed MessagePack over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, node: Node, tls: ssl.SSLContext, limit: int = 1 << 16) -> "Tcp":
        return cls(*await asyncio.open_connection("127.0.0.1", node.port, ssl=tls, limit=limit))

    def send(self, *frame: Any) -> None:
        body = msgpack.packb(frame)
        self.writer.write(struct.pack(">I", len(body)) + body)

    async def receive(self) -> Any:
        (size,) = struct.unpack(">I", await self.reader.readexactly(4))
        return msgpack.unpackb(await self.reader.readexactly(size))

    async def until(self, kind: int) -> Any:
        while (frame := await self.receive())[0] != kind:
            pass
        return frame

    async def hello(self, user: str) -> None:
        self.send(0, 1, {"v": 1, "user": user})
        await self.until(1)

    async def leave(self) -> None:
        self.send(14, 0, "", {})
        await self.until(15)
        assert await self.reader.read() == b""  # close_notify and the end, not a reset
        self.writer.close()


async def ws_open(node: Node, tls: ssl.SSLContext, user: str) -> ClientConnection:
    client = await ws_connect(f"wss://127.0.0.1:{node.ws_port}/ws", ssl=tls, max_size=1 << 20)
    await client.send(msgpack.packb([0, 1, {"v": 1, "user": user}]))
    assert msgpack.unpackb(await client.recv())[0] == 1
    return client


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_messages_of_60_kib_cross_both_transports_whole_and_in_order(
    holdfast: Start, certificate: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    node = start(holdfast, certificate, "--workers", "2", HOLDFAST_GATEWAY_QUEUE_BYTES_MAX="33554432")
    tls = context(certificate, version)

    async def talk() -> None:
        tcp, ws = await Tcp.open(node, tls), await ws_open(node, tls, "wanda")
        assert tcp.writer.get_extra_info("ssl_object").version() == version.name.replace("v1_", "v1.")
        await tcp.hello("tom")
        tcp.send(6, 2, "group:large", {})
        await tcp.until(2)
        await ws.send(msgpack.packb([6, 2, "group:large", {}]))
        while msgpack.unpackb(await ws.recv())[0] != 2:
            pass
        sent = [bytes([number]) * LARGE for number in range(100)]

        async def publish() -> None:
            for number, data in enumerate(sent):
                if number % 2:
                    tcp.send(8, 0, "group:large", data, {})
                    await tcp.writer.drain()
                else:
                    await ws.send(msgpack.packb([8, 0, "group:large", data, {}]))

        async def over_tcp() -> list[Any]:
            return [await tcp.until(9) for _ in sent]

        async def over_ws() -> list[Any]:
            found: list[Any] = []
            while len(found) < len(sent):
                frame = msgpack.unpackb(await ws.recv())
                found += [frame] if frame[0] == 9 else []
            return found

        _, by_tcp, by_ws = await asyncio.gather(publish(), over_tcp(), over_ws())
        assert [frame[2] for frame in by_tcp] == [frame[2] for frame in by_ws] == list(range(1, 101))
        assert [frame[3] for frame in by_tcp] == [frame[3] for frame in by_ws]
        assert sorted(frame[3] for frame in by_tcp) == sent
        await tcp.leave()
        await ws.close()

    run(talk())
    wait_until(lambda: node.live("tls") == 0, "every TLS state is released")
    assert node.metric("holdfast_tls_handshakes_total") == 2


def test_a_slow_reader_gets_every_message_once_it_reads(holdfast: Start, certificate: tuple[Path, Path]) -> None:
    node = start(holdfast, certificate, "--workers", "1", HOLDFAST_GATEWAY_QUEUE_BYTES_MAX="67108864")
    tls = context(certificate)

    async def talk() -> None:
        slow, quick = await Tcp.open(node, tls, limit=1 << 12), await Tcp.open(node, tls)
        await slow.hello("slow")
        await quick.hello("quick")
        for client in (slow, quick):
            client.send(6, 2, "group:slow", {})
            await client.until(2)
        # asyncio stops reading at twice its limit; the rest must wait in the kernel, then in the gateway.
        for number in range(400):
            quick.send(8, number + 1, "group:slow", bytes([number % 256]) * LARGE, {})
            await quick.until(2)
        await asyncio.to_thread(wait_until, lambda: node.metric("holdfast_queued_bytes") > 1 << 20, "output is queued")
        got = [await slow.until(9) for _ in range(400)]
        assert [(frame[2], frame[3]) for frame in got] == [(n + 1, bytes([n % 256]) * LARGE) for n in range(400)]
        await slow.leave()
        await quick.leave()

    run(talk())
    wait_until(lambda: node.metric("holdfast_queued_bytes") == 0, "nothing is queued")


def test_200_clients_at_once(holdfast: Start, certificate: tuple[Path, Path]) -> None:
    node = start(holdfast, certificate, "--workers", "2")
    tls = context(certificate)

    async def one(number: int) -> None:
        if number % 2:
            client = await Tcp.open(node, tls)
            await client.hello(f"user-{number}")
            client.send(8, 7, f"user:user-{number}", number, {})
            assert (await client.until(9))[3] == number
            await client.leave()
        else:
            async with await ws_open(node, tls, f"user-{number}") as socket_:
                await socket_.send(msgpack.packb([4, 1, 5]))
                assert msgpack.unpackb(await socket_.recv()) == [5, 1, 5]

    async def talk() -> None:
        await asyncio.gather(*(one(number) for number in range(200)))

    run(talk())
    wait_until(lambda: node.live("tls") == 0, "every TLS state is released")
    assert node.metric("holdfast_tls_handshakes_total") == 200


def test_a_ticket_of_one_worker_is_good_at_the_others(holdfast: Start, certificate: tuple[Path, Path]) -> None:
    node = start(holdfast, certificate, "--workers", "2")
    tls = context(certificate, ssl.TLSVersion.TLSv1_2)  # where Python's client has the ticket with the handshake
    session = None
    for _ in range(16):  # one of two workers each: all sixteen at the same one is a chance of 1 in 32,768
        raw = socket.create_connection(("127.0.0.1", node.port), 10)
        with tls.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as client:
            assert client.session_reused is (session is not None)
            session = session or client.session
    # The client ends an abbreviated handshake: the server may still have its last words to read.
    wait_until(lambda: node.metric("holdfast_tls_resumed_total") == 15, "each but the first is resumed")
    by_worker = [value for _, value in node.metrics()["holdfast_tls_handshakes_total"] if value]
    assert len(by_worker) == 2


@contextmanager
def plain(node: Node) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", node.port), 10) as raw:
        yield raw


def test_what_is_no_tls_is_closed_and_counted(holdfast: Start, certificate: tuple[Path, Path]) -> None:
    node = start(holdfast, certificate, "--workers", "1")
    hello = msgpack.packb([0, 1, {"v": 1}])
    for attempt in (b"\x16\x03\x01\x00\x05garbage", struct.pack(">I", len(hello)) + hello, b"GET /ws HTTP/1.1\r\n\r\n"):
        with plain(node) as raw:
            raw.sendall(attempt)
            while raw.recv(4096):  # an alert, perhaps, then the end
                pass
    wait_until(lambda: node.metric("holdfast_tls_failures_total") == 3, "each is counted")
    wait_until(lambda: node.live("connection") == 0, "none is left")


def test_half_a_handshake_ends_with_hello_timeout(holdfast: Start, certificate: tuple[Path, Path]) -> None:
    node = start(holdfast, certificate, "--workers", "1", HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS="1000")
    outgoing = ssl.MemoryBIO()
    client = context(certificate).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with plain(node) as half, plain(node) as silent:
        half.sendall(outgoing.read()[:50])
        assert half.recv(4096) == b""
        assert silent.recv(4096) == b""
    wait_until(lambda: node.metric("holdfast_closed_hello_timeout_total") == 2, "the reason is counted")


def test_heartbeat_and_its_loss_work_under_tls(holdfast: Start, certificate: tuple[Path, Path]) -> None:
    node = start(
        holdfast,
        certificate,
        "--workers",
        "1",
        HOLDFAST_GATEWAY_PING_MS="1000",
        HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS="2000",
    )

    async def talk() -> None:
        client = await Tcp.open(node, context(certificate))
        await client.hello("quiet")
        assert (await client.until(4))[1] == 1
        fin = await client.until(14)
        assert fin[3]["class"] == "resume"
        assert await client.reader.read() == b""
        client.writer.close()

    run(talk())
    assert node.metric("holdfast_heartbeats_lost_total") == 1


def test_a_proxy_header_comes_before_tls_in_clear(holdfast: Start, certificate: tuple[Path, Path]) -> None:
    node = start(holdfast, certificate, "--workers", "1", HOLDFAST_GATEWAY_PROXY_PROTOCOL="true")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(certificate).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    body = msgpack.packb([0, 1, {"v": 1, "user": "far"}])
    with plain(node) as raw:
        first = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 7400\r\n"
        while True:  # the header and ClientHello in one segment
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(first + outgoing.read())
                first = b""
                incoming.write(raw.recv(65536))
        client.write(struct.pack(">I", len(body)) + body)
        raw.sendall(outgoing.read())
        answer = b""
        while len(answer) < 6:
            try:
                answer += client.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(raw.recv(65536))
    assert answer[5] == 1  # WELCOME


def test_a_key_of_another_certificate_is_refused_at_the_start(
    holdfast: Start, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    make = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", str(other)]
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    with pytest.raises(AssertionError, match="ended with") as refused:
        start(holdfast, (certificate[0], other), "--workers", "1")
    said = str(refused.value)
    assert f'tls_key = "{other}" is not the key of tls_certificate = "{certificate[0]}"' in said
    assert said.count("is not the key of") == 1, "it was started again, though that cannot help"
