"""MessagePack to JSON: byte for byte what the standard library writes, and nothing for what JSON cannot say."""

import base64
import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core import mpack, transcode

exts = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=30),
    st.text(alphabet='"\\\x00\x08\x0c\n\r\t\x1f\x7f/aé\u2028😀', max_size=20), st.binary(max_size=20), exts,
)  # fmt: skip
keys = st.text(max_size=8) | st.integers(-(2**63), 2**64 - 1)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(keys, inner, max_size=20), max_leaves=25
)


def plain(value: Any) -> Any:
    """`value` as the protocol page says it in JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return {"$bin": base64.b64encode(value).decode()}
    if isinstance(value, msgpack.ExtType):
        return {"$ext": [value.code, base64.b64encode(value.data).decode()]}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return Pairs((str(key), plain(item)) for key, item in value.items())
    return value


class Pairs(dict[str, Any]):
    """A map that may say a key twice, as MessagePack's {1: …, "1": …} does in JSON."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = list(pairs)
        super().__init__(self.pairs)

    def items(self) -> Any:
        return self.pairs


def dumps(value: Any) -> bytes:
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":")).encode()


@given(values)
@example({1: "a", "1": "b"})
@settings(max_examples=500, deadline=None)
def test_values_are_written_as_the_standard_library_writes_them(value: Any) -> None:
    assert transcode.json_from_mpack(msgpack.packb(value)) == dumps(value)


@given(values, st.integers(0, 1 << 16), st.integers(0, 255))
@settings(max_examples=500, deadline=None)
def test_damaged_values_are_refused_or_are_json(value: Any, at: int, byte: int) -> None:
    data = bytearray(msgpack.packb(value))
    data[at % len(data)] = byte
    try:
        text = transcode.json_from_mpack(bytes(data))
    except transcode.TranscodeError:
        assert mpack.skip(bytes(data)) != len(data)
    else:
        assert mpack.skip(bytes(data)) == len(data)
        json.loads(text.decode())


@given(values)
@settings(max_examples=100, deadline=None)
def test_every_prefix_and_anything_behind_is_refused(value: Any) -> None:
    data = msgpack.packb(value)
    for wrong in [*(data[:cut] for cut in range(len(data))), data + b"\xc0"]:
        with pytest.raises(transcode.TranscodeError) as refused:
            transcode.json_from_mpack(wrong)
        assert refused.value.code == transcode.MALFORMED


@pytest.mark.parametrize(
    "data",
    [b"\xc1", b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\x81\xc0\x01", b"\x81\xc3\x01", b"\x81\xc4\x01a\x01", b"\x81\x90\x01",
     b"\x81\x80\x01", b"\x81\xcb" + bytes(8) + b"\x01", b"\x81\xd4\x01a\x01", b"\x81\xa1\xff\x01", b"\x91"],
)  # fmt: skip
def test_what_json_cannot_say_is_refused(data: bytes) -> None:
    with pytest.raises(transcode.TranscodeError) as refused:
        transcode.json_from_mpack(data)
    assert refused.value.code == transcode.MALFORMED


@pytest.mark.parametrize("code", range(256))
def test_every_character_at_every_offset_of_a_word(code: int) -> None:
    for offset in range(9):
        text = "x" * offset + chr(code) + "y" * 9
        assert transcode.json_from_mpack(msgpack.packb(text)) == dumps(text)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xca\x3f\xc0\0\0", b"1.5"),
        (b"\xca\x3d\xcc\xcc\xcd", b"0.10000000149011612"),
        (b"\xca\x7f\x80\0\0", b"null"),
        (b"\xcb\xff\xf8" + bytes(6), b"null"),
        (b"\xcb\x80" + bytes(7), b"-0.0"),
        (b"\xcf\0\0\0\0\0\0\0\x05", b"5"),
        (b"\xd3\x80" + bytes(7), b"-9223372036854775808"),
        (b"\xd9\x01a", b'"a"'),
        (b"\xd4\xffA", b'{"$ext":[-1,"QQ=="]}'),
        (b"\xc7\x00\x80", b'{"$ext":[-128,""]}'),
        (b"\xdd\0\0\0\0", b"[]"),
        (b"\x82\x01\x02\xff\x90", b'{"1":2,"-1":[]}'),
    ],
)
def test_forms_that_no_shortest_writer_uses(data: bytes, text: bytes) -> None:
    assert transcode.json_from_mpack(data) == text


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\x92\xc0"])
def test_depth_has_a_limit_that_leaves_room_for_frames(opening: bytes) -> None:
    assert transcode.json_from_mpack(opening * 72 + b"\x01").count(b"1") == 1
    for depth in (73, 100000):
        with pytest.raises(transcode.TranscodeError) as refused:
            transcode.json_from_mpack(opening * depth + b"\x01")
        assert refused.value.code == transcode.DEPTH
