"""Who has which session, and how a worker with very many of them is forgotten."""

from collections.abc import Callable

import pytest

from core import records
from tests.core.edge_harness import wait_for
from tests.core.presence_harness import NAMESPACES, claim, events, say, session_of
from tests.core.router_harness import EPOCH, Sequencer, Worker
from tests.core.test_audit_router import look

SESSIONS = 10_000
ROOMS = 4
LONG_MS = 600_000
"""A damping that never ends within a test."""


def room_of(number: int) -> str:
    """The rooms of a session are its own and those of its neighbours: small ones, whose members are told."""
    return f"held:{number % (SESSIONS // 10)}"


def open_all(worker: Worker, what: int, flags: int, first: int = 0, last: int = SESSIONS) -> None:
    """The worker has these sessions, each in its rooms; `flags` of OPEN. Answers are left to be read."""
    for number in range(first, last):
        session, conn = session_of(number), number + 1
        worker.say.session(records.OPEN, session, conn, 0 if flags else number + 1, flags)
        for step in range(ROOMS):
            say(worker, what, session, room_of(number + step), f"u{number}", conn)
        if number % 500 == 499:
            worker.flush()
    worker.flush()


@pytest.fixture
def crowd(sequencers: Callable[..., Sequencer]) -> tuple[Sequencer, Worker]:
    """A router, and a worker with very many sessions, each in several rooms and with a channel of its own."""
    router = sequencers(
        namespaces=NAMESPACES, presence_damping_ms=LONG_MS, channels_max=100_000, spill_bytes_max=1 << 26
    )
    worker = router.worker(0)
    for number in range(SESSIONS):
        worker.say.channel(records.SUBSCRIBE, f"user:u{number}".encode(), number + 1)
    open_all(worker, records.JOINED, records.AGAIN)
    worker.rest()
    assert (router.live("session"), router.live("membership")) == (SESSIONS, ROOMS * SESSIONS)
    return router, worker


