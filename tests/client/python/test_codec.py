"""Bodies and TCP's stream: every split, every value, both encodings."""

import struct

import pytest
from holdfast_client.codec import BodyCutter, Encoding, decode, encode, length_prefixed
from holdfast_client.errors import ProtocolViolation
from hypothesis import given
from hypothesis import strategies as st

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
finite = st.floats(allow_nan=False, allow_infinity=False)
data = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), finite, text, st.binary(max_size=10)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)


@given(data, st.sampled_from(Encoding))
def test_what_is_encoded_is_decoded(value: object, encoding: Encoding) -> None:
    assert decode(encode([value], encoding)) == [value]


def test_json_is_without_insignificant_whitespace() -> None:
    assert encode([9, {"a": "é", "b": b"\xff"}], Encoding.JSON) == '[9,{"a":"é","b":{"$bin":"/w=="}}]'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), "\ud800"])
def test_what_has_no_place_in_json_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        encode([value], Encoding.JSON)


UNREADABLE = ["", "nul", "[NaN]", '[{"$bin":"§"}]', "[" * 100_000, b"", b"\xc1", b"\x92\x01", b"\x81\x90\x01"]


@pytest.mark.parametrize("body", UNREADABLE)
def test_what_cannot_be_read_is_a_violation(body: bytes | str) -> None:
    with pytest.raises(ProtocolViolation):
        decode(body)


def test_every_split_point_gives_the_same_bodies() -> None:
    stream = b"".join(map(length_prefixed, [b"", b"a", b"bc" * 40]))
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            cutter = BodyCutter()
            parts = (stream[:first], stream[first:second], stream[second:])
            cut = [body for part in parts for body in cutter.feed(part)]
            assert cut == [b"", b"a", b"bc" * 40]


def test_a_length_beyond_the_bound_is_refused_before_its_body() -> None:
    assert BodyCutter(10).feed(struct.pack(">I", 10) + b"x" * 10) == [b"x" * 10]
    with pytest.raises(ProtocolViolation, match="11 bytes"):
        BodyCutter(10).feed(struct.pack(">I", 11))
