"""What a worker told of its sessions lately is told the next router again, which stores it unless others know more."""

import time
from collections.abc import Callable

import msgpack
import pytest

from core import notes, records
from core._testing import Members
from core.ledger import Stats
from router.told import Said, walk
from tests.core import wire
from tests.core.edge_harness import EPOCH, LEAVE, REPLY, Edge, wait_for
from tests.core.router_harness import Sequencer, Worker
from tests.core.test_opening import hello, subscribe
from tests.core.test_sessions import ALICE, BOB, Store

LATER = EPOCH + 1


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


def test_the_next_router_is_told_in_which_channels_a_resumed_session_was(edge: Edge) -> None:
    """The last one answered by what it had heard: it may not have stored it, and who told it may not tell it again."""
    client = hello(edge, [["user:alice", EPOCH, 2], ["group:named", EPOCH, 3]], resumes=True)
    subscribe(edge, {"user:alice": 2, "group:named": 3})
    stored = [["user:alice", EPOCH, 1, 1], ["group:stored", EPOCH, 5]]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored))
    subscribe(edge, {"group:stored": 5})
    assert set(client.frame()[2]["channels"]) == {"user:alice", "group:named", "group:stored"}
    edge.link(LATER)
    (what, names, _), *rest = told(edge)
    assert what == records.LISTS
    assert msgpack.unpackb(names) == {"user:alice": [EPOCH, 1], "group:stored": [EPOCH, 5]}
    assert rest == [(records.JOINED, b"group:named", 3)]


def test_a_router_that_came_before_welcome_is_told_the_list_at_once(edge: Edge) -> None:
    """What is stored said the one before, which did not live to answer for the channels."""
    client = hello(edge, [["user:alice"]], resumes=True)
    subscribe(edge, {"user:alice": 2})
    stored = [["user:alice", EPOCH, 2, 2], ["group:stored", EPOCH, 5]]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored))
    edge.router.expect(records.SUBSCRIBE)
    said = edge.link(LATER)
    assert [what for what, *_ in told(edge)] == []
    edge.router.states.clear()
    for one in said:
        if one["kind"] == records.SUBSCRIBE:
            edge.router.send(wire.subscribed(one["channel"], EPOCH, 2 if one["name"] == b"user:alice" else 5))
    assert set(client.frame()[2]["channels"]) == {"user:alice", "group:stored"}
    edge.router.heartbeat()
    ((what, names, _),) = told(edge)
    assert (what, msgpack.unpackb(names)) == (records.LISTS, {"user:alice": [EPOCH, 2], "group:stored": [EPOCH, 5]})


