"""The router answers what a client missed: outcomes against a plain model, parts, budget and order."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import records
from core._testing import StreamModel
from core.codes import Code
from tests.core.router_harness import EPOCH, Record, Sequencer, Worker
from tests.core.test_recovery import message

OUTCOME = 1
Position = tuple[int, int]


def ask(worker: Worker, name: str, since: Position, **options: int) -> Record:
    worker.say.catchup(9, name.encode(), 5, *since, **options)
    worker.flush()
    one = worker.expect(records.CAUGHT)
    assert one["seq"] == 9
    return one


@pytest.fixture
def talked(sequencer: Sequencer) -> Worker:
    """A worker of a router that has had ten messages in group:a."""
    worker = sequencer.worker()
    for number in range(10):
        worker.publish("group:a", number)
    return worker


@pytest.mark.parametrize(
    ("since", "outcome"),
    [
        ((EPOCH, 10), "live"),
        ((EPOCH, 9), "replayed"),
        ((EPOCH, 0), "replayed"),
        ((EPOCH, 11), "reset"),
        ((EPOCH + 1, 10), "reset"),
        ((EPOCH - 1, 10), "reset"),
        ((EPOCH - 1, 5), "reset"),
        ((EPOCH - 1, 0), "replayed"),
    ],
)
def test_the_outcome_of_a_position(talked: Worker, since: Position, outcome: str) -> None:
    one = ask(talked, "group:a", since, flags=OUTCOME)
    assert records.OUTCOMES[one["outcome"]] == outcome
    assert (one["position"], one["messages"], one["channel"]) == ((EPOCH, 10), [], 5)


def test_what_was_missed_comes_in_parts_that_say_where_to_go_on(talked: Worker) -> None:
    since, found, parts = (EPOCH, 2), [], 0
    while since[1] < 10:
        one = ask(talked, "group:a", since, bytes_max=200)
        found += [(offset, msgpack.unpackb(frame)) for offset, frame in one["messages"]]
        assert one["last"] == (EPOCH, found[-1][0])
        since, parts = one["last"], parts + 1
    assert [(offset, frame[2], frame[3]) for offset, frame in found] == [(n, n, n - 1) for n in range(3, 11)]
    assert parts > 2


def test_one_message_is_given_however_little_is_asked_for(talked: Worker) -> None:
    one = ask(talked, "group:a", (EPOCH, 3), bytes_max=1)
    assert ([offset for offset, _ in one["messages"]], one["last"]) == ([4], (EPOCH, 4))


def test_trimmed_history_is_told_as_an_exact_gap(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers(history_messages=3).worker()
    for number in range(10):
        worker.publish("group:a", number)
    told = ask(worker, "group:a", (EPOCH, 2), flags=OUTCOME)
    assert (records.OUTCOMES[told["outcome"]], told["gap"], told["gap_reason"]) == ("gap", (3, 7), 1)
    one = ask(worker, "group:a", (EPOCH, 2))
    assert (one["gap"], [offset for offset, _ in one["messages"]]) == ((3, 7), [8, 9, 10])
    assert records.OUTCOMES[ask(worker, "group:a", (EPOCH, 7), flags=OUTCOME)["outcome"]] == "replayed"


def test_without_history_the_whole_of_it_is_a_gap(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers(history_messages=0).worker()
    worker.publish("group:a", 1)
    one = ask(worker, "group:a", (EPOCH, 0))
    assert (one["gap"], one["last"], one["position"]) == ((1, 1), (EPOCH, 1), (EPOCH, 1))


def test_a_channel_that_nothing_is_known_of_has_no_history_in_common(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    assert records.OUTCOMES[ask(worker, "group:new", (EPOCH - 2, 4), flags=OUTCOME)["outcome"]] == "reset"
    assert records.OUTCOMES[ask(worker, "group:new", (EPOCH - 2, 0), flags=OUTCOME)["outcome"]] == "live"


def test_an_acknowledged_position_is_of_no_later_epoch_than_its_message(sequencers: Callable[..., Sequencer]) -> None:
    """An ACK names an offset, and its worker the epoch that began meanwhile."""
    worker = sequencers(recovered=[message("group:a", 5, 1) + message("group:a", 5, 2)]).worker()
    worker.publish("group:a", 3)
    for flags, outcome in ((OUTCOME, "reset"), (OUTCOME | records.FROM_STORE, "replayed")):
        one = ask(worker, "group:a", (EPOCH, 1), flags=flags)
        assert records.OUTCOMES[one["outcome"]] == outcome
    assert one["last"] == (5, 1), "and so the replay begins there"
    for beyond in ((5, 3), (EPOCH, 4), (EPOCH + 1, 1)):
        one = ask(worker, "group:a", beyond, flags=OUTCOME | records.FROM_STORE)
        assert records.OUTCOMES[one["outcome"]] == "reset"


def test_a_part_stands_between_what_was_routed_before_and_after_it(talked: Worker) -> None:
    talked.subscribe("group:a", 5)
    talked.say.publish(1, b"group:a", b"\x01", b"bob")
    talked.say.catchup(9, b"group:a", 5, EPOCH, 9)
    talked.flush()
    talked.say.publish(2, b"group:a", b"\x02", b"bob")
    talked.flush()
    said = [talked.take() for _ in range(5)]
    order = [(one["kind"], one.get("offset")) for one in said if one["kind"] != records.PUBLISHED]
    caught = next(one for one in said if one["kind"] == records.CAUGHT)
    # However many turns it took: the part ends with the last message before it.
    place = order.index((records.CAUGHT, None))
    assert order[:place] == [(records.MESSAGE, offset) for offset in range(11, 11 + place)]
    assert caught["last"] == caught["position"] == (EPOCH, 10 + place)
    assert [offset for offset, _ in caught["messages"]] == list(range(10, 11 + place))


def test_many_catchups_are_all_answered_and_live_traffic_is_not_held_up(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers(spill_bytes_max=1 << 24).worker()
    for number in range(30):
        worker.publish("group:a", bytes(30_000) + bytes([number]))
    for seq in range(200):
        worker.say.catchup(1000 + seq, b"group:a", 5, EPOCH, 10)
    worker.say.publish(7, b"group:b", b"\x01", b"bob")
    worker.flush()
    said = [worker.take() for _ in range(201)]
    assert {one["seq"] for one in said} == {7, *range(1000, 1200)}
    # 200 parts of 32 KiB are many turns' budget; the answer to the publish does not wait for them.
    assert next(place for place, one in enumerate(said) if one["seq"] == 7) < 40


def test_a_malformed_catchup_is_refused(talked: Worker) -> None:
    talked.say.catchup(9, b"n" * 500, 5, 0, 0)
    talked.flush()
    assert talked.expect(records.CAUGHT)["aux"] == Code.BAD_REQUEST


# --------------------------------------------------------------------------------- the rules, against a plain model


@dataclass
class Life:
    """A channel's life as somebody sees it who forgets nothing: incarnations, and what clients were told."""

    epoch: int = 1
    offset: int = 0
    base: int = 0
    messages: dict[int, int] = field(default_factory=dict)
    """Offset to epoch, of the present incarnation."""
    kept: list[int] = field(default_factory=list)
    told: list[tuple[Position, int, dict[int, int]]] = field(default_factory=list)
    """A position as told, with the incarnation and its messages then."""
    incarnation: int = 0

    def tell(self) -> None:
        self.told.append(((self.epoch, self.offset), self.incarnation, dict(self.messages)))

    def step(self, what: str) -> None:
        if what == "publish" or what == "lose":
            self.offset += 1
            self.messages[self.offset] = self.epoch
            if what == "publish":
                self.kept.append(self.offset)
            self.tell()
        elif what == "trim":
            self.kept = self.kept[1:]
        elif what == "restart":  # the log survives: positions go on under a new epoch
            self.epoch, self.base = self.epoch + 1, self.offset
        elif what == "forget":  # the log is lost, and the channel made anew
            self.epoch, self.offset, self.base = self.epoch + 1, 0, 0
            self.messages, self.kept, self.incarnation = {}, [], self.incarnation + 1
        self.tell()

    def stream(self) -> StreamModel:
        return StreamModel(self.epoch, self.offset, self.base, [(self.messages[n], n) for n in self.kept])


