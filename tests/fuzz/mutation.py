"""Inputs for fuzzing, made and damaged from a seed: no corpus, so that a seed alone repeats a run."""

import random
from collections.abc import Callable

from core import framing_tcp, framing_ws

# Near these a codec changes its form of a length.
SIZES = (0, 1, 2, 5, 100, 125, 126, 127, 300, 2000)
FRAMES_MAX = 8
DAMAGES = (0, 0, 1, 2, 5)
ROGUE_SHARE = 0.05

HANDSHAKE = (
    b"GET /ws?a=b HTTP/1.1\r\nHost: localhost:7401\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Origin: http://localhost\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
JSON_TEXTS = (
    b'[0,1,{"v":1,"user":"alice","resume":{"group:a":[1,17]}}]',
    b'[8,2,"group:a",{"text":"caf\xc3\xa9 \\u00e9\\ud83d\\ude00\\n","n":[1,-2.5e-3,true,null]},{"key":"k"}]',
    b'[{"$bin":"aGk="},{"$ext":[5,"AAEC"]},{"$bin":"no"},{}]',
    b"[-0,1e22,123456789012345678901234567890,-9223372036854775808,18446744073709551615,0.1]",
    b"[" * 70 + b"]" * 70,
)
PROXY_HEADERS = (
    b"PROXY TCP4 10.1.2.3 10.0.0.1 40000 7400\r\n",
    b"PROXY TCP6 2001:db8::5 ::1 40000 7400\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11" + bytes(range(12)) + b"\x04\0\x02ab",
)


def damage(source: random.Random, data: bytes) -> bytes:
    """Change, drop, insert or flip a few places of `data`; sometimes none."""
    work = bytearray(data)
    for _ in range(source.choice(DAMAGES)):
        at = source.randrange(len(work) + 1)
        kind = source.randrange(4)
        if kind == 0:
            work[at : at + 1] = source.randbytes(1)
        elif kind == 1:
            del work[at : at + source.randrange(1, 9)]
        elif kind == 2:
            work[at:at] = source.randbytes(source.randrange(1, 6))
        else:
            work[at : at + 1] = bytes(byte ^ (1 << source.randrange(8)) for byte in work[at : at + 1])
    return bytes(work)


def pieces(source: random.Random, data: bytes) -> list[bytes]:
    """`data` cut at random points, as reads from a socket would cut it."""
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(FRAMES_MAX)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def ws_frame(source: random.Random, opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A client's frame."""
    mask = source.randbytes(4)
    frame = framing_ws.header(opcode, len(payload), mask) + framing_ws.masked(payload, mask)
    return frame if fin else bytes([frame[0] & 0x7F]) + frame[1:]


def ws_message(source: random.Random) -> bytes:
    """A message in up to five fragments with control frames in between; now and then a frame that fits nowhere."""
    if source.random() < ROGUE_SHARE:
        return ws_frame(source, source.randrange(16), source.randbytes(source.choice(SIZES)), source.random() < 0.5)
    opcode = source.choice((1, 2))
    parts = [b"text, or not" * source.choice(SIZES) for _ in range(source.randrange(1, 6))]
    out = b""
    for at, part in enumerate(parts):
        out += ws_frame(source, 0 if at else opcode, part[: source.choice(SIZES)], at == len(parts) - 1)
        if source.random() < 0.3:
            out += ws_frame(source, source.choice((9, 10)), source.randbytes(source.randrange(126)))
    return out


def tcp_frame(source: random.Random) -> bytes:
    body = source.randbytes(source.choice(SIZES[1:]))
    return framing_tcp.header(len(body)) + body


def stream(source: random.Random, frame: Callable[[random.Random], bytes]) -> bytes:
    """A few frames in a row, damaged."""
    return damage(source, b"".join(frame(source) for _ in range(source.randrange(1, FRAMES_MAX))))
