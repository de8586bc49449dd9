"""Inputs for a running gateway: frames of every type with wrong parts, damaged streams, handshakes; all from a seed."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from tests.fuzz import mutation
from tests.fuzz.reference import MAX_FRAME

OWN_GROUP = "group:fuzz"
NAMES = (
    OWN_GROUP,
    OWN_GROUP,
    OWN_GROUP,
    "group:fuzz-2",
    "group:never",
    "user:fuzz",
    "user:other",
    "global:fuzz",
    "group:",
    "group",
    "",
    "Group:x",
    "team:x",
    "group:" + "x" * 249,
    "group:" + "x" * 250,
    "user:" + "é" * 125,
    "group:\0",
    "group:\n\u2028😀",
)
NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    65_535,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
    -32,
    -33,
    -(2**63),
    1.5,
    1e300,
    float("nan"),
    float("inf"),
    -0.0,
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "text",
    "é😀\0",
    [],
    {},
    [[]],
    {"a": {"b": [1]}},
    b"",
    b"\xff\0",
    {"key": "k"},
    {"": 1},
    {"v": 1},
    "x" * 300,
    [0] * 40,
    {str(n): n for n in range(40)},
)
TYPES = (0, 4, 4, 5, 6, 6, 7, 8, 8, 8, 8, 10, 10, 11, 11, 12, 12, 15, 16, 17)
# Bodies that no encoder writes: extensions, a bad timestamp, longer forms, a length that lies, 0xc1, no UTF-8.
RAW_BODIES = (
    b"\x93\x06\x05\xc7\x03\xff\x01\x02\x03",
    b"\x94\x06\x05\xaagroup:fuzz\x81\xa5since\xd4\xff\x00",
    b"\x94\x06\x05\xaagroup:fuzz\x81\xa5since\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x93\xcc\x04\xcd\x00\x07\xcf\x00\x00\x00\x00\x00\x00\x00\x01",
    b"\xdc\x00\x03\x04\x01\x02",
    b"\xdd\x00\x00\x00\x01\x0f",
    b"\x93\x07\x05\xa7group:\xff",
    b"\x94\x08\x05\xaagroup:fuzz\xa1\xff",
    b"\x94\x08\x05\xa8group:\xff\xfe\x01",
    b"\x93\x06\x05\xdb\xff\xff\xff\xffx",
    b"\x94\x08\x05\xaagroup:fuzz\xdf\xff\xff\xff\xff",
    b"\xc1",
    b"\x90",
    b"\xc0",
    b"\x04",
    b"\x92\x0a\x81\xc0\x01",
    b"\x92\x0a\x82\xa7group:a\x01\xa7group:a\x02",
    b"\x94\x06\x05\xaagroup:fuzz\x81\x91\x01\x02",
    b"\x94\x06\x05\xaagroup:fuzz\x81\xca\x00\x00\x00\x00\x02",
    b"\x93\x04\xd0\xff\x01",
    b"\x93\xff\x01\x02",
    b"\x91\x0f\x00",
    b"\x94\x08\x05\xaagroup:fuzz\xc8\x00\x03\x05abc",
    b"\x92\x0c\x05",
    b"\x91\x06",
    b"\xdd\xff\xff\xff\xff\x08",
)
RAW_TEXTS = (
    b"[4,1,1] ",
    b" [ 4 , 1 , 2 ] ",
    b"[4,1,1]x",
    b"[4,1,1",
    b"[4,01,1]",
    b"[4,1e2,1]",
    b"[4.0,1,1]",
    b"[NaN]",
    b"[4,1,-0]",
    b'[8,5,"group:fuzz","\\ud800"]',
    b'[8,5,"group:fuzz",1e999]',
    b'[8,5,"group:fuzz",{"$bin":"aGk="},{"key":{"$bin":""}}]',
    b'[8,5,"group:fuzz",{"a":1,"a":2},{"key":"a","key":"b"}]',
    b'{"0":1}',
    b"null",
    b"4",
    b'"x"',
    b"",
    b"\xef\xbb\xbf[4,1,1]",
    b"[4,1,18446744073709551616]",
    b"[4,1,18446744073709551615]",
    b'[6,5,"group:fuzz",{"since":[1.5,0]}]',
    b"[,]",
    b"[4,1,1,]",
    b"['x']",
    b'[8,5,"group:fuzz","\t"]',
    b'[8,5,"\\u0067roup:fuzz",1]',
    b"[true]",
    b'[11,5,"group:fuzz",{"limit":1.0}]',
)
HANDSHAKE_LINES = (
    b"GET /ws HTTP/1.1",
    b"Host: localhost",
    b"Upgrade: websocket",
    b"Connection: keep-alive, Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)
FIRST_LINES = (
    b"POST /ws HTTP/1.1",
    b"GET / HTTP/1.1",
    b"GET /wss HTTP/1.1",
    b"GET /ws?x HTTP/1.1",
    b"GET /ws HTTP/1.0",
    b"GET /ws HTTP/2.0",
    b"GET /ws",
    b"GET  /ws HTTP/1.1",
    b"get /ws HTTP/1.1",
    b"GET /ws HTTP/1.1 ",
    b"GET /ws\x00 HTTP/1.1",
    b"",
    b"HEAD /ws HTTP/1.1",
    b"GET http://localhost/ws HTTP/1.1",
    b"GET /%77s HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"GET /ws HTTP/11",
    b"\x16\x03\x01\x02\x00",
)
FIELD_LINES = (
    b"Host: again",
    b"Sec-WebSocket-Version: 12",
    b"Sec-WebSocket-Key: short",
    b"Upgrade: h2c",
    b"Connection: close",
    b"X-Y: z",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b" folded: x",
    b"no colon",
    b"Bad Name: x",
    b": empty",
    b"X:\x01",
    b"X: " + b"y" * 8200,
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"Sec-WebSocket-Protocol: chat",
    b"Origin: null",
    b"X: a\nY: b",
    b"X: a\rY: b",
    b"X: \xff\xfe",
    b"Content-Length: 0",
)
CLOSES = (
    b"",
    b"\x03\xe8",
    b"\x03\xe8bye",
    b"\x03",
    b"\x03\xed",
    b"\x00\x00",
    b"\xff\xff",
    b"\x03\xe8\xff",
    b"\x0f\xa0bye",
)

Framer = Callable[[random.Random, bytes], bytes]


def pack(value: Any, text: bool) -> bytes:
    """A frame's body in either encoding; what JSON cannot say becomes a string."""
    if text:
        return json.dumps(value, default=repr, ensure_ascii=False, separators=(",", ":")).encode()
    body: bytes = msgpack.packb(value)
    return body


