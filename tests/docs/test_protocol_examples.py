"""docs/protocol.md: every example is what it says it is, read by an implementation that shares nothing with ours."""

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest

from core import codes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()
TEXT, BINARY, CLOSE = 1, 2, 8
FRAME_TYPES = 18


class Step(NamedTuple):
    """One line of a session: who, in which way, saying what, in which bytes."""

    sender: str
    kind: str
    said: str
    raw: bytes


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


def from_json(value: Any) -> Any:
    """A JSON value as MessagePack has it: `{"$bin": …}` are bytes."""
    if isinstance(value, dict):
        if value.keys() == {"$bin"}:
            return base64.b64decode(value["$bin"], validate=True)
        return {key: from_json(inner) for key, inner in value.items()}
    return [from_json(inner) for inner in value] if isinstance(value, list) else value


def steps(block: str) -> Iterator[Step]:
    """Cut a session into its steps; indented lines belong to the line before."""
    for part in re.split(r"\n(?=\S)", block):
        head, _, body = part.partition("\n")
        sender, _, rest = head.partition(" ")
        kind, _, said = rest.partition(" ") if not rest.startswith("[") else ("frame", "", rest)
        raw = body.encode() if kind == "http" else bytes.fromhex(body)
        yield Step(sender, kind, said, raw)


def unframed(step: Step) -> tuple[int, bytes]:
    """Opcode and payload of the one WebSocket frame in a step (RFC 6455 §5.2)."""
    first, second, rest = step.raw[0], step.raw[1], step.raw[2:]
    assert first & 0xF0 == 0x80, "one whole frame, no reserved bit"
    size = second & 0x7F
    if size == 126:
        size, rest = struct.unpack(">H", rest[:2])[0], rest[2:]
        assert size > 125, "the shortest form of the length"
    assert bool(second & 0x80) == (step.sender == "client"), "clients mask, servers do not"
    if second & 0x80:
        mask, rest = rest[:4], rest[4:]
        rest = bytes(byte ^ mask[place % 4] for place, byte in enumerate(rest))
    assert len(rest) == size
    return first & 0x0F, rest


@pytest.mark.parametrize("block", blocks("frame"))
def test_a_frame_is_the_same_in_json_and_in_messagepack(block: str) -> None:
    text, _, hexadecimal = block.partition("\n")
    value = json.loads(text)
    raw = bytes.fromhex(hexadecimal)
    assert json.dumps(value, ensure_ascii=False, separators=(",", ":")) == text
    assert msgpack.unpackb(raw) == from_json(value)
    assert msgpack.packb(from_json(value)) == raw, "the shortest form"


def test_there_is_an_example_of_every_frame() -> None:
    assert {json.loads(block.partition("\n")[0])[0] for block in blocks("frame")} == set(range(FRAME_TYPES))


def test_the_table_of_codes_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (resume|fresh|request|stop) \| (.+) \|$", PAGE, re.MULTILINE)
    assert [(int(number), name, kind, when) for number, name, kind, when in rows] == [tuple(row) for row in codes.TABLE]


@pytest.mark.parametrize("block", [block for block in blocks("frame") if block.startswith(("[3,", "[14,"))])
def test_the_errors_and_fins_shown_agree_with_the_table_of_codes(block: str) -> None:
    frame = json.loads(block.partition("\n")[0])
    code = frame[1] if frame[0] == 14 else frame[2]
    row = next(row for row in codes.TABLE if row.number == code)
    if frame[0] == 3:
        assert row.kind == "request" or row.name in {"overloaded", "unavailable"}
    elif frame[3]:
        assert frame[3]["class"] == row.kind


def test_each_body_of_the_tcp_session_is_preceded_by_its_length() -> None:
    (session,) = blocks("tcp-session")
    said = list(steps(session))
    assert len(said) >= 10
    for step in said:
        (size,) = struct.unpack(">I", step.raw[:4])
        assert size == len(step.raw) - 4
        assert msgpack.unpackb(step.raw[4:]) == from_json(json.loads(step.said))


@pytest.mark.parametrize("session", blocks("ws-session"))
def test_each_frame_of_a_websocket_session_holds_what_is_said(session: str) -> None:
    for step in steps(session):
        if step.kind == "http":
            continue
        opcode, payload = unframed(step)
        if step.kind == "text":
            assert (opcode, payload.decode()) == (TEXT, step.said)
        elif step.kind == "binary":
            assert (opcode, msgpack.unpackb(payload)) == (BINARY, from_json(json.loads(step.said)))
        else:
            status, name = step.said.split()
            assert (opcode, payload) == (CLOSE, struct.pack(">H", int(status)) + name.encode())
            assert int(status) == 4000 + codes.BY_NAME[name]


def test_the_websocket_sessions_answer_to_the_handshake_fits_its_key() -> None:
    request, answer = [step.raw.decode() for step in steps(blocks("ws-session")[0]) if step.kind == "http"]
    key = re.search(r"Sec-WebSocket-Key: (\S+)", request)
    accept = re.search(r"Sec-WebSocket-Accept: (\S+)", answer)
    assert key is not None
    assert accept is not None
    digest = hashlib.sha1(f"{key[1]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    assert base64.b64decode(accept[1]) == digest


@pytest.mark.parametrize("session", [*blocks("tcp-session"), *blocks("ws-session")])
def test_nobody_sends_a_frame_after_its_own_fin(session: str) -> None:
    finished: set[str] = set()
    for step in steps(session):
        if not step.said.startswith("["):
            continue
        assert step.sender not in finished
        if json.loads(step.said)[0] in {14, 15}:
            finished.add(step.sender)
