"""Streams: history within its bounds, routes against a dict, and epochs that never give a position twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core._testing import StreamTable
from core.ledger import Stats

NAME = b"group:a"
AGE = 1000


def live(stats: Stats, kind: str) -> int:
    ledger = stats.read()["ledger"]
    return ledger[f"{kind}_opened"] - ledger[f"{kind}_closed"]


@given(
    st.lists(st.tuples(st.integers(0, 120), st.sampled_from([0, 1, 10, AGE // 2, AGE + 1])), max_size=60),
    st.sampled_from([0, 1, 3, 4, 5, 17]),
)
@settings(max_examples=150, deadline=None)
def test_history_is_the_newest_that_the_bounds_allow(messages: list[tuple[int, int]], most: int) -> None:
    stats, now = Stats(), 10_000
    kept: list[tuple[int, bytes, int]] = []
    table = StreamTable(stats, messages=most, bytes_max=100, age_ms=AGE)
    assert table.wanted(NAME, now) == (1, 0)
    for offset, (size, later) in enumerate(messages, 1):
        now += later
        body = bytes([offset]) * size
        table.store(NAME, body, now)
        kept = [entry for entry in kept if entry[2] + AGE >= now]
        kept.append((offset, body, now))
        if size > 100:
            kept = []  # what is left would have a hole in front of the next
        while len(kept) > most or sum(len(entry[1]) for entry in kept) > 100:
            kept.pop(0)
        assert table.history(NAME) == [(number, text) for number, text, _ in kept]
        assert live(stats, "history") == len(kept)
    assert table.wanted(NAME, now) == (1, len(messages))
    del table
    assert live(stats, "history") == live(stats, "channel") == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "set", "remove", "remove_other", "gone"]), st.integers(0, 6), st.integers(1, 4)
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_a_worker_has_one_route_under_its_newest_handle(steps: list[tuple[str, int, int]]) -> None:
    stats = Stats()
    table = StreamTable(stats, messages=10, bytes_max=1000, age_ms=AGE)
    table.wanted(NAME, 0)
    table.store(NAME, b"keeps the stream", 0)
    expected: dict[int, int] = {}
    for verb, worker, handle in steps:
        if verb == "set":
            assert table.route_set(NAME, worker, handle) == 0
            expected[worker] = handle
        elif verb == "gone":
            table.remove_worker(worker)
            expected.pop(worker, None)
        else:
            handle = expected.get(worker, 9) if verb == "remove" else handle
            assert table.route_remove(NAME, worker, handle) is (expected.get(worker) == handle)
            if expected.get(worker) == handle:
                del expected[worker]
        assert table.routes(NAME) == expected
        assert live(stats, "subscription") == len(expected)


def test_a_stream_that_nothing_was_said_in_goes_with_its_last_worker() -> None:
    table = StreamTable(Stats(), messages=10, bytes_max=1000, age_ms=AGE)
    table.wanted(NAME, 0)
    table.route_set(NAME, 3, 1)
    table.remove_worker(3)
    assert table.routes(NAME) is None


def test_an_aged_stream_is_dropped_and_what_comes_later_has_a_higher_epoch() -> None:
    stats = Stats()
    table = StreamTable(stats, messages=10, bytes_max=1000, age_ms=AGE, epoch=7)
    for number in range(600):
        table.wanted(b"group:%d" % number, 0)
        table.store(b"group:%d" % number, b"x", 0)
    table.route_set(b"group:5", 1, 1)
    table.sweep(AGE)
    assert live(stats, "channel") == 600
    table.sweep(AGE + 1)
    assert live(stats, "channel") == 1
    assert table.routes(b"group:5") == {1: 1}
    assert table.wanted(b"group:6", AGE + 1) == (8, 0)
    assert table.wanted(b"group:5", AGE + 1) == (7, 1)


def test_a_stream_ages_as_its_namespace_says() -> None:
    table = StreamTable(Stats(), messages=10, bytes_max=1000, age_ms=AGE)
    table.keep_for(b"user:a", 5 * AGE)
    for name in (b"user:a", b"group:a"):
        table.wanted(name, 0)
        table.store(name, b"x", 0)
    table.sweep(3 * AGE)
    assert (table.routes(b"user:a"), table.routes(b"group:a")) == ({}, None)
    table.store(b"user:a", b"y", 4 * AGE)
    assert [offset for offset, _ in table.history(b"user:a")] == [1, 2]
    table.store(b"user:a", b"z", 6 * AGE)
    assert [offset for offset, _ in table.history(b"user:a")] == [2, 3]


@pytest.mark.parametrize("slots", [1, 7, 256, 1000])
def test_sweeping_a_few_slots_at_a_time_reaches_them_all(slots: int) -> None:
    stats = Stats()
    table = StreamTable(stats, messages=0, bytes_max=1000, age_ms=0)
    for number in range(300):
        table.wanted(b"group:%d" % number, 0)
        table.store(b"group:%d" % number, b"x", 0)
    for _ in range(-(-512 // slots)):
        table.sweep(5, slots)
    assert live(stats, "channel") == 0


def test_at_the_bound_what_nobody_has_makes_room_at_once() -> None:
    table = StreamTable(Stats(), messages=1, bytes_max=10, age_ms=AGE, streams_max=16)
    for number in range(16):
        table.wanted(b"group:%d" % number, 0)
        table.store(b"group:%d" % number, b"x", 0)
    table.route_set(b"group:3", 1, 1)
    assert table.wanted(b"group:new", 0) is not None
    assert table.routes(b"group:3") == {1: 1}
    members = 1
    while table.wanted(b"group:member-%d" % members, 0) is not None:
        table.route_set(b"group:member-%d" % members, 1, 1)
        members += 1
    assert members == 16  # all that there may be, and none of them went for another


def test_no_more_streams_than_the_bound() -> None:
    table = StreamTable(Stats(), messages=1, bytes_max=10, age_ms=AGE, streams_max=2)
    assert table.wanted(b"group:1", 0) == table.wanted(b"group:2", 0) == (1, 0)
    assert table.wanted(b"group:3", 0) is None
    assert table.wanted(b"group:2", 0) == (1, 0)
