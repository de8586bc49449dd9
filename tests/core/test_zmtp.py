"""ZMTP: the words of the handshake and the headers of frames, held against libzmq's own."""

import contextlib
import socket
import struct
from collections.abc import Generator

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from core import zmtp

DEADLINE_S = 30.0


@given(st.binary(max_size=255))
def test_a_ready_tells_the_identity(identity: bytes) -> None:
    flags, header, size = zmtp.frame(zmtp.ready(b"DEALER", identity)) or (0, 0, 0)
    assert flags & 4
    body = zmtp.ready(b"DEALER", identity)[header:]
    assert len(body) == size
    assert zmtp.ready_identity(body) == identity


def test_an_identity_that_is_too_long_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="255"):
        zmtp.ready(b"DEALER", bytes(256))


@given(st.binary(max_size=40), st.integers(0, 60))
def test_whatever_a_ready_holds_is_read_or_refused(garbage: bytes, cut: int) -> None:
    body = zmtp.ready(b"DEALER", b"someone")[9:]
    for said in (b"\x05READY" + garbage, body[:cut] + garbage):
        with contextlib.suppress(ValueError):
            assert len(zmtp.ready_identity(said)) <= 255


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", None),
        (b"\x00", None),
        (b"\x00\x05", (0, 2, 5)),
        (b"\x01\xff", (1, 2, 255)),
        (b"\x02" + bytes(7), None),
        (b"\x02" + struct.pack(">Q", 70_000), (2, 9, 70_000)),
        (b"\x04\x00", (4, 2, 0)),
        (b"\x06" + struct.pack(">Q", 2**63), (6, 9, 2**63)),
    ],
)
def test_a_header_is_read_once_it_is_whole(data: bytes, found: tuple[int, int, int] | None) -> None:
    assert zmtp.frame(data) == found


@pytest.mark.parametrize("flags", [8, 16, 0x80, 0xFF])
def test_unknown_flags_are_no_frame(flags: int) -> None:
    with pytest.raises(ValueError, match="ZMTP"):
        zmtp.frame(bytes([flags, 0]))


def test_a_greeting_of_another_version_or_mechanism_is_refused() -> None:
    good = zmtp.greeting()
    assert zmtp.greeting_accepted(good)
    assert not zmtp.greeting_accepted(good[:63])
    for place, byte in ((0, 0xFE), (9, 0x7E), (10, 2), (12, ord("C"))):
        assert not zmtp.greeting_accepted(good[:place] + bytes([byte]) + good[place + 1 :])


def test_a_ping_is_answered_with_its_context() -> None:
    answer = zmtp.pong(b"\x04PING\x00\x0ahello")
    assert answer is not None
    assert answer[9:] == b"\x04PONGhello"
    assert zmtp.pong(b"\x04PING") is None
    assert zmtp.pong(b"\x04PING\x00\x0a" + bytes(17)) is None
    assert zmtp.pong(b"\x05HELLO12") is None


@pytest.fixture
def libzmq() -> Generator[tuple["zmq.Socket[bytes]", socket.socket], None, None]:
    """A ROUTER of libzmq's, and a plain stream to it."""
    context = zmq.Context(1)
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as stream:
        yield router, stream
    router.close()
    context.term()


def exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        assert more, "the peer closed"
        data += more
    return data


def test_libzmq_accepts_these_words_and_says_the_same(libzmq: tuple["zmq.Socket[bytes]", socket.socket]) -> None:
    router, stream = libzmq
    stream.sendall(zmtp.greeting() + zmtp.ready(b"DEALER", b"node/1/2"))
    assert zmtp.greeting_accepted(exactly(stream, 64))
    flags, header, size = zmtp.frame(exactly(stream, 2) + bytes(7)) or (0, 0, 0)
    assert (flags, header) == (4, 2)
    assert zmtp.ready_identity(exactly(stream, size)) == b""
    stream.sendall(b"\x00\x05hello")
    assert router.poll(int(DEADLINE_S * 1000))
    assert router.recv_multipart() == [b"node/1/2", b"hello"]