def ws_data(source: random.Random, body: bytes, text: bool, parts: int = 1) -> bytes:
    """A sound message, in fragments."""
    cuts = sorted(source.randrange(len(body) + 1) for _ in range(parts - 1))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    opcodes = [1 if text else 2] + [0] * (parts - 1)
    return b"".join(
        mutation.ws_frame(source, opcode, piece, at == parts - 1)
        for at, (opcode, piece) in enumerate(zip(opcodes, pieces, strict=True))
    )


def framed(source: random.Random, body: bytes, websocket: bool, text: bool) -> bytes:
    """A body as it travels; a WebSocket's in fragments now and then."""
    if websocket:
        return ws_data(source, body, text, source.choice((1, 1, 1, 2, 4)))
    return struct.pack(">I", len(body)) + body


def any_value(source: random.Random) -> Any:
    return source.choice(source.choice((VALUES, NUMBERS, NAMES)))


def data(source: random.Random) -> Any:
    if source.random() < 0.01:
        return "d" * source.choice((64_000, 64_400, 64_511, 64_520, 65_400))
    return source.choice((*VALUES, 1.5, -7, "text" * source.choice(mutation.SIZES[:8])))


def options(source: random.Random, kind: int) -> dict[Any, Any]:
    names = {8: ("key",), 6: ("since",), 11: ("since", "limit", "reverse")}.get(kind, ())
    found: dict[Any, Any] = {}
    for name in (*names, "unknown"):
        if source.random() < 0.3:
            sound = {"key": f"k{source.randrange(99)}", "since": [source.randrange(3), 0], "limit": 5, "reverse": True}
            found[name] = sound.get(name) if source.random() < 0.7 else any_value(source)
    if "key" in found and source.random() < 0.1:
        found["key"] = "k" * source.choice((63, 64, 65, 300))
    return found


def frame(source: random.Random, number: int) -> list[Any]:
    """A sound frame of any type that a client may send, FIN left out."""
    kind = source.choice(TYPES)
    name = source.choice(NAMES)
    if kind in (4, 5):
        return [kind, source.randrange(2**32), source.choice((0, number, 2**64 - 1))]
    if kind == 10:
        return [kind, {source.choice(NAMES): source.randrange(9) for _ in range(source.randrange(4))}]
    if kind == 15:
        return [kind]
    if kind in (0, 16, 17):
        return [kind, number, *([{"v": 1}] if kind == 0 else ["token"] if kind == 16 else ["method", data(source)])]
    if kind in (7, 12):
        return [kind, number, name]
    body = [kind, number, name, data(source)] if kind == 8 else [kind, number, name]
    return [*body, options(source, kind)] if source.random() < 0.6 else body


def nested(source: random.Random) -> Any:
    value: Any = source.choice((1, [], {}))
    for _ in range(source.choice((10, 60, 62, 63, 64, 65, 66, 70, 500))):
        value = [value] if source.random() < 0.5 else {"n": value}
    return value


def spoiled(source: random.Random, found: list[Any]) -> list[Any]:
    """The frame with one part wrong: another type, arity or value."""
    how = source.randrange(7)
    if how == 0:
        found[0] = source.choice((1, 2, 3, 9, 13, 18, 99, 255, 2**32, 2**63, *NUMBERS, None, "8"))
    elif how == 1:
        found.append(any_value(source))
    elif how == 2:
        del found[source.randrange(len(found))]
    elif how == 3:
        found.insert(source.randrange(len(found) + 1), any_value(source))
    elif how == 4:
        found[-1] = nested(source)
    else:
        # Behind the number more often, so that more of them are requests that are refused and not broken frames.
        at = source.randrange(min(2, len(found) - 1), len(found))
        found[at] = any_value(source)
    return found


