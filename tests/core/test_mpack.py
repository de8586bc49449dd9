"""MessagePack spans against the msgpack package, and the forms one by one."""

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core import mpack

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=40),
    st.binary(max_size=40), st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
)  # fmt: skip
keys = st.text(max_size=8) | st.integers(-(2**63), 2**64 - 1)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(keys, inner, max_size=20), max_leaves=25
)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


class Pairs(list[tuple[Any, Any]]):
    """A map as it was written: a dict takes False and 0 for the same key."""


def unpack(data: bytes) -> tuple[Any, int]:
    """The first value of `data` and its size, by the oracle; ValueError if it has none."""
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=1 << 24, object_pairs_hook=Pairs)
    unpacker.feed(data)
    try:
        return unpacker.unpack(), unpacker.tell()
    except (msgpack.exceptions.UnpackException, ValueError, TypeError) as error:
        raise ValueError(str(error)) from error


@given(values, st.binary(max_size=5))
@settings(max_examples=300, deadline=None)
def test_skip_passes_exactly_one_value(value: Any, after: bytes) -> None:
    data = pack(value)
    assert mpack.skip(data + after) == len(data)
    assert {mpack.skip(data[:cut]) for cut in range(len(data))} <= {mpack.TRUNCATED}


@given(values, st.integers(0, 1 << 16), st.integers(0, 255))
@example([None, {"0\x90": None, "": None}], 3, 0)
@settings(max_examples=600, deadline=None)
def test_damaged_values_are_skipped_as_the_oracle_reads_them(value: Any, at: int, byte: int) -> None:
    data = bytearray(pack(value))
    data[at % len(data)] = byte
    size = mpack.skip(bytes(data))
    try:
        read, theirs = unpack(bytes(data))
    except ValueError:
        # The oracle also refuses timestamps and counts that it finds too large; a value passed over must be whole.
        assert size <= len(data)
        return
    if size > 0:
        assert size == theirs
    else:
        assert size == mpack.INVALID
        assert has_foreign_key(read)


def has_foreign_key(value: Any) -> bool:
    """Whether a map in `value` has a key that JSON could not carry."""
    if isinstance(value, Pairs):
        return any(isinstance(key, bool) or not isinstance(key, str | int) or has_foreign_key(item)
                   for key, item in value)  # fmt: skip
    return isinstance(value, list) and any(map(has_foreign_key, value))


@given(st.binary(max_size=30))
@settings(max_examples=500, deadline=None)
def test_random_bytes_never_pass_beyond_their_end(data: bytes) -> None:
    assert mpack.skip(data) <= len(data)
    for what in ("uint", "int", "double", "bool", "nil", "array", "map", "str", "bin"):
        code, _, consumed = mpack.read(what, data)
        assert (consumed > 0) == (code == 0)
        assert consumed <= len(data)


def nested(depth: int, opening: bytes) -> bytes:
    return opening * depth + b"\xc0"


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k", b"\xdc\0\x01", b"\xdf\0\0\0\x01\x07"])
def test_depth_has_a_limit(opening: bytes) -> None:
    assert mpack.skip(nested(64, opening)) == len(nested(64, opening))
    assert mpack.skip(nested(65, opening)) == mpack.INVALID
    assert mpack.skip(nested(100000, opening)) == mpack.INVALID


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x92\x01\xc1",
        b"\xa1\xff",
        b"\xa3\xed\xa0\x80",
        b"\xd9\x01\x80",
        b"\x81\xc0\x01",
        b"\x81\xc3\x01",
        b"\x81\xc4\x01a\x01",
        b"\x81\x90\x01",
        b"\x81\xcb" + bytes(8) + b"\x01",
        b"\x82\xa1a\x01\x80\x01",
        b"\x81\xa1\xff\x01",
    ],
)
def test_what_not_every_session_could_receive_is_invalid(data: bytes) -> None:
    assert mpack.skip(data) == mpack.INVALID