STEPS = st.lists(st.sampled_from(["publish", "publish", "publish", "lose", "trim", "restart", "forget"]), max_size=30)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_no_position_of_the_same_channel_is_reset_and_nothing_is_passed_over(steps: list[str]) -> None:
    life = Life()
    life.tell()
    for step in steps:
        life.step(step)
    stream = life.stream()
    for (epoch, offset), incarnation, _ in life.told:
        outcome, reason, gap, rest = stream.find(epoch, offset)
        same = incarnation == life.incarnation or offset == 0
        if not same:
            # Another channel's position is found out, unless what tells them apart was trimmed and an epoch ago.
            if outcome != "reset":
                assert life.base >= offset
                assert offset not in life.kept
            continue
        assert outcome != "reset", (epoch, offset)
        missed = list(range(offset + 1, life.offset + 1))
        assert outcome == "live" if not missed else outcome in ("replayed", "gap")
        told = list(range(gap[0], gap[1] + 1)) if gap[0] else []
        assert told == list(itertools.takewhile(lambda n: n not in life.kept, missed))
        assert (outcome == "gap") == bool(told) == (reason != "none")
        assert rest == [n for n in life.kept if n > offset]


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, epoch=st.integers(0, 20), offset=st.integers(0, 40))
def test_a_position_that_was_never_told_never_breaks_anything(steps: list[str], epoch: int, offset: int) -> None:
    life = Life()
    for step in steps:
        life.step(step)
    outcome, _, gap, rest = life.stream().find(epoch, offset)
    assert offset <= life.offset or outcome == "reset"
    if outcome != "reset":
        assert all(n > offset for n in rest)
        assert gap == (0, 0) or offset < gap[0] <= gap[1] <= life.offset
