"""The state machine without network: a clock that is advanced, bodies handed over."""

import contextlib
import json
import random
from typing import Any

import pytest
from holdfast_client import outputs
from holdfast_client import protocol as core
from holdfast_client.codec import Encoding
from holdfast_client.codes import CloseClass, close_class
from holdfast_client.errors import Closed, ProtocolViolation, RequestInterrupted, RequestTimeout
from holdfast_client.messages import Event, History, Message, Position
from hypothesis import given
from hypothesis import strategies as st

LOST = Closed(None, "gone", CloseClass.RESUME)


class Line:
    """A protocol with a virtual clock; frames as arrays on both sides."""

    def __init__(self, user: str | None = "ann") -> None:
        self.protocol = core.Protocol(core.Identity(user=user), Encoding.JSON)
        self.now = 100.0

    def connect(self, **welcome: Any) -> list[Any]:
        """Connect and be welcomed; returns the HELLO."""
        self.protocol.connection_made(self.now, None)
        hello = self.sent()[0]
        self.welcome(hello[1], **welcome)
        return list(hello)

    def welcome(self, request_id: int, **values: Any) -> None:
        given = {"session": "s1", "user": "ann", "resume_token": "r1", "node": "n", "ping": 30, "misses": 3}
        self.give([1, request_id, given | values])

    def give(self, *frames: Any) -> None:
        for frame in frames:
            self.protocol.receive(json.dumps(frame), self.now)

    def sent(self) -> list[Any]:
        return [json.loads(body) for body in self.protocol.sendable()]

    def sent_types(self) -> list[int]:
        return [frame[0] for frame in self.sent()]

    def items(self) -> list[Message | Event]:
        return [output.item for output in self.protocol.outputs() if isinstance(output, outputs.Delivered)]

    def ended(self) -> Closed | None:
        return next((o.closed for o in self.protocol.outputs() if isinstance(o, outputs.Ended)), None)

    def advance(self, seconds: float) -> None:
        """Let time pass as a caller does: tick at each deadline on the way."""
        end = self.now + seconds
        for _ in range(10_000):
            deadline = self.protocol.deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.protocol.tick(self.now)
        else:
            pytest.fail("deadlines that never move")
        self.now = end

    def join(self, channel: str, epoch: int = 1, offset: int = 0) -> None:
        request_id = self.protocol.join(channel, None, self.now, 5.0)
        self.protocol.flush_requests(self.now)
        self.give([2, request_id, {"epoch": epoch, "offset": offset, "outcome": "live"}])


def opened(**welcome: Any) -> Line:
    line = Line()
    line.connect(**welcome)
    line.sent()
    line.protocol.outputs()
    return line


def message(offset: int, epoch: int | None = 1, channel: str = "group:x") -> list[Any]:
    return [9, channel, offset, offset, {} if epoch is None else {"epoch": epoch}]


def test_hello_says_version_and_user() -> None:
    assert Line().connect() == [0, 1, {"v": 1, "client": "holdfast-python", "user": "ann"}]


def test_no_welcome_within_the_deadline_ends_the_connection() -> None:
    line = Line()
    line.protocol.connection_made(line.now, None)
    line.advance(4.9)
    assert line.ended() is None
    line.advance(0.2)
    closed = line.ended()
    assert closed is not None
    assert closed.class_ is CloseClass.RESUME


def test_pings_go_out_only_in_silence_and_count_up() -> None:
    line = opened()
    line.advance(20)
    line.join("group:x")
    line.sent()
    line.advance(29)
    line.give(message(1))
    assert line.sent() == []
    line.advance(2)
    assert [frame[:2] for frame in line.sent()] == [[4, 2]]


def test_anything_received_counts_as_life_and_silence_ends_it_on_time() -> None:
    line = opened()
    for _ in range(5):
        line.advance(80)
        line.give([5, 999, 0])
    assert line.ended() is None
    line.advance(89.9)
    assert line.ended() is None
    line.advance(0.2)
    assert line.ended() is not None
    assert line.protocol.phase is outputs.Phase.ENDED


def test_silence_while_not_reading_is_not_held_against_the_gateway() -> None:
    line = opened()
    line.protocol.pause_reading()
    line.advance(1000)
    assert line.ended() is None
    assert line.sent_types().count(4) >= 30
    line.protocol.resume_reading(line.now)
    line.advance(91)
    assert line.ended() is not None


