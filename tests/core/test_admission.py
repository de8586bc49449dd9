"""Admission: an OPEN is answered when its claim is, and when whoever had the session is gone."""

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core.edge_harness import wait_for
from tests.core.router_harness import Sequencer, Worker

SESSION = b"s" * 16
OTHER = b"t" * 16
NEW, AGAIN, BYE = range(3)
STORED = msgpack.packb({"user": "ann", "device": "phone"})


@pytest.fixture
def router() -> Iterator[Sequencer]:
    one = Sequencer(admits=True)
    yield one
    one.close()


class Claim:
    """What the control thread is told."""

    def __init__(self, note: tuple[Any, ...]) -> None:
        self.kind, self.number = note[1] & 3, note[1] >> 2
        self.conn, self.request, self.fence, self.start, self.session = note[2:7]
        self.stored, self.identity = note[7:9]


def claim(router: Sequencer) -> Claim:
    """The next CLAIM."""
    return Claim(router.whole(notes.CLAIM))


def opened(worker: Worker, conn: int, seq: int, session: bytes = SESSION) -> None:
    worker.say.session(records.OPEN, session, conn, seq, body=STORED)
    worker.flush()


def admit(router: Sequencer, one: Claim, fence: int, former: bytes = bytes(16), code: int = 0, why: str = "") -> None:
    assert router.loop is not None
    router.loop.put(notes.CLAIMED, request=one.request, first=fence, second=code, text=former + why.encode())


def owned(router: Sequencer, worker: Worker, conn: int, seq: int, fence: int, session: bytes = SESSION) -> None:
    """The session is this connection's."""
    opened(worker, conn, seq, session)
    admit(router, claim(router), fence)
    assert worker.expect(records.OPENED)["fence"] == fence


def test_an_open_is_answered_with_the_fence_of_its_claim(router: Sequencer) -> None:
    worker = router.worker(3)
    opened(worker, 10, 1)
    one = claim(router)
    assert (one.kind, one.number, one.conn, one.start, one.session) == (NEW, 3, 10, 1, SESSION)
    assert (one.stored, one.identity) == (STORED, b"node/3/1")
    assert worker.rest() == []  # nothing before the claim is answered
    admit(router, one, 77 << 20)
    answer = worker.expect(records.OPENED)
    assert (answer["conn"], answer["seq"], answer["aux"], answer["fence"]) == (10, 1, 0, 77 << 20)
    assert router.live("session") == 1


def test_a_refusal_says_why(router: Sequencer) -> None:
    worker = router.worker()
    opened(worker, 10, 1)
    admit(router, claim(router), 0, code=Code.KICKED, why="ann logged in elsewhere")
    answer = worker.expect(records.OPENED)
    assert (answer["aux"], answer["fence"], answer["body"]) == (Code.KICKED, 0, b"ann logged in elsewhere")
    assert router.live("session") == 0


def test_an_open_that_is_said_again_is_claimed_once(router: Sequencer) -> None:
    worker = router.worker()
    opened(worker, 10, 1)
    opened(worker, 10, 1)
    opened(worker, 11, 2, OTHER)
    first, second = claim(router), claim(router)
    assert (first.conn, second.conn) == (10, 11)
    admit(router, first, 5)
    assert worker.expect(records.OPENED)["conn"] == 10


def test_the_former_connection_is_evicted_and_has_ended_before_the_answer(router: Sequencer) -> None:
    one, two = router.worker(0), router.worker(1)
    owned(router, one, 10, 1, fence=5)
    opened(two, 20, 1)
    admit(router, claim(router), 6, SESSION, Code.RESUMED_ELSEWHERE, "it was resumed on node b")
    evicted = one.expect(records.EVICT)
    assert (evicted["conn"], evicted["aux"], evicted["body"]) == (
        10,
        Code.RESUMED_ELSEWHERE,
        b"it was resumed on node b",
    )
    assert two.rest() == []
    one.say.session(records.CLOSE, SESSION, 10, fence=5)
    one.flush()
    answer = two.expect(records.OPENED)
    assert (answer["fence"], answer["aux"]) == (6, records_taken())
    bye = claim(router)
    assert (bye.kind, bye.conn, bye.request) == (BYE, 10, 0)


