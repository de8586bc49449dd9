"""The log index: where messages are, against a model that remembers everything."""

from hypothesis import given, settings
from hypothesis import strategies as st

from core import log_records
from core.log_index import LogIndex
from core.log_records import LogEntry, entries
from core.namespace_spec import NamespaceSpec

MOST = 3
A, B = b"group:a", b"group:b"


def index(messages: int = MOST, bytes_max: int = 1 << 20) -> LogIndex:
    group = NamespaceSpec(name="group", domain="group", history_messages=messages, history_bytes=bytes_max)
    return LogIndex([group])


def message(
    offset: int, channel: bytes = A, epoch: int = 1, key: tuple[int, int] = (0, 0), body: bytes = b"x"
) -> bytes:
    return log_records.pack(log_records.MESSAGE, channel, epoch, offset, key=key, body=body)


def settle(one: LogIndex, first: int, last: int, kept: list[tuple[int, bytes]]) -> None:
    for _ in one.settle(first, last, kept):
        continue


def ats(one: LogIndex, channel: bytes = A) -> list[tuple[int, int]]:
    return [(segment, at) for segment, at, _, _ in one.places(channel)]


def asked(records: bytes) -> list[tuple[int, int, int]]:
    return [(entry.kind, entry.offset, entry.flags) for entry in entries(records)]


LAST = 2


def test_a_message_is_found_where_it_was_appended() -> None:
    one = index()
    first, second = message(1), message(1, B)
    one.add(first + second, 7, 80)
    one.add(message(2), 8, 48)
    assert one.places(A) == [(7, 80, len(first), one.check(first)), (8, 48, len(first), one.check(message(2)))]
    assert ats(one, B) == [(7, 80 + len(first))]
    assert (one.position(A), one.position(B), one.position(b"group:c")) == ((1, 2), (1, 1), (0, 0))
    assert one.check(first[:-1] + b"\1") != one.check(first)
    assert (one.channels, one.messages) == (2, 3)


def test_messages_of_namespaces_that_nobody_configured_are_kept_whole_and_counted() -> None:
    one = index()
    assert one.unknown() == {}
    for offset in range(1, 9):
        one.add(message(offset, b"deal:a") + message(offset, b"deal:b") + message(offset), 1, offset * 1000)
    one.add(log_records.pack(log_records.POSITION, b"gone:a", 1, 1), 1, 9000)
    assert one.unknown() == {b"deal": 16}
    assert len(ats(one, b"deal:a")) == 8
    day_ms = 86_400_000
    assert [one.ask_positions(message(1, b"deal:a"), 1, 1000, days * day_ms)[1] for days in (365, 367)] == [1, 0]


def test_what_the_namespaces_size_does_not_keep_is_not_found() -> None:
    one = index()
    for offset in range(1, 9):
        one.add(message(offset), 1, offset * 1000)
    assert ats(one) == [(1, 6000), (1, 7000), (1, 8000)]
    small = index(100, bytes_max=1024)
    for offset in range(1, 9):
        small.add(message(offset, body=b"x" * 400), 1, offset * 1000)
    assert ats(small) == [(1, 7000), (1, 8000)]
    small.add(message(9, body=b"x" * 2000), 1, 9000)
    assert (ats(small), small.position(A)) == ([], (1, 9))


def test_a_namespace_that_is_not_known_any_more_keeps_its_places() -> None:
    one = index()
    for offset in range(1, 6):
        one.add(message(offset, b"gone:a"), 1, offset * 1000)
    assert len(ats(one, b"gone:a")) == 5


def test_a_batch_that_is_appended_again_changes_nothing() -> None:
    one = index()
    for at in (80, 800):
        one.add(message(1) + message(2), 1, at)
    assert len(ats(one)) == 2
    assert ats(one)[0] == (1, 80)


def test_a_channel_that_begins_anew_has_nothing_of_the_one_before() -> None:
    one = index()
    one.add(message(1) + message(2) + message(3), 1, 80)
    one.add(message(1, epoch=2), 1, 1000)
    assert (ats(one), one.position(A)) == ([(1, 1000)], (2, 1))


def test_messages_behind_a_position_that_stands_in_front_of_them_are_found() -> None:
    one = index()
    one.add(log_records.pack(log_records.POSITION, A, 1, 9), 1, 80)
    one.add(message(7) + message(8), 1, 1000)
    assert (len(ats(one)), one.position(A)) == (2, (1, 9))


