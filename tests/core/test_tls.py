"""What the core says of certificates, and the handshake against Python's own TLS, with a data plane in this process."""

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from core import notes, records, tls
from core.codes import Code
from core.ledger import Stats
from core.loop import EdgeLoop
from tests.core import wire
from tests.core.edge_harness import EPOCH, FIN, FIN_ACK, PUBLISH, REPLY, Edge
from tests.core.tls_client import TlsClient, TlsSocket

DEADLINE_S = 30.0
P256 = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
NUMBERS: dict[str, Any] = {
    "ping_ms": 30000, "misses": 3, "hello_timeout_ms": 1000, "fin_timeout_ms": 1000, "write_timeout_ms": 5000,
    "request_timeout_ms": 5000, "max_frame": 65536, "queue_bytes_max": 1 << 20, "channels_max": 16, "publish_rate": 0,
    "kept_bytes_max": 1 << 24, "publish_burst": 0, "worker": 0, "epoch": 1, "handshakes_max": 64,
    "frame_timeout_ms": 5000,
}  # fmt: skip


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem, key.pem, other.pem (a key of its own) and locked.pem (key.pem under a passphrase)."""
    folder = tmp_path_factory.mktemp("tls")
    openssl("genpkey", *P256, "-out", folder / "key.pem")
    openssl("genpkey", *P256, "-out", folder / "other.pem")
    openssl("pkey", "-in", folder / "key.pem", "-aes256", "-passout", "pass:secret", "-out", folder / "locked.pem")
    name = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    openssl("req", "-x509", "-new", "-key", folder / "key.pem", *name, "-out", folder / "cert.pem")
    return folder


def test_a_certificate_and_its_key_will_do(files: Path) -> None:
    tls.check(files / "cert.pem", files / "key.pem")


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("none.pem", "key.pem", 'tls_certificate = ".*none.pem": No such file'),
        ("cert.pem", "none.pem", 'tls_key = ".*none.pem": No such file'),
        ("key.pem", "key.pem", 'tls_certificate = ".*key.pem" is not a certificate chain in PEM: no start line'),
        ("cert.pem", "cert.pem", 'tls_key = ".*cert.pem" is no private key in PEM'),
        ("cert.pem", "other.pem", 'tls_key = ".*other.pem" is not the key of tls_certificate = ".*cert.pem"'),
        ("cert.pem", "locked.pem", 'tls_key = ".*locked.pem" is no private key in PEM without a passphrase'),
    ],
)
def test_what_will_not_do_is_named_with_the_reason(files: Path, certificate: str, key: str, said: str) -> None:
    with pytest.raises(tls.TlsError, match=said):
        tls.check(files / certificate, files / key)


def test_the_library_is_the_one_that_the_interpreter_uses() -> None:
    path, version = tls.library()
    assert Path(path).name.startswith("libssl")
    assert version == ssl.OPENSSL_VERSION


class Plane:
    """A data plane without a router: enough for everything before HELLO."""

    def __init__(self, files: Path, **options: bool) -> None:
        self.stats = Stats()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address = listener.getsockname()
        self._loop = EdgeLoop(
            self.stats, endpoint=f"ipc://{files}/none", identity="worker", tcp_fd=listener.detach(), ws_fd=-1,
            connections_max=64, ws_path="/ws", development=True, **{"proxy_protocol": False, **NUMBERS, **options},
            tls_certificate=str(files / "cert.pem"), tls_key=str(files / "key.pem"),
        )  # fmt: skip
        self._thread = threading.Thread(target=self._loop.run, daemon=True)
        self._thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, DEADLINE_S)

    def counter(self, name: str) -> int:
        return self.stats.read()["counters"][name]

    def stop(self) -> None:
        self._loop.put(notes.STOP)
        self._loop.flush()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        ledger = self.stats.read()["ledger"]
        for kind in ("tls", "connection", "ring", "timer", "segment"):
            assert ledger[f"{kind}_opened"] == ledger[f"{kind}_closed"], kind


@pytest.fixture
def plane(files: Path) -> Iterator[Callable[..., Plane]]:
    planes: list[Plane] = []

    def start(**options: bool) -> Plane:
        planes.append(Plane(files, **options))
        return planes[-1]

    yield start
    for one in planes:
        one.stop()


def context(files: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=files / "cert.pem")
    made.minimum_version = made.maximum_version = version
    return made


def drive(
    raw: socket.socket, made: ssl.SSLContext, first: bytes = b"", step: int = 65536
) -> tuple[ssl.SSLObject, ssl.MemoryBIO]:
    """A client's handshake, `step` bytes a segment, with `first` in front of the first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = made.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    done = False
    while not done:
        try:
            client.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        data, first = first + outgoing.read(), b""
        for place in range(0, len(data), step):
            raw.sendall(data[place : place + step])
        if not done:
            incoming.write(raw.recv(65536))
    return client, incoming


def read(raw: socket.socket, client: ssl.SSLObject, incoming: ssl.MemoryBIO) -> bytes:
    """The next plaintext; b"" once the other side said close_notify."""
    while True:
        try:
            return client.read(65536)
        except ssl.SSLWantReadError:
            data = raw.recv(65536)
            assert data, "the connection ended without close_notify"
            incoming.write(data)
        except ssl.SSLZeroReturnError:
            return b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("step", [1, 7, 65536])