def records_taken() -> int:
    """`aux` of an OPENED whose session another connection had."""
    return 1


def test_a_former_connection_whose_worker_is_gone_is_not_waited_for(router: Sequencer) -> None:
    one, two = router.worker(0), router.worker(1)
    owned(router, one, 10, 1, fence=5)
    opened(two, 20, 1)
    admit(router, claim(router), 6, SESSION, Code.RESUMED_ELSEWHERE)
    one.expect(records.EVICT)
    one.say.link(records.BYE, one.epoch, one.number)
    one.flush()
    assert two.expect(records.OPENED)["fence"] == 6


def test_nor_is_one_that_says_nothing_for_long(router: Sequencer) -> None:
    one, two = router.worker(0), router.worker(1)
    owned(router, one, 10, 1, fence=5)
    opened(two, 20, 1)
    admit(router, claim(router), 6, SESSION, Code.RESUMED_ELSEWHERE)
    assert two.expect(records.OPENED)["fence"] == 6  # after two seconds


def test_another_session_of_the_user_may_be_the_one_that_ends(router: Sequencer) -> None:
    one, two = router.worker(0), router.worker(1)
    owned(router, one, 10, 1, fence=5, session=OTHER)
    opened(two, 20, 1)
    admit(router, claim(router), 6, OTHER, Code.KICKED, "ann logged in elsewhere")
    evicted = one.expect(records.EVICT)
    assert (evicted["session"], evicted["aux"]) == (OTHER, Code.KICKED)
    one.say.session(records.CLOSE, OTHER, 10, fence=5, aux=records.OVER)
    one.flush()
    answer = two.expect(records.OPENED)
    assert (answer["fence"], answer["aux"]) == (6, 0)


def test_a_connection_that_ends_before_the_answer_has_no_session(router: Sequencer) -> None:
    worker = router.worker()
    opened(worker, 10, 1)
    one = claim(router)
    worker.say.session(records.CLOSE, SESSION, 10)
    worker.flush()
    bye = claim(router)
    assert (bye.kind, bye.request) == (BYE, one.request)
    admit(router, one, 5)
    assert worker.rest() == []
    assert router.live("session") == 0
    owned(router, worker, 11, 2, fence=6)


def test_a_worker_that_is_gone_gets_no_answer(router: Sequencer) -> None:
    worker = router.worker(0)
    opened(worker, 10, 1)
    one = claim(router)
    worker.say.link(records.BYE, worker.epoch, worker.number)
    worker.flush()
    wait_for(lambda: router.stats.read()["gauges"]["linked"] == 0, "its end")
    admit(router, one, 5)
    other = router.worker(1)
    owned(router, other, 20, 1, fence=6)
    assert router.live("session") == 1


def test_what_a_worker_has_since_before_counts_at_once_and_is_told(router: Sequencer) -> None:
    worker = router.worker()
    worker.say.session(records.OPEN, SESSION, 10, aux=records.AGAIN, fence=9)
    worker.flush()
    one = claim(router)
    assert (one.kind, one.conn, one.fence) == (AGAIN, 10, 9)
    assert router.live("session") == 1