def frame_input(source: random.Random, number: int, websocket: bool, text: bool) -> tuple[str, bytes]:
    """One input of an open session: its kind for the tally, and its bytes."""
    draw = source.random()
    number = 0 if source.random() < 0.05 else number
    if draw < 0.42:
        return "sound frame", framed(source, pack(frame(source, number), text), websocket, text)
    if draw < 0.80:
        return "spoiled frame", framed(source, pack(spoiled(source, frame(source, number)), text), websocket, text)
    if draw < 0.85:
        return "raw body", framed(source, source.choice(RAW_TEXTS if text else RAW_BODIES), websocket, text)
    if draw < 0.93:
        body = mutation.damage(source, pack(frame(source, number), text))
        return "damaged body", framed(source, body or b"\0", websocket, text)
    if draw < 0.96:
        return "damaged stream", mutation.damage(
            source, framed(source, pack(frame(source, number), text), websocket, text)
        )
    if draw < 0.98 and websocket:
        return "ws control", mutation.ws_frame(source, source.choice((9, 10)), source.randbytes(source.randrange(126)))
    return "broken framing", broken_framing(source, websocket, text)


def broken_framing(source: random.Random, websocket: bool, text: bool) -> bytes:
    """What the transport itself has to refuse, or at its bounds just not."""
    if not websocket:
        size = source.choice((0, MAX_FRAME + 1, MAX_FRAME, 2**31, 2**32 - 1))
        return source.choice((struct.pack(">I", size), struct.pack(">I", size) + b"\x93", source.randbytes(40)))
    sound = pack([4, 1, 1], text)
    frame_of = mutation.ws_frame
    return source.choice(
        (
            lambda: frame_of(source, source.choice((3, 7, 11, 15)), sound),
            lambda: frame_of(source, 9, b"x", False),
            lambda: frame_of(source, 9, b"x" * 126),
            lambda: frame_of(source, 0, sound),
            lambda: frame_of(source, 2, sound, False) + frame_of(source, 2, sound),
            lambda: frame_of(source, 2 if text else 1, sound),
            lambda: frame_of(source, 1, b"\xc3", False) + frame_of(source, 0, b"\x28"),
            lambda: frame_of(source, 1, b"\xff"),
            lambda: bytes([0x82, len(sound)]) + sound,
            lambda: bytes([0xC2]) + frame_of(source, 2, sound)[1:],
            lambda: b"\x82\xff" + struct.pack(">Q", source.choice((MAX_FRAME + 1, 2**63, 2**63 - 1, 100))) + b"mask",
            lambda: b"\x82\xfe\x00\x7dmask" + b"x" * 125,
            lambda: frame_of(source, 8, source.choice(CLOSES)),
            lambda: frame_of(source, 2, b"x" * 40_000, False) + frame_of(source, 0, b"x" * 40_000),
            lambda: source.randbytes(source.randrange(1, 60)),
        )
    )()


def hello(source: random.Random, text: bool, token: tuple[str, str] | None) -> bytes:
    """The body of a HELLO, spoiled more often than not."""
    told: dict[Any, Any] = {"v": 1, "user": "fuzz", "client": "fuzz/1"}
    draw = source.random()
    if draw < 0.35:
        told[source.choice(("v", "user", "session", "token", "resume", "client", "x"))] = any_value(source)
    elif draw < 0.5 and token:
        told |= {"session": token[0], "token": token[1]}
        if source.random() < 0.6:
            told["resume"] = {source.choice(NAMES): source.choice(([1, 0], [1, 1], [9, 9], any_value(source)))}
        if source.random() < 0.2:
            told["token"] = mutation.damage(source, token[1].encode()).decode(errors="replace")
    found: list[Any] = [0, 1, told]
    if draw > 0.8:
        found = spoiled(source, found)
    body = pack(found, text)
    return mutation.damage(source, body) or b"\0" if 0.7 < draw < 0.8 else body


def handshake(source: random.Random) -> bytes:
    """An upgrade request with something wrong, or nothing."""
    lines = list(HANDSHAKE_LINES)
    for _ in range(source.choice((0, 1, 1, 1, 2, 3))):
        how = source.randrange(5)
        if how == 0:
            lines[0] = source.choice(FIRST_LINES)
        elif how == 1 and len(lines) > 1:
            del lines[source.randrange(1, len(lines))]
        elif how == 2:
            lines.insert(source.randrange(1, len(lines) + 1), source.choice(FIELD_LINES))
        elif how == 3:
            lines[source.randrange(len(lines))] = source.choice((*FIELD_LINES, *FIRST_LINES))
        else:
            at = source.randrange(len(lines))
            lines[at] = source.choice((lines[at].lower(), lines[at].upper(), lines[at] + b" \t"))
    ending = source.choice((b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"))
    whole = ending.join((*lines, b"", b""))
    if source.random() < 0.2:
        whole = mutation.damage(source, whole)
    return whole
