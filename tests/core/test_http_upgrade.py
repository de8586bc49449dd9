"""WebSocket's opening handshake: the RFC's example, real clients' requests, and each rule that a request can break."""

import base64
import hashlib

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, Request

from core import http_upgrade

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
FIELDS = {
    b"Host": b"chat.example.com",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
}


def request(line: bytes = b"GET /ws HTTP/1.1", extra: bytes = b"", **changes: bytes | None) -> bytes:
    """A request with fields changed (`Sec_WebSocket_Key=…`), or left out (None)."""
    fields = {**FIELDS, **{name.replace("_", "-").encode(): value for name, value in changes.items()}}
    lines = b"".join(b"%s: %s\r\n" % item for item in fields.items() if item[1] is not None)
    return line + b"\r\n" + lines + extra + b"\r\n"


def test_the_example_of_the_rfc() -> None:
    data = request(extra=b"Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n")
    assert http_upgrade.parse(data) == (len(data), ACCEPT, b"http://example.com")


def test_every_prefix_is_incomplete_and_what_follows_is_left_alone() -> None:
    data = request()
    assert [http_upgrade.parse(data[:cut])[0] for cut in range(len(data))] == [0] * len(data)
    assert http_upgrade.parse(data + b"\x81\x80abcd") == (len(data), ACCEPT, None)


@given(st.binary(min_size=16, max_size=16))
def test_the_accept_key_is_the_rfcs_formula(nonce: bytes) -> None:
    key = base64.b64encode(nonce)
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    assert http_upgrade.parse(request(Sec_WebSocket_Key=key))[1] == base64.b64encode(digest)


def test_an_independent_client_accepts_the_answer() -> None:
    client = WSConnection(ConnectionType.CLIENT)
    data = client.send(Request(host="localhost", target="/ws?token=a%20b"))
    consumed, accept, _ = http_upgrade.parse(data)
    assert consumed == len(data)
    client.receive_data(http_upgrade.response(101, accept))
    assert [type(event) for event in client.events()] == [AcceptConnection]


@pytest.mark.parametrize("status", [400, 403, 404, 405, 426, 429, 431, 500, 503, 505])
def test_errors_are_whole_http_answers_that_close(status: int) -> None:
    data = http_upgrade.response(status)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head, body, end = client.next_event(), client.next_event(), client.next_event()
    assert isinstance(head, h11.Response)
    assert isinstance(body, h11.Data)
    assert isinstance(end, h11.EndOfMessage)
    fields = dict(head.headers)
    assert head.status_code == status
    assert body.data.startswith(b"%d " % status)
    assert len(body.data) == int(fields[b"content-length"])
    assert b"close" in fields[b"connection"]
    assert (b"allow" in fields) == (status == 405)
    assert fields.get(b"sec-websocket-version") == (b"13" if status == 426 else None)
    assert client.trailing_data == (b"", False)


def test_an_independent_client_sees_the_rejection() -> None:
    client = WSConnection(ConnectionType.CLIENT)
    client.send(Request(host="localhost", target="/other"))
    client.receive_data(http_upgrade.response(404))
    event = next(iter(client.events()))
    assert isinstance(event, RejectConnection)
    assert event.status_code == 404


@pytest.mark.parametrize("status", [101, 404, 426, 431])
def test_an_answer_that_does_not_fit_is_not_written(status: int) -> None:
    size = len(http_upgrade.response(status, ACCEPT))
    # One byte more than the answer, for the NUL that the printing needs.
    assert len(http_upgrade.response(status, ACCEPT, size + 1)) == size
    assert [http_upgrade.response(status, ACCEPT, room) for room in range(size + 1)] == [b""] * (size + 1)