def test_a_list_of_which_all_is_stored_is_not_told_again(edge: Edge) -> None:
    client = hello(edge, [["user:alice", EPOCH, 2]], resumes=True)
    subscribe(edge, {"user:alice": 2})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], [["user:alice", EPOCH, 1, 1]]))
    client.frame()
    edge.router.send(wire.linked(EPOCH, ask=False, stored_ms=time.monotonic_ns() // 1_000_000 + 1_000))
    edge.link(LATER)
    assert told(edge) == []


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


def ticks(edge: Edge, stored_ms: int) -> None:
    """The router says what it stored, and the worker looks some times at what it keeps."""
    edge.router.send(wire.linked(EPOCH, ask=False, stored_ms=stored_ms))
    for _ in range(2):
        edge.router.heartbeat()


@pytest.mark.parametrize(("stored_s", "kept"), [(0, True), (10, False)])
def test_what_was_told_is_kept_until_the_router_has_stored_it(edge: Edge, stored_s: int, kept: bool) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a", offset=4)
    ticks(edge, time.monotonic_ns() // 1_000_000 + 1000 * stored_s)
    edge.link(LATER)
    assert ((records.JOINED, b"group:a", 4) in told(edge)) is kept


def test_what_was_told_is_kept_while_a_shard_has_no_leader(edge: Edge) -> None:
    """Who led it last may have passed over what came behind its last word."""
    alice = edge.open("alice")
    edge.join(alice, "group:a", offset=4)
    edge.router.send(wire.leads(0, [7]))
    ticks(edge, time.monotonic_ns() // 1_000_000 + 10_000)
    edge.link(LATER)
    assert (records.JOINED, b"group:a", 4) in told(edge)


def stored_ms(worker: Worker, now_ms: int) -> int:
    """Up to when the router says that all is stored, as it answers a heartbeat; both by the worker's clock."""
    worker.say.link(records.LINK, worker.epoch, worker.number, now_ms=now_ms)
    worker.flush()
    told_ms = worker.expect(records.LINKED)["stored_ms"]
    assert isinstance(told_ms, int)
    return told_ms


def test_a_worker_says_its_time_with_each_heartbeat(edge: Edge) -> None:
    before_ms = time.monotonic_ns() // 1_000_000
    for _ in range(2):
        edge.router.heartbeat()
    assert before_ms <= edge.router.heard_ms <= time.monotonic_ns() // 1_000_000


def test_a_router_without_a_store_has_nothing_to_wait_for(sequencer: Sequencer) -> None:
    assert stored_ms(sequencer.worker(), 77) == 77


@pytest.mark.parametrize("began_ms", [1_000, 10**15])
def test_workers_hear_what_is_stored_by_their_own_clocks(sequencers: Callable[..., Sequencer], began_ms: int) -> None:
    """Their machines were started long after the router's, or long before it."""
    sequencer = sequencers(sessions_kept=True)
    worker, store = sequencer.worker(), Store(sequencer)
    assert [stored_ms(worker, began_ms + more) for more in (0, 500)] == [0, 0]
    store.loop.put(notes.SESSIONS_STORED, first=1)  # by the router's clock: long ago
    assert [stored_ms(worker, began_ms + more) for more in (600, 700)] == [0, 0]
    store.loop.put(notes.SESSIONS_STORED, first=time.monotonic_ns() // 1_000_000 + 60_000)
    wait_for(lambda: stored_ms(worker, began_ms + 800) != 0, "what is stored is told")
    assert stored_ms(worker, began_ms + 900) == began_ms + 800


def test_what_is_told_again_carries_the_date_with_which_it_was_told_first(edge: Edge) -> None:
    before = time.monotonic_ns() // 1000
    alice = edge.open("alice")
    edge.join(alice, "group:a", offset=4)
    between = time.monotonic_ns() // 1000
    alice.send([LEAVE, 9, "group:a"])
    assert alice.frame() == [REPLY, 9, {}]
    edge.router.expect(records.UNSUBSCRIBE)
    after = time.monotonic_ns() // 1000
    said = edge.link(LATER)
    assert (said[0]["aux"], said[0]["fence"], said[0]["time_us"]) == (records.OPENS_TOLD, wire.FENCE, 0)
    states = [one for one in edge.router.states if one["time_us"]]
    first, again = (
        [(one["fence"], one["time_us"]) for one in states if (one["what"] >= records.STATES_TOLD) is how]
        for how in (False, True)
    )
    assert again == first
    assert {fence for fence, _ in again} == {wire.FENCE}
    times = [time_us for _, time_us in again]
    assert len(times) == 3
    assert before <= times[0] < times[1] <= between <= times[2] <= after


def test_a_claim_that_is_answered_twice_has_the_later_number(edge: Edge) -> None:
    alice = edge.open("alice")
    for fence in (wire.FENCE + 5, wire.FENCE + 3):
        edge.router.send(wire.opened(alice.conn, 1, fence=fence))
    edge.join(alice, "group:a", offset=4)
    alice.send([LEAVE, 9, "group:a"])
    edge.router.expect(records.UNSUBSCRIBE)
    assert {one["fence"] for one in edge.router.states if one["name"] == b"group:a"} == {wire.FENCE + 5}


def test_a_claim_that_was_not_answered_is_made_again_and_not_told(edge: Edge) -> None:
    one = edge.hello(edge.client(), "alice")
    said = [one for one in edge.link(LATER) if one["kind"] == records.OPEN]
    assert [(again["aux"], again["seq"], again["fence"]) for again in said] == [(0, one["seq"], 0)]


def test_later_claims_have_higher_numbers_and_those_of_a_later_router_higher_ones(
    sequencers: Callable[..., Sequencer],
) -> None:
    fences = []
    for epoch in (EPOCH, LATER):
        worker = sequencers(epoch=epoch).worker()
        for conn, session in ((5, ALICE), (6, ALICE[:-1] + b"2")):  # of one shard
            worker.say.session(records.OPEN, session, conn, 3)
            worker.flush()
            fences.append(worker.expect(records.OPENED)["fence"])
    assert fences == sorted(set(fences))
    assert [one >> records.CLAIM_BITS for one in fences] == [EPOCH, EPOCH, LATER, LATER]


def test_claims_have_higher_numbers_than_any_that_a_worker_tells_of(sequencers: Callable[..., Sequencer]) -> None:
    """A router may have had claims in one rush, and the wall clock from which epochs are taken may step back."""
    sequencer = sequencers(sessions_kept=True)
    worker = sequencer.worker()
    for flags, high, session in ((records.AGAIN, 2**62, ALICE), (records.OPENS_TOLD, 2**63, BOB[:1] + bytes(15))):
        worker.say.session(records.OPEN, session[:1] + BOB[1:], 9, 0, flags, fence=high)
        worker.say.session(records.OPEN, session, 5, 3)
        worker.flush()
        assert worker.expect(records.OPENED)["fence"] == high + 1


def tell(worker: Worker, what: int, channel: bytes, time_us: int = 1) -> None:
    told = what | records.STATES_TOLD
    worker.say.state(ALICE, told, channel, EPOCH, 3, b"alice", time_us=time_us, fence=wire.FENCE)


def test_what_finds_no_room_on_its_way_is_counted_and_kept_for_the_next_router() -> None:
    stats = Stats()
    tables = Members(stats)
    conn = tables.connect(-1)
    tables.join(conn, b"user:alice")
    tables.join(conn, b"group:a")
    tables.room(0)
    tables.tell(conn, b"group:a", records.LEFT)
    tables.tell(conn, b"group:a", records.ACKED)  # not kept: what the client says when it resumes counts
    assert tables.said() == b""
    assert stats.read()["counters"]["states_lost"] == 1
    tables.room(1 << 20)
    (one,) = wire.unpack(tables.again())
    assert (one["name"], one["what"]) == (b"group:a", records.LEFT | records.STATES_TOLD)
    tables.disconnect(conn)


def begin(worker: Worker) -> None:
    worker.begin()


def handed_over(sequencer: Sequencer, store: Store) -> list[Said]:
    """What the router hands over once nothing is waited for any more."""
    store.loop.put(notes.TOLD_END)
    return list(walk(store.note(notes.SESSION_TOLD)[7]))


def test_a_router_hands_over_what_it_is_told_of_sessions_when_all_have_told(
    sequencers: Callable[..., Sequencer],
) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, worker, other = Store(sequencer), sequencer.worker(0), sequencer.worker(1)
    begin(worker)
    worker.say.session(records.OPEN, ALICE, 5, 3, records.OPENS_TOLD, b"what is stored", fence=7)
    tell(worker, records.JOINED, b"group:a", 8)
    worker.flush()
    assert worker.rest() == []  # nobody is answered
    begin(other)
    other.say.session(records.CLOSE, ALICE, 9, 0, records.CLOSES_TOLD | records.OVER, time_us=6)
    other.flush()
    other.rest()
    opened, joined, closed = handed_over(sequencer, store)
    assert (opened.kind, opened.fence, opened.conn, opened.body) == (records.OPEN, 7, 5, b"what is stored")
    assert joined.fence == wire.FENCE
    assert (joined.flags, joined.time_us, joined.name, joined.position) == (records.JOINED, 8, "group:a", (EPOCH, 3))
    assert (closed.time_us, closed.conn, closed.flags & records.OVER) == (6, 9, records.OVER)
    assert opened.worker == joined.worker != closed.worker
    assert {one.claim for one in (opened, joined, closed)} == {0}
    assert sequencer.live("session") == 0


def test_it_is_handed_over_when_all_workers_have_told_whoever_else_links(sequencers: Callable[..., Sequencer]) -> None:
    """Workers count by their numbers: an earlier start beside a new one is the same, and the admin server is none."""
    sequencer = sequencers(sessions_kept=True, workers=2)
    store, first = Store(sequencer), sequencer.worker(0)
    begin(first)
    tell(first, records.JOINED, b"group:a", 8)
    first.tell([])
    beside, admin = (sequencer.worker(number, epoch=first.epoch + 1, link=False) for number in (0, 7))
    beside.link(beside=True)
    admin.link(everybody=False)
    for one in (first, beside, admin):
        one.rest()
    assert store.loop.take() == []
    sequencer.worker(1)
    assert [one.name for one in walk(store.note(notes.SESSION_TOLD)[7])] == ["group:a"]


def test_the_claim_by_which_a_connection_has_the_session_is_told_with_it(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, old, new = Store(sequencer), sequencer.worker(0), sequencer.worker(1)
    begin(old)
    tell(old, records.JOINED, b"group:left-since")
    old.flush()
    old.rest()
    new.say.session(records.OPEN, ALICE, 7, 0, records.AGAIN, fence=wire.FENCE + 1)
    new.flush()
    new.rest()
    (one,) = handed_over(sequencer, store)
    assert (one.fence, one.claim) == (wire.FENCE, wire.FENCE + 1)
    # Later what another worker tells of an earlier claim does not count.
    begin(old)
    tell(old, records.JOINED, b"group:left-since", 9)
    old.flush()
    old.rest()
    new.say.state(ALICE, records.JOINED, b"group:b", EPOCH, 0, b"alice", 7)
    new.flush()
    (said,) = walk(store.note(notes.SESSION_STATE)[7])
    assert (said.name, said.worker) == ("group:b", -1)


def test_what_a_worker_tells_late_comes_with_its_time(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(sessions_kept=True)
    store, late = Store(sequencer), sequencer.worker()
    assert handed_over(sequencer, store) == []
    begin(late)
    tell(late, records.LEFT, b"group:a", 77)
    late.flush()
    (said,) = walk(store.note(notes.SESSION_STATE)[7])
    assert (said.flags, said.name, said.time_us) == (records.LEFT, "group:a", 77)


def test_a_router_that_keeps_no_sessions_passes_over_what_it_is_told(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers()
    worker = sequencer.worker()
    begin(worker)
    tell(worker, records.JOINED, b"group:a")
    worker.flush()
    assert worker.rest() == []