def test_a_router_is_asked_about_what_is_kept_about_keys_and_about_the_last_position() -> None:
    one = index(1)
    batch = message(1) + message(2, key=(3, 4)) + message(3) + message(4)
    one.add(batch, 1, 80)
    found = one.ask(batch, 1, 80)
    assert asked(found) == [(log_records.POSITION, 2, 0), (log_records.MESSAGE, 4, LAST)]
    assert entries(found)[0].key == (3, 4)
    assert one.ask(batch, 2, 80) == one.ask(batch, 1, 800)  # which is not where its messages are
    assert asked(one.ask(batch, 2, 80))[-1] == (log_records.POSITION, 4, LAST)
    assert one.ask(message(1), 1, 80) == b""


def test_that_a_global_channel_began_with_a_message_stays_written() -> None:
    one = index(1)
    first = log_records.pack(log_records.MESSAGE, A, 1, 1, flags=log_records.BEGINS, body=b"x", key=(3, 4))
    one.add(first, 1, 80)
    assert asked(one.ask(first, 1, 80)) == [(log_records.MESSAGE, 1, LAST | log_records.BEGINS)]
    one.add(message(2), 2, 80)
    assert asked(one.ask(first, 1, 80)) == [(log_records.POSITION, 1, log_records.BEGINS)]


def test_of_messages_that_go_before_their_age_positions_and_keys_are_asked_about() -> None:
    one = index(3)
    batch = message(1) + message(2, key=(3, 4)) + message(3) + message(4) + message(1, B) + message(1, b"gone:c")
    one.add(batch, 1, 80)
    found, young = one.ask_positions(batch, 1, 80, 0)
    position = log_records.POSITION
    assert asked(found) == [(position, 2, 0), (position, 4, LAST), (position, 1, LAST), (position, 1, LAST)]
    assert entries(found)[0].key == (3, 4)
    assert young == 5  # of those of the first channel that its size keeps, the second's, and what nobody configured
    assert one.ask_positions(batch, 2, 80, 0) == (found, 0)  # they are somewhere else
    week_ms = 7 * 86_400_000
    assert one.ask_positions(batch, 1, 80, week_ms + 1) == (found, 1)


def test_the_channels_of_a_namespace_that_have_messages_are_known() -> None:
    one = index(1)
    one.add(message(1) + message(2) + message(1, b"groups:c") + message(1, b"gone:c"), 1, 80)
    one.add(log_records.pack(log_records.POSITION, B, 1, 7), 2, 80)
    (segment, at, size, check), *_ = one.places(A)
    assert one.last_places(b"group") == [(A, 1, 2, segment, at, size, check)]
    assert [channel for channel, *_ in one.last_places(b"gone")] == [b"gone:c"]
    assert one.last_places(b"grou") == []


def test_the_bytes_of_what_is_kept_are_known() -> None:
    one = index(2)
    one.add(message(1) + message(2) + message(3) + message(1, B, body=b"y" * 100), 1, 80)
    assert one.record_bytes == 2 * len(message(2)) + len(message(1, B, body=b"y" * 100))
    settle(one, 1, 1, [(48, message(3))])
    assert one.record_bytes == len(message(3))


