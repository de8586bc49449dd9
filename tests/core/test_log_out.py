"""Log out against a plain model: every record in one batch, batches in their order, and within the bounds."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from core.log_out import LogQueue

CHUNK_BYTES = 1 << 20
PACED_BYTES = 32768
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([8, 16, 400_000, CHUNK_BYTES])),
        st.tuples(st.just("late"), st.just(0)),
        st.tuples(st.just("hand_over"), st.just(0)),
        st.tuples(st.just("commit"), st.integers(0, 4)),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_it_keeps_order_and_bounds(steps: list[tuple[str, int]], under_way_max: int) -> None:
    bytes_max = 5 * CHUNK_BYTES
    queue = LogQueue(bytes_max=bytes_max, under_way_max=under_way_max)
    added: deque[bytes] = deque()
    handed_over: deque[tuple[int, bytes]] = deque()
    late, number, waiting = 0, 0, 0
    for verb, size in steps:
        if verb == "add":
            record = len(added).to_bytes(8, "little") * (size // 8)
            fits = waiting + size + 8 <= bytes_max
            assert queue.add(record, spare=8) is fits
            if fits:
                added.append(record)
                waiting += size
        elif verb == "late":
            late += queue.late(late + 1)
        elif verb == "hand_over":
            got = queue.hand_over()
            if got is None:
                assert not added or len(handed_over) == under_way_max
                continue
            assert len(handed_over) < under_way_max
            number += 1
            assert got[0] == number
            rest = got[1]
            while rest:
                assert rest.startswith(added[0])
                rest = rest[len(added.popleft()) :]
            handed_over.append(got)
        else:
            upto = number - size
            done = queue.commit(max(upto, 0))
            expected = [handed_over.popleft()[1] for one in list(handed_over) if one[0] <= upto]
            assert [records for records, _ in done] == expected
            waiting -= sum(map(len, expected))
        assert queue.bytes == waiting


def test_a_late_answer_is_given_with_the_newest_batch() -> None:
    queue = LogQueue(bytes_max=1 << 20, under_way_max=2)
    assert not queue.late(1)
    queue.add(b"12345678")
    assert queue.late(2)
    assert queue.hand_over() == (1, b"12345678")
    assert queue.late(3)
    queue.add(b"abcdefgh")
    assert queue.late(4)
    queue.hand_over()
    assert queue.commit(1) == [(b"12345678", [2, 3])]
    assert queue.commit(2) == [(b"abcdefgh", [4])]
    assert not queue.late(5)


def test_a_large_batch_is_cut_between_records() -> None:
    queue = LogQueue(bytes_max=1 << 24, under_way_max=64)
    for number in range(6):
        assert queue.add(bytes([number]) * 700_000)
    sizes = []
    while (got := queue.hand_over()) is not None:
        sizes.append(len(got[1]))
    assert sizes == [1_400_000] * 3


def test_behind_a_batch_of_several_the_next_waits_for_its_pace() -> None:
    queue = LogQueue(bytes_max=CHUNK_BYTES, under_way_max=8, pace_ms=4)
    queue.add(b"12345678")
    assert queue.hand_over(1_000) is not None
    queue.add(b"one too.")
    queue.add(b"and more")
    assert queue.wait_ms(1_000, 50) == 50
    assert queue.hand_over(1_000) is not None
    assert queue.wait_ms(1_000, 50) == 50
    queue.add(b"too soon")
    assert queue.hand_over(1_003) is None
    assert (queue.wait_ms(1_000, 50), queue.wait_ms(1_003, 50), queue.wait_ms(1_000, 2)) == (4, 1, 2)
    assert queue.hand_over(1_004) == (3, b"too soon")
    assert queue.wait_ms(1_004, 50) == 50


def test_what_is_large_waits_for_no_pace() -> None:
    queue = LogQueue(bytes_max=CHUNK_BYTES, under_way_max=8, pace_ms=4)
    queue.add(b"12345678")
    queue.add(b"12345678")
    assert queue.hand_over(1_000) is not None
    queue.add(bytes(PACED_BYTES - 8))
    assert queue.hand_over(1_000) is None
    queue.add(b"12345678")
    assert queue.hand_over(1_000) is not None


def test_no_pace_is_waited_for_while_enough_are_under_way() -> None:
    queue = LogQueue(bytes_max=CHUNK_BYTES, under_way_max=1, pace_ms=4)
    for _ in range(2):
        queue.add(b"12345678")
    queue.hand_over(1_000)
    queue.add(b"12345678")
    assert queue.wait_ms(1_000, 50) == 50
    queue.commit(1)
    assert queue.wait_ms(1_000, 50) == 4
