"""The router's data plane between workers and the store of sessions: claims that wait, what sessions did, cursors."""

import select
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from core.router_loop import RouterLoop
from tests.core.router_harness import DEADLINE_S, EPOCH, Sequencer, Worker

ALICE, BOB = b"a" * 16, b"b" * 16
STATE = struct.Struct("=IHH16sQQHHIQQ")


class Store:
    """The control thread's side: hands out what the data plane asks and tells."""

    def __init__(self, sequencer: Sequencer) -> None:
        self._sequencer = sequencer
        self._kept: list[tuple[Any, ...]] = []

    @property
    def loop(self) -> RouterLoop:
        """Asked for each time: the fixture sees to it that nobody holds it at the end."""
        assert self._sequencer.loop is not None
        return self._sequencer.loop

    def note(self, kind: int) -> tuple[Any, ...]:
        while not self._kept:
            assert select.select([self.loop.control_fd], [], [], DEADLINE_S)[0], "no note in time"
            self._kept += self.loop.take()
        found = self._kept.pop(0)
        assert found[0] == kind, f"expected a note of kind {kind}, not {found}"
        return found

    def states(self) -> list[tuple[int, str, tuple[int, int]]]:
        """(what, channel, position) of one turn; a CLOSE is (-flags, "", (0, 0))."""
        said, place, found = self.note(notes.SESSION_STATE)[7], 0, []
        while place < len(said):
            size, kind, _, aux = struct.unpack_from("=IBBH", said, place)
            if kind == records.CLOSE:
                found.append((-aux, "", (0, 0)))
            else:
                _, _, _, _, epoch, offset, what, *_ = STATE.unpack_from(said, place)
                found.append((what, said[place + STATE.size :][:aux].decode(), (epoch, offset)))
            place += size
        return found


@pytest.fixture
def kept(sequencers: Callable[..., Sequencer]) -> tuple[Store, Worker]:
    """A router whose control thread keeps sessions, and a worker of it."""
    sequencer = sequencers(sessions_kept=True)
    return Store(sequencer), sequencer.worker()


def claim(worker: Worker, session: bytes, flags: int = 0, *, conn: int = 5, body: bytes = b"what is stored") -> None:
    worker.say.session(records.OPEN, session, conn, 3, flags, body)
    worker.flush()


