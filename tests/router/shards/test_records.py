"""Records: what was written is read, and what cannot be read says why."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.shards.owners import Owner
from router.shards.records import (
    CordonRecord,
    MoveRecord,
    NodeRecord,
    PinRecord,
    PublishersRecord,
    RegionRecord,
    ShardRecord,
    Unreadable,
    decode,
    encode,
)

NUMBERS = st.integers(0, 2**63 - 1)
RECORDS = st.one_of(
    st.builds(NodeRecord, NUMBERS, st.text(), st.text()),
    st.builds(
        ShardRecord, st.text(), NUMBERS, NUMBERS, st.sampled_from(["claimed", "taken", "handed", "kept", "raised"])
    ),
    st.builds(MoveRecord, NUMBERS, NUMBERS, NUMBERS),
    st.builds(PinRecord, st.text()),
    st.builds(CordonRecord, NUMBERS),
    st.builds(RegionRecord, st.text(), NUMBERS, NUMBERS),
    st.builds(PublishersRecord, st.text()),
    st.builds(Owner, st.text(), st.text(), st.text(), st.text(), NUMBERS, NUMBERS, NUMBERS),
)


@given(RECORDS)
def test_what_was_written_is_read(record: ShardRecord) -> None:
    assert decode(type(record), encode(record)) == record


@given(st.binary())
def test_whatever_is_there_is_read_or_refused(value: bytes) -> None:
    try:
        decode(ShardRecord, value)
    except Unreadable:
        pass
    else:
        assert encode(decode(ShardRecord, value))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "no list in MessagePack"),
        (msgpack.packb(7), "no list in MessagePack"),
        (msgpack.packb([]), "no list in MessagePack"),
        (msgpack.packb([2, "a", 1, 1, "taken"]), "version 2"),
        (msgpack.packb([1, "a", 1, 1]), "is not str, int, int, str"),
        (msgpack.packb([1, "a", "1", 1, "taken"]), "is not str, int, int, str"),
        (msgpack.packb([1, "a", True, 1, "taken"]), "is not str, int, int, str"),
        (msgpack.packb([1, "a", -1, 1, "taken"]), "a number below 0"),
    ],
)
def test_what_cannot_be_read_says_why(value: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        decode(ShardRecord, value)
