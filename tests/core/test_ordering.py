"""Ordering: with a log, a message is delivered and answered when its batch is in it; nothing waits that needs not."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import log_records, records
from core.codes import Code
from core.namespace_spec import BUILT_IN
from tests.core.router_harness import EPOCH, Sequencer, Worker

Make = Callable[..., Sequencer]
SEQUENCED = [msgspec.structs.replace(spec, ack="sequenced") for spec in BUILT_IN]


@pytest.fixture
def logged(sequencers: Make) -> Sequencer:
    """A router whose messages wait for the log, one batch under way at most."""
    return sequencers(log_under_way_max=1)


def offsets(said: list[dict[str, Any]]) -> list[Any]:
    return [one["offset"] for one in said if one["kind"] == records.MESSAGE]


def answers(said: list[dict[str, Any]]) -> list[tuple[Any, Any, Any]]:
    """(seq, code, offset) of the answers to PUBLISH."""
    return [(one["seq"], one["aux"], one["offset"]) for one in said if one["kind"] == records.PUBLISHED]


def test_nothing_is_told_before_the_commit_and_all_of_it_then(logged: Sequencer) -> None:
    member, publisher = logged.worker(0), logged.worker(1)
    member.subscribe("group:a", 5)
    seq = publisher.send("group:a", {"n": 1})
    number, (record,) = logged.batch()
    assert (member.rest(), publisher.rest()) == ([], [])
    assert member.history("group:a") == {"messages": [], "epoch": EPOCH, "offset": 0}
    logged.commit(number)
    assert answers([publisher.take()]) == [(seq, 0, 1)]
    told = member.take()
    assert (told["channel"], told["epoch"], told["offset"]) == (5, EPOCH, 1)
    assert (record.body, record.channel, record.offset) == (told["body"], b"group:a", 1)
    assert member.history("group:a")["messages"] == [msgpack.unpackb(told["body"])]


def test_what_comes_while_a_batch_is_under_way_is_the_next_one(logged: Sequencer) -> None:
    worker = logged.worker()
    worker.subscribe("group:a", 1)
    for number in range(3):
        worker.send("group:a", number)
        worker.rest()
    number, batch = logged.batch()
    assert [record.offset for record in batch] == [1]
    logged.commit(number)
    number, batch = logged.batch()
    assert [record.offset for record in batch] == [2, 3]
    assert offsets(worker.rest()) == [1]
    logged.commit(number)
    assert offsets([worker.take() for _ in range(4)]) == [2, 3]


def test_several_batches_may_be_under_way_and_one_commit_stands_for_those_before_it(sequencers: Make) -> None:
    router = sequencers(log_under_way_max=3)
    worker = router.worker()
    worker.subscribe("group:a", 1)
    for number in range(3):
        worker.send("group:a", number)
        worker.rest()
    numbers = [router.batch()[0] for _ in range(3)]
    assert numbers == [1, 2, 3]
    router.commit(2)
    assert offsets([worker.take() for _ in range(4)]) == [1, 2]
    router.commit(3)
    assert offsets([worker.take() for _ in range(2)]) == [3]


def test_a_subscriber_that_comes_while_a_message_waits_is_told_the_position_before_it_and_gets_it(
    logged: Sequencer,
) -> None:
    worker = logged.worker()
    worker.send("group:a", 1)
    number, _ = logged.batch()
    assert worker.subscribe("group:a", 9) == (EPOCH, 0)
    logged.commit(number)
    assert offsets([worker.take(), worker.take()]) == [1]


def test_a_channel_whose_first_message_waits_outlives_its_last_member(logged: Sequencer) -> None:
    worker = logged.worker()
    worker.subscribe("group:a", 9)
    worker.send("group:a", 1)
    number, _ = logged.batch()
    worker.say.channel(records.UNSUBSCRIBE, b"group:a", 9)
    assert worker.rest() == []
    logged.commit(number)
    assert worker.take()["offset"] == 1
    assert worker.history("group:a")["offset"] == 1


def test_a_repeated_key_whose_first_message_waits_is_answered_at_that_commit(logged: Sequencer) -> None:
    worker, other = logged.worker(0), logged.worker(1)
    first = worker.send("group:a", "x", key="k")
    number, _ = logged.batch()
    again = other.send("group:a", "x", key="k")
    assert other.rest() == []
    logged.commit(number)
    assert answers([worker.take()]) == [(first, 0, 1)]
    assert answers([other.take()]) == [(again, 0, 1)]
    later = other.send("group:a", "x", key="k")
    assert answers([other.take()]) == [(later, 0, 1)]
    assert logged.counter("messages_sequenced") == 1


def test_a_publish_that_is_sent_again_after_its_commit_gets_its_first_position(logged: Sequencer) -> None:
    worker = logged.worker()
    worker.subscribe("group:a", 3)
    seq = worker.send("group:a", "x")
    number, _ = logged.batch()
    logged.commit(number)
    assert answers([worker.take(), worker.take()]) == [(seq, 0, 1)]
    worker.send("group:a", "x", again=seq)
    assert answers([worker.take()]) == [(seq, 0, 1)]
    assert worker.rest() == []


def test_a_publish_that_is_sent_again_while_it_waits_is_delivered_once(logged: Sequencer) -> None:
    worker = logged.worker()
    worker.subscribe("group:a", 3)
    seq = worker.send("group:a", "x")
    number, _ = logged.batch()
    worker.send("group:a", "x", again=seq)
    assert worker.rest() == []
    logged.commit(number)
    said = [worker.take() for _ in range(3)]
    assert offsets(said) == [1]
    assert answers(said) == [(seq, 0, 1)] * 2


def test_a_publish_that_is_sent_again_and_was_never_seen_is_a_new_one(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.send("group:a", "x", again=77)
    assert answers([worker.take()]) == [(77, 0, 1)]


def test_requests_of_another_start_of_the_worker_are_others(sequencers: Make) -> None:
    router = sequencers()
    old = router.worker(3, epoch=5)
    seq = old.send("group:a", "x")
    assert answers([old.take()]) == [(seq, 0, 1)]
    new = router.worker(3, epoch=6)
    new.send("group:a", "x", again=seq)
    assert answers([new.take()]) == [(seq, 0, 2)]


def test_an_answer_does_not_go_to_another_start_at_the_same_place(logged: Sequencer) -> None:
    old = logged.worker(3, epoch=5)
    old.send("group:a", "x")
    number, _ = logged.batch()
    old.say.link(records.BYE, 5, 3)
    old.flush()
    new = logged.worker(3, epoch=6)
    logged.commit(number)
    assert new.rest() == []


def test_while_the_log_is_away_what_must_be_in_it_is_refused(logged: Sequencer) -> None:
    worker = logged.worker()
    logged.log_is(False)
    worker.rest()
    seq = worker.send("group:a", 1)
    assert answers([worker.take()]) == [(seq, Code.UNAVAILABLE, 0)]
    logged.log_is(True)
    worker.rest()
    worker.send("group:a", 1)
    number, (record,) = logged.batch()
    assert record.offset == 1
    logged.commit(number)


def test_beyond_the_bytes_that_may_wait_it_is_overloaded(sequencers: Make) -> None:
    router = sequencers(log_under_way_max=1, log_bytes_max=8_000)
    worker = router.worker()
    seqs = [worker.send("group:a", "x" * 1000) for _ in range(10)]
    refused = answers(worker.rest())
    assert {code for _, code, _ in refused} == {Code.OVERLOADED}
    assert [seq for seq, _, _ in refused] == seqs[-len(refused) :]
    ordered: list[dict[str, Any]] = []
    while len(ordered) < 10 - len(refused):
        number, batch = router.batch()
        router.commit(number)
        ordered += [worker.take() for _ in batch]
    assert answers(ordered) == [(seq, 0, place) for place, seq in enumerate(seqs[: -len(refused)], 1)]


def test_a_message_that_finds_no_place_in_the_log_is_refused_and_nothing_of_it_is_left(sequencers: Make) -> None:
    logged = sequencers(log_under_way_max=2, log_chunks_max=2)
    member, publisher = logged.worker(0), logged.worker(1)
    member.subscribe("group:a", 5)
    waiting = []
    for text in "xy":
        waiting.append((publisher.send("group:a", text), logged.batch()[0]))
    refused = [publisher.send("group:a", "z", key="k"), publisher.send("group:a", "z"), publisher.send("group:b", "z")]
    assert answers(publisher.rest()) == [(seq, Code.UNAVAILABLE, 0) for seq in refused]
    assert member.rest() == []
    logged.commit(waiting[1][1])
    assert answers([publisher.take(), publisher.take()]) == [(waiting[0][0], 0, 1), (waiting[1][0], 0, 2)]
    seq = publisher.send("group:a", "z", key="k")  # it was never taken: neither its key nor its position is known
    logged.commit(logged.batch()[0])
    assert answers([publisher.take()]) == [(seq, 0, 3)]
    assert offsets(member.rest()) == [1, 2, 3]
    assert publisher.send("group:b", "z", again=refused[2]) == refused[2]
    number, (record,) = logged.batch()
    assert (record.channel, record.offset) == (b"group:b", 1)
    logged.commit(number)
    assert answers([publisher.take()]) == [(refused[2], 0, 1)]


def test_positions_given_while_a_worker_saw_more_reach_it_at_their_commit(sequencers: Make) -> None:
    """The log lost messages that it had acknowledged, and publishes came before a worker whose members had those."""
    logged = sequencers(log_under_way_max=2)
    publisher, late = logged.worker(0), logged.worker(1)
    seqs = [publisher.send("group:a", text) for text in "xy"]
    publisher.rest()
    late.tell([("group:a", 7, EPOCH - 1, 12)])
    (told,) = late.rest()
    assert (told["kind"], told["epoch"], told["offset"]) == (records.SUBSCRIBED, EPOCH, 0)
    while logged.live("history") < 2:
        logged.commit(logged.batch()[0])
        publisher.rest()
    assert offsets(late.rest()) == [1, 2]
    assert seqs == [1, 2]


def test_sequenced_messages_do_not_wait_and_are_logged(sequencers: Make) -> None:
    router = sequencers(log_under_way_max=1, namespaces=SEQUENCED)
    worker = router.worker()
    worker.subscribe("group:a", 4)
    assert worker.publish("group:a", "x")["offset"] == 1
    assert worker.take()["offset"] == 1
    number, (record,) = router.batch()
    assert (record.offset, record.flags) == (1, 0)
    router.log_is(False)
    worker.rest()
    assert worker.publish("group:a", "y")["offset"] == 2
    router.commit(number)
    assert router.batch()[1][0].offset == 2


def test_sequenced_messages_beyond_the_bound_are_delivered_and_leave_a_hole_in_the_log(sequencers: Make) -> None:
    router = sequencers(log_under_way_max=1, log_bytes_max=8_000, namespaces=SEQUENCED)
    worker = router.worker()
    worker.subscribe("group:a", 4)
    for number in range(10):
        assert worker.publish("group:a", "x" * 1000)["offset"] == number + 1
    assert offsets(worker.rest()) == list(range(1, 11))
    logged: list[int] = []
    for _ in range(2):  # the first batch has one message, the second what came while it was under way
        number, batch = router.batch()
        logged += [record.offset for record in batch]
        router.commit(number)
    assert logged == list(range(1, len(logged) + 1))
    assert router.counter("messages_not_logged") == 10 - len(logged) > 0


def test_channels_without_history_are_not_logged(sequencers: Make) -> None:
    router = sequencers(log_under_way_max=1, history_messages=0)
    worker = router.worker()
    assert worker.publish("group:a", "x")["offset"] == 1
    worker.rest()
    assert router.loop is not None
    assert router.loop.take() == []


def test_a_record_tells_who_published_it(logged: Sequencer) -> None:
    worker = logged.worker(4, epoch=9)
    before = int(time.time() * 1000)
    seq = worker.send("group:a", "x")
    number, (record,) = logged.batch()
    assert (record.kind, record.origin, record.key) == (log_records.MESSAGE, (9, 4, seq), (0, 0))
    assert before <= record.time_ms <= int(time.time() * 1000)
    logged.commit(number)
    worker.take()
    worker.send("group:a", "x", key="k")
    number, (record,) = logged.batch()
    assert record.origin == (0, 0, 0)
    assert record.key != (0, 0)
    logged.commit(number)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_at_any_pace_of_the_log_members_get_each_message_once_in_order(data: st.DataObject) -> None:
    with contextlib.closing(Sequencer(log_under_way_max=data.draw(st.integers(1, 3)))) as router:
        _publish_and_commit(router, data)


def _publish_and_commit(router: Sequencer, data: st.DataObject) -> None:
    worker = router.worker()
    channels = {"group:a": 1, "group:b": 2}
    for name, handle in channels.items():
        worker.subscribe(name, handle)
    sent: list[int] = []
    heard: dict[int, list[int]] = {1: [], 2: []}
    answered: list[int] = []

    def listen(said: list[dict[str, Any]]) -> None:
        for one in said:
            if one["kind"] == records.MESSAGE:
                heard[one["channel"]].append(one["offset"])
            elif one["kind"] == records.PUBLISHED:
                assert one["aux"] == 0
                answered.append(one["seq"])

    for _ in range(data.draw(st.integers(1, 15))):
        if data.draw(st.booleans()):
            sent.append(worker.send(data.draw(st.sampled_from(sorted(channels))), len(sent)))
        else:
            _commit_some(router, worker, listen)
    while len(answered) < len(sent):
        _commit_some(router, worker, listen)
    listen(worker.rest())
    assert answered == sent
    assert sum(map(len, heard.values())) == len(sent)
    for found in heard.values():
        assert found == list(range(1, len(found) + 1))


def _commit_some(router: Sequencer, worker: Worker, listen: Callable[[list[dict[str, Any]]], None]) -> None:
    """Commit what is handed over now."""
    listen(worker.rest())
    assert router.loop is not None
    numbers = [note[3] for note in router.loop.take()]
    if numbers:
        router.commit(numbers[-1])
    listen(worker.rest())
