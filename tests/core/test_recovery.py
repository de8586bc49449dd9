"""Recovery: what the log gives back is known as it was before, and a sift keeps what is still needed of old records."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import log_records, notes, records
from core.log_records import LogEntry
from core.namespace_spec import HISTORY_AGE_S_MAX
from tests.core.edge_harness import wait_for
from tests.core.router_harness import EPOCH, Sequencer, now_ms

Make = Callable[..., Sequencer]
SEEDS = bytes(range(48))


def message(channel: str, epoch: int, offset: int, **more: Any) -> bytes:
    body = msgpack.packb([9, channel, offset, f"{channel} {offset}", {"from": "bob", "time": 1, "epoch": epoch}])
    return log_records.pack(
        log_records.MESSAGE, channel.encode(), epoch, offset, **{"time_ms": now_ms(), "body": body, **more}
    )


def aged(channel: str, count: int) -> bytes:
    """Messages that are too old to be kept, and a position that is not."""
    old = b"".join(message(channel, 5, offset, time_ms=now_ms() - 1_000_000) for offset in range(1, count + 1))
    return old + log_records.pack(log_records.POSITION, channel.encode(), 5, count, time_ms=now_ms())


def position(channel: str, offset: int, *, epoch: int = 5, age_ms: int = 0) -> bytes:
    """Where a channel stands, which was last spoken in so long ago."""
    return log_records.pack(log_records.POSITION, channel.encode(), epoch, offset, time_ms=now_ms() - age_ms)


def kept(router: Sequencer, channel: str) -> list[int]:
    return [one[2] for one in router.worker(9).history(channel)["messages"]]


def test_positions_history_and_members_go_on_where_the_log_ends(sequencers: Make) -> None:
    router = sequencers(recovered=[message("group:a", 5, 1) + message("group:a", 5, 2), message("group:a", 6, 3)])
    worker = router.worker()
    assert worker.history("group:a")["offset"] == 3
    assert kept(router, "group:a") == [1, 2, 3]
    assert worker.subscribe("group:a", 1) == (EPOCH, 3)
    answer = worker.publish("group:a", "next")
    assert (answer["epoch"], answer["offset"]) == (EPOCH, 4)
    assert kept(router, "group:a") == [1, 2, 3, 4]


def test_a_worker_that_comes_after_another_ones_publish_misses_nothing_of_it(sequencers: Make) -> None:
    """Both saw the log's last message of the epoch before; the message of the one that linked first waits for its
    commit, and stands after the position that the other is told.
    """
    router = sequencers(recovered=[message("group:a", 5, 1)], log_under_way_max=1)
    first, second = router.worker(0), router.worker(1)
    first.subscribe("group:a", 1)
    first.send("group:a", "next")
    number, _ = router.batch()
    second.tell([("group:a", 2, 5, 1)])
    said = second.expect(records.SUBSCRIBED)
    assert (said["epoch"], said["offset"]) == (EPOCH, 1)
    router.commit(number)
    told = second.take()
    assert (told["kind"], told["channel"], told["offset"]) == (records.MESSAGE, 2, 2)


def test_a_position_without_its_message_counts(sequencers: Make) -> None:
    router = sequencers(recovered=[log_records.pack(log_records.POSITION, b"group:a", 5, 17, time_ms=now_ms())])
    assert router.worker().publish("group:a", "x")["offset"] == 18


def test_epochs_stay_above_what_the_log_has(sequencers: Make) -> None:
    """A clock that stepped back, or an epoch that went up while the router ran."""
    router = sequencers(recovered=[message("group:a", EPOCH + 3, 1)])
    answer = router.worker().publish("group:a", "x")
    assert (answer["epoch"], answer["offset"]) == (EPOCH + 4, 2)


def test_records_that_come_twice_or_late_change_nothing(sequencers: Make) -> None:
    batch = b"".join(message("group:a", 5, offset) for offset in (1, 2, 4, 5))
    router = sequencers(recovered=[batch, batch, message("group:a", 5, 3), message("group:a", 5, 2)])
    assert kept(router, "group:a") == [1, 2, 3, 4, 5]
    assert router.worker().history("group:a")["offset"] == 5


def test_what_is_older_than_the_history_is_not_kept(sequencers: Make) -> None:
    old = now_ms() - 1_000_000
    batch = message("group:a", 5, 1, time_ms=old) + message("group:a", 5, 2) + aged("group:b", 7)
    router = sequencers(recovered=[batch], history_age_s=500)
    assert kept(router, "group:a") == [2]
    assert kept(router, "group:b") == []
    assert router.worker().history("group:b")["offset"] == 7


def test_records_of_unknown_namespaces_are_counted(sequencers: Make) -> None:
    batch = message("gone:a", 5, 1) + message("group:a", 5, 1) + message("group:b", 5, 1)
    assert sequencers(recovered=[batch], channels_max=1).passed_over == 1


LOGGED: dict[str, Any] = {"log_under_way_max": 1}


def test_what_memory_has_no_room_for_is_read_when_it_is_wanted(sequencers: Make) -> None:
    batch = [message(f"group:{number}", 5, 1) for number in range(40)]
    router = sequencers(**LOGGED, recovered=batch, channels_max=16)
    worker = router.worker()
    worker.say.channel(records.SUBSCRIBE, b"group:1", 3)
    worker.flush()
    request, channel = router.note(notes.LOG_LOAD)
    assert channel == b"group:1"
    assert router.loop is not None
    router.loop.put(notes.LOG_LOADED, request=request, first=5, second=1)
    told = worker.expect(records.SUBSCRIBED)
    assert (told["epoch"] > 5, told["offset"]) == (True, 1)


def test_messages_that_had_no_room_are_read_when_they_are_wanted(sequencers: Make) -> None:
    body = msgpack.packb([9, "group:a", 1, "x" * 600_000, {"from": "bob", "time": 1, "epoch": 5}])
    batch = [message(f"group:{number}", 5, 1, body=body) for number in range(4)]
    router = sequencers(**LOGGED, recovered=batch, history_total_bytes=1 << 20)
    assert router.counter("history_squeezed") == 3
    worker = router.worker()
    for number in range(4):
        worker.say.history(records.HISTORY, 9, b"group:%d" % number)
    worker.flush()
    wanted = [router.note(notes.LOG_LOAD) for _ in range(3)]
    assert len(worker.expect(records.REPLY)["body"]) > 600_000
    assert router.loop is not None
    for request, channel in wanted:
        router.loop.put(notes.LOG_LOADED, request=request, first=5, second=1, text=batch[int(channel[6:])])
        assert len(worker.expect(records.REPLY)["body"]) > 600_000


def test_a_sift_leaves_to_the_log_what_memory_has_no_room_for(sequencers: Make) -> None:
    """Until it has aged. Of what the log says is over, by its size, the last position alone stays."""
    batch = [message(f"group:{number}", 5, 1) for number in range(40)]
    router = sequencers(**LOGGED, recovered=batch, channels_max=16, history_age_s=500)
    last = log_records.pack(log_records.POSITION, b"group:1", 5, 2, time_ms=now_ms(), flags=2)
    other = log_records.pack(log_records.POSITION, b"group:1", 5, 1, time_ms=now_ms(), key=(0, 0))
    old = message("group:x", 5, 1, time_ms=now_ms() - 600_000)
    stays = sift(router, b"".join([*batch, other, last, old]))
    assert [one.record for one in stays] == [*batch, last]


@pytest.mark.parametrize("is_crowded", [False, True])
def test_a_sift_keeps_what_is_of_no_configured_namespace(sequencers: Make, is_crowded: bool) -> None:
    """It was promised, and is wanted again with its namespace: whole, and where its channels stand."""
    age_ms = HISTORY_AGE_S_MAX * 1000
    young = message("deal:a", 5, 1), message("deal:a", 5, 2, time_ms=now_ms() - age_ms + 60_000)
    last = log_records.pack(log_records.POSITION, b"deal:b", 5, 9, time_ms=now_ms(), flags=2)
    gone = message("deal:c", 5, 1, time_ms=now_ms() - age_ms - 1_000), position("deal:b", 8)
    some = [message(f"group:{number}", 5, 1) for number in range(40)] if is_crowded else []
    router = sequencers(**LOGGED, recovered=[*some, *young], channels_max=16 if is_crowded else 1_000)
    assert router.passed_over == 2
    assert [one.record for one in sift(router, b"".join([*young, last, *gone]))] == [*young, last]


def test_bytes_that_are_no_records_are_refused(sequencers: Make) -> None:
    router = sequencers()
    assert router.loop is not None
    for batch in (b"x" * 8, message("group:a", 5, 1)[:-8], b"\0" * 96):
        with pytest.raises(ValueError, match="something else than log records"):
            router.loop.recover(batch)


def test_keys_and_origins_are_known_to_the_next_router(sequencers: Make) -> None:
    options = {"seeds": SEEDS, "log_under_way_max": 1}
    first = sequencers(**options)
    worker = first.worker(2, epoch=8)
    log = []
    for key in ("k", ""):
        seq = worker.send("group:a", "x", key=key)
        number, entries = first.batch()
        log += [entry.record for entry in entries]
        first.commit(number)
        assert worker.take()["seq"] == seq
    second = sequencers(**options, epoch=EPOCH + 1, recovered=log)
    worker = second.worker(2, epoch=8)
    worker.subscribe("group:a", 1)
    again = worker.publish("group:a", "x", key="k")
    assert (again["epoch"], again["offset"]) == (EPOCH, 1)
    worker.send("group:a", "x", again=2)
    answer = worker.take()
    assert (answer["kind"], answer["epoch"], answer["offset"]) == (records.PUBLISHED, EPOCH, 2)
    assert worker.rest() == []


def test_a_key_whose_window_is_over_is_not_known(sequencers: Make) -> None:
    options = {"seeds": SEEDS, "key_window_s": 10}
    first = sequencers(**options, log_under_way_max=1)
    worker = first.worker()
    worker.send("group:a", "x", key="k")
    number, (entry,) = first.batch()
    first.commit(number)
    late = message("group:a", EPOCH, 1, key=entry.key, time_ms=now_ms() - 11_000)
    worker = sequencers(**options, recovered=[late]).worker()
    assert worker.publish("group:a", "x", key="k")["offset"] == 2


def test_a_log_that_is_not_complete_gives_keys_alone(sequencers: Make) -> None:
    router = sequencers(log_complete=False, recovered=[message("group:a", 5, 9)])
    assert (router.passed_over, router.live("channel")) == (0, 0)


def test_what_is_no_global_channel_has_no_place_among_them(sequencers: Make) -> None:
    found = [position("group:a", 3), position("nobody:a", 3), position("global:a", 3), position("global:b", 3)]
    router = sequencers(log_complete=False, everybodys=b"".join(found), channels_max=3)
    assert router.passed_over == 2
    assert router.loop is not None
    with pytest.raises(ValueError, match="something else than log records"):
        router.loop.recover_globals(found[0][:-8])


# ------------------------------------------------------------------------------------------------------------- the sift


def sift(router: Sequencer, old: bytes) -> list[LogEntry]:
    assert router.loop is not None
    router.loop.put(notes.LOG_SIFT, request=router.sift, text=old)
    request, stays = router.note(notes.LOG_KEPT)
    assert request == router.sift
    router.sift += 1
    return log_records.entries(stays)


def test_a_sift_keeps_what_is_kept_and_one_position_of_what_is_not(sequencers: Make) -> None:
    old, young = aged("group:old", 3), message("group:young", 5, 1) + message("group:young", 5, 2)
    router = sequencers(recovered=[old + young], history_age_s=500)
    found = [(one.kind, one.channel, one.offset, bool(one.body)) for one in sift(router, old + young)]
    assert found == [
        (log_records.POSITION, b"group:old", 3, False),
        (log_records.MESSAGE, b"group:young", 1, True),
        (log_records.MESSAGE, b"group:young", 2, True),
    ]
    assert sift(router, message("group:nobody", 5, 1)) == []


def test_a_sift_keeps_keys_inside_their_window(sequencers: Make) -> None:
    batch = message("group:a", 5, 1, key=(3, 4)) + message("group:a", 5, 2) + message("group:a", 5, 3)
    router = sequencers(recovered=[batch], history_messages=1)
    found = [(one.kind, one.offset, one.key) for one in sift(router, batch)]
    assert found == [(log_records.POSITION, 1, (3, 4)), (log_records.MESSAGE, 3, (0, 0))]


@pytest.mark.parametrize("more", [{}, {**LOGGED, "log_complete": False}], ids=["aged", "squeezed"])
def test_a_sift_keeps_keys_inside_their_window_though_their_streams_left_memory(
    sequencers: Make, more: dict[str, Any]
) -> None:
    router = sequencers(**more, key_window_s=300)
    young = log_records.pack(log_records.POSITION, b"group:gone", 5, 1, time_ms=now_ms() - 200_000, key=(3, 4))
    old = log_records.pack(log_records.POSITION, b"group:gone", 5, 2, time_ms=now_ms() - 400_000, key=(5, 6))
    assert [(one.kind, one.offset, one.key) for one in sift(router, young + old)] == [(log_records.POSITION, 1, (3, 4))]


def test_the_position_that_a_sift_writes_is_of_the_message_that_stood_there(sequencers: Make) -> None:
    """A worker names the epoch of the router that told it, which may be above."""
    old = aged("group:old", 3)
    router = sequencers(recovered=[old], history_age_s=500)
    worker = router.worker(link=False)
    worker.link()
    worker.tell([("group:old", 3, EPOCH - 1, 3)], before=True)
    wait_for(lambda: records.SUBSCRIBED in [one["kind"] for one in worker.rest()], "its members are known")
    (stays,) = sift(router, old)
    assert (stays.kind, stays.epoch, stays.offset) == (log_records.POSITION, 5, 3)


def test_a_position_that_a_sift_is_asked_about_stays_although_memory_has_its_message(sequencers: Make) -> None:
    """The log has it no more: it went there before its age."""
    batch = message("group:a", 5, 1) + message("group:a", 5, 2)
    router = sequencers(**LOGGED, recovered=[batch])
    last = log_records.pack(log_records.POSITION, b"group:a", 5, 2, time_ms=now_ms(), flags=2)
    for _ in range(2):
        (stays,) = sift(router, last)
        assert (stays.kind, stays.channel, stays.offset) == (log_records.POSITION, b"group:a", 2)
    after = sequencers(**LOGGED, recovered=[stays.record])
    assert after.worker().history("group:a")["offset"] == 2


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), min_size=1, max_size=30), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_what_a_sift_keeps_recovers_to_the_same(said: list[tuple[str, bool]], most: int) -> None:
    last = {"a": 0, "b": 0}
    batch = b""
    for name, is_young in said:
        last[name] += 1
        batch += message(f"group:{name}", 5, last[name], time_ms=now_ms() if is_young else now_ms() - 1_000_000)
    for name, offset in last.items():
        if offset:
            batch += log_records.pack(log_records.POSITION, f"group:{name}".encode(), 5, offset, time_ms=now_ms())
    options: dict[str, Any] = {"history_messages": most, "history_age_s": 500}
    with contextlib.closing(Sequencer(recovered=[batch], **options)) as before:
        stays = b"".join(one.record for one in sift(before, batch))
        with contextlib.closing(Sequencer(recovered=[stays], **options)) as after:
            for name, offset in last.items():
                if offset:
                    assert kept(after, f"group:{name}") == kept(before, f"group:{name}")
                    assert after.worker(8).history(f"group:{name}")["offset"] == offset


def test_a_stream_that_was_made_anew_goes_on_where_it_stood_itself(sequencers: Make) -> None:
    """The sweep dropped it, and it began again in a higher epoch at a lower offset: what the log still has of the one
    before it does not hide its messages, nor count as its position.
    """
    before = b"".join(message("group:a", 5, offset, time_ms=now_ms() - 1_000) for offset in range(1, 5))
    router = sequencers(recovered=[before, message("group:a", 6, 1) + message("group:a", 6, 2)])
    answer = router.worker().history("group:a")
    assert [one[4]["epoch"] for one in answer["messages"]] == [6, 6]
    assert answer["offset"] == 2
    assert router.worker(1).publish("group:a", "x")["offset"] == 3


def test_what_a_stream_was_before_it_was_made_anew_may_come_behind_its_position(sequencers: Make) -> None:
    """A sift puts the position into the place of an old record, in front of what the log has besides."""
    position = log_records.pack(log_records.POSITION, b"group:a", 6, 2, time_ms=now_ms())
    before = b"".join(message("group:a", 5, offset) for offset in range(1, 5))
    router = sequencers(recovered=[position + before, message("group:a", 6, 1) + message("group:a", 6, 2)])
    answer = router.worker().history("group:a")
    assert [one[4]["epoch"] for one in answer["messages"]] == [6, 6]
    assert answer["offset"] == 2


def test_members_are_heard_though_the_log_has_more_channels_than_there_may_be(sequencers: Make) -> None:
    """They were members before the router was restarted, and their worker says so to the next one."""
    router = sequencers(recovered=[message(f"group:{number}", 5, 1) for number in range(40)], channels_max=16)
    worker = router.worker()
    for number in range(10):
        worker.subscribe(f"group:member-{number}", number + 1)
    for number in range(10):
        worker.send(f"group:member-{number}", "x")
    told = [worker.take() for _ in range(20)]
    assert [one["channel"] for one in told if one["kind"] == records.MESSAGE] == list(range(1, 11))