def stay_everywhere(worker: Worker) -> None:
    """One session of this worker is in all rooms, to be told of the others."""
    claim(worker, session_of(SESSIONS))
    for number in range(SESSIONS // 10):
        worker.say.channel(records.SUBSCRIBE, room_of(number).encode(), number + 1)
        say(worker, records.JOINED, session_of(SESSIONS), room_of(number), "stays")


def bye(worker: Worker) -> None:
    worker.say.link(records.BYE, worker.epoch, worker.number)
    worker.flush()


def left(router: Sequencer) -> tuple[int, int, int]:
    return router.live("subscription"), router.live("session"), router.live("membership")


def gone(router: Sequencer) -> None:
    wait_for(lambda: router.counter("workers_lost") == 1, "the end of the worker")


def test_a_workers_sessions_are_forgotten_over_many_turns(crowd: tuple[Sequencer, Worker]) -> None:
    router, worker = crowd
    other = router.worker(1)
    turns = router.counter("wakeups")
    bye(worker)
    gone(router)
    assert other.rest() == []
    wait_for(lambda: left(router) == (0, 0, 0), "the end of what the worker had")
    # In one turn they all ended once: of 40 ms, in which nobody else was heard. A turn gives half of one to it.
    assert router.counter("wakeups") - turns > 10
    assert look(router)["findings"] == []


def test_what_is_not_forgotten_yet_is_accounted_for(crowd: tuple[Sequencer, Worker]) -> None:
    router, worker = crowd
    bye(worker)
    gone(router)
    report = look(router)
    assert report["findings"] == []
    assert report["links"] == []
    wait_for(lambda: router.live("subscription") == 0, "the end of what the worker had")


def test_sessions_that_are_claimed_meanwhile_were_nobodys_and_never_left(crowd: tuple[Sequencer, Worker]) -> None:
    router, worker = crowd
    other = router.worker(1)
    other.say.channel(records.SUBSCRIBE, room_of(0).encode(), 7)
    other.rest()
    bye(worker)
    gone(router)
    open_all(other, records.JOINED, 0, SESSIONS // 2)
    said = other.rest()
    assert [(one["seq"], one["aux"]) for one in said if one["kind"] == records.OPENED] == [
        (number + 1, 0) for number in range(SESSIONS // 2, SESSIONS)
    ]
    assert events(said) == []
    half = SESSIONS // 2
    wait_for(lambda: left(router) == (1, half, ROOMS * half), "the end of what the worker had")
    # Those who are away wait to be told of, each once a room.
    assert router.live("timer") == ROOMS * half
    assert look(router)["findings"] == []


def test_a_worker_that_comes_back_meanwhile_has_its_sessions_again(crowd: tuple[Sequencer, Worker]) -> None:
    router, worker = crowd
    bye(worker)
    gone(router)
    worker.say.link(records.LINK, worker.epoch, worker.number)
    worker.flush()
    assert worker.expect(records.LINKED)["aux"] == 1
    assert worker.expect(records.LINKED)["aux"] == 0
    worker.begin()
    open_all(worker, records.HERE, records.AGAIN)
    worker.say.channel(records.SUBSCRIBE, b"user:u9", 77_777)
    worker.say.channel(records.SUBSCRIBE, room_of(0).encode(), 7)
    worker.end()
    # None was given to another meanwhile, and nobody in the rooms hears of anything.
    assert {one["kind"] for one in worker.rest()} == {records.SUBSCRIBED}
    wait_for(lambda: left(router) == (2, SESSIONS, ROOMS * SESSIONS), "the end of what the worker had before")
    assert router.live("timer") == 0
    worker.publish("user:u9", "x")
    heard = [(one["channel"], one["epoch"], one["offset"]) for one in worker.rest() if one["kind"] == records.MESSAGE]
    assert heard == [(77_777, EPOCH, 1)]
    other = router.worker(1)
    other.say.session(records.OPEN, session_of(3), 5, 1)
    other.flush()
    assert other.expect(records.OPENED)["aux"] == 1
    assert [(one["kind"], one["conn"]) for one in worker.rest()] == [(records.EVICT, 4)]
    report = look(router)
    assert report["findings"] == []
    links = {link["identity"]: (link["sessions"], link["subscriptions"]) for link in report["links"]}
    assert links == {"node/0/1": (SESSIONS - 1, 2), "node/1/1": (1, 0)}


def test_a_later_start_takes_the_sessions_of_an_earlier_one_over(crowd: tuple[Sequencer, Worker]) -> None:
    router, _ = crowd
    later = router.worker(0, epoch=2)
    later.say.session(records.OPEN, session_of(3), 5, 1)
    assert [(one["kind"], one["aux"]) for one in later.rest()] == [(records.OPENED, 0)]
    wait_for(lambda: left(router) == (0, 1, 0), "the end of the earlier start")


def test_each_who_is_gone_with_a_worker_is_told_of_once(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(namespaces=NAMESPACES, presence_damping_ms=0, presence_quiet_ms=0, spill_bytes_max=1 << 26)
    worker, other = router.worker(0), router.worker(1)
    stay_everywhere(other)
    open_all(worker, records.JOINED, records.AGAIN)
    worker.rest()
    other.rest()
    bye(worker)
    gone(router)
    left: list[tuple[str, bytes]] = []

    def hear() -> bool:
        left.extend((name, session) for _, name, kind, session, _ in events(other.rest()) if kind == "left")
        return router.live("session") == 1 and router.live("timer") == 0

    wait_for(hear, "the end of what the worker had")
    hear()
    assert sorted(left) == sorted(
        (room_of(number + step), session_of(number)) for number in range(SESSIONS) for step in range(ROOMS)
    )


def test_many_who_left_at_once_are_told_of_over_many_turns(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(namespaces=NAMESPACES, presence_damping_ms=1000, presence_quiet_ms=0, spill_bytes_max=1 << 26)
    worker, other = router.worker(0), router.worker(1)
    stay_everywhere(other)
    open_all(worker, records.JOINED, records.AGAIN)
    for number in range(SESSIONS):
        for step in range(ROOMS):
            say(worker, records.LEFT, session_of(number), room_of(number + step), f"u{number}", number + 1)
    worker.rest()
    other.rest()
    turns = router.counter("wakeups")
    wait_for(lambda: router.live("timer") == 0, "all to be told of")
    assert router.counter("wakeups") - turns > 10
    assert len([one for one in events(other.rest()) if one[2] == "left"]) == SESSIONS * ROOMS
