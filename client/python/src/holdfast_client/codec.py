"""Frames to bytes and back, without a socket: MessagePack or JSON, and TCP's length prefix."""

import base64
import json
import struct
from enum import StrEnum
from typing import Any, NoReturn

import msgpack

from .errors import ProtocolViolation

_LENGTH = struct.Struct(">I")
# A bound against nonsense only: an answer to HISTORY may be longer than the gateway's max_frame.
RECEIVED_FRAME_BYTES_MAX = 16 * 1024 * 1024


class Encoding(StrEnum):
    """How a body is written."""

    MSGPACK = "msgpack"
    JSON = "json"


def encode(frame: list[Any], encoding: Encoding) -> bytes | str:
    """The body of a frame: bytes in MessagePack, text in JSON.

    Raises:
        TypeError, ValueError: the data is none of the encoding's values.
    """
    if encoding is Encoding.MSGPACK:
        packed: bytes = msgpack.packb(frame, use_bin_type=True)
        return packed
    text = json.dumps(frame, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_binary_to_json)
    # A lone surrogate has no UTF-8; better refused here than when the socket writes it.
    text.encode()
    return text


def decode(body: bytes | str) -> object:
    """The frame in a body: text is JSON, bytes are MessagePack.

    Raises:
        ProtocolViolation: neither of them.
    """
    try:
        if isinstance(body, str):
            return json.loads(body, object_hook=_binary_from_json, parse_constant=_refuse_constant)
        return msgpack.unpackb(body, raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolViolation(f"a body that cannot be read: {error}") from error


def body_bytes(body: bytes | str) -> int:
    """How long a body is on the wire."""
    return len(body) if isinstance(body, bytes) else len(body.encode())


def length_prefixed(body: bytes) -> bytes:
    """The body as TCP carries it."""
    return _LENGTH.pack(len(body)) + body


class BodyCutter:
    """Cuts TCP's byte stream into bodies; holds at most one incomplete frame and what came after it."""

    def __init__(self, frame_bytes_max: int = RECEIVED_FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """All bodies that this chunk completes.

        Raises:
            ProtocolViolation: an announced length that is beyond the bound.
        """
        self._buffer += chunk
        bodies, start = [], 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self._frame_bytes_max:
                raise ProtocolViolation(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return bodies


def _binary_to_json(value: object) -> dict[str, str]:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bin": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _binary_from_json(value: dict[str, Any]) -> Any:
    if len(value) == 1 and isinstance(value.get("$bin"), str):
        return base64.b64decode(value["$bin"], validate=True)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
