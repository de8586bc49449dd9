"""TCP framing: however the bytes arrive, the bodies come out; what cannot be a frame is refused from its length."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import framing_tcp as tcp


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def decode(data: bytes, sizes: list[int]) -> list[bytes]:
    reader = tcp.TcpReader()
    bodies = []
    for size in [*sizes, len(data)]:
        bodies += reader.feed(data[:size])
        data = data[size:]
        assert reader.error == 0
        assert reader.need > reader.buffered
    assert reader.buffered == 0
    return bodies


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.lists(st.integers(0, 200), max_size=10))
@settings(max_examples=200, deadline=None)
def test_bodies_come_out_whole_however_they_are_cut(bodies: list[bytes], sizes: list[int]) -> None:
    data = b"".join(map(frame, bodies))
    assert decode(data, sizes) == bodies
    assert decode(data, [1] * len(data)) == bodies


def test_every_split_point_gives_the_same_bodies() -> None:
    bodies = [b"a", b"bcdef", b"x" * 20]
    data = b"".join(map(frame, bodies))
    for first in range(len(data) + 1):
        for second in range(len(data) - first + 1):
            assert decode(data, [first, second]) == bodies


def test_a_body_comes_out_with_its_last_byte_and_not_later() -> None:
    reader = tcp.TcpReader()
    assert reader.feed(b"\0\0\0") == []
    assert (reader.need, reader.buffered) == (4, 3)
    assert reader.feed(b"\x05abcd") == []
    assert (reader.need, reader.buffered) == (5, 4)
    assert reader.feed(b"e\0") == [b"abcde"]
    assert (reader.need, reader.buffered) == (4, 1)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 65535, 65536, 70000])
def test_the_limit_is_the_last_size_allowed(size: int) -> None:
    assert tcp.TcpReader(size).feed(frame(b"x" * size)) == [b"x" * size]
    reader = tcp.TcpReader(size)
    assert reader.feed(struct.pack(">I", size + 1)) == []
    assert reader.error == tcp.TOO_LARGE
    assert reader.feed(frame(b"after")) == []


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_huge_lengths_are_too_large(size: int) -> None:
    reader = tcp.TcpReader()
    reader.feed(struct.pack(">I", size))
    assert reader.error == tcp.TOO_LARGE


def test_an_empty_body_is_bad_after_the_good_ones_before_it() -> None:
    reader = tcp.TcpReader()
    assert reader.feed(frame(b"ok") + b"\0\0\0\0" + frame(b"never")) == [b"ok"]
    assert reader.error == tcp.BAD


@pytest.mark.parametrize("size", [1, 255, 256, 65536, 0x01020304, 0xFFFFFFFF])
def test_the_header_is_big_endian(size: int) -> None:
    assert tcp.header(size) == struct.pack(">I", size)
