"""PROXY headers, both versions, at every split point; the address decides who is who, so nothing sloppy passes."""

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import proxy

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
NONE = bytes(16)


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(body)) + body


def body4(source: str = "10.1.2.3", port: int = 40000) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton("10.0.0.1") + struct.pack(">HH", port, 7400)


def body6(source: str = "2001:db8::5", port: int = 40000) -> bytes:
    pack = socket.inet_pton
    return pack(socket.AF_INET6, source) + pack(socket.AF_INET6, "::1") + struct.pack(">HH", port, 7400)


GOOD = [
    (b"PROXY TCP4 10.1.2.3 10.0.0.1 40000 7400\r\n", 4, bytes([10, 1, 2, 3]) + bytes(12), 40000),
    (b"PROXY TCP6 2001:db8::5 ::1 1 65535\r\n", 6, ipaddress.ip_address("2001:db8::5").packed, 1),
    (b"PROXY UNKNOWN\r\n", 0, NONE, 0),
    (b"PROXY UNKNOWN ffff:f::1 ffff::2 65535 65535\r\n", 0, NONE, 0),
    (v2(1, 0x11, body4()), 4, bytes([10, 1, 2, 3]) + bytes(12), 40000),
    (v2(1, 0x11, body4() + b"\x04\0\x02ab" * 50), 4, bytes([10, 1, 2, 3]) + bytes(12), 40000),
    (v2(1, 0x21, body6()), 6, ipaddress.ip_address("2001:db8::5").packed, 40000),
    (v2(0, 0x00, b""), 0, NONE, 0),
    (v2(0, 0x11, body4()), 0, NONE, 0),
    (v2(1, 0x00, b"anything"), 0, NONE, 0),
    (v2(1, 0x31, bytes(216)), 0, NONE, 0),
]


@pytest.mark.parametrize(("header", "family", "source", "port"), GOOD)
def test_whole_headers_and_every_prefix(header: bytes, family: int, source: bytes, port: int) -> None:
    assert proxy.parse(header) == (len(header), family, source, port)
    assert proxy.parse(header + b"GET / HTTP/1.1\r\n") == (len(header), family, source, port)
    assert [proxy.parse(header[:cut])[0] for cut in range(len(header))] == [0] * len(header)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\0",
        b"PROXX",
        b"proxy TCP4",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 40000 7400\n",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 40000\r\n",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 40000 7400 1\r\n",
        b"PROXY TCP4  10.1.2.3 10.0.0.1 40000 7400\r\n",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 40000 7400 \r\n",
        b"PROXY TCP4 10.1.2.256 10.0.0.1 40000 7400\r\n",
        b"PROXY TCP4 10.1.2.03 10.0.0.1 40000 7400\r\n",
        b"PROXY TCP4 10.1.2.3 nobody 40000 7400\r\n",
        b"PROXY TCP4 ::1 ::1 40000 7400\r\n",
        b"PROXY TCP6 10.1.2.3 10.0.0.1 40000 7400\r\n",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 65536 7400\r\n",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 4000a 7400\r\n",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 040 7400\r\n",
        b"PROXY TCP4 10.1.2.3 10.0.0.1 -1 7400\r\n",
        b"PROXY TCP4 10.1.2.3\0 10.0.0.1 1 7400\r\n",
        b"PROXY TCP4 " + b"1" * 50 + b" 10.0.0.1 1 2\r\n",
        b"PROXY TCP5 10.1.2.3 10.0.0.1 1 7400\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN" + b" " * 93 + b"\r\n",
        SIGNATURE + b"\x11",
        SIGNATURE + b"\x22",
        v2(2, 0x11, body4()),
        v2(1, 0x12, body4()),
        v2(1, 0x22, body6()),
        v2(1, 0x41, body6()),
        v2(1, 0x11, body4()[:-1]),
        v2(1, 0x21, body6()[:-1]),
        v2(1, 0x11, body4() + bytes(4096 - 16 - 12 + 1)),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    assert proxy.parse(data)[0] == -1


def test_limits() -> None:
    line = b"PROXY UNKNOWN" + b" " * 92 + b"\r\n"
    assert proxy.parse(line)[0] == len(line) == 107
    assert proxy.parse(line[:-2] + b"x")[0] == 0
    largest = v2(1, 0x11, body4() + bytes(4096 - 16 - 12))
    assert proxy.parse(largest)[0] == 4096


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.integers(0, 65535))
def test_both_versions_tell_the_same_source(address: ipaddress.IPv4Address, port: int) -> None:
    version = address.version
    other = "10.0.0.1" if version == 4 else "::1"
    line = f"PROXY TCP{version} {address} {other} {port} 1\r\n".encode()
    binary = v2(1, 0x11, body4(str(address), port)) if version == 4 else v2(1, 0x21, body6(str(address), port))
    expected = (version, address.packed.ljust(16, b"\0"), port)
    assert proxy.parse(line) == (len(line), *expected)
    assert proxy.parse(binary) == (len(binary), *expected)


@given(st.sampled_from([header for header, *_ in GOOD]), st.integers(0, 1000), st.integers(0, 255))
def test_damaged_headers_never_consume_more_than_there_is(header: bytes, at: int, byte: int) -> None:
    damaged = bytearray(header)
    damaged[at % len(damaged)] = byte
    consumed, family, _, _ = proxy.parse(bytes(damaged))
    assert -1 <= consumed <= len(damaged)
    assert family in (0, 4, 6)