def test_a_fresh_claim_is_stored_and_answered_at_once(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    claim(worker, ALICE)
    assert worker.expect(records.OPENED)["seq"] == 3
    note = store.note(notes.SESSION_OPEN)
    assert (note[1], note[2], note[6], note[7]) == (0, 5, ALICE, b"what is stored")


def test_a_resume_waits_for_what_is_stored(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    claim(worker, ALICE, records.RESUMES)
    note = store.note(notes.SESSION_OPEN)
    assert (note[1], note[6]) == (records.RESUMES, ALICE)
    assert worker.rest() == []
    told = msgpack.packb([["group:a", 1, 2]])
    store.loop.put(notes.SESSION_OPENED, request=note[3], conn=note[2], text=told)
    one = worker.expect(records.OPENED)
    assert (one["seq"], one["conn"], one["body"], one["aux"]) == (3, 5, told, 0)


def test_a_claim_with_an_old_token_needs_the_stored_session(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, worker = Store(sequencer), sequencer.worker()
    claim(worker, ALICE, records.RESUMES | records.ALIVE)
    note = store.note(notes.SESSION_OPEN)
    assert note[1] == records.RESUMES | records.ALIVE
    store.loop.put(notes.SESSION_OPENED, request=note[3], conn=note[2], first=Code.SESSION_EXPIRED)
    assert worker.expect(records.OPENED)["aux"] == Code.SESSION_EXPIRED


@pytest.mark.parametrize("first", ["the earlier claim", "the later claim"])
def test_after_a_restart_the_later_claim_has_the_session_whoever_links_first(
    sequencers: Callable[..., Sequencer], first: str
) -> None:
    """The connection with the earlier one has not heard yet that its client went elsewhere."""
    sequencer = sequencers(sessions_kept=True)
    early, late = sequencer.worker(0), sequencer.worker(1)
    claims = [(early, 5, 7), (late, 6, 8)]
    for place, (worker, conn, fence) in enumerate(claims if first == "the earlier claim" else reversed(claims)):
        worker.say.session(records.OPEN, ALICE, conn, 0, records.AGAIN, fence=fence)
        worker.flush()
        if place == 0:
            assert worker.rest() == []
    assert early.expect(records.EVICT)["conn"] == 5
    assert late.rest() == []


def test_without_a_store_an_old_token_resumes_nothing(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers().worker()
    claim(worker, ALICE, records.RESUMES | records.ALIVE)
    assert worker.expect(records.OPENED)["aux"] == Code.SESSION_EXPIRED


def test_the_former_owner_is_told_before_the_claim_waits(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, old, new = Store(sequencer), sequencer.worker(0), sequencer.worker(1)
    claim(old, ALICE)
    old.expect(records.OPENED)
    store.note(notes.SESSION_OPEN)
    claim(new, ALICE, records.RESUMES)
    assert old.expect(records.EVICT)["conn"] == 5
    note = store.note(notes.SESSION_OPEN)
    # What the old connection still says does not count any more.
    old.say.state(ALICE, records.JOINED, b"group:late", 1, 1, b"alice")
    old.say.session(records.CLOSE, ALICE, 5)
    old.flush()
    old.rest()
    store.loop.put(notes.SESSION_OPENED, request=note[3], conn=note[2])
    assert new.expect(records.OPENED)["aux"] == 1
    new.say.state(ALICE, records.JOINED, b"group:a", EPOCH, 0, b"alice", 5)
    new.flush()
    assert store.states() == [(records.JOINED, "group:a", (EPOCH, 0))]


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another worker", "the same worker"])
def test_between_a_claim_and_its_eviction_nothing_of_the_old_connection_counts(
    sequencers: Callable[..., Sequencer], elsewhere: bool
) -> None:
    """Its `bye` does not end the session, its LEAVE takes no channel of it, its ACK and JOIN say nothing."""
    sequencer = sequencers(sessions_kept=True)
    store, old = Store(sequencer), sequencer.worker(0)
    new = sequencer.worker(1) if elsewhere else old
    old.publish("group:a", 1)
    claim(old, ALICE)
    old.expect(records.OPENED)
    store.note(notes.SESSION_OPEN)
    claim(new, ALICE, records.RESUMES, conn=6)
    assert old.expect(records.EVICT)["conn"] == 5
    note = store.note(notes.SESSION_OPEN)
    store.loop.put(notes.SESSION_OPENED, request=note[3], conn=note[2])
    assert new.expect(records.OPENED)["conn"] == 6
    old.say.state(ALICE, records.ACKED, b"group:a", EPOCH, 1, conn=5)
    old.say.state(ALICE, records.LEFT, b"group:a", EPOCH, 1, b"alice", 5)
    old.say.state(ALICE, records.JOINED, b"group:late", EPOCH, 0, b"alice", 5)
    old.say.session(records.CLOSE, ALICE, 5, 0, records.OVER)
    old.flush()
    old.rest()
    assert sequencer.live("session") == 1
    new.say.state(ALICE, records.JOINED, b"group:b", EPOCH, 0, b"alice", 6)
    new.say.session(records.CLOSE, ALICE, 6)
    new.flush()
    assert store.states() == [(records.JOINED, "group:b", (EPOCH, 0)), (0, "", (0, 0))]


def test_an_answer_for_a_worker_that_is_gone_reaches_nobody(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    claim(worker, ALICE, records.RESUMES)
    note = store.note(notes.SESSION_OPEN)
    worker.say.link(records.BYE, worker.epoch, worker.number)
    worker.flush()
    worker.link()
    worker.epoch += 1
    worker.tell([])
    assert worker.rest() == []
    store.loop.put(notes.SESSION_OPENED, request=note[3], conn=note[2])
    assert worker.rest() == []


def test_a_claim_that_is_said_again_is_neither_stored_nor_answered(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    worker.say.session(records.OPEN, ALICE, 5, 0, records.AGAIN)
    worker.say.session(records.CLOSE, ALICE, 5, 0, records.OVER)
    worker.flush()
    assert store.states() == [(-records.OVER, "", (0, 0))]
    assert worker.rest() == []


def test_the_end_of_a_session_is_told_before_it_is_claimed_again(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    claim(worker, ALICE)
    worker.expect(records.OPENED)
    store.note(notes.SESSION_OPEN)
    worker.say.session(records.CLOSE, ALICE, 5, 0, records.OVER)
    claim(worker, ALICE, records.RESUMES, conn=6)  # in one batch, and so in one turn
    assert store.states() == [(-records.OVER, "", (0, 0))]
    assert store.note(notes.SESSION_OPEN)[2] == 6


def test_an_ack_gets_the_epoch_of_its_message_and_is_held_to_what_was_said(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    claim(worker, ALICE)
    worker.expect(records.OPENED)
    store.note(notes.SESSION_OPEN)
    for number in range(3):
        worker.publish("group:a", number)
    for name, offset in ((b"group:a", 2), (b"group:a", 99), (b"group:silent", 1)):
        worker.say.state(ALICE, records.ACKED, name, EPOCH + 5, offset, conn=5)
    worker.flush()
    assert store.states() == [(records.ACKED, "group:a", (EPOCH, 2)), (records.ACKED, "group:a", (EPOCH, 3))]


def test_a_new_device_starts_at_its_users_cursor(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    for number in range(3):
        worker.publish("user:alice", number)
    worker.say.catchup(9, b"user:alice", 5, 0, 0, flags=1 | 2)
    worker.flush()
    note = store.note(notes.CURSOR)
    assert (note[2], note[7]) == (5, b"user:alice")
    store.loop.put(notes.CURSOR_READ, request=note[3], conn=note[2], second=EPOCH, third=1, text=note[7])
    one = worker.expect(records.CAUGHT)
    assert (one["seq"], one["channel"], one["last"], one["position"]) == (9, 5, (EPOCH, 1), (EPOCH, 3))
    assert (records.OUTCOMES[one["outcome"]], one["messages"]) == ("replayed", [])
    assert records.CURSORS[one["cursor"]] == "read"


def test_a_cursor_that_could_not_be_read_is_told_apart_from_none(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    worker.publish("user:alice", 1)
    for known in ("read", "away"):
        worker.say.catchup(9, b"user:alice", 5, 0, 0, flags=1 | 2)
        worker.flush()
        note = store.note(notes.CURSOR)
        first = records.CURSORS.index(known)
        store.loop.put(notes.CURSOR_READ, request=note[3], conn=note[2], first=first, text=note[7])
        one = worker.expect(records.CAUGHT)
        assert (records.CURSORS[one["cursor"]], one["last"]) == (known, (0, 0))


@pytest.mark.parametrize(("epoch", "offset"), [(EPOCH - 1, 2), (EPOCH - 1, 50), (EPOCH + 1, 1)])
def test_a_cursor_of_a_stream_that_aged_away_starts_a_device_before_all_that_is_kept(
    kept: tuple[Store, Worker], epoch: int, offset: int
) -> None:
    store, worker = kept
    for number in range(3):
        worker.publish("user:alice", number)
    worker.say.catchup(9, b"user:alice", 5, 0, 0, flags=1 | 2)
    worker.flush()
    note = store.note(notes.CURSOR)
    store.loop.put(notes.CURSOR_READ, request=note[3], conn=note[2], second=epoch, third=offset, text=note[7])
    one = worker.expect(records.CAUGHT)
    assert (records.OUTCOMES[one["outcome"]], one["last"], one["position"]) == ("replayed", (0, 0), (EPOCH, 3))
    worker.say.catchup(10, b"user:alice", 5, *one["last"])
    worker.flush()
    assert len(worker.expect(records.CAUGHT)["messages"]) == 3


def test_a_channel_without_messages_needs_no_cursor(kept: tuple[Store, Worker]) -> None:
    _, worker = kept
    worker.say.catchup(9, b"user:alice", 5, 0, 0, flags=1 | 2)
    worker.flush()
    one = worker.expect(records.CAUGHT)
    assert (records.OUTCOMES[one["outcome"]], one["position"][1]) == ("live", 0)


def test_a_new_device_may_start_at_the_oldest_message(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers(history_messages=2).worker()
    for number in range(5):
        worker.publish("user:alice", number)
    worker.say.catchup(9, b"user:alice", 5, 0, 0, flags=1 | 4)
    worker.flush()
    one = worker.expect(records.CAUGHT)
    assert (records.OUTCOMES[one["outcome"]], one["last"], one["gap"]) == ("replayed", (EPOCH, 3), (0, 0))


def test_without_a_store_every_claim_is_answered_and_a_new_device_starts_live(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    claim(worker, ALICE, records.RESUMES)
    assert worker.expect(records.OPENED)["body"] == b""
    worker.publish("user:alice", 1)
    worker.say.catchup(9, b"user:alice", 5, 0, 0, flags=1 | 2)
    worker.say.state(ALICE, records.ACKED, b"user:alice", EPOCH, 1, conn=5)
    worker.flush()
    one = worker.expect(records.CAUGHT)
    assert (records.OUTCOMES[one["outcome"]], records.CURSORS[one["cursor"]]) == ("live", "not_kept")
    assert sequencer.counter("states_lost") == 0


# ---- what operators ask for ----


def test_what_is_stored_of_sessions_is_asked_behind_what_they_did(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    worker.say.session(records.OPEN, ALICE, 5, 1)
    worker.say.state(ALICE, records.JOINED, b"group:a", EPOCH, 0, b"alice", 5)
    worker.say.body(records.SESSIONS, ALICE + BOB, 9)
    worker.flush()
    store.note(notes.SESSION_OPEN)
    assert store.states() == [(records.JOINED, "group:a", (EPOCH, 0))]
    note = store.note(notes.SESSIONS)
    assert note[7] == ALICE + BOB
    store.loop.put(notes.SESSIONS_READ, request=note[3], text=b"the answer")
    worker.expect(records.OPENED)
    assert worker.expect(records.REPLY) == {"kind": records.REPLY, "aux": 0, "seq": 9, "body": b"the answer"}


def test_a_store_that_cannot_be_read_is_told_with_its_code(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    worker.say.body(records.SESSIONS, ALICE, 9)
    worker.flush()
    store.loop.put(notes.SESSIONS_READ, request=store.note(notes.SESSIONS)[3], first=Code.UNAVAILABLE)
    assert worker.expect(records.REPLY)["aux"] == Code.UNAVAILABLE


def test_a_router_that_stores_no_sessions_refuses(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers().worker()
    worker.say.body(records.SESSIONS, ALICE, 9)
    (one,) = worker.rest()
    assert (one["kind"], one["seq"], one["aux"]) == (records.REPLY, 9, Code.NOT_ALLOWED)


def test_an_answer_for_a_worker_that_is_gone_is_for_nobody(kept: tuple[Store, Worker]) -> None:
    store, worker = kept
    worker.say.body(records.SESSIONS, ALICE, 9)
    worker.flush()
    request = store.note(notes.SESSIONS)[3]
    worker.epoch += 1
    worker.tell([])  # another start, in the same place
    worker.rest()
    store.loop.put(notes.SESSIONS_READ, request=request, text=b"the answer")
    assert worker.rest() == []
