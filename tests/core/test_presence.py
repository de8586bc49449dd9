"""PRESENCE as the router answers it, and the events of who joined and who left."""

from collections.abc import Callable

import msgpack
import pytest

from core import records
from core.codes import Code
from tests.core.edge_harness import wait_for
from tests.core.presence_harness import NAMESPACES, claim, events, expected, present, say, session_of
from tests.core.router_harness import Sequencer, Worker

ALICE, BOB = session_of(1), session_of(2)
LONG_MS = 600_000
"""A damping that never ends within a test."""


def here(worker: Worker, session: bytes, channel: str, user: str, *, handle: int = 11, what: int | None = None) -> None:
    """The session is opened, and joins a channel that the worker subscribes to."""
    worker.say.channel(records.SUBSCRIBE, channel.encode(), handle)
    claim(worker, session)
    say(worker, records.JOINED if what is None else what, session, channel, user)


def test_presence_names_sessions_and_counts_users_once(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers()
    one, two = router.worker(0), router.worker(1)
    claim(one, ALICE)
    say(one, records.JOINED, ALICE, "group:a", "alice")
    claim(one, BOB, 6)
    say(one, records.JOINED, BOB, "group:a", "bob", 6)
    one.rest()
    third = session_of(3)
    claim(two, third)
    say(two, records.HERE, third, "group:a", "alice")
    there = expected((ALICE, "alice"), (BOB, "bob"), (third, "alice"))
    assert present(two, "group:a") == present(one, "group:a") == there
    assert present(one, "group:a")[1:] == (2, 3)
    assert present(one, "group:b") == expected()
    one.say.session(records.CLOSE, BOB, 6)
    assert present(one, "group:a") == expected((ALICE, "alice"), (third, "alice"))


def test_the_list_is_bounded_and_the_counts_are_whole(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers()
    worker = router.worker()
    for number in range(700):
        claim(worker, session_of(number), number + 1)
        for channel in ("group:short", "group:long"):
            # A session has one user; the long names come first for it to count.
            user = f"u{number}" if number % 2 else "x" * 200
            say(worker, records.JOINED, session_of(number), channel, user, number + 1)
    sessions, users, count = present(worker, "group:short")
    assert (users, count) == (351, 700)
    assert 100 < len(sessions) <= 500
    worker.say.history(records.PRESENCE, 9, b"group:long")
    (one,) = worker.rest()
    assert len(one["body"]) < 33_000
    assert len(msgpack.unpackb(one["body"])["sessions"]) == len(sessions)


def test_where_presence_is_not_kept_nothing_is(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(namespaces=NAMESPACES)
    worker = router.worker()
    claim(worker, ALICE)
    for channel in ("bare:a", "global:news"):
        say(worker, records.JOINED, ALICE, channel, "alice")
        worker.say.history(records.PRESENCE, 9, channel.encode())
        (one,) = worker.rest()
        assert (one["kind"], one["seq"], one["aux"]) == (records.REPLY, 9, Code.NOT_ALLOWED)
    assert router.live("membership") == 0


def test_whoever_asks_for_it_hears_how_many_workers_have_members(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers()
    workers = [router.worker(number) for number in range(2)]
    for number, worker in enumerate(workers):
        here(worker, session_of(number), "group:a", f"u{number}")
        worker.rest()
    workers[0].say.history(records.PRESENCE, 9, b"group:a", limit=1)
    (one,) = workers[0].rest()
    told = msgpack.unpackb(one["body"])
    assert (told["workers"], told["users"], told["count"]) == (2, 2, 2)


# ---- events ----


@pytest.fixture
def router(sequencers: Callable[..., Sequencer]) -> Sequencer:
    return sequencers(namespaces=NAMESPACES, presence_damping_ms=LONG_MS, presence_quiet_ms=0)


def test_members_on_each_worker_are_told_once_who_joined(router: Sequencer) -> None:
    one, two = router.worker(0), router.worker(1)
    here(one, ALICE, "held:a", "alice", handle=11)
    assert events(one.rest()) == [(11, "held:a", "joined", ALICE, "alice")]
    here(two, BOB, "held:a", "bob", handle=22)
    assert events(two.rest()) == [(22, "held:a", "joined", BOB, "bob")]
    assert events(one.rest()) == [(11, "held:a", "joined", BOB, "bob")]
    say(two, records.JOINED, BOB, "held:a", "bob")  # again: it is known
    assert two.rest() == one.rest() == []


def test_events_are_told_only_where_the_namespace_says_so(router: Sequencer) -> None:
    worker = router.worker()
    here(worker, ALICE, "group:a", "alice")
    worker.say.session(records.CLOSE, ALICE, 5)
    assert events(worker.rest()) == []
    assert router.live("timer") == 0


@pytest.mark.parametrize("how", ["leave", "close", "kill", "taken", "relink"])
def test_who_comes_back_in_time_was_never_gone(router: Sequencer, how: str) -> None:
    there, one, two = (router.worker(number) for number in range(3))
    here(there, BOB, "held:a", "bob", handle=33)
    there.rest()
    here(one, ALICE, "held:a", "alice", handle=11)
    one.rest()
    assert len(events(there.rest())) == 1
    back, what = two, records.HERE
    if how == "leave":
        say(one, records.LEFT, ALICE, "held:a", "alice")
        back, what = one, records.JOINED
    elif how == "close":
        one.say.session(records.CLOSE, ALICE, 5)
    elif how == "kill":
        one.say.link(records.BYE, one.epoch, one.number)
        one.flush()
    elif how == "relink":
        one.begin()
        back = one
    if how not in ("taken", "kill"):
        one.flush()
    wait_for(lambda: how == "taken" or present(there, "held:a") == expected((BOB, "bob")), "she is gone")
    here(back, ALICE, "held:a", "alice", handle=22, what=what)
    if how == "relink":
        one.end()
    back.rest()
    assert present(there, "held:a") == expected((BOB, "bob"), (ALICE, "alice"))
    assert there.rest() == []
    assert router.live("timer") == 0


@pytest.mark.parametrize("quiet_ms", [0, LONG_MS])
def test_who_stays_away_is_told_of_as_left_and_then_as_joined(
    sequencers: Callable[..., Sequencer], quiet_ms: int
) -> None:
    """Also by a router that has just started: it told of the leaving itself."""
    router = sequencers(namespaces=NAMESPACES, presence_damping_ms=30, presence_quiet_ms=quiet_ms)
    there, one = router.worker(0), router.worker(1)
    here(there, BOB, "held:a", "bob", handle=33)
    here(one, ALICE, "held:a", "alice", handle=11)
    there.rest()
    one.say.session(records.CLOSE, ALICE, 5)
    one.flush()
    while not (told := events([there.take()])) or told[0][2] != "left":
        pass
    assert told == [(33, "held:a", "left", ALICE, "alice")]
    assert router.live("timer") == (1 if quiet_ms else 0)
    here(one, ALICE, "held:a", "alice", handle=11, what=records.HERE)
    one.rest()
    assert events(there.rest()) == [(33, "held:a", "joined", ALICE, "alice")]
    assert router.live("timer") == 0


def test_a_router_that_just_started_takes_who_was_there_for_known(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(namespaces=NAMESPACES, presence_quiet_ms=LONG_MS)
    worker = router.worker()
    here(worker, ALICE, "held:a", "alice", what=records.HERE)
    assert events(worker.rest()) == []
    claim(worker, BOB, 6)
    say(worker, records.JOINED, BOB, "held:a", "bob", 6)
    assert events(worker.rest()) == [(11, "held:a", "joined", BOB, "bob")]


def test_in_a_large_room_nobody_is_told(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(namespaces=NAMESPACES, presence_damping_ms=0, presence_quiet_ms=0, events_members_max=3)
    worker = router.worker()
    worker.say.channel(records.SUBSCRIBE, b"held:a", 11)
    for number in range(1, 6):
        claim(worker, session_of(number), number)
        say(worker, records.JOINED, session_of(number), "held:a", f"u{number}", number)
    told = events(worker.rest())
    assert [(kind, user) for _, _, kind, _, user in told] == [("joined", "u1"), ("joined", "u2"), ("joined", "u3")]
    assert present(worker, "held:a")[1:] == (5, 5)
    for number in range(5, 2, -1):
        worker.say.session(records.CLOSE, session_of(number), number)
        said = worker.rest() + worker.rest()  # told at the end of the turn, behind the answer to the first heartbeat
        kinds = [(kind, user) for _, _, kind, _, user in events(said)]
        assert kinds == ([("left", f"u{number}")] if number <= 4 else [])