def test_of_three_that_exclude_each_other_the_second_is_turned_away_while_it_waits_for_the_first(
    router: Sequencer,
) -> None:
    one, two, three = (router.worker(number) for number in range(3))
    sessions = [bytes([number]) * 16 for number in range(1, 4)]
    owned(router, one, 10, 1, fence=5, session=sessions[0])
    opened(two, 20, 1, sessions[1])
    admit(router, claim(router), 6, sessions[0], Code.KICKED, "by the second")
    one.expect(records.EVICT)
    opened(three, 30, 1, sessions[2])
    admit(router, claim(router), 7, sessions[1], Code.KICKED, "by the third")
    answer = two.expect(records.OPENED)
    assert (answer["conn"], answer["fence"], answer["aux"], answer["body"]) == (20, 0, Code.KICKED, b"by the third")
    assert three.rest() == []
    one.say.session(records.CLOSE, sessions[0], 10, fence=5, aux=records.OVER)
    one.flush()
    answer = three.expect(records.OPENED)
    assert (answer["conn"], answer["fence"], answer["aux"]) == (30, 7, 0)
    assert two.rest() == []
    assert router.live("session") == 1


def test_of_three_that_resume_one_session_the_second_is_turned_away_likewise(router: Sequencer) -> None:
    one, two, three = (router.worker(number) for number in range(3))
    owned(router, one, 10, 1, fence=5)
    opened(two, 20, 1)
    admit(router, claim(router), 6, SESSION, Code.RESUMED_ELSEWHERE, "by the second")
    one.expect(records.EVICT)
    opened(three, 30, 1)
    admit(router, claim(router), 7, SESSION, Code.RESUMED_ELSEWHERE, "by the third")
    answer = two.expect(records.OPENED)
    assert (answer["fence"], answer["aux"], answer["body"]) == (0, Code.RESUMED_ELSEWHERE, b"by the third")
    assert three.rest() == []
    one.say.session(records.CLOSE, SESSION, 10, fence=5)
    one.flush()
    answer = three.expect(records.OPENED)
    assert (answer["fence"], answer["aux"]) == (7, records_taken())
    assert two.rest() == []


def test_one_that_waits_for_anothers_end_is_turned_away_by_an_eviction_as_well(router: Sequencer) -> None:
    one, two = router.worker(0), router.worker(1)
    owned(router, one, 10, 1, fence=5, session=OTHER)
    opened(two, 20, 1)
    admit(router, claim(router), 6, OTHER, Code.KICKED, "by the second")
    one.expect(records.EVICT)
    assert router.loop is not None
    for conn in (99, 20):
        router.loop.put(notes.EVICT, conn=conn, first=Code.KICKED, text=SESSION + b"by another leader's")
    answer = two.expect(records.OPENED)
    assert (answer["fence"], answer["aux"], answer["body"]) == (0, Code.KICKED, b"by another leader's")
    one.say.session(records.CLOSE, OTHER, 10, fence=5, aux=records.OVER)
    one.flush()
    assert two.rest() == []
    assert router.live("session") == 0


def test_an_eviction_of_its_own_ends_that_connection_and_no_other(router: Sequencer) -> None:
    worker = router.worker()
    owned(router, worker, 10, 1, fence=5)
    assert router.loop is not None
    for conn in (99, 10):
        router.loop.put(notes.EVICT, conn=conn, first=Code.KICKED, text=SESSION + b"why")
    evicted = worker.expect(records.EVICT)
    assert (evicted["conn"], evicted["aux"], evicted["body"]) == (10, Code.KICKED, b"why")
    assert worker.rest() == []


def test_a_worker_that_begins_says_that_no_earlier_start_of_it_runs_unless_one_does(router: Sequencer) -> None:
    def began() -> tuple[int, int, bytes]:
        note = router.whole(notes.BEGAN)
        return note[1], note[4], note[7]

    router.worker(3)
    assert began() == (3, 1, b"node/3/1")
    beside = router.worker(3, epoch=2, link=False)
    beside.link(beside=True)
    router.worker(3, epoch=4)
    assert began() == (3, 4, b"node/3/4")


def test_where_sessions_are_not_claimed_nobody_is_told_of_workers_that_begin() -> None:
    router = Sequencer(admits=False)
    router.worker()
    assert router.loop is not None
    assert [note for note in router.loop.take() if note[0] == notes.BEGAN] == []
    router.close()
