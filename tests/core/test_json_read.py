"""JSON to MessagePack: accepts, refuses and understands as the standard library does,
and is stricter where we say so.
"""

import base64
import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core import transcode


def refuse(text: str) -> Any:
    raise ValueError(text)


def fold(pairs: list[tuple[str, Any]]) -> Any:
    """The protocol's two special objects; the last of repeated keys counts, but such an object is never special."""
    if len(pairs) == 1:
        key, value = pairs[0]
        if key == "$bin" and (data := canonical(value)) is not None:
            return data
        if key == "$ext" and isinstance(value, list) and len(value) == 2 and type(value[0]) is int:
            data = canonical(value[1])
            if data is not None and -128 <= value[0] <= 127:
                return Ext(value[0], data)
    return dict(pairs)


class Ext(tuple[int, bytes]):
    """What an ext is compared as: msgpack.ExtType does not take the negative types."""

    __slots__ = ()

    def __new__(cls, code: int, data: bytes) -> "Ext":
        return super().__new__(cls, (code, data))


def canonical(text: Any) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        return None
    return data if data is not None and base64.b64encode(data).decode() == text else None


def oracle(data: bytes) -> Any:
    """What `data` means; ValueError if it is not one strict JSON value."""
    value = json.loads(data.decode(), parse_constant=refuse, object_pairs_hook=fold)
    check(value)
    return value


