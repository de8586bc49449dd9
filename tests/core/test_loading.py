"""Loading: with a log that does not give back everything, what is said of a stream waits until it was read."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import log_records, notes, records
from core.codes import Code
from tests.core.router_harness import EPOCH, Sequencer, Worker, now_ms

Make = Callable[..., Sequencer]
OPTIONS: dict[str, Any] = {"log_under_way_max": 1, "log_complete": False}


@pytest.fixture
def cold(sequencers: Make) -> Sequencer:
    return sequencers(**OPTIONS)


def message(offset: int, epoch: int = 5, data: Any = None) -> bytes:
    body = msgpack.packb([9, "group:a", offset, data or offset, {"from": "bob", "time": 1, "epoch": epoch}])
    return log_records.pack(log_records.MESSAGE, b"group:a", epoch, offset, time_ms=now_ms(), body=body)


def wanted(router: Sequencer) -> tuple[int, bytes, bool]:
    """(request, channel, with messages?) of the next load."""
    request, channel = router.note(notes.LOG_LOAD)
    return request, channel, router.last_first == 1


def loaded(router: Sequencer, request: int, epoch: int, offset: int, *kept: bytes, code: int = 0) -> None:
    assert router.loop is not None
    router.loop.put(notes.LOG_LOADED, request=request, first=epoch, second=offset, third=code, text=b"".join(kept))


def test_a_publish_waits_for_the_position_and_goes_on_behind_it(cold: Sequencer) -> None:
    worker = cold.worker()
    seqs = [worker.send("group:a", number) for number in range(2)]
    request, channel, with_messages = wanted(cold)
    assert (channel, with_messages) == (b"group:a", False)
    assert worker.rest() == []
    loaded(cold, request, 5, 41)
    number, batch = cold.batch()
    assert [(one.epoch, one.offset) for one in batch] == [(EPOCH, 42), (EPOCH, 43)]
    cold.commit(number)
    assert [(one["seq"], one["offset"]) for one in (worker.take(), worker.take())] == [(seqs[0], 42), (seqs[1], 43)]


def test_a_subscription_is_told_the_position_that_the_log_has(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    worker.flush()
    loaded(cold, wanted(cold)[0], 5, 41)
    told = worker.expect(records.SUBSCRIBED)
    assert (told["epoch"], told["offset"]) == (EPOCH, 41)
    assert worker.subscribe("group:a", 4) == (EPOCH, 41)


def test_a_channel_that_the_log_does_not_know_is_new_and_is_not_read_again(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    worker.flush()
    loaded(cold, wanted(cold)[0], 0, 0)
    assert worker.expect(records.SUBSCRIBED)["offset"] == 0
    assert worker.history("group:a") == {"messages": [], "epoch": EPOCH, "offset": 0}
    worker.send("group:a", "x")
    number, _ = cold.batch()
    cold.commit(number)
    assert [worker.take()["offset"] for _ in range(2)] == [1, 1]
    assert len(worker.history("group:a")["messages"]) == 1


def test_history_reads_the_messages_once(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    worker.flush()
    loaded(cold, wanted(cold)[0], 5, 3)
    worker.expect(records.SUBSCRIBED)
    worker.say.history(records.HISTORY, 9, b"group:a")
    worker.flush()
    request, _, with_messages = wanted(cold)
    assert with_messages
    loaded(cold, request, 5, 3, message(2), message(3))
    assert [one[2] for one in msgpack.unpackb(worker.expect(records.REPLY)["body"])["messages"]] == [2, 3]
    assert [one[2] for one in worker.history("group:a")["messages"]] == [2, 3]


def test_messages_that_are_there_already_cost_no_older_one_its_place(sequencers: Make) -> None:
    router = sequencers(**OPTIONS, history_messages=3)
    worker = router.worker()
    worker.send("group:a", "new")
    loaded(router, wanted(router)[0], 5, 3)
    number, _ = router.batch()
    router.commit(number)
    assert worker.expect(records.PUBLISHED)["offset"] == 4
    worker.say.history(records.HISTORY, 9, b"group:a")
    worker.flush()
    loaded(router, wanted(router)[0], EPOCH, 4, message(2), message(3), message(4, EPOCH))
    assert [one[2] for one in msgpack.unpackb(worker.expect(records.REPLY)["body"])["messages"]] == [2, 3, 4]


def test_a_subscription_that_ended_while_the_log_was_away_leaves_no_route(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    worker.say.channel(records.UNSUBSCRIBE, b"group:a", 3)
    worker.flush()
    loaded(cold, wanted(cold)[0], 0, 0, code=Code.UNAVAILABLE)
    loaded(cold, wanted(cold)[0], 5, 1)
    worker.expect(records.SUBSCRIBED)
    other = cold.worker(1)
    seq = other.send("group:a", "x")
    number, _ = cold.batch()
    cold.commit(number)
    assert other.expect(records.PUBLISHED)["seq"] == seq
    assert worker.rest() == []


def test_messages_that_come_in_parts_are_told_when_all_are_there(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.history(records.HISTORY, 9, b"group:a")
    worker.flush()
    request, _, _ = wanted(cold)
    assert cold.loop is not None
    for part in (message(1) + message(2), message(3)):
        cold.loop.put(notes.LOG_LOADED, request=request, conn=1, first=5, second=4, text=part)
    worker.rest()
    assert worker.rest() == []
    loaded(cold, request, 5, 4, message(4))
    assert [one[2] for one in msgpack.unpackb(worker.expect(records.REPLY)["body"])["messages"]] == [1, 2, 3, 4]


def test_what_is_read_while_a_message_waits_is_not_told_before_its_commit(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.send("group:a", "x")
    loaded(cold, wanted(cold)[0], 5, 3)
    number, (record,) = cold.batch()
    worker.say.history(records.HISTORY, 9, b"group:a")
    worker.flush()
    request, _, _ = wanted(cold)
    loaded(cold, request, EPOCH, 4, message(3), record.record)
    assert [one[2] for one in msgpack.unpackb(worker.expect(records.REPLY)["body"])["messages"]] == [3]
    cold.commit(number)
    worker.expect(records.PUBLISHED)
    assert [one[2] for one in worker.history("group:a")["messages"]] == [3, 4]


def test_a_failed_load_refuses_what_waits_and_asks_again_for_subscriptions(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    seq = worker.send("group:a", "x")
    worker.say.history(records.HISTORY, 9, b"group:a")
    worker.flush()
    request, _, _ = wanted(cold)
    worker.rest()
    loaded(cold, request, 0, 0, code=Code.UNAVAILABLE)
    request, _, _ = wanted(cold)
    said = [worker.take(), worker.take()]
    assert [(one["kind"], one["seq"], one["aux"]) for one in said] == [
        (records.PUBLISHED, seq, Code.UNAVAILABLE),
        (records.REPLY, 9, Code.UNAVAILABLE),
    ]
    loaded(cold, request, 5, 8)
    assert worker.expect(records.SUBSCRIBED)["offset"] == 8


def test_members_that_left_while_a_load_failed_are_not_sent_to(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    worker.say.channel(records.UNSUBSCRIBE, b"group:a", 3)
    worker.flush()
    loaded(cold, wanted(cold)[0], 0, 0, code=Code.UNAVAILABLE)
    loaded(cold, wanted(cold)[0], 5, 8)
    assert worker.expect(records.SUBSCRIBED)["offset"] == 8
    assert worker.rest() == []
    seq = worker.send("group:a", "x")
    number, _ = cold.batch()
    cold.commit(number)
    assert [(one["kind"], one["seq"]) for one in [worker.take(), *worker.rest()]] == [(records.PUBLISHED, seq)]


def test_members_are_known_however_much_waits(cold: Sequencer) -> None:
    """Publishes are refused beyond the bound; a subscription is never said again, and so is never refused."""
    worker = cold.worker()
    name = "group:" + "a" * 200
    seqs = [worker.send("group:full", "x" * size) for size in [1 << 20] * 63 + [1 << 10] * 1_100 + [8] * 20]
    worker.say.channel(records.SUBSCRIBE, name.encode(), 3)
    worker.flush()
    first, other = wanted(cold), wanted(cold)
    assert [first[1], other[1]] == [b"group:full", name.encode()]
    loaded(cold, other[0], 5, 8)
    refused = []
    while (one := worker.take())["kind"] == records.PUBLISHED:
        assert one["aux"] == Code.OVERLOADED
        refused.append(one["seq"])
    assert refused == sorted(refused)
    assert refused[-1] == seqs[-1]
    assert (one["kind"], one["offset"]) == (records.SUBSCRIBED, 8)


def test_loads_that_the_control_thread_has_no_room_for_are_asked_for_later(sequencers: Make) -> None:
    count, name = 260_000, "group:{:06}" + "x" * 200
    cold = sequencers(**OPTIONS, channels_max=1 << 20, spill_bytes_max=1 << 26)
    worker = cold.worker()
    for first in range(0, count, 10_000):
        for number in range(first, first + 10_000):
            worker.say.channel(records.SUBSCRIBE, name.format(number).encode(), number + 1)
        worker.flush()
    assert worker.rest() == []  # all of them were taken in, more than a mailbox holds
    asked = 0
    while asked < count:
        request, _, _ = wanted(cold)
        loaded(cold, request, 5, 8)
        asked += 1
    told: set[int] = set()
    while len(told) < count:
        told.add(worker.expect(records.SUBSCRIBED)["channel"])
    assert told == set(range(1, count + 1))


def test_what_a_lost_worker_said_is_not_done(cold: Sequencer) -> None:
    worker, other = cold.worker(0), cold.worker(1)
    worker.send("group:a", "x")
    request, _, _ = wanted(cold)
    worker.say.link(records.BYE, worker.epoch, 0)
    worker.flush()
    other.rest()
    loaded(cold, request, 5, 8)
    other.rest()
    assert cold.counter("messages_sequenced") == 0


def test_an_epoch_in_the_log_that_is_not_below_ours_is_passed(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    worker.flush()
    loaded(cold, wanted(cold)[0], EPOCH + 4, 2)
    assert worker.expect(records.SUBSCRIBED)["epoch"] == EPOCH + 5


def member_of_an_earlier_router(router: Sequencer, offset: int) -> Worker:
    """A worker that was told this position of the channel by the router before, which said nothing there itself."""
    worker = router.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3, EPOCH - 1, offset)
    worker.flush()
    return worker


def test_who_holds_the_last_message_is_at_the_end_though_routers_came_and_went_since(cold: Sequencer) -> None:
    worker = member_of_an_earlier_router(cold, 41)
    loaded(cold, wanted(cold)[0], 5, 41)
    assert worker.expect(records.SUBSCRIBED)["offset"] == 41
    worker.say.catchup(9, b"group:a", 3, 5, 41, flags=1)
    worker.flush()
    assert records.OUTCOMES[worker.expect(records.CAUGHT)["outcome"]] == "live"


def test_what_the_log_lost_is_not_given_again_though_routers_came_and_went_since(cold: Sequencer) -> None:
    worker = member_of_an_earlier_router(cold, 43)
    loaded(cold, wanted(cold)[0], 5, 41)
    assert worker.expect(records.SUBSCRIBED)["offset"] == 43
    worker.send("group:a", "x")
    assert [one.offset for one in cold.batch()[1]] == [44]


@pytest.mark.parametrize("is_kept", [True, False])
def test_nobody_is_told_reset_at_the_end_of_a_channel_before_its_messages_are_read(
    cold: Sequencer, is_kept: bool
) -> None:
    """The message itself tells its epoch better than the position does that stands behind it."""
    worker = cold.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:a", 3)
    worker.flush()
    loaded(cold, wanted(cold)[0], 8, 41)
    assert worker.expect(records.SUBSCRIBED)["offset"] == 41
    worker.say.catchup(9, b"group:a", 3, 5, 41, flags=1)
    worker.flush()
    request, channel, with_messages = wanted(cold)
    assert (channel, with_messages) == (b"group:a", True)
    loaded(cold, request, 8, 41, *[message(41)] * is_kept)
    told = records.OUTCOMES[worker.expect(records.CAUGHT)["outcome"]]
    assert told == ("live" if is_kept else "reset")


def test_what_was_read_is_told_before_what_is_read_next_takes_its_memory(sequencers: Make) -> None:
    """Eight channels of 200 KiB are caught up on together, in parts, and memory has room for one of them."""
    count = 200
    router = sequencers(**OPTIONS, history_total_bytes=1 << 18, history_messages=count)
    worker = router.worker()
    kept = [message(offset, data="x" * 1000) for offset in range(1, count + 1)]
    channels = {number: (5, 0) for number in range(8)}
    reads = parts = 0
    while channels:
        for number, since in channels.items():
            worker.say.catchup(number, b"group:%d" % number, number, *since, bytes_max=1 << 16)
        waiting = dict(channels)
        while waiting:
            for one in worker.rest():
                del waiting[one["seq"]]
                parts += 1
                channels[one["seq"]] = one["last"]
                if one["last"] == (5, count):
                    del channels[one["seq"]]
            assert router.loop is not None
            for kind, _, _, request, with_messages, *_ in router.loop.take():  # told in one turn, or nearly
                assert (kind, with_messages) == (notes.LOG_LOAD, 1)
                loaded(router, request, 5, count, *kept)
                reads += 1
    assert parts == 8 * 4
    assert reads <= parts


def test_it_ends_while_loads_are_under_way(cold: Sequencer) -> None:
    worker = cold.worker()
    for number in range(50):
        worker.send(f"group:{number}", "x")
    worker.rest()


def test_a_channel_without_history_is_not_loaded(sequencers: Make) -> None:
    worker = sequencers(**OPTIONS, history_messages=0).worker()
    assert worker.publish("group:a", "x")["offset"] == 1


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_at_any_pace_of_the_loads_everything_is_answered_once_in_order(data: st.DataObject) -> None:
    with contextlib.closing(Sequencer(**OPTIONS)) as router:
        worker = router.worker()
        sent: dict[str, list[int]] = {"group:a": [], "group:b": []}
        answered: dict[int, int] = {}
        for _ in range(data.draw(st.integers(1, 12))):
            if data.draw(st.booleans()):
                channel = data.draw(st.sampled_from(sorted(sent)))
                sent[channel].append(worker.send(channel, "x"))
            else:
                _serve(router, worker, answered)
        while len(answered) < sum(map(len, sent.values())):
            _serve(router, worker, answered)
        for seqs in sent.values():
            assert [answered[seq] for seq in seqs] == list(range(8, 8 + len(seqs)))


def _serve(router: Sequencer, worker: Any, answered: dict[int, int]) -> None:
    """Do what the control thread is asked for now, and take the answers."""
    said = worker.rest()
    assert router.loop is not None
    for note in router.loop.take():
        if note[0] == notes.LOG_LOAD:
            loaded(router, note[3], 5, 7)
        else:
            router.commit(note[3])
    said += worker.rest()
    for one in said:
        assert (one["kind"], one["aux"]) == (records.PUBLISHED, 0)
        assert one["seq"] not in answered
        answered[one["seq"]] = one["offset"]