@pytest.mark.parametrize("data", [b"", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
b"\xc6",
                                  b"\xc9\0\0\0\x05\x01abcd", b"\xd8\x01", b"\xcb" + bytes(7), b"\x92\x01"])  # fmt: skip
def test_announced_but_missing_is_truncated(data: bytes) -> None:
    assert mpack.skip(data) == mpack.TRUNCATED


EVERY_FORM = [
    (b"\x7f", mpack.INT), (b"\xe0", mpack.INT), (b"\xff", mpack.INT), (b"\xc0", mpack.NIL), (b"\xc2", mpack.BOOL),
    (b"\xc3", mpack.BOOL), (b"\x80", mpack.MAP), (b"\x8f", mpack.MAP), (b"\xde", mpack.MAP), (b"\xdf", mpack.MAP),
    (b"\x90", mpack.ARRAY), (b"\x9f", mpack.ARRAY), (b"\xdc", mpack.ARRAY), (b"\xdd", mpack.ARRAY),
    (b"\xa0", mpack.STR), (b"\xbf", mpack.STR), (b"\xd9", mpack.STR), (b"\xda", mpack.STR), (b"\xdb", mpack.STR),
    (b"\xc4", mpack.BIN), (b"\xc5", mpack.BIN), (b"\xc6", mpack.BIN), (b"\xca", mpack.FLOAT), (b"\xcb", mpack.FLOAT),
    *[(bytes([lead]), mpack.EXT) for lead in (0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8)],
    *[(bytes([lead]), mpack.INT) for lead in range(0xCC, 0xD4)],
    (b"\xc1", mpack.INVALID), (b"", mpack.TRUNCATED),
]  # fmt: skip


@pytest.mark.parametrize(("data", "kind"), EVERY_FORM)
def test_peek_tells_the_class_of_every_form(data: bytes, kind: int) -> None:
    assert mpack.peek(data) == kind


INTEGER_FORMS = [
    (b"\x05", 5), (b"\xcc\x05", 5), (b"\xcd\0\x05", 5), (b"\xce\0\0\0\x05", 5), (b"\xcf" + bytes(7) + b"\x05", 5),
    (b"\xd0\x05", 5), (b"\xd1\0\x05", 5), (b"\xd2\0\0\0\x05", 5), (b"\xd3" + bytes(7) + b"\x05", 5),
    (b"\xff", -1), (b"\xe0", -32), (b"\xd0\x80", -128), (b"\xd1\x80\0", -32768), (b"\xd2\x80\0\0\0", -(2**31)),
    (b"\xd3\x80" + bytes(7), -(2**63)), (b"\xcf" + b"\xff" * 8, 2**64 - 1), (b"\xcc\xff", 255), (b"\xcd\xff\xff",
    65535),
]  # fmt: skip


@pytest.mark.parametrize(("data", "value"), INTEGER_FORMS)
def test_integers_are_read_from_every_form_within_their_type(data: bytes, value: int) -> None:
    fits_uint, fits_int = value >= 0, value < 2**63
    assert mpack.read("uint", data + b"x") == ((0, value, len(data)) if fits_uint else (mpack.INVALID, None, 0))
    assert mpack.read("int", data + b"x") == ((0, value, len(data)) if fits_int else (mpack.INVALID, None, 0))
    assert mpack.read("double", data) == (0, float(value), len(data))
    for cut in range(len(data)):
        assert mpack.read("int", data[:cut]) == (mpack.TRUNCATED, None, 0)


def test_floats_of_both_sizes() -> None:
    assert mpack.read("double", b"\xca" + struct.pack(">f", 1.5)) == (0, 1.5, 5)
    assert mpack.read("double", b"\xcb" + struct.pack(">d", -0.1)) == (0, -0.1, 9)