def test_round_trip_is_by_our_own_clock() -> None:
    line = Line()
    line.connect()
    ping = line.sent()[0]
    line.advance(0.25)
    line.give([5, ping[1], "whatever"], [5, ping[1], "again"], [5, 77, 0])
    measured = [o.rtt_ms for o in line.protocol.outputs() if isinstance(o, outputs.Measured)]
    assert measured == [pytest.approx(250)]


def test_acks_are_batched_cumulative_and_never_later_than_a_heartbeat() -> None:
    line = opened()
    line.join("group:x")
    for offset in range(1, 6):
        line.give(message(offset))
    for item in line.items():
        assert isinstance(item, Message)
        line.protocol.taken(item, line.now)
    line.sent()
    line.advance(29.9)
    assert line.sent() == [[10, {"group:x": 5}]]
    line.advance(300)
    assert 10 not in line.sent_types()


def test_a_full_batch_is_acknowledged_at_once() -> None:
    line = opened()
    line.join("group:x")
    line.sent()
    for offset in range(1, 257):
        line.protocol.taken(Message("group:x", 1, offset, None), line.now)
    assert line.sent() == [[10, {"group:x": 256}]]


def test_requests_wait_for_open_and_expire_on_time() -> None:
    line = Line()
    line.protocol.connection_made(line.now, None)
    early = line.protocol.presence("group:x", line.now, 2.0)
    line.protocol.flush_requests(line.now)
    assert line.sent_types() == [0]
    line.advance(2.1)
    answers = [o for o in line.protocol.outputs() if isinstance(o, outputs.Answered)]
    assert answers[0].request_id == early
    assert isinstance(answers[0].result, RequestTimeout)
    assert line.protocol.request_count == 0


def test_late_and_unknown_answers_are_ignored() -> None:
    line = opened()
    line.give([2, 12345, {}], [3, 12346, 400, "not_allowed", {}], [3, 12347, 450, "a code of tomorrow"])
    assert line.protocol.outputs() == []


def test_duplicates_are_dropped_and_holes_reported() -> None:
    line = opened()
    line.join("group:x")
    line.give(message(1), message(1), message(2), message(1), message(5), message(4))
    gap = Event("group:x", "gap", {"from": 3, "to": 4, "reason": "unannounced"})
    items = line.items()
    assert [i.offset if isinstance(i, Message) else i for i in items] == [1, 2, gap, 5]
    assert line.protocol.positions.dropped_count == 3


def test_announced_gap_is_reported_once() -> None:
    line = opened()
    line.join("group:x")
    announced = [13, "group:x", "gap", {"from": 1, "to": 4, "reason": "trimmed"}]
    line.give(announced, message(5), message(8))
    kinds = [i.offset if isinstance(i, Message) else (i.details["from"], i.details["to"]) for i in line.items()]
    assert kinds == [(1, 4), 5, (6, 7), 8]


def test_gap_announced_up_to_the_next_offset_does_not_swallow_that_message() -> None:
    line = opened()
    line.join("group:x")
    line.give([13, "group:x", "gap", {"from": 1, "to": 5}], message(5))
    assert [type(item) for item in line.items()] == [Event, Message]


def test_epochs() -> None:
    line = opened()
    line.join("group:x")
    # The log survived: offsets go on. Then a deposed leader. Then a log that lost its end. Then a hole.
    line.give(message(1), message(2, 2), message(3, 1), message(2, 1), message(2, 3), message(3), message(5, 4))
    reset = Event("group:x", "reset", {"epoch": 3, "offset": 1, "held": [2, 2]})
    gap = Event("group:x", "gap", {"from": 3, "to": 4, "reason": "unannounced"})
    found = [(i.epoch, i.offset) if isinstance(i, Message) else i for i in line.items()]
    assert found == [(1, 1), (2, 2), reset, (3, 2), gap, (4, 5)]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), max_size=60), st.booleans())
