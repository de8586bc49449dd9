"""WebSocket framing against wsproto, however the bytes arrive, and the rules of RFC 6455 one by one."""

import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from core import framing_ws as ws

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"
Frames = list[tuple[int, bytes]]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = MASK, rsv: int = 0) -> bytes:
    """A frame, written by the words of the RFC and not by the code under test."""
    size = len(payload)
    lead = bytes([fin << 7 | rsv << 4 | opcode])
    masked = 0 if mask is None else 0x80
    if size < 126:
        lead += bytes([masked | size])
    elif size < 65536:
        lead += bytes([masked | 126]) + struct.pack(">H", size)
    else:
        lead += bytes([masked | 127]) + struct.pack(">Q", size)
    if mask is None:
        return lead + payload
    return lead + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def message(opcode: int, parts: list[bytes], between: list[tuple[int, bytes]], mask: bytes | None = MASK) -> bytes:
    """A message in fragments, with control frames after each of the first ones."""
    out = b""
    for at, part in enumerate(parts):
        out += frame(0 if at else opcode, part, fin=at == len(parts) - 1, mask=mask)
        if at < len(parts) - 1:
            out += b"".join(frame(kind, payload, mask=mask) for kind, payload in between)
    return out


def decode(data: bytes, sizes: list[int] | None = None, *, client: bool = False) -> tuple[Frames, int]:
    """Feed `data` in pieces of `sizes` (then the rest): the frames and the error."""
    reader = ws.WsReader(1 << 20, client=client)
    frames: Frames = []
    for size in [*(sizes or []), len(data)]:
        frames += reader.feed(data[:size])
        data = data[size:]
        assert reader.error or reader.need > reader.buffered
    return frames, reader.error


def oracle(data: bytes, *, client: bool = False) -> tuple[Frames, bool]:
    """What wsproto makes of `data`: the messages and control frames before the first error,
    and whether there was one.
    """
    protocol = FrameProtocol(client=client, extensions=[])
    frames: Frames = []
    partial = b""
    try:
        protocol.receive_bytes(data)
        for got in protocol.received_frames():
            # wsproto's types say a union of all payloads for every opcode.
            payload: Any = got.payload
            if got.opcode is Opcode.CLOSE:
                code, reason = payload
                frames.append((CLOSE, b"" if code == 1005 else struct.pack(">H", code) + (reason or "").encode()))
            elif got.opcode in (Opcode.PING, Opcode.PONG):
                frames.append((int(got.opcode), bytes(payload)))
            else:
                partial += payload.encode() if isinstance(payload, str) else bytes(payload)
                if got.message_finished:
                    frames.append((int(got.opcode), partial))
                    partial = b""
    except ParseFailed:
        return frames, True
    return frames, False


controls = st.lists(st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)), max_size=2)
texts = st.lists(st.text(max_size=40).map(str.encode), min_size=1, max_size=4).map(lambda parts: (TEXT, parts))
binaries = st.lists(st.binary(max_size=300), min_size=1, max_size=4).map(lambda parts: (BINARY, parts))
masks = st.binary(min_size=4, max_size=4)


@st.composite
def streams(draw: st.DrawFn, masked: bool = True) -> tuple[bytes, Frames]:
    """A stream of well-formed messages, and the frames that must come out of it."""
    data = b""
    expected: Frames = []
    for opcode, parts in draw(st.lists(st.one_of(texts, binaries), max_size=5)):
        between = draw(controls)
        data += message(opcode, parts, between, draw(masks) if masked else None)
        expected += between * (len(parts) - 1) + [(opcode, b"".join(parts))]
    return data, expected


@pytest.mark.parametrize("client", [False, True])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_streams_come_out_whole_however_they_are_cut(client: bool, data: st.DataObject) -> None:
    stream, expected = data.draw(streams(masked=not client))
    sizes = data.draw(st.lists(st.integers(0, 200), max_size=10))
    assert decode(stream, client=client) == (expected, 0)
    assert decode(stream, sizes, client=client) == (expected, 0)
    assert decode(stream, [1] * len(stream), client=client) == (expected, 0)
    assert oracle(stream, client=client) == (expected, False)


