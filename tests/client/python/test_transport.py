"""Encrypted transports with real certificates, and what an address may be."""

import asyncio
import datetime
import ipaddress
import re
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from holdfast_client import Closed, ConnectFailed, Message, connect
from holdfast_client import transport as transports
from holdfast_client.transport import WebSocketTransport, address
from websockets.asyncio.client import connect as websocket_connect
from websockets.utils import accept_key

from tests.client.scripted_gateway import ScriptedGateway

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        built.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption_algorithm=plain)
    )
    return path


@pytest.mark.parametrize("transport", ["tls", "wss"])
def test_encrypted_only_with_a_certificate_that_is_trusted(certificate: Path, transport: str) -> None:
    async def main() -> None:
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificate)
        async with asyncio.timeout(DEADLINE_S), ScriptedGateway(server) as gateway:
            url = gateway.url(transport)
            with pytest.raises(ConnectFailed, match=r"(?i)certificate"):
                await connect(url)
            trust = ssl.create_default_context(cafile=certificate)
            async with await connect(url, user="ann", ssl=trust) as session:
                await session.join("group:x")
                await session.publish("group:x", "secret")
                item = await session.receive()
                assert isinstance(item, Message)
                assert item.data == "secret"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("tcp://gateway", ("tcp", "gateway", 7400)),
        ("tls://gateway:1", ("tls", "gateway", 1)),
        ("ws://[::1]:7/ws", ("ws", "::1", 7)),
        ("wss://gateway/ws", ("wss", "gateway", 7401)),
    ],
)
def test_address(url: str, expected: tuple[str, str, int]) -> None:
    assert address(url) == expected


def test_path_of_a_websocket_may_be_left_out() -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(DEADLINE_S),
            ScriptedGateway() as gateway,
            await connect(gateway.url("ws").removesuffix("/ws"), user="ann"),
        ):
            assert gateway.paths == ["/ws"]

    asyncio.run(main())


def test_closing_ends_though_the_gateway_no_longer_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(transports, "WRITE_TIMEOUT_S", 0.1)

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = re.findall(r"(?i)sec-websocket-key: (\S+)", head)[0]
        upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{upgrade}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def main() -> float:
        async with asyncio.timeout(DEADLINE_S), await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            # The library's own deadline, far away: it does not hold while what was written before is not taken.
            connection = await websocket_connect(f"ws://127.0.0.1:{port}", close_timeout=60, ping_interval=None)
            transport = WebSocketTransport(connection)
            with pytest.raises(Closed):
                await transport.send([b"x" * 1_048_576] * 64)
            began = asyncio.get_running_loop().time()
            await transport.close(0, "bye")
            await connection.wait_closed()
            return asyncio.get_running_loop().time() - began

    assert asyncio.run(main()) < 5
