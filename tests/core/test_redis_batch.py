"""Batches cut into commands for Redis, held against a slow cutting of the same batch, and tails read back."""

import itertools
import struct
import zlib
from typing import Any

import hiredis
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import log_records
from core.redis_batch import Cutter, bridged_records, tail_records

SHARDS = 4
STARTS = [b"hf:{s%d}:" % number for number in range(SHARDS)]
SETTINGS = [b"300000", b"60000", b"7"]
RETENTIONS = {b"group": [b"10", b"1000"], b"user": [b"2000000000", b"18446744073709551615"], b"": [b"1", b"2"]}
SHARD_AT = 7  # in a record
AT_REST = 20  # bytes at the end of a record's head: its flags, and what means something only while it waits
NUMBERS = st.integers(0, 2**64 - 1)
SMALL = st.integers(0, 2**32 - 1)


def packed(*args: bytes) -> bytes:
    return b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in args)


def make_cutter() -> Cutter:
    keys = [packed(start + b"e", start + b"k", start + b"t", start + b"g") for start in STARTS]
    retentions = [(name, packed(kept), packed(expiry)) for name, (kept, expiry) in RETENTIONS.items()]
    return Cutter(packed(b"EVALSHA", b"f" * 40), STARTS, keys, packed(*SETTINGS), retentions)


def read(command: bytes) -> list[bytes]:
    """The arguments, as Redis would read them."""
    reader = hiredis.Reader()
    reader.feed(command)
    found: Any = reader.gets()
    assert not reader.has_data()
    assert isinstance(found, list)
    return found


def tail_of(entry: log_records.LogEntry) -> bytes:
    """As the header says it (core/redis_batch.pxd)."""
    has_key, has_origin = entry.key != (0, 0), entry.origin[0] != 0
    parts = [bytes([has_key | 2 * has_origin, len(entry.channel)])]
    parts += [number.to_bytes(8, "little") for number in (entry.epoch, entry.offset, entry.time_ms)]
    parts.append(entry.channel)
    if has_key:
        parts += [number.to_bytes(8, "little") for number in entry.key]
    if has_origin:
        parts += [n.to_bytes(size, "little") for n, size in zip(entry.origin, (8, 4, 4), strict=True)]
    return b"".join(parts)


def at_rest(entry: log_records.LogEntry) -> bytes:
    if entry.kind == log_records.POSITION:
        return b""
    end = log_records.HEAD_BYTES
    rest = struct.pack("<I", entry.flags & log_records.BEGINS).ljust(AT_REST, b"\0")
    return entry.record[: end - AT_REST] + rest + entry.record[end:]