def test_any_order_is_delivered_once_and_growing_and_nothing_is_passed_over(
    arrivals: list[tuple[int, int]], joined: bool
) -> None:
    line = opened()
    if joined:
        line.join("group:x")
    line.give(*(message(offset, epoch) for epoch, offset in arrivals))
    positions: list[tuple[int, int]] = []
    reported = not joined
    for item in line.items():
        if isinstance(item, Event):
            reported = True
            continue
        before = positions[-1] if positions else (1, 0)
        assert (item.epoch, item.offset) > before or not positions
        assert reported or item.offset == before[1] + 1
        positions.append((item.epoch, item.offset))
        reported = False
    assert len(set(positions)) == len(positions)
    assert len(positions) + line.protocol.positions.dropped_count == len(arrivals)


def test_resume_asks_with_positions_and_keeps_them_over_a_replay() -> None:
    line = opened(channels={"user:ann": [1, 0, "live"]})
    line.join("group:x")
    line.give(message(1))
    line.items()
    line.protocol.connection_lost(LOST)
    hello = line.connect(resumed=True, channels={"group:x": [1, 3, "replayed"], "user:ann": [1, 0, "live"]})
    assert hello[2]["session"] == "s1"
    assert hello[2]["resume"] == {"group:x": [1, 1], "user:ann": [1, 0]}
    line.give(message(1), message(2), message(3))
    assert [i.offset if isinstance(i, Message) else i for i in line.items()] == [2, 3]
    assert 6 not in line.sent_types()


def test_resume_with_reset_says_so_and_goes_on_from_there() -> None:
    line = opened()
    line.join("group:x", 1, 7)
    line.protocol.connection_lost(LOST)
    line.connect(resumed=True, channels={"group:x": [2, 3, "reset"]})
    line.give(message(3, 2), message(4, 2))
    reset = Event("group:x", "reset", {"epoch": 2, "offset": 3, "held": [1, 7]})
    assert [i.offset if isinstance(i, Message) else i for i in line.items()] == [reset, 4]


def test_resumed_session_without_one_of_our_channels_joins_it_again() -> None:
    line = opened(max_frame=8192)  # no room for positions: HELLO leaves them out
    line.join("group:x", 1, 7)
    line.protocol.connection_lost(LOST)
    assert line.connect(resumed=True, channels={})[2]["resume"] == {}
    (join,) = [frame for frame in line.sent() if frame[0] == 6]
    assert join[2:] == ["group:x", {"since": [1, 7]}]
    line.give([2, join[1], {"epoch": 2, "offset": 8, "outcome": "replayed"}], message(8, 2))
    assert [item.offset if isinstance(item, Message) else item for item in line.items()] == [8]


def test_publish_waits_until_the_channels_are_joined_again() -> None:
    line = opened()
    line.join("group:x", 1, 7)
    line.protocol.connection_lost(LOST)
    line.protocol.publish("group:x", "hello", None, line.now, 5.0)
    line.connect(session="s2", resumed=False)
    join = next(frame for frame in line.sent() if frame[0] == 6)
    line.give([2, join[1], {"epoch": 1, "offset": 7, "outcome": "live"}])
    assert 8 in line.sent_types()
    assert line.items() == []


def test_channel_that_cannot_be_joined_again_is_reported_as_left() -> None:
    line = opened()
    line.join("group:x", 1, 7)
    line.protocol.connection_lost(LOST)
    line.connect(session="s2", resumed=False)
    for _ in range(2):
        join = next(frame for frame in line.sent() if frame[0] == 6)
        line.give([3, join[1], 400, "not_allowed", {}])
    assert line.items() == [Event("group:x", "left", {"reason": "not_allowed"})]
    assert line.protocol.phase is outputs.Phase.OPEN
    assert line.protocol.joined == frozenset()


def test_fresh_start_forgets_the_session_until_it_is_welcomed() -> None:
    line = opened()
    line.protocol.connection_lost(LOST)
    line.protocol.start_afresh()
    assert "session" not in line.connect()[2]
    line.protocol.connection_lost(LOST)
    assert "session" in line.connect()[2]


