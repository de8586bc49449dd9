"""Records against a second implementation with `struct`: each side reads what the other writes."""

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import records
from tests.core import wire

U16, U32, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NAMES = st.binary(max_size=255)
FLAGS = {"JOINED", "HERE", "LEFT", "ACKED", "RESUMES", "AGAIN", "OVER", "OUTCOME_ALONE", "FROM_CURSOR"}
FLAGS |= {"AS_IS", "POSITION", "MESSAGES", "ALIVE", "OPENS_TOLD", "CLOSES_TOLD", "STATES_TOLD"}
FLAGS |= {"GONE", "FRESH", "BESIDE", "EVERYBODY", "BEFORE", "HEARS", "LISTS", "FROM_LISTING", "FROM_STORE", "VERSION"}
FLAGS |= {"CLAIM_BITS", "SAID", "TOLD_GLOBALS", "ELSEWHERE", "FEEDS"}
KINDS = {name: value for name, value in vars(records).items() if name.isupper() and isinstance(value, int)}
KINDS = {name: value for name, value in KINDS.items() if name not in FLAGS}


def test_every_kind_has_a_number_of_its_own() -> None:
    assert sorted(KINDS.values()) == list(range(1, 32))


@given(NAMES, st.binary(max_size=64), st.binary(max_size=255), st.binary(max_size=300), U32, st.booleans())
@settings(deadline=None)
def test_a_publish_is_read_as_it_was_written(
    name: bytes, key: bytes, sender: bytes, data: bytes, seq: int, again: bool
) -> None:
    writer = records.BatchWriter()
    writer.publish(seq, name, data, sender, key, again=again)
    assert wire.unpack(writer.take()) == [
        {
            "kind": records.PUBLISH,
            "aux": len(name),
            "seq": seq,
            "again": again,
            "name": name,
            "key": key,
            "sender": sender,
            "data": data,
        }
    ]


@given(st.lists(st.tuples(NAMES, U64, U64, U64), max_size=5), U64, st.binary(min_size=16, max_size=16), U32)
@settings(deadline=None)
def test_a_workers_batch_is_read_as_it_was_written(
    channels: list[tuple[bytes, int, int, int]], number: int, session: bytes, seq: int
) -> None:
    writer = records.BatchWriter()
    writer.link(records.BEGIN, number, seq)
    for name, *position in channels:
        writer.channel(records.SUBSCRIBE, name, *position)
    writer.session(records.OPEN, session, number, seq)
    writer.history(records.HISTORY, seq, b"group:a", limit=7, reverse=True, since=(number, 3), bytes_max=99)
    begin, *subscribed, opened, history = wire.unpack(writer.take())
    assert begin == {"kind": records.BEGIN, "aux": 0, "epoch": number, "version": 10, "worker": seq, "now_ms": 0}
    assert [(one["name"], one["channel"], one["epoch"], one["offset"]) for one in subscribed] == channels
    assert (opened["session"], opened["conn"], opened["seq"]) == (session, number, seq)
    expected = {"seq": seq, "limit": 7, "reverse": 1, "since": (number, 3), "bytes_max": 99, "name": b"group:a"}
    assert history == {"kind": records.HISTORY, "aux": 7, **expected}
    assert writer.take() == b""


@given(U64, U64, U64, U32, st.binary(max_size=100))
@settings(deadline=None)
def test_a_routers_batch_is_read_as_it_was_written(
    channel: int, epoch: int, offset: int, seq: int, body: bytes
) -> None:
    batch = [
        wire.linked(epoch, ask=True),
        wire.subscribed(channel, epoch, offset),
        wire.opened(channel, seq),
        wire.published(seq, epoch, offset, 5),
        wire.reply(seq, body),
        wire.message(channel, epoch, offset, body, everybody=True),
    ]
    linked, subscribed, opened, published, reply, message = records.unpack(b"".join(batch))
    assert linked == {"kind": records.LINKED, "aux": 1, "epoch": epoch, "version": 10, "stored_ms": 0}
    position = {"epoch": epoch, "offset": offset}
    assert subscribed == {"kind": records.SUBSCRIBED, "aux": 0, "channel": channel, **position}
    assert (opened["conn"], opened["seq"]) == (channel, seq)
    assert published == {"kind": records.PUBLISHED, "aux": 5, "seq": seq, **position}
    assert (reply["seq"], reply["body"]) == (seq, body)
    assert message == {"kind": records.MESSAGE, "aux": 1, "channel": channel, **position, "body": body}


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_are_a_batch_or_an_error(data: bytes) -> None:
    try:
        found = records.unpack(data)
    except ValueError:
        return
    assert len(found) <= len(data) // 8


def test_every_truncation_is_an_error_at_its_byte() -> None:
    first, second = wire.linked(1, ask=False), wire.message(1, 2, 3, msgpack.packb("x" * 30))
    batch = first + second
    for size in range(1, len(batch)):
        if size == len(first):
            continue
        place = 0 if size < len(first) else len(first)
        with pytest.raises(ValueError, match=f"no whole record at byte {place} of {size}"):
            records.unpack(batch[:size])


@pytest.mark.parametrize("size", [0, 4, 7, 12, 2**32 - 8])
def test_sizes_that_cannot_be_are_errors(size: int) -> None:
    with pytest.raises(ValueError, match="no whole record"):
        records.unpack(size.to_bytes(4, "little") + wire.linked(1, ask=False)[4:])


def test_a_batch_has_a_bound() -> None:
    writer = records.BatchWriter()
    megabyte = bytes(1 << 20)
    for _ in range(63):
        writer.publish(1, b"group:a", megabyte, b"alice")
    with pytest.raises(BufferError):
        writer.publish(1, b"group:a", megabyte, b"alice")
    assert len(wire.unpack(writer.take())) == 63