def check(value: Any) -> None:
    """Refuse what the standard library lets pass and we do not: lone surrogates, numbers beyond a double."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, float) and math.isinf(value):
        raise ValueError("beyond a double")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        float(value)
    elif isinstance(value, list):
        for item in value:
            check(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            check(key)
            check(item)


def same(mine: Any, theirs: Any) -> bool:
    """Equal, of equal types; integers that are too big for MessagePack are doubles on our side."""
    if isinstance(theirs, list):
        return type(mine) is list and len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(theirs, dict):
        return type(mine) is dict and list(mine) == list(theirs) and all(same(mine[key], theirs[key]) for key in theirs)
    if type(theirs) is int and not -(2**63) <= theirs < 2**64:
        theirs = float(theirs)
    if type(mine) is float and theirs == 0:
        return mine == 0  # "-0" is an int for Python and -0.0 for us
    return type(mine) is type(theirs) and bool(mine == theirs)


def read(data: bytes) -> Any:
    """Our reading of `data`, or ValueError."""
    packed = transcode.mpack_from_json(data)
    return msgpack.unpackb(packed, strict_map_key=False, ext_hook=Ext, timestamp=0) if packed else refuse("empty")


def agree(data: bytes) -> None:
    try:
        theirs = oracle(data)
    except (ValueError, OverflowError):
        with pytest.raises(transcode.TranscodeError) as refused:
            transcode.mpack_from_json(data)
        assert refused.value.code == transcode.MALFORMED
        return
    assert same(read(data), theirs)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20),
    max_leaves=25,
)  # fmt: skip


@given(values, st.booleans(), st.sampled_from([None, 0, 3, "\t"]))
@settings(max_examples=300, deadline=None)
def test_values_however_they_are_written(value: Any, ascii_only: bool, indent: int | str | None) -> None:
    agree(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode())


@given(values, st.integers(0, 1 << 16), st.sampled_from(b'[]{}",:\\0123456789.eE+-tfnu /x\x00\x1f\x7f\xc3\xff'))
@settings(max_examples=600, deadline=None)
def test_damaged_values_are_judged_alike(value: Any, at: int, byte: int) -> None:
    data = bytearray(json.dumps(value, ensure_ascii=False).encode())
    data[at % len(data)] = byte
    agree(bytes(data))


@given(st.text(alphabet='[]{}",:\\0123456789.eE+-tfnu \n', max_size=12))
@example("[1,]")
@settings(max_examples=1000, deadline=None)
def test_token_soup_is_judged_alike(text: str) -> None:
    agree(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "nul", "nulll", "true false", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{", "{}}", '{"a"}',
        '{"a":}',
        '{"a":1,}', '{,"a":1}', '{a:1}', "{1:1}", '{"a" 1}', '{"a":1 "b":2}', "'a'", '"a', '"\\', '"\\"', '"\\x"',
        '"\\u12"', '"\\u12g4"',
        '"\\u 123"', '"\t"', '"\n"', '"\x00"', "01", "-", "-01", "+1", "1.", ".5", "1.e5", "1e", "1e+", "0x1", "1_0",
        "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "\ufeff1", "[1]x", "/**/1", "\x0b1", "\xa01", "TRUE",
        '"\\ud800"', '"\\udc00"', '"\\ud800\\u0041"', '"\\ud800\\ud800"', '"\\ud800x"', '"\\ud83d\\', "[[1]",
        '{"a":[}', "[1}",
    ],
)  # fmt: skip
def test_refused_texts(text: str) -> None:
    with pytest.raises(transcode.TranscodeError) as refused:
        transcode.mpack_from_json(text.encode())
    assert refused.value.code == transcode.MALFORMED


@pytest.mark.parametrize("data", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'["ok", "\xc3"]', b"\xff"])
def test_text_that_is_not_utf8_is_refused(data: bytes) -> None:
    with pytest.raises(transcode.TranscodeError):
        transcode.mpack_from_json(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\"\\\/\b\f\n\r\t"', '"\\/\b\f\n\r\t'),
        (r'"\u0000\u007f\u0080\u07ff\u0800\uffff"', "\0\x7f\x80\u07ff\u0800\uffff"),
        (r'"\ud83d\ude00\uDBFF\uDFFF\uD800\uDC00"', "😀\U0010ffff\U00010000"),
        (r'"plain text first \u00e9 then more plain text"', "plain text first é then more plain text"),
        (' \t\r\n[ 1 , { "a" : [ ] } ] \n', [1, {"a": []}]),
        ("[]", []), ("{}", {}), ('""', ""), ('{"":0}', {"": 0}), ("0", 0), ("1E2", 100.0), ("1.0", 1.0),
    ],
)  # fmt: skip
def test_read_texts(text: str, value: Any) -> None:
    assert read(text.encode()) == value


@pytest.mark.parametrize("size", [*range(40), 255, 256, 65535, 65536])
@pytest.mark.parametrize("special", ["", '"', "\\", "\n", "é", "\u2028"])
def test_strings_of_every_length_with_a_special_character_at_the_end(size: int, special: str) -> None:
    text = "x" * size + special
    assert transcode.mpack_from_json(json.dumps(text).encode()) == msgpack.packb(text)
    assert transcode.mpack_from_json(json.dumps(text, ensure_ascii=False).encode()) == msgpack.packb(text)


EDGES = [
    sign * 2**bits + near for bits in (5, 7, 8, 15, 16, 31, 32, 53, 63, 64) for sign in (1, -1) for near in (-1, 0, 1)
]


@pytest.mark.parametrize("value", [*EDGES, 0, 10**19, 10**20, -(10**19), 18446744073709551619])
def test_integers_keep_their_type_as_long_as_64_bits_hold_them(value: int) -> None:
    expected = value if -(2**63) <= value < 2**64 else float(value)
    assert transcode.mpack_from_json(str(value).encode()) == msgpack.packb(expected)


def test_minus_zero_is_a_double() -> None:
    assert transcode.mpack_from_json(b"-0") == transcode.mpack_from_json(b"-0.0") == msgpack.packb(-0.0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 65535, 65536, 70000])
def test_counts_are_in_the_shortest_form(count: int) -> None:
    assert transcode.mpack_from_json(b"[" + b",".join([b"7"] * count) + b"]") == msgpack.packb([7] * count)
    names = {str(at): at for at in range(count)}
    assert transcode.mpack_from_json(json.dumps([names, "after"]).encode()) == msgpack.packb([names, "after"])


@pytest.mark.parametrize("opening", ["[", '{"a":', "[[],", '{"b":{},"a":'])
def test_depth_has_a_limit(opening: str) -> None:
    closing = "]" if opening[0] == "[" else "}"
    deepest = opening * 63 + closing.replace("]", "[]").replace("}", "{}") + closing * 63
    assert read(deepest.encode()) == json.loads(deepest)
    for too_deep in (opening + deepest + closing, opening * 100000):
        with pytest.raises(transcode.TranscodeError) as refused:
            transcode.mpack_from_json(too_deep.encode())
        assert refused.value.code == transcode.DEPTH


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"$bin":"aGk="}', b"hi"),
        ('{ "$bin" : "" }', b""),
        (r'{"\u0024bin":"aGk\u003d"}', b"hi"),
        ('[{"$bin":"AAEC"},{"a":{"$bin":"/w=="}}]', [b"\0\1\2", {"a": b"\xff"}]),
        ('{"$ext":[5,"aGk="]}', Ext(5, b"hi")),
        ('{"$ext":[-128,""]}', Ext(-128, b"")),
        # Not exactly the pattern: an ordinary map.
        ('{"$bin":"aGl="}', {"$bin": "aGl="}),
        ('{"$bin":"aGk"}', {"$bin": "aGk"}),
        ('{"$bin":"a-k="}', {"$bin": "a-k="}),
        ('{"$bin":5}', {"$bin": 5}),
        ('{"$bin":["aGk="]}', {"$bin": ["aGk="]}),
        ('{"$bin":"aGk=","a":1}', {"$bin": "aGk=", "a": 1}),
        ('{"a":1,"$bin":"aGk="}', {"a": 1, "$bin": "aGk="}),
        ('{"$bins":"aGk="}', {"$bins": "aGk="}),
        ('["$bin","aGk="]', ["$bin", "aGk="]),
        ('{"$ext":[128,"aGk="]}', {"$ext": [128, "aGk="]}),
        ('{"$ext":[-129,"aGk="]}', {"$ext": [-129, "aGk="]}),
        ('{"$ext":[1.0,"aGk="]}', {"$ext": [1.0, "aGk="]}),
        ('{"$ext":[1,"aGk=",2]}', {"$ext": [1, "aGk=", 2]}),
        ('{"$ext":[1,5]}', {"$ext": [1, 5]}),
        ('{"$ext":"aGk="}', {"$ext": "aGk="}),
    ],
)
def test_bin_and_ext(text: str, value: Any) -> None:
    assert read(text.encode()) == value
    assert same(read(text.encode()), oracle(text.encode()))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 8, 16, 17, 23, 24, 255, 256, 257, 65535, 65536])
def test_bin_and_ext_of_every_header_form(size: int) -> None:
    data = bytes(at * 7 % 256 for at in range(size))
    text = base64.b64encode(data).decode()
    assert transcode.mpack_from_json(json.dumps({"$bin": text}).encode()) == msgpack.packb(data)
    ext = transcode.mpack_from_json(json.dumps(["before", {"$ext": [5, text]}, "after"]).encode())
    assert ext == msgpack.packb(["before", msgpack.ExtType(5, data), "after"])