class Told:
    """Which channels were told lately when to expire, in a table as small as the real one."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, int]] = {}

    def expiry(self, entry: log_records.LogEntry, expiry: bytes) -> bytes:
        value = 0xCBF29CE484222325
        for byte in entry.channel:
            value = (value ^ byte) * 0x100000001B3 % 2**64
        minute = entry.time_ms // 60_000
        known, before = self._places.get(value % 65_536, (0, 0))
        if known == value and before <= minute < before + 60:
            return b"0"
        self._places[value % 65_536] = (value, minute)
        return expiry


def expected(batch: bytes, epoch: int, numbers: list[int], told: Told) -> list[tuple[int, list[bytes]]]:
    entries = log_records.entries(batch)
    found = []
    for shard, start in enumerate(STARTS):
        mine = [one for one in entries if zlib.crc32(one.channel) % SHARDS == shard]
        if not mine:
            continue
        runs = [(name, list(group)) for name, group in itertools.groupby(mine, key=lambda one: one.channel)]
        args = [b"EVALSHA", b"f" * 40, b"%d" % (4 + len(runs))]
        args += [start + b"e", start + b"k", start + b"t", start + b"g"]
        args += [start + b"c:" + name for name, _ in runs]
        args += [b"%020d" % epoch, b"%d" % numbers[shard], *SETTINGS]
        args += [b"".join(tail_of(one) for one in mine if (one.key != (0, 0)) == keyed) for keyed in (True, False)]
        for name, group in runs:
            kept, expiry = RETENTIONS.get(name.partition(b":")[0] if b":" in name else b"", RETENTIONS[b""])
            args += (kept, told.expiry(group[0], expiry), b"%d" % len(group))
            for one in group:
                args += (b"%d-%d" % (one.epoch, one.offset), at_rest(one))
        found.append((shard, [*args, b"0"]))
    return found


CHANNELS = st.one_of(
    st.sampled_from([b"group:a", b"group:b", b"user:a", b"group", b"groups:a", b":", b"other:\r\n{}"]),
    st.binary(min_size=1, max_size=255),
)
RECORDS = st.builds(
    lambda kind, channel, epoch, offset, time_ms, key, origin, flags, body: log_records.pack(
        kind, channel, epoch, offset, time_ms=time_ms, key=key, origin=origin, flags=flags, body=body
    ),
    st.sampled_from([log_records.MESSAGE, log_records.MESSAGE, log_records.POSITION]),
    CHANNELS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.one_of(st.just((0, 0)), st.tuples(NUMBERS, NUMBERS)),
    st.one_of(st.just((0, 0, 0)), st.tuples(NUMBERS, SMALL, SMALL)),
    st.integers(0, 3),
    st.binary(max_size=60),
)


@given(st.lists(st.lists(RECORDS, min_size=1, max_size=30), min_size=1, max_size=4), NUMBERS, st.data())
def test_a_batch_is_cut_as_the_slow_way_does(batches: list[list[bytes]], epoch: int, data: st.DataObject) -> None:
    cutter, told = make_cutter(), Told()  # one for all batches: what is left of one may not show in the next
    for records in batches:
        numbers = data.draw(st.lists(NUMBERS, min_size=SHARDS, max_size=SHARDS))
        batch = b"".join(records)
        got = [(shard, read(command)) for shard, command in cutter.cut(batch, epoch, numbers)]
        assert got == expected(batch, epoch, numbers, told)


def test_when_a_channel_expires_is_told_once_an_hour_and_after_another_server_came() -> None:
    cutter = make_cutter()
    hour_ms = 3_600_000

    def told_at(time_ms: int) -> bool:
        record = log_records.pack(log_records.MESSAGE, b"group:a", 1, 1, time_ms=time_ms)
        [(_, command)] = cutter.cut(record, 1, [1] * SHARDS)
        expiry = read(command)[16]
        assert expiry in (b"0", RETENTIONS[b"group"][1])
        return expiry != b"0"

    start = 1000 * hour_ms
    assert [told_at(start), told_at(start), told_at(start + hour_ms - 1)] == [True, False, False]
    assert [told_at(start + hour_ms), told_at(start + hour_ms)] == [True, False]
    assert [told_at(start), told_at(start)] == [True, False]  # the clock stepped back
    cutter.forget()
    assert told_at(start)


def test_a_batch_of_one_channel_has_one_key() -> None:
    batch = b"".join(log_records.pack(log_records.MESSAGE, b"group:a", 1, offset) for offset in range(1, 1001))
    [(shard, command)] = make_cutter().cut(batch, 1, [7] * SHARDS)
    assert shard == zlib.crc32(b"group:a") % SHARDS
    assert read(command)[2] == b"5"


def test_what_waited_is_at_rest_in_the_command() -> None:
    plain = log_records.pack(log_records.MESSAGE, b"group:a", 1, 1, body=b"body", flags=log_records.BEGINS)
    head = log_records.HEAD_BYTES
    waiting = plain[: head - AT_REST] + b"\xff" * AT_REST + plain[head:]
    [(_, command)] = make_cutter().cut(waiting, 1, [1] * SHARDS)
    assert plain in read(command)


def test_an_empty_batch_is_for_nobody() -> None:
    assert make_cutter().cut(b"", 1, [1] * SHARDS) == []


def test_bytes_that_are_no_batch_are_refused_and_change_nothing() -> None:
    cutter = make_cutter()
    record = log_records.pack(log_records.MESSAGE, b"group:a", 1, 1)
    for wrong in (record[:-1], record + b"x", bytes(88)):
        with pytest.raises(ValueError, match="no whole log record"):
            cutter.cut(wrong, 1, [1] * SHARDS)
    got = [(shard, read(one)) for shard, one in cutter.cut(record, 1, [1] * SHARDS)]
    assert got == expected(record, 1, [1] * SHARDS, Told())


@given(st.lists(RECORDS, max_size=20))
def test_a_tail_gives_back_who_published_what_under_which_key(records: list[bytes]) -> None:
    entries = [entry for record in records for entry in log_records.entries(record)]
    back = log_records.entries(tail_records(b"".join(tail_of(one) for one in entries)))

    def named(one: log_records.LogEntry) -> tuple[object, ...]:
        origin = one.origin if one.origin[0] else (0, 0, 0)
        return one.channel, one.epoch, one.offset, one.time_ms, one.key, origin

    assert [named(one) for one in back] == [named(one) for one in entries]
    assert all(one.body == b"" and one.kind == log_records.POSITION and one.flags == 0 for one in back)


def test_a_tail_cut_short_is_refused() -> None:
    record = log_records.pack(log_records.MESSAGE, b"group:a", 1, 2, key=(1, 2), origin=(3, 4, 5))
    tail = tail_of(log_records.entries(record)[0])
    assert len(log_records.entries(tail_records(2 * tail))) == 2
    for size in range(1, len(tail)):
        with pytest.raises(ValueError, match="no keys and origins"):
            tail_records(tail + tail[:size])
    with pytest.raises(ValueError, match="no keys and origins"):
        tail_records(bytes(26))  # no name


def bridged(command: bytes) -> bytes:
    """What the script that appends puts on the bridge: the keys and arguments with which it was called."""
    _, _, keys, *rest = read(command)
    packed: bytes = msgpack.packb([rest[: int(keys)], rest[int(keys) :]], use_bin_type=False)
    return packed


@given(st.lists(RECORDS, min_size=1, max_size=30))
def test_a_bridges_entry_has_the_records_as_they_are_at_rest(records: list[bytes]) -> None:
    batch = b"".join(records)
    for shard, command in make_cutter().cut(batch, 1, [1] * SHARDS):
        wanted = [one for one in log_records.entries(batch) if zlib.crc32(one.channel) % SHARDS == shard]
        found = log_records.entries(bridged_records(bridged(command), shard))
        assert [(one.kind, one.channel, one.epoch, one.offset) for one in found] == [
            (one.kind, one.channel, one.epoch, one.offset) for one in wanted
        ]
        for one, other in zip(found, wanted, strict=True):
            if other.kind == log_records.MESSAGE:
                assert one.record == at_rest(other)
            else:
                assert one.record[SHARD_AT] == shard


def test_what_is_no_bridges_entry_is_refused_wherever_it_ends() -> None:
    batch = log_records.pack(log_records.MESSAGE, b"group:a", 5, 1, body=b"x" * 300)
    batch += log_records.pack(log_records.POSITION, b"group:bb", 5, 2)
    [(_, command), *_] = make_cutter().cut(batch, 1, [1] * SHARDS)
    whole = bridged(command)
    assert bridged_records(whole, 1)
    for size in range(len(whole) - 6):  # what is cut off last is the flag behind the records
        with pytest.raises(ValueError, match="no batch of a bridge"):
            bridged_records(whole[:size], 1)
    for place in range(len(whole)):
        torn = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        try:
            log_records.entries(bridged_records(torn, 1))
        except ValueError:
            continue