@given(streams(), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3), st.booleans())
@example((b"\x81\x80" + bytes(4), [(TEXT, b"")]), [(30, 0)], True)
@example((b"\x81\x80" + bytes(4) + b"\x81\x80" + bytes(4), [(TEXT, b"")] * 2), [(0, 0x88)], False)
@settings(max_examples=400, deadline=None)
def test_mutated_streams_are_judged_as_wsproto_judges_them(
    stream: tuple[bytes, Frames], changes: list[tuple[int, int]], cut: bool
) -> None:
    data = bytearray(stream[0])
    for at, byte in changes:
        if data:
            data[at % len(data)] = byte
    if cut and changes:
        del data[changes[0][0] % (len(data) + 1) :]
    mine, error = decode(bytes(data))
    theirs, refused = oracle(bytes(data))
    if theirs and theirs[-1][0] == CLOSE:
        mine, error = mine[: len(theirs)], 0  # wsproto reads nothing behind a close
    if error == ws.BAD and not refused:
        # wsproto judges a frame by its whole header, of which the first two bytes may be enough: zeros complete it.
        theirs, refused = oracle(bytes(data) + bytes(12))
        assert (mine, refused) == (theirs, True)
    elif not refused:
        # wsproto has no bound: a mutated length beyond ours is refused here and waited for there.
        assert mine == theirs
        assert error in (0, ws.TOO_LARGE)
    else:
        # wsproto may refuse earlier (a text before its end): we may still wait, or have seen a control frame more.
        assert mine[: len(theirs)] == theirs
        assert all(opcode in (PING, PONG) for opcode, _ in mine[len(theirs) :])


def test_every_split_point_gives_the_same_frames() -> None:
    data = (
        message(TEXT, ["añ".encode()[:2], "añ".encode()[2:], b"", b"z"], [(PING, b"p")])
        + frame(BINARY, b"12345")
        + message(BINARY, [b"", b"", b"xy"], [(PONG, b"")])
        + frame(CLOSE, b"\x03\xe8bye")
    )
    expected = [
        *[(PING, b"p")] * 3, (TEXT, "añz".encode()), (BINARY, b"12345"), *[(PONG, b"")] * 2, (BINARY, b"xy"),
        (CLOSE, b"\x03\xe8bye"),
    ]  # fmt: skip
    for first in range(len(data) + 1):
        for second in range(0, len(data) - first + 1, 3):
            assert decode(data, [first, second]) == (expected, 0)


def test_a_frame_comes_out_with_its_last_byte_and_not_later() -> None:
    reader = ws.WsReader()
    for size in (0, 1, 125, 126, 65535, 65536):
        data = frame(BINARY, b"x" * size)
        assert reader.feed(data[:-1]) == []
        assert reader.need == len(data) == reader.buffered + 1
        assert reader.feed(data[-1:]) == [(BINARY, b"x" * size)]


def test_what_is_kept_of_an_unfinished_message_is_its_payload_alone() -> None:
    reader = ws.WsReader()
    stream = b"".join(frame(0 if at else BINARY, b"ab", fin=False) + frame(PING, b"123") for at in range(100))
    assert reader.feed(stream) == [(PING, b"123")] * 100
    assert reader.buffered == reader.assembled == 200
    assert reader.need == 202
    assert reader.feed(frame(0, b"")) == [(BINARY, b"ab" * 100)]
    assert reader.buffered == reader.assembled == 0


