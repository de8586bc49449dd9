"""What a worker told of its sessions lately is told the next router again, which stores it unless others know more."""

from collections.abc import Callable

from core import notes, records
from tests.core.edge_harness import EPOCH, LEAVE, REPLY, Edge
from tests.core.router_harness import Sequencer, Worker
from tests.core.test_sessions import ALICE, Store

LATER = EPOCH + 1
JOINED_TOLD = records.JOINED | records.STATES_TOLD


def told(edge: Edge) -> list[tuple[int, bytes, int]]:
    """(what, channel, offset) of what was told an earlier router of sessions' channels."""
    return [
        (one["what"] & ~records.STATES_TOLD, one["name"], one["position"][1])
        for one in edge.router.states
        if one["what"] & records.STATES_TOLD
    ]


def test_what_was_told_lately_comes_before_the_sessions_that_are_there(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a", offset=4)
    edge.join(alice, "group:b")
    alice.send([LEAVE, 9, "group:b"])
    assert alice.frame() == [REPLY, 9, {}]
    assert edge.router.expect(records.UNSUBSCRIBE)["name"] == b"group:b"
    said = edge.link(LATER)
    assert [one["aux"] for one in said if one["kind"] == records.OPEN] == [records.OPENS_TOLD, records.AGAIN]
    assert told(edge) == [
        (records.JOINED, b"user:alice", 0),
        (records.JOINED, b"group:a", 4),
        (records.JOINED, b"group:b", 0),
        (records.LEFT, b"group:b", 0),
    ]


def test_what_a_client_was_answered_without_a_router_reaches_the_next_one(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    edge.join(alice, "group:a", offset=4)
    edge.router.restart()
    edge.join_known(bob, "group:a")
    alice.send([LEAVE, 9, "group:a"])
    assert alice.frame() == [REPLY, 9, {}]
    edge.router.heartbeat()
    edge.link(LATER)
    assert told(edge)[-2:] == [(records.JOINED, b"group:a", 4), (records.LEFT, b"group:a", 4)]


def test_the_end_of_a_session_is_told_again(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.close()
    while edge.router.take()["kind"] != records.CLOSE:
        pass
    said = edge.link(LATER)
    assert [one["aux"] for one in said if one["kind"] == records.CLOSE] == [records.CLOSES_TOLD]


def tell(worker: Worker, what: int, channel: bytes) -> None:
    worker.say.state(ALICE, what | records.STATES_TOLD, channel, EPOCH, 3, b"alice")


def begin(worker: Worker) -> None:
    worker.say.link(records.BEGIN, worker.epoch, worker.number)


def test_a_router_stores_what_it_is_told_of_sessions_that_nobody_has(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, worker = Store(sequencer), sequencer.worker()
    begin(worker)
    worker.say.session(records.OPEN, ALICE, 5, 3, records.OPENS_TOLD, b"what is stored")
    tell(worker, records.JOINED, b"group:a")
    worker.say.session(records.CLOSE, ALICE, 5, 0, records.CLOSES_TOLD)
    worker.flush()
    note = store.note(notes.SESSION_OPEN)
    assert (note[1], note[6], note[7]) == (0, ALICE, b"what is stored")
    assert store.states() == [(JOINED_TOLD, "group:a", (EPOCH, 3)), (-records.CLOSES_TOLD, "", (0, 0))]
    assert worker.rest() == []  # nobody is answered
    assert sequencer.live("session") == 0


def test_who_has_the_session_by_now_knows_more(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, old, new = Store(sequencer), sequencer.worker(0), sequencer.worker(1)
    new.say.session(records.OPEN, ALICE, 7, 0, records.AGAIN)
    new.flush()
    new.rest()
    begin(old)
    tell(old, records.JOINED, b"group:left-since")
    old.flush()
    old.rest()
    new.say.state(ALICE, records.JOINED, b"group:b", EPOCH, 0, b"alice")
    new.flush()
    assert store.states() == [(records.JOINED, "group:b", (EPOCH, 0))]


def test_who_claims_the_session_of_a_new_router_waits_for_what_is_told(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, old, new = Store(sequencer), sequencer.worker(0), sequencer.worker(1)
    new.say.session(records.OPEN, ALICE, 7, 3, records.RESUMES, b"")
    new.flush()
    store.note(notes.SESSION_OPEN)
    begin(old)
    tell(old, records.JOINED, b"group:a")
    old.flush()
    assert store.states() == [(JOINED_TOLD, "group:a", (EPOCH, 3))]
