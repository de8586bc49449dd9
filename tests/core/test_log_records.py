"""Log records: what is packed is read back, and what is no batch is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import log_records

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
RECORDS = st.tuples(
    st.sampled_from([log_records.MESSAGE, log_records.POSITION, log_records.EVENT]),
    st.binary(min_size=1, max_size=255),
    U64,
    U64,
    U64,
    st.tuples(U64, U64),
    st.tuples(U64, U32, U32),
    st.sampled_from([0, log_records.WAITS]),
    st.binary(max_size=300),
)


@given(st.lists(RECORDS, max_size=6))
@settings(deadline=None)
def test_a_batch_is_read_as_it_was_packed(records: list[tuple]) -> None:  # type: ignore[type-arg]
    packed = [
        log_records.pack(kind, channel, epoch, offset, time_ms=time, key=key, origin=origin, flags=flags, body=body)
        for kind, channel, epoch, offset, time, key, origin, flags, body in records
    ]
    found = log_records.entries(b"".join(packed))
    assert [
        (one.kind, one.channel, one.epoch, one.offset, one.time_ms, one.key, one.origin, one.flags, one.body)
        for one in found
    ] == records
    assert [one.record for one in found] == packed


@given(st.binary(min_size=1, max_size=300))
@settings(deadline=None)
def test_other_bytes_are_refused(junk: bytes) -> None:
    good = log_records.pack(log_records.MESSAGE, b"group:a", 1, 2, body=b"x")
    with pytest.raises(ValueError, match="no whole log record"):
        log_records.entries(good + junk[:87])
    with pytest.raises(ValueError, match="no whole log record"):
        log_records.entries(good[:-8])