def test_the_hole_may_grow_past_its_bound_within_one_read() -> None:
    # 3,000 fragments with a full ping after each leave 400 KB of hole: it must be closed on the way, views intact.
    pings = [bytes([at % 251]) * 125 for at in range(3000)]
    stream = b"".join(
        frame(0 if at else BINARY, bytes([at % 253]), fin=False) + frame(PING, ping) for at, ping in enumerate(pings)
    ) + frame(0, b"!")
    whole = bytes(at % 253 for at in range(3000)) + b"!"
    expected = [*[(PING, ping) for ping in pings], (BINARY, whole)]
    assert decode(stream) == (expected, 0)
    assert decode(stream, [4001] * 98) == (expected, 0)


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b"", rsv=1),
        frame(TEXT, b"", rsv=2),
        frame(TEXT, b"", rsv=4),
        *[frame(opcode) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
        frame(PING, fin=False),
        frame(PING, b"x" * 126),
        frame(CLOSE, b"x" * 126),
        frame(0, b"no start"),
        frame(0, b"no start", fin=False),
        frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
        frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False),
        frame(BINARY, b"x", mask=None),
        b"\x82\xfe\x00\x7d",
        b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff",
        b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00",
        frame(CLOSE, b"\x03"),
        *[frame(CLOSE, struct.pack(">H", code)) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)],
        frame(CLOSE, b"\x03\xe8\xff"),
    ],
)
def test_broken_rules_are_bad(data: bytes) -> None:
    reader = ws.WsReader()
    for byte in data:
        assert reader.feed(bytes([byte])) == []
    assert reader.error == ws.BAD
    assert decode(data)[1] == ws.BAD
    assert reader.feed(frame(BINARY, b"after")) == []


def test_a_client_refuses_masked_frames() -> None:
    assert decode(frame(BINARY, b"x"), client=True) == ([], ws.BAD)
    assert decode(frame(BINARY, b"x", mask=None), client=True) == ([(BINARY, b"x")], 0)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_codes_that_may_close(code: int) -> None:
    payload = struct.pack(">H", code) + "Tschüß".encode()
    assert decode(frame(CLOSE, payload)) == ([(CLOSE, payload)], 0)
    assert decode(frame(CLOSE)) == ([(CLOSE, b"")], 0)


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\xf4\x90\x80\x80"])
def test_text_that_is_not_utf8_is_told_at_its_end(text: bytes) -> None:
    assert decode(frame(TEXT, text)) == ([], ws.UTF8)
    assert decode(message(TEXT, [text[:1], text[1:]], [])) == ([], ws.UTF8)
    assert decode(frame(BINARY, text)) == ([(BINARY, text)], 0)


def test_text_may_be_cut_inside_a_character() -> None:
    text = "é€😀".encode()
    assert decode(message(TEXT, [bytes([byte]) for byte in text], [])) == ([(TEXT, text)], 0)


@pytest.mark.parametrize("size", [1, 125, 126, 127, 65535, 65536])
def test_the_limit_holds_for_a_whole_message_and_is_told_from_the_header(size: int) -> None:
    reader = ws.WsReader(size)
    assert reader.feed(frame(BINARY, b"x" * size)) == [(BINARY, b"x" * size)]
    assert reader.feed(message(BINARY, [b"x" * (size - 1), b"x"], [(PING, b"y" * 125)]))[-1] == (BINARY, b"x" * size)
    over = frame(BINARY, b"x" * (size + 1))
    assert reader.feed(over[: len(over) - size - 1]) == []
    assert reader.error == ws.TOO_LARGE


def test_the_limit_counts_earlier_fragments() -> None:
    reader = ws.WsReader(10)
    assert reader.feed(frame(BINARY, b"x" * 6, fin=False) + frame(0, b"x" * 5)[:6]) == []
    assert reader.error == ws.TOO_LARGE
    reader = ws.WsReader(10)
    assert reader.feed(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff" + MASK) == []
    assert reader.error == ws.TOO_LARGE


@given(st.binary(max_size=70), masks)
def test_masking_is_the_definition_and_its_own_inverse(payload: bytes, mask: bytes) -> None:
    masked = ws.masked(payload, mask)
    assert masked == bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    assert ws.masked(masked, mask) == payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_written_headers_are_the_shortest_and_read_back(size: int, opcode: int) -> None:
    payload = b"x" * size
    assert ws.header(opcode, size) + payload == frame(opcode, payload, mask=None)
    assert ws.header(opcode, size, MASK) + ws.masked(payload, MASK) == frame(opcode, payload)
