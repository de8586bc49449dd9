"""JSON and MessagePack there and back, and the sizes of buffers."""

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import transcode

exts = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
)  # fmt: skip


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # "$" begins no key here: {"$bin": …} as a map is the one thing that does not come back as it went.
    keys = st.text(max_size=8).filter(lambda key: not key.startswith("$"))
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(keys, inner, max_size=20), max_leaves=25
    )


@given(trees(plain | st.binary(max_size=40) | exts))
@settings(max_examples=500, deadline=None)
def test_messagepack_comes_back_byte_for_byte(value: Any) -> None:
    data = msgpack.packb(value)
    assert transcode.mpack_from_json(transcode.json_from_mpack(data)) == data


@given(trees(plain))
@settings(max_examples=300, deadline=None)
def test_compact_json_comes_back_byte_for_byte(value: Any) -> None:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert transcode.json_from_mpack(transcode.mpack_from_json(data)) == data


@given(trees(plain))
@settings(max_examples=200, deadline=None)
def test_a_buffer_of_exactly_the_size_is_enough_and_less_is_told(value: Any) -> None:
    packed = msgpack.packb(value)
    text = transcode.json_from_mpack(packed)
    for turn, source, result in (
        (transcode.json_from_mpack, packed, text),
        (transcode.mpack_from_json, text, packed),
    ):
        assert turn(source, len(result)) == result
        for room in range(len(result)):
            with pytest.raises(transcode.TranscodeError) as refused:
                turn(source, room)
            assert refused.value.code == transcode.OVERFLOW


# What grows most on the way, by form; the faces allocate by json_bound and mpack_bound, so that OVERFLOW would raise.
GROWING_MPACK = [
    b"\xd4\x80\x00", b"\xc7\x00\x80", b"\xc4\x00", b"\xc4\x01a", b"\xc2", b"\xc0", b"\xff", b"\xd0\x80", b"\xa1\x01",
    b"\xa0",
    b"\xca\x80\x80\0\1", b"\x80", b"\x90", b"\x81\xff\xc2", b"\xd3\x80" + bytes(7), b"\xcb\x80\x10" + bytes(5) + b"\1",
]  # fmt: skip
GROWING_JSON = [b"-0", b"1e9", b"0.5", b"[-0]", b'{"":-0}', b"[]", b'""', b"-1e-9", b"99999"]


@pytest.mark.parametrize("item", GROWING_MPACK)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 1000, 65536])
def test_json_bound_holds_for_what_grows_most(item: bytes, count: int) -> None:
    header = msgpack.Packer().pack_array_header(count)
    assert transcode.json_from_mpack(header + item * count).count(b",") >= count - 1
    assert transcode.json_from_mpack(item)


@pytest.mark.parametrize("item", GROWING_JSON)
@pytest.mark.parametrize("count", [1, 15, 16, 1000, 65536])
def test_mpack_bound_holds_for_what_grows_most(item: bytes, count: int) -> None:
    assert len(msgpack.unpackb(transcode.mpack_from_json(b"[" + b",".join([item] * count) + b"]"))) == count
    assert transcode.mpack_from_json(item)


def test_a_map_that_looks_like_a_bin_becomes_one_by_way_of_json() -> None:
    # The price of the notation, said here so that it is a decision and no surprise.
    packed = msgpack.packb({"$bin": "aGk="})
    assert transcode.mpack_from_json(transcode.json_from_mpack(packed)) == msgpack.packb(b"hi")