def test_settling_is_done_in_steps_so_that_no_call_takes_long() -> None:
    one = index(10)
    names = [b"group:%03d" % number for number in range(500)]
    kept = b"".join(message(1, name) + message(2, name) for name in names)
    one.add(kept, 1, 80)
    steps = sum(1 for _ in one.settle(1, 1, [(48, kept)], step=100))
    assert 1000 // 100 + 1500 // 100 <= steps <= 50
    assert [ats(one, name)[0] for name in names] == [(1, 48 + at) for at in range(0, len(kept), len(kept) // 500)]


def test_what_a_sift_did_not_write_again_is_forgotten() -> None:
    one = index()
    one.add(message(1) + message(1, B), 1, 80)
    one.add(message(2), 2, 80)
    one.add(message(3), 3, 80)
    settle(one, 1, 2, [(48, message(2))])
    assert (ats(one), one.position(A)) == ([(1, 48), (3, 80)], (1, 3))
    assert (one.position(B), one.channels, one.messages) == ((0, 0), 1, 2)
    settle(one, 1, 3, [(96, log_records.pack(log_records.POSITION, A, 1, 3))])
    assert (ats(one), one.position(A)) == ([], (1, 3))
    settle(one, 1, 3, [])
    assert (one.position(A), one.channels, one.messages) == ((0, 0), 0, 0)


def test_many_channels_are_forgotten_in_one_go() -> None:
    one = index()
    for number in range(3000):
        one.add(message(1, b"group:%d" % number), 1 + number % 2, number)
    settle(one, 1, 1, [])
    assert one.channels == 1500
    assert ats(one, b"group:1") == [(2, 1)]
    assert ats(one, b"group:2") == []


class Disk:
    """Segments as they would be, and what ought to be found."""

    def __init__(self, appends_meanwhile: int) -> None:
        self.appends_meanwhile = appends_meanwhile
        self.index = index()
        self.segments: dict[int, list[tuple[int, bytes]]] = {1: []}
        self.end = 48
        self.offsets = {A: 0, B: 0}

    def append(self, channel: bytes) -> None:
        self.offsets[channel] = self.offsets.get(channel, 0) + 1
        record = message(self.offsets[channel], channel)
        last = max(self.segments)
        self.segments[last].append((self.end, record))
        self.index.add(record, last, self.end)
        self.end += len(record) + 32

    def roll(self) -> None:
        self.segments[max(self.segments) + 1] = []
        self.end = 48

    def sift(self, keeps: int) -> None:
        """Of the old segments' messages a router keeps those of the last `keeps` offsets, and positions."""
        old = sorted(self.segments)[:-1]
        half = len(old) // 2  # a sift may write several segments
        for some in filter(None, (old[:half], old[half:])):
            self._sift(some, keeps)

    def _sift(self, old: list[int], keeps: int) -> None:
        kept, end = [], 48
        for number in old:
            for at, record in self.segments.pop(number):
                for entry in entries(self.index.ask(record, number, at)):
                    young = entry.offset > self.offsets[entry.channel] - keeps
                    if entry.kind == log_records.MESSAGE and young:
                        kept.append((end, entry.record))
                    elif entry.flags & LAST:
                        position = log_records.pack(log_records.POSITION, entry.channel, 1, entry.offset)
                        kept.append((end, position))
                    else:
                        continue
                    end += len(kept[-1][1]) + 32
        for number, _ in enumerate(self.index.settle(old[0], old[-1], kept, step=1)):
            self.meanwhile(number)
        if kept:
            self.segments[old[0]] = kept

    def meanwhile(self, number: int) -> None:
        """Between two steps of settling others append, and ask where channels stand."""
        if number < 4 * self.appends_meanwhile:
            self.append((A, B, b"group:%d" % number)[number % 3])
        assert all(self.index.position(channel)[1] == offset for channel, offset in self.offsets.items())

    def messages(self, channel: bytes) -> list[LogEntry]:
        """The last MOST messages of a channel that are on disk."""
        found = []
        for number in sorted(self.segments):
            for _, record in self.segments[number]:
                found += entries(record)
        return [one for one in found if one.channel == channel and one.kind == log_records.MESSAGE][-MOST:]


STEPS = st.one_of(st.sampled_from([A, B]), st.just("roll"), st.integers(0, MOST + 1))


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(0, 2))
def test_after_any_history_each_kept_message_is_found_where_it_is(
    steps: list[bytes | str | int], appends_meanwhile: int
) -> None:
    disk = Disk(appends_meanwhile)
    for step in steps:
        if isinstance(step, bytes):
            disk.append(step)
        elif isinstance(step, int):
            disk.sift(step)
        else:
            disk.roll()
        for channel in disk.offsets:
            places = disk.index.places(channel)
            assert disk.index.record_bytes == sum(place[2] for one in disk.offsets for place in disk.index.places(one))
            records = [dict(disk.segments[segment])[at] for segment, at, _, _ in places]
            assert [entries(one)[0].offset for one in records] == [one.offset for one in disk.messages(channel)]
            assert [(len(one), disk.index.check(one)) for one in records] == [one[2:] for one in places]
            assert disk.index.position(channel)[1] == disk.offsets[channel]
