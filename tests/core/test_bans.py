"""Bans on the bus: a wish goes to the router's control thread, and what that says to all workers, now and later."""

import select
from typing import Any

from core import notes, records
from tests.core import wire
from tests.core.edge_harness import Edge
from tests.core.router_harness import DEADLINE_S, Sequencer, Worker

ALL, CHANGE = 1, 0


def say(sequencer: Sequencer, change: bytes, all_: bytes) -> None:
    assert sequencer.loop is not None
    sequencer.loop.put(notes.BANS_SAY, text=change, extra=all_)


def told(worker: Worker) -> tuple[int, bytes]:
    one = worker.expect(records.BANS)
    return one["aux"], one["body"]


def test_a_wish_goes_to_the_control_thread_as_it_is(sequencer: Sequencer) -> None:
    worker = sequencer.worker(0)
    worker.say.body(records.BAN, b"a wish")
    worker.flush()
    assert sequencer.loop is not None
    assert select.select([sequencer.loop.control_fd], [], [], DEADLINE_S)[0]
    (found,) = sequencer.loop.take()
    assert (found[0], found[7]) == (notes.BAN, b"a wish")


def test_who_is_not_linked_bans_nobody(sequencer: Sequencer) -> None:
    stranger, worker = sequencer.worker(0, link=False), sequencer.worker(1)
    stranger.say.body(records.BAN, b"a wish")
    stranger.say.link(records.LINK, 1, 0)
    stranger.flush()
    assert stranger.expect(records.LINKED)["aux"] == 1
    assert worker.rest() == []
    assert sequencer.loop is not None
    assert sequencer.loop.take() == []


def test_a_change_is_told_to_every_worker_at_once(sequencer: Sequencer) -> None:
    workers = [sequencer.worker(number) for number in range(3)]
    say(sequencer, b"change", b"all of them")
    assert [told(worker) for worker in workers] == [(CHANGE, b"change")] * 3
    assert workers[0].rest() == []


def test_a_worker_that_links_is_told_all_of_them(sequencer: Sequencer) -> None:
    first = sequencer.worker(0)
    say(sequencer, b"", b"all of them")
    say(sequencer, b"change", b"all of them, and one more")
    assert told(first) == (CHANGE, b"change")
    second = sequencer.worker(1, link=False)
    second.link()
    assert told(second) == (ALL, b"all of them, and one more")
    first.tell([])  # and so is one that links again
    assert told(first) == (ALL, b"all of them, and one more")


def test_before_the_router_knows_them_nobody_is_told_that_there_are_none(sequencer: Sequencer) -> None:
    assert sequencer.worker(0).rest() == []


def test_a_worker_hands_them_to_its_control_thread(edge: Edge) -> None:
    for aux in (ALL, CHANGE):
        edge.router.send(wire.bans(b"bans", aux))
        note: tuple[Any, ...] = edge.note(notes.BANS)
        assert (note[1], note[7]) == (aux, b"bans")
