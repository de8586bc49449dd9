"""SURVEY: what a router tells an operator of one channel, and what it reads for that."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import log_records, notes, records
from core.codes import Code
from tests.core.presence_harness import NAMESPACES, claim, say, session_of
from tests.core.router_harness import EPOCH, Sequencer, Worker, now_ms

Make = Callable[..., Sequencer]
NOTHING: dict[str, Any] = {
    "known": True,
    "loaded": True,
    "epoch": EPOCH,
    "offset": 0,
    "waiting": 0,
    "kept": 0,
    "bytes": 0,
    "workers": 0,
    "oldest": None,
    "presence": [0, 0],
}


def survey(worker: Worker, channel: str, depth: int = records.AS_IS) -> dict[str, Any]:
    worker.say.history(records.SURVEY, 9, channel.encode(), limit=depth)
    (one,) = worker.rest()
    assert (one["kind"], one["seq"], one["aux"]) == (records.REPLY, 9, 0)
    return dict(msgpack.unpackb(one["body"]))


@pytest.mark.parametrize("depth", [records.AS_IS, records.POSITION, records.MESSAGES])
def test_a_channel_that_nobody_used_has_nothing(sequencers: Make, depth: int) -> None:
    worker = sequencers().worker()
    assert survey(worker, "group:a", depth) == NOTHING


def test_position_what_is_kept_and_who_is_there_are_told(sequencers: Make) -> None:
    router = sequencers(history_messages=2)
    one, two = router.worker(0), router.worker(1)
    one.subscribe("group:a", 11)
    two.subscribe("group:a", 12)
    claim(one, session_of(1), 5)
    claim(one, session_of(2), 6)
    say(one, records.JOINED, session_of(1), "group:a", "alice")
    say(one, records.JOINED, session_of(2), "group:a", "alice", 6)
    one.rest()
    before = now_ms()
    for number in range(3):
        two.publish("group:a", number)
    one.rest()
    told = survey(one, "group:a")
    epoch, offset, time_ms = told.pop("oldest")
    assert (epoch, offset) == (EPOCH, 2)
    assert before - 1 <= time_ms <= now_ms()
    assert told.pop("bytes") > 0
    expected = {**NOTHING, "offset": 3, "kept": 2, "workers": 2, "presence": [1, 2]}
    assert told == {name: value for name, value in expected.items() if name not in ("oldest", "bytes")}


def test_what_has_aged_away_is_not_counted_although_it_stands_in_the_ring(sequencers: Make) -> None:
    old = msgpack.packb([9, "group:a", 1, "x", {"from": "bob", "time": 1, "epoch": 5}])
    kept = [
        log_records.pack(log_records.MESSAGE, b"group:a", 5, number, time_ms=now_ms() - age_ms, body=old)
        for number, age_ms in ((1, 1_000), (2, 0))
    ]
    router = sequencers(recovered=kept, history_age_s=300)
    assert survey(router.worker(), "group:a")["kept"] == 2
    router = sequencers(recovered=kept, history_age_s=0)
    told = survey(router.worker(1), "group:a")
    assert (told["offset"], told["kept"], told["oldest"]) == (2, 0, None)


def test_messages_on_their_way_to_the_log_are_told_beside_the_position(sequencers: Make) -> None:
    router = sequencers(log_under_way_max=1)
    worker = router.worker()
    for number in range(3):
        worker.send("group:a", number)
    number, _ = router.batch()
    told = survey(worker, "group:a")
    assert (told["offset"], told["waiting"], told["kept"]) == (0, 3, 0)
    router.commit(number)


def test_where_presence_is_not_kept_none_is_told(sequencers: Make) -> None:
    worker = sequencers(namespaces=NAMESPACES).worker()
    assert survey(worker, "bare:a")["presence"] is None


def test_a_namespace_that_is_not_known_is_refused(sequencers: Make) -> None:
    worker = sequencers().worker()
    for name in (b"nothing:a", b"group", b"group:", b""):
        worker.say.history(records.SURVEY, 9, name, limit=records.MESSAGES)
        (one,) = worker.rest()
        assert (one["kind"], one["seq"], one["aux"]) == (records.REPLY, 9, Code.NO_SUCH_CHANNEL)


# ---- a log that does not give back everything ----


@pytest.fixture
def cold(sequencers: Make) -> Sequencer:
    return sequencers(log_under_way_max=1, log_complete=False)


def wanted(router: Sequencer) -> tuple[int, bool]:
    """(request, with messages?) of the next load."""
    request, channel = router.note(notes.LOG_LOAD)
    assert channel == b"group:a"
    return request, router.last_first == 1


def loaded(router: Sequencer, request: int, *, code: int = 0, kept: bytes = b"") -> None:
    assert router.loop is not None
    router.loop.put(notes.LOG_LOADED, request=request, first=5, second=3, third=code, text=kept)


def test_as_it_is_nothing_is_read(cold: Sequencer) -> None:
    worker = cold.worker()
    told = survey(worker, "group:a")
    assert (told["known"], told["loaded"], told["offset"]) == (False, False, 0)
    worker.send("group:a", "x")
    request, with_messages = wanted(cold)  # of the publish: the survey asked for nothing
    assert not with_messages
    assert not survey(worker, "group:a")["known"]  # and does not wait for it either
    loaded(cold, request)
    number, _ = cold.batch()
    told = survey(worker, "group:a")
    assert (told["known"], told["loaded"], told["offset"], told["waiting"]) == (True, False, 3, 1)
    cold.commit(number)


def test_the_position_alone_is_read_where_it_is_enough(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.history(records.SURVEY, 9, b"group:a", limit=records.POSITION)
    worker.flush()
    request, with_messages = wanted(cold)
    assert not with_messages
    loaded(cold, request)
    assert msgpack.unpackb(worker.expect(records.REPLY)["body"])["offset"] == 3
    assert survey(worker, "group:a", records.POSITION)["offset"] == 3
    assert not survey(worker, "group:a")["loaded"]


def test_the_messages_are_read_once(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.history(records.SURVEY, 9, b"group:a", limit=records.MESSAGES)
    worker.flush()
    request, with_messages = wanted(cold)
    assert with_messages
    body = msgpack.packb([9, "group:a", 3, "x", {"from": "bob", "time": 1, "epoch": 5}])
    kept = log_records.pack(log_records.MESSAGE, b"group:a", 5, 3, time_ms=now_ms(), body=body)
    loaded(cold, request, kept=kept)
    told = msgpack.unpackb(worker.expect(records.REPLY)["body"])
    assert (told["loaded"], told["kept"], told["oldest"][:2]) == (True, 1, [5, 3])
    assert survey(worker, "group:a", records.MESSAGES)["kept"] == 1


def test_a_log_that_is_away_is_no_answer(cold: Sequencer) -> None:
    worker = cold.worker()
    worker.say.history(records.SURVEY, 9, b"group:a", limit=records.MESSAGES)
    worker.flush()
    loaded(cold, wanted(cold)[0], code=Code.UNAVAILABLE)
    one = worker.expect(records.REPLY)
    assert (one["seq"], one["aux"]) == (9, Code.UNAVAILABLE)