def test_a_fresh_start_says_where_it_stands_in_the_users_own_channel() -> None:
    line = opened(channels={"user:ann": [1, 2, "live"]})
    line.join("group:x", 1, 4)
    line.give([9, "user:ann", 3, "x", {"epoch": 1}])
    line.items()
    line.protocol.connection_lost(LOST)
    line.protocol.start_afresh()
    hello = line.connect(channels={"user:ann": [1, 5, "replayed"]})
    assert hello[2]["resume"] == {"user:ann": [1, 3]}
    assert "whole" not in hello[2]
    line.give(*([9, "user:ann", offset, "x", {"epoch": 1}] for offset in (3, 4, 5)))
    assert [item.offset if isinstance(item, Message) else item for item in line.items()] == [4, 5]


def test_too_many_positions_for_one_frame_are_left_to_the_acks() -> None:
    line = opened(max_frame=9000)
    for number in range(100):
        line.join(f"group:{number}")
    line.protocol.connection_lost(LOST)
    assert line.connect()[2]["resume"] == {}


def test_lost_connection_breaks_only_what_may_not_be_repeated() -> None:
    line = opened()
    unkeyed = line.protocol.publish("group:x", 1, None, line.now, 5.0)
    line.protocol.publish("group:x", 2, "key", line.now, 5.0)
    line.protocol.presence("group:x", line.now, 5.0)
    line.protocol.flush_requests(line.now)
    line.sent()
    line.protocol.connection_lost(LOST)
    (broken,) = (o for o in line.protocol.outputs() if isinstance(o, outputs.Answered))
    assert broken.request_id == unkeyed
    assert isinstance(broken.result, RequestInterrupted)
    line.connect(resumed=True)
    assert [kind for kind in line.sent_types() if kind != 4] == [8, 12]


def test_publish_that_was_never_sent_waits_without_a_key() -> None:
    line = opened()
    line.protocol.connection_lost(LOST)
    line.protocol.publish("group:x", 1, None, line.now, 5.0)
    line.protocol.connection_made(line.now, None)
    line.protocol.connection_lost(LOST)
    assert line.protocol.outputs() == []
    line.connect(resumed=True)
    assert 8 in line.sent_types()


def test_leaving_acknowledges_what_was_taken_first() -> None:
    line = opened()
    line.protocol.taken(Message("group:x", 1, 9, None), line.now)
    line.protocol.finish(line.now)
    assert line.sent_types() == [10, 14]


@pytest.mark.parametrize(
    "frame",
    [
        [9, "group:x", True, 1, {"epoch": 1}],
        [9, "group:x", 0, 1, {"epoch": 1}],
        [9, "group:x", 1, 1, {"epoch": -1}],
        [9, "group:x", 1.0, 1, {"epoch": 1}],
        [13, "group:x", 5, {}],
        [14, -1, "why", {}],
        [2, 1, []],
        [15],
    ],
)
def test_numbers_and_texts_are_taken_at_their_word(frame: list[Any]) -> None:
    line = opened()
    with pytest.raises(ProtocolViolation):
        line.give(frame)


def test_nothing_is_sent_after_fin_and_nothing_after_the_end() -> None:
    line = opened()
    line.protocol.finish(line.now)
    line.protocol.finish(line.now)
    line.give([4, 1, 1], message(1))
    assert line.sent() == [[14, 0, "bye", {}]]
    line.give([15])
    closed = line.ended()
    assert closed is not None
    assert (closed.code, closed.class_) == (0, CloseClass.STOP)
    line.give([4, 2, 2])
    line.advance(1000)
    assert line.sent() == []


def test_fins_that_cross_confirm_each_other() -> None:
    line = opened()
    line.protocol.finish(line.now)
    line.sent()
    line.give([14, 1, "draining", {"class": "resume"}])
    assert line.sent() == []
    assert line.protocol.phase is outputs.Phase.ENDED


@pytest.mark.parametrize(
    ("code", "values", "expected"),
    [
        (1, {}, "resume"),
        (150, {}, "resume"),
        (399, {}, "fresh"),
        (888, {}, "stop"),
        (4321, {}, "stop"),
        (1, {"class": "stop"}, "stop"),
        (1, {"class": "a word of tomorrow"}, "resume"),
    ],
)
def test_fin_goes_by_its_class_or_else_by_its_range(code: int, values: dict[str, str], expected: str) -> None:
    line = opened()
    line.give([14, code, "why", values])
    assert line.sent() == [[15]]
    closed = line.ended()
    assert closed is not None
    assert closed.class_ == expected