def test_a_handshake_cut_anywhere_and_the_hello_timeout_after_it(
    plane: Callable[..., Plane], files: Path, version: ssl.TLSVersion, step: int
) -> None:
    edge = plane()
    with edge.connect() as raw:
        client, incoming = drive(raw, context(files, version), step=step)
        assert client.version() == version.name.replace("v1_", "v1.")
        fin = read(raw, client, incoming)
        assert fin[4:6] == b"\x94\x0e", "FIN, through TLS"
        assert read(raw, client, incoming) == b""
    assert edge.counter("tls_handshakes") == 1
    assert edge.counter("hello_timeouts") == 1


@pytest.mark.parametrize("step", [1, 65536])
def test_a_proxy_header_in_clear_may_share_its_segment_with_the_client_hello(
    plane: Callable[..., Plane], files: Path, step: int
) -> None:
    edge = plane(proxy_protocol=True)
    with edge.connect() as raw:
        client, incoming = drive(raw, context(files), b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 7400\r\n", step)
        assert read(raw, client, incoming)[4:6] == b"\x94\x0e", "FIN for want of HELLO, through TLS"
    assert edge.counter("tls_handshakes") == 1


def test_tls_1_1_is_refused_and_counted(plane: Callable[..., Plane], files: Path) -> None:
    edge = plane()
    made = context(files)
    made.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        made.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        made.maximum_version = ssl.TLSVersion.TLSv1_1
    with edge.connect() as raw, pytest.raises(ssl.SSLError, match=r"(?i)alert|version|protocol"):
        drive(raw, made)
    assert edge.counter("tls_failures") == 1


def test_close_notify_is_answered_with_the_servers_own(plane: Callable[..., Plane], files: Path) -> None:
    edge = plane()
    with edge.connect() as raw, context(files).wrap_socket(raw, server_hostname="127.0.0.1") as client:
        assert client.unwrap() is not None
    assert edge.counter("hello_timeouts") == 0


def test_a_record_that_was_tampered_with_ends_the_connection(plane: Callable[..., Plane], files: Path) -> None:
    edge = plane()
    with edge.connect() as raw:
        client, incoming = drive(raw, context(files))
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            read(raw, client, incoming)
    assert edge.counter("bad_frames") == 1


@pytest.mark.parametrize("size", [5, 11, 75])
def test_a_client_that_speaks_tls_to_a_plain_port_is_answered_as_a_broken_stream(edge: Edge, size: int) -> None:
    client = edge.client()
    client.socket.sendall((bytes.fromhex("16030100f8010000f40303") + bytes(64))[:size])
    # 0x16030100 as a length is far beyond max_frame.
    assert client.frame()[:2] == [FIN, Code.FRAME_TOO_LARGE]
    assert client.frame() is None
    client.close()
    edge.wait_empty()


def of(files: Path) -> dict[str, str]:
    return {"tls_certificate": str(files / "cert.pem"), "tls_key": str(files / "key.pem")}


@pytest.mark.parametrize("end", ["close_notify", "tcp"])
def test_a_client_that_sends_no_more_gets_its_answers(edges: Callable[..., Edge], files: Path, end: str) -> None:
    edge = edges(**of(files))
    alice = edge.open("alice", TlsClient)
    edge.join(alice, "group:a")
    alice.send([PUBLISH, 7, "group:a", "last words"])
    published = edge.router.expect(records.PUBLISH)
    if end == "tcp":
        cast(TlsSocket, alice.socket).plain.shutdown(socket.SHUT_WR)
    else:
        alice.shut()
    edge.router.send(wire.published(published["seq"], EPOCH, 1))
    assert alice.frame() == [REPLY, 7, {"epoch": EPOCH, "offset": 1}]
    assert alice.frame() is None
    alice.close()
    edge.wait_empty()
    assert edge.live("tls") == 0
    assert edge.counter("closed_bye") == 1


def test_after_fin_ack_close_notify_follows_and_the_client_closes_first(
    edges: Callable[..., Edge], files: Path
) -> None:
    edge = edges(fin_timeout_ms=60_000, **of(files))
    for says_close_notify in (True, False):
        alice = edge.open("alice", TlsClient)
        alice.send([FIN, 0, "bye", {}])
        assert alice.frame() == [FIN_ACK]
        assert alice.frame() is None  # close_notify
        if says_close_notify:
            alice.shut()
        alice.close()
        edge.wait_empty()
    assert edge.counter("closed_bye") == 2


def test_a_record_that_trickles_is_no_life(edges: Callable[..., Edge], files: Path) -> None:
    edge = edges(ping_ms=200, misses=2, **of(files))
    alice = edge.open("alice", TlsClient)
    plain = cast(TlsSocket, alice.socket).plain
    plain.sendall(b"\x17\x03\x03\x40\x00")
    with contextlib.suppress(OSError):  # it is closed at some time
        for _ in range(int(DEADLINE_S / 0.05)):
            plain.sendall(b"x")
            time.sleep(0.05)
    assert edge.counter("closed_heartbeat_lost") == 1
    alice.close()
    edge.wait_empty()
