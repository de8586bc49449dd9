"""Ring buffer: a FIFO of bytes of bounded size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ledger import Stats
from core.ring import RingBuffer

STEPS = st.lists(st.tuples(st.sampled_from("wr"), st.integers(0, 5000)), max_size=60)


@given(STEPS, st.sampled_from([1, 4096, 4097, 10_000]))
@settings(max_examples=150, deadline=None)
def test_bytes_leave_in_the_order_in_which_they_came(steps: list[tuple[str, int]], capacity_min: int) -> None:
    ring, held, number = RingBuffer(Stats(), capacity_min), b"", 0
    assert ring.capacity >= capacity_min
    for verb, size in steps:
        if verb == "w":
            data = bytes((number + at) * 31 % 251 for at in range(size))
            number += size
            taken = ring.write(data)
            assert taken == min(size, ring.capacity - len(held))
            held += data[:taken]
        else:
            assert ring.read(size) == held[:size]
            held = held[size:]
        assert len(ring) == len(held)


@pytest.mark.parametrize(
    ("wanted", "capacity"), [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (65536, 65536), (65537, 131072)]
)
def test_the_capacity_is_the_next_power_of_two_from_4_kib(wanted: int, capacity: int) -> None:
    assert RingBuffer(Stats(), wanted).capacity == capacity


@pytest.mark.parametrize("capacity_min", [4096, 8192])
def test_a_lease_is_in_the_ledger_until_it_is_released(capacity_min: int) -> None:
    stats = Stats()
    ring = RingBuffer(stats, capacity_min)
    assert stats.read()["ledger"]["ring_closed"] == 0
    ring.release()
    ledger = stats.read()["ledger"]
    assert ledger["ring_opened"] == ledger["ring_closed"] == 1


def test_a_full_ring_takes_nothing_and_loses_nothing() -> None:
    ring = RingBuffer(Stats())
    assert ring.write(b"a" * 4096) == 4096
    assert ring.write(b"b") == 0
    assert ring.read(5000) == b"a" * 4096
    assert ring.read(1) == b""