@given(st.integers(-5, 1200))
def test_every_number_has_a_class(code: int) -> None:
    expected = "resume" if 1 <= code < 200 else "fresh" if 200 <= code < 400 else "stop"
    assert close_class(code) == expected


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 20), st.text(max_size=4), st.floats(0, 9)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.one_of(values, st.lists(values, max_size=6)), max_size=8), st.booleans())
def test_any_value_is_a_frame_or_a_violation(frames: list[Any], greeting: bool) -> None:
    line = Line() if greeting else opened()
    if greeting:
        line.protocol.connection_made(line.now, None)
    with contextlib.suppress(ProtocolViolation):
        line.give(*frames)
    line.protocol.tick(line.now + 1)


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_body_is_a_frame_or_a_violation(body: bytes | str) -> None:
    line = opened()
    with contextlib.suppress(ProtocolViolation):
        line.protocol.receive(body, line.now)


@given(st.integers(0, 2**32))
def test_any_walk_ends_with_every_request_answered(seed: int) -> None:
    source = random.Random(seed)
    line, asked, answered = opened(), set(), list[int]()
    for _ in range(40):
        match source.randrange(5):
            case 0:
                asked.add(line.protocol.publish("group:x", 1, source.choice([None, "k"]), line.now, 5.0))
            case 1:
                line.protocol.flush_requests(line.now)
            case 2:
                line.advance(source.uniform(0, 4))
            case 3:
                for frame in line.sent():
                    if frame[0] == 8:
                        line.give([2, frame[1], {"epoch": 1, "offset": 1}])
            case 4 if line.protocol.phase is not outputs.Phase.IDLE:
                line.protocol.connection_lost(LOST)
                line.connect(resumed=True)
        answered += [o.request_id for o in line.protocol.outputs() if isinstance(o, outputs.Answered)]
    line.protocol.connection_lost(LOST)
    line.protocol.abandon(LOST)
    answered += [o.request_id for o in line.protocol.outputs() if isinstance(o, outputs.Answered)]
    assert sorted(answered) == sorted(asked)


def test_history_is_read_in_each_form() -> None:
    line = opened()
    request_id = line.protocol.history("group:x", {"limit": 3}, line.now, 5.0)
    entries = [[9, "group:x", 1, "a", {"epoch": 1, "from": "ann"}], [2, "b", {"time": 5}], {"offset": 3, "data": "c"}]
    line.protocol.flush_requests(line.now)
    line.give([2, request_id, {"messages": entries, "epoch": 2, "offset": 3}])
    (answer,) = (o.result for o in line.protocol.outputs() if isinstance(o, outputs.Answered))
    assert isinstance(answer, History)
    assert answer.position == Position(2, 3)
    assert [(m.epoch, m.offset, m.data, m.sender, m.time) for m in answer.messages] == [
        (1, 1, "a", "ann", None),
        (2, 2, "b", None, 5),
        (2, 3, "c", None, None),
    ]


def test_a_refresh_gives_the_next_resume_token_and_its_own_is_in_no_message() -> None:
    line = opened()
    request_id = line.protocol.refresh("a secret token", line.now, 5.0)
    line.protocol.flush_requests(line.now)
    assert line.sent() == [[16, request_id, "a secret token"]]
    line.give([2, request_id, {"resume_token": "r2"}])
    assert [output.result for output in line.protocol.outputs() if isinstance(output, outputs.Answered)] == [None]
    state = line.protocol.state()
    assert state is not None
    assert state.resume_token == "r2"
    late = line.protocol.refresh("a secret token", line.now, 5.0)
    line.advance(5.0)
    [timeout] = [output for output in line.protocol.outputs() if isinstance(output, outputs.Answered)]
    assert timeout.request_id == late
    assert "secret" not in str(timeout.result)


@pytest.mark.parametrize("value", [{"expires": "soon"}, {"resume_token": 5}])
def test_an_answer_to_refresh_that_is_none_is_a_violation(value: Any) -> None:
    line = opened()
    request_id = line.protocol.refresh("token", line.now, 5.0)
    line.protocol.flush_requests(line.now)
    with pytest.raises(ProtocolViolation):
        line.give([2, request_id, value])
