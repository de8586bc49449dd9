"""What a draining worker hears of the sessions that it gave up: how many were taken over, and how many could do it."""

from collections.abc import Iterator

import pytest

from core import records
from tests.core.router_harness import Sequencer, Worker

SESSION, OTHER = b"s" * 16, b"o" * 16


@pytest.fixture
def sequencer() -> Iterator[Sequencer]:
    one = Sequencer()
    yield one
    one.close()


def claim(worker: Worker, session: bytes, conn: int = 5, seq: int = 9) -> None:
    worker.say.session(records.OPEN, session, conn, seq)
    worker.flush()
    assert worker.expect(records.OPENED)["seq"] == seq


def give_up(worker: Worker, session: bytes, conn: int = 5, *, told: bool = True) -> None:
    worker.say.session(records.CLOSE, session, conn, aux=int(told))
    worker.flush()


def heard(worker: Worker) -> tuple[int, int]:
    """What the next TAKEN says."""
    one = worker.expect(records.TAKEN)
    return one["count"], one["others"]


def test_each_session_that_another_worker_claims_is_counted_once(sequencer: Sequencer) -> None:
    leaving, other, third = (sequencer.worker(number) for number in range(3))
    for session in (SESSION, OTHER):
        claim(leaving, session)
        give_up(leaving, session)
        assert heard(leaving) == (0, 2)
    claim(other, SESSION)
    assert heard(leaving) == (1, 2)
    claim(third, SESSION)
    claim(third, OTHER)
    assert heard(leaving) == (1, 2)
    assert leaving.rest() == []


def test_a_session_that_ended_without_being_sent_away_is_not(sequencer: Sequencer) -> None:
    leaving, other = sequencer.worker(0), sequencer.worker(1)
    claim(leaving, SESSION)
    give_up(leaving, SESSION, told=False)
    claim(other, SESSION)
    assert leaving.rest() == []


def test_those_that_drain_as_well_are_nobody_to_go_to(sequencer: Sequencer) -> None:
    leaving, other = sequencer.worker(0), sequencer.worker(1)
    for worker, session in ((leaving, SESSION), (other, OTHER)):
        claim(worker, session)
    give_up(other, OTHER)
    assert heard(other) == (0, 1)
    give_up(leaving, SESSION)
    assert heard(leaving) == (0, 0)


def test_a_successor_in_the_same_place_counts_and_is_told_nothing_of_it(sequencer: Sequencer) -> None:
    leaving = sequencer.worker(0, epoch=1)
    successor = sequencer.worker(0, epoch=2, link=False)
    successor.link(beside=True)
    assert successor.rest() == []
    claim(leaving, SESSION)
    give_up(leaving, SESSION)
    assert heard(leaving) == (0, 1)
    claim(successor, SESSION)
    assert heard(leaving) == (1, 1)
    leaving.say.link(records.BYE, 1, 0)
    leaving.flush()
    # What the next one gives up is its own matter: the table of workers has a free slot, not its memory.
    third = sequencer.worker(1)
    claim(third, OTHER)
    assert third.rest() == []
    assert successor.rest() == []