@pytest.mark.parametrize(
    "data",
    [
        request(Upgrade=b"WebSocket"),
        request(Upgrade=b"h2c, websocket"),
        request(Connection=b"keep-alive, Upgrade"),
        request(Connection=b"UPGRADE"),
        request(Connection=b"keep-alive", extra=b"connection:upgrade\r\n"),
        request(Connection=b", ,upgrade\t,"),
        request(b"GET /ws? HTTP/1.1"),
        request(b"GET /ws?a=b&c=/d?e HTTP/1.1"),
        request(Host=b""),
        request(extra=b"Content-Length: 0\r\n"),
        request(extra=b"X-Text: caf\xc3\xa9\tand more\r\n"),
        request(extra=b"X-Empty:\r\n"),
        request().replace(b"Host: ", b"hOST:   ").replace(b"13\r\n", b"13 \t \r\n"),
    ],
)
def test_allowed_variations(data: bytes) -> None:
    assert http_upgrade.parse(data)[:2] == (len(data), ACCEPT)


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (404, request(b"GET / HTTP/1.1")),
        (404, request(b"GET /wss HTTP/1.1")),
        (404, request(b"GET /ws/ HTTP/1.1")),
        (404, request(b"GET /w HTTP/1.1")),
        (404, request(b"GET /ws#a HTTP/1.1")),
        (404, request(b"GET http://chat.example.com/ws HTTP/1.1")),
        (405, request(b"POST /ws HTTP/1.1")),
        (405, request(b"HEAD /ws HTTP/1.1")),
        (405, request(b"get /ws HTTP/1.1")),
        (505, request(b"GET /ws HTTP/1.0")),
        (505, request(b"GET /ws HTTP/2.0")),
        (426, request(Upgrade=None)),
        (426, request(Upgrade=b"h2c")),
        (426, request(Upgrade=b"websockets")),
        (426, request(Connection=None)),
        (426, request(Connection=b"keep-alive")),
        (426, request(Connection=b"upgrader")),
        (426, request(Sec_WebSocket_Version=None)),
        (426, request(Sec_WebSocket_Version=b"8")),
        (426, request(Sec_WebSocket_Version=b"13, 8")),
        (400, request(Sec_WebSocket_Key=None)),
        (400, request(Sec_WebSocket_Key=b"")),
        (400, request(Sec_WebSocket_Key=KEY[:-1])),
        (400, request(Sec_WebSocket_Key=KEY + b"=")),
        (400, request(Sec_WebSocket_Key=base64.b64encode(b"x" * 17))),
        (400, request(Sec_WebSocket_Key=base64.b64encode(b"x" * 18))),
        (400, request(Sec_WebSocket_Key=b"-" + KEY[1:])),
        (400, request(extra=b"Sec-WebSocket-Key: " + KEY + b"\r\n")),
        (400, request(extra=b"Sec-WebSocket-Version: 13\r\n")),
        (400, request(Host=None)),
        (400, request(extra=b"Host: other\r\n")),
        (400, request(extra=b"Content-Length: 5\r\n")),
        (400, request(extra=b"Transfer-Encoding: chunked\r\n")),
        (400, request(extra=b"X-Folded: a\r\n b\r\n")),
        (400, request(extra=b" X-Leading: a\r\n")),
        (400, request(extra=b"X-Space : a\r\n")),
        (400, request(extra=b"No colon\r\n")),
        (400, request(extra=b": no name\r\n")),
        (400, request(extra=b"X-N\xc3\xa4me: a\r\n")),
        (400, request(extra=b"X-Nul: \0\r\n")),
        (400, request(extra=b"X-Control: \x1b[2J\r\n")),
        (400, request(extra=b"X-Delete: \x7f\r\n")),
        (400, request(extra=b"X-Bare: a\n")),
        (400, request(extra=b"X-Bare: a\rb\r\n")),
        (400, request().replace(b"\r\n", b"\n")),
        (400, request(b"GET /ws")),
        (400, request(b"GET  /ws HTTP/1.1")),
        (400, request(b"GET /ws HTTP/1.1 ")),
        (400, request(b" GET /ws HTTP/1.1")),
        (400, request(b"GET /ws\tHTTP/1.1")),
        (400, request(b"GET /w\xc3\xa4 HTTP/1.1")),
        (400, request(b"GET /ws HTTP/11")),
        (400, request(b"GET /ws http/1.1")),
        (400, request(b"G(T /ws HTTP/1.1")),
        (400, b"\r\n" + request()),
        (400, b"\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\0\x01"),
        (400, b"\x93\x00"),
        (400, b"{"),
    ],
)
def test_what_is_wrong_has_its_status(status: int, data: bytes) -> None:
    assert http_upgrade.parse(data) == (-status, b"", None)


def test_forbidden_characters_are_refused_before_the_end_comes() -> None:
    assert http_upgrade.parse(b"GET /ws HTTP/1.1\nHost")[0] == -400
    assert http_upgrade.parse(b"GET /ws HTTP/1.1\r\nHost: \0")[0] == -400


def test_the_size_has_a_limit() -> None:
    room = 8192 - len(request(extra=b"X: \r\n"))
    largest = request(extra=b"X: " + b"a" * room + b"\r\n")
    assert len(largest) == 8192
    assert http_upgrade.parse(largest)[0] == 8192
    assert http_upgrade.parse(request(extra=b"X: " + b"a" * (room + 1) + b"\r\n"))[0] == -431
    assert http_upgrade.parse(b"A" * 8191)[0] == 0
    assert http_upgrade.parse(b"A" * 8192)[0] == -431


@given(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=3))
@settings(max_examples=500, deadline=None)
def test_a_damaged_request_is_refused_or_is_still_one(at: int, junk: bytes) -> None:
    data = bytearray(request(extra=b"Origin: http://a\r\n"))
    at %= len(data)
    data[at : at + len(junk)] = junk
    consumed, accept, _ = http_upgrade.parse(bytes(data))
    assert consumed <= len(data)
    if consumed > 0:
        # What we accept, an independent parser accepts too.
        server = h11.Connection(h11.SERVER)
        server.receive_data(bytes(data[:consumed]))
        event = server.next_event()
        assert isinstance(event, h11.Request)
        assert event.target.split(b"?")[0] == b"/ws"
        assert len(base64.b64decode(dict(event.headers)[b"sec-websocket-key"])) == 16
        assert len(accept) == 28
