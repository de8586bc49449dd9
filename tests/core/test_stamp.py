"""A stamped payload says who sent it when, and no change of it goes unnoticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import stamp

SIZES = st.integers(stamp.PAYLOAD_BYTES_MIN, 300)
STAMPS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


@given(SIZES, STAMPS)
def test_what_was_written_is_read(size: int, fields: tuple[int, int, int]) -> None:
    payload = stamp.write(size, *fields)
    assert len(payload) == size
    assert stamp.read(payload) == fields


@given(SIZES, STAMPS, st.data())
def test_a_changed_byte_is_noticed(size: int, fields: tuple[int, int, int], data: st.DataObject) -> None:
    payload = bytearray(stamp.write(size, *fields))
    payload[data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(1, 255))
    assert stamp.read(bytes(payload)) is None


@given(SIZES, STAMPS)
def test_a_shortened_or_lengthened_payload_is_noticed(size: int, fields: tuple[int, int, int]) -> None:
    payload = stamp.write(size, *fields)
    assert stamp.read(payload[:-1]) is None
    assert stamp.read(payload + b"!") is None


@pytest.mark.parametrize("size", [0, stamp.PAYLOAD_BYTES_MIN - 1, stamp.PAYLOAD_BYTES_MAX + 1])
def test_a_size_without_room_or_bound_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"24 to 60000 bytes, not {size}"):
        stamp.write(size, 1, 2, 3)


def test_the_largest_payload_can_be_written_and_read() -> None:
    assert stamp.read(stamp.write(stamp.PAYLOAD_BYTES_MAX, 1, 2, 3)) == (1, 2, 3)
    assert stamp.read(b"") is None
