"""Keys and origins, packed and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import log_records
from router.log.redis_tail import HAS_KEY, HAS_ORIGIN, packed, unpacked

NUMBERS = st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    lambda kind, name, epoch, offset, time_ms, key, origin, body: log_records.pack(
        kind, name, epoch, offset, time_ms=time_ms, key=key, origin=origin, body=body
    ),
    st.sampled_from([log_records.MESSAGE, log_records.POSITION]),
    st.binary(min_size=1, max_size=255),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.tuples(NUMBERS, NUMBERS),
    st.tuples(NUMBERS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.binary(max_size=50),
)


@given(st.lists(RECORDS, max_size=20))
def test_what_names_a_publish_comes_back_and_nothing_else(records: list[bytes]) -> None:
    given_ = [entry for record in records for entry in log_records.entries(record)]
    back = [
        entry
        for record in unpacked(b"".join(packed(entry) for entry in given_))
        for entry in log_records.entries(record)
    ]

    def named(entries: list[log_records.LogEntry]) -> list[object]:
        found: list[object] = []
        for one in entries:
            origin = one.origin if one.origin[0] else (0, 0, 0)
            if one.key != (0, 0) or one.origin[0]:
                found.append((one.channel, one.epoch, one.offset, one.time_ms, one.key, origin))
        return found

    assert named(back) == named(given_)
    assert all(entry.body == b"" for entry in back)


def test_the_first_byte_says_what_is_there() -> None:
    def first(**fields: tuple[int, ...]) -> bytes:
        record = log_records.pack(log_records.MESSAGE, b"group:a", 1, 2, **fields)  # type: ignore[arg-type]
        return packed(log_records.entries(record)[0])[:1]

    assert first() == b""
    assert first(key=(1, 2)) == bytes([HAS_KEY])
    assert first(origin=(1, 2, 3)) == bytes([HAS_ORIGIN])
    assert first(key=(1, 2), origin=(1, 2, 3)) == bytes([HAS_KEY | HAS_ORIGIN])


def test_bytes_cut_short_are_refused() -> None:
    record = log_records.pack(log_records.MESSAGE, b"group:a", 1, 2, key=(1, 2))
    blob = packed(log_records.entries(record)[0])
    for size in range(1, len(blob)):
        with pytest.raises(ValueError, match="no keys and origins"):
            list(unpacked(blob[:size]))