@pytest.mark.parametrize("what", ["uint", "int", "double", "bool", "nil", "array", "map", "str", "bin"])
def test_another_type_is_invalid_and_moves_nothing(what: str) -> None:
    own = {"uint": mpack.INT, "int": mpack.INT, "double": mpack.FLOAT, "bool": mpack.BOOL, "nil": mpack.NIL,
           "array": mpack.ARRAY, "map": mpack.MAP, "str": mpack.STR, "bin": mpack.BIN}[what]  # fmt: skip
    for lead, kind in EVERY_FORM:
        code, _, consumed = mpack.read(what, lead + bytes(40))
        accepted = kind == own or (what == "double" and kind == mpack.INT)
        if lead == b"" or (what == "uint" and lead >= b"\xe0"):
            continue
        assert code == (0 if accepted else mpack.INVALID), (what, lead)
        assert (consumed > 0) == accepted


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536, 100000])
def test_sizes_at_every_edge_are_written_shortest_and_read_back(size: int) -> None:
    data = b"x" * size
    expected = {"str": pack(data.decode()), "bin": pack(data), "ext": pack(msgpack.ExtType(5, data))}
    assert mpack.write([("str", data)], size + 8) == (expected["str"], False)
    assert mpack.write([("bin", data)], size + 8) == (expected["bin"], False)
    assert mpack.write([("ext", (5, data))], size + 8) == (expected["ext"], False)
    assert mpack.read("str", expected["str"]) == (0, data, len(expected["str"]))
    assert mpack.read("bin", expected["bin"]) == (0, data, len(expected["bin"]))
    packer = msgpack.Packer()
    for what, header in (("array", packer.pack_array_header(size)), ("map", packer.pack_map_header(size))):
        assert mpack.write([(what, size)], 8) == (header, False)
        assert mpack.read(what, header) == (0, size, len(header))


@given(st.integers(-(2**63), 2**64 - 1) | st.integers(-40000, 70000))
def test_integers_are_written_in_the_shortest_form(value: int) -> None:
    assert mpack.write([("uint" if value >= 2**63 else "int", value)], 9) == (pack(value), False)
    if value >= 0:
        assert mpack.write([("uint", value)], 9) == (pack(value), False)


EDGES = [
    edge + near for bits in (5, 7, 8, 15, 16, 31, 32, 63, 64) for edge in (2**bits, -(2**bits)) for near in (-1, 0, 1)
]


@pytest.mark.parametrize("value", [edge for edge in EDGES if -(2**63) <= edge < 2**64])
def test_integers_at_the_edges_of_forms(value: int) -> None:
    assert mpack.write([("uint" if value >= 2**63 else "int", value)], 9) == (pack(value), False)


@given(st.floats(allow_nan=False), st.booleans())
def test_other_scalars_are_written_as_the_oracle_writes_them(number: float, truth: bool) -> None:
    items: list[tuple[str, object]] = [("double", number), ("bool", truth), ("nil", None), ("raw", b"\x01\x02")]
    assert mpack.write(items, 100) == (pack(number) + pack(truth) + b"\xc0\x01\x02", False)


@pytest.mark.parametrize(
    ("what", "value"),
    [("uint", 1), ("uint", 200), ("uint", 2**40), ("int", -1), ("int", -(2**40)), ("double", 1.5), ("bool", True),
     ("nil", None), ("array", 3), ("array", 70000), ("map", 3), ("map", 300), ("str", b"text"), ("str", b"x" * 300),
     ("bin", b""), ("bin", b"data"), ("raw", b"raw"), ("ext", (-1, b"abc")), ("ext", (1, b"abcd"))],
)  # fmt: skip
def test_overflow_writes_nothing_of_the_value_and_stays(what: str, value: object) -> None:
    whole, overflow = mpack.write([(what, value)], 1000)
    assert not overflow
    for room in range(len(whole)):
        assert mpack.write([("nil", None), (what, value), ("nil", None)], room + 1) == (b"\xc0", True)
    assert mpack.write([(what, value)], len(whole)) == (whole, False)
