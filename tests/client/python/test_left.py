"""A resumed session that still has a channel which was left: it is left again, and nothing is heard of it."""

import json
from typing import Any

import pytest
from holdfast_client import Event, Message, SessionState, outputs
from holdfast_client import protocol as core
from holdfast_client.codec import Encoding
from holdfast_client.errors import RequestRefused, RequestTimeout
from holdfast_client.left import REMEMBERED_MAX, Left
from holdfast_client.messages import Position

from tests.client.python.test_protocol import LOST, Line, message, opened

LISTED = {"group:x": [1, 9, "replayed"]}
JOIN, LEAVE, PUBLISH = 6, 7, 8


def left(answered: bool = True) -> Line:
    """A session that has left its channel, which had come to offset 7, and lost its connection."""
    line = opened()
    line.join("group:x", 1, 7)
    ask_to_leave(line, answered)
    line.protocol.connection_lost(LOST)
    line.protocol.outputs()
    return line


def ask_to_leave(line: Line, answered: bool = True) -> int:
    request_id = line.protocol.leave("group:x", line.now, 5.0)
    line.protocol.flush_requests(line.now)
    line.sent()
    if answered:
        line.give([2, request_id, {}])
    return request_id


def back(line: Line, channels: dict[str, Any] | None = None, *, resumed: bool = True) -> list[list[Any]]:
    """Resumed with these channels; the requests that this client sends at once."""
    line.connect(resumed=resumed, session="s1" if resumed else "s2", channels=channels or {})
    return requests(line)


def requests(line: Line) -> list[list[Any]]:
    return [frame for frame in line.sent() if frame[0] in (JOIN, LEAVE, PUBLISH)]


def answers(line: Line) -> dict[int, Any]:
    return {one.request_id: one.result for one in line.protocol.outputs() if isinstance(one, outputs.Answered)}


def test_what_was_left_is_left_again_before_the_session_is_open() -> None:
    line = left()
    hello = line.connect(resumed=True, channels=LISTED)
    assert hello[2]["resume"] == {}
    opening = [o for o in line.protocol.outputs() if isinstance(o, outputs.Opened | outputs.Delivered)]
    assert opening == [outputs.Opened(True)]
    assert [frame[0] for frame in line.sent()[:1]] == [LEAVE]
    assert line.protocol.joined == frozenset()
    assert line.protocol.positions.all() == {}


@pytest.mark.parametrize("outcome", ["live", "replayed", "gap", "reset"])
def test_nothing_is_delivered_of_it_up_to_the_answer_and_nobody_is_answered(outcome: str) -> None:
    line = left()
    ((_, request_id, channel),) = back(line, {"group:x": [2, 9, outcome]})
    assert channel == "group:x"
    line.give(message(8), [13, "group:x", "gap", {"from": 9, "to": 9}], [13, "group:x", "joined", {"session": "s"}])
    line.give([2, request_id, {}])
    assert [o for o in line.protocol.outputs() if not isinstance(o, outputs.Opened)] == []
    assert line.protocol.positions.all() == {}
    line.advance(60)
    assert 10 not in line.sent_types(), "nothing of it is acknowledged"


def test_it_is_left_again_each_time_that_it_is_listed() -> None:
    line = left()
    for _ in range(3):
        assert [frame[0] for frame in back(line, LISTED)] == [LEAVE]
        line.protocol.connection_lost(LOST)
    assert back(line) == []
    line.protocol.connection_lost(LOST)
    assert [frame[0] for frame in back(line, LISTED)] == [LEAVE]


def test_other_channels_go_on_meanwhile() -> None:
    line = left()
    line.connect(resumed=True, channels=LISTED)
    line.join("group:y")
    line.give(message(8), message(1, channel="group:y"))
    assert [item.channel for item in line.items()] == ["group:y"]


def test_a_channel_that_was_joined_again_is_taken_back() -> None:
    line = opened()
    line.join("group:x", 1, 3)
    ask_to_leave(line)
    line.join("group:x", 1, 7)
    line.protocol.connection_lost(LOST)
    assert back(line, LISTED) == []
    line.give(message(8), message(9))
    assert [item.offset if isinstance(item, Message) else item for item in line.items()] == [8, 9]


def test_a_join_behind_a_leave_counts_before_either_is_answered() -> None:
    line = opened()
    line.join("group:x", 1, 7)
    leaving = ask_to_leave(line, answered=False)
    line.protocol.join("group:x", None, line.now, 5.0)
    line.protocol.connection_lost(LOST)
    assert [frame[:3] for frame in back(line, LISTED)] == [[7, leaving, "group:x"], [6, leaving + 1, "group:x"]]
    line.give(message(8))
    assert [item.channel for item in line.items()] == ["group:x"]


def test_a_join_while_it_is_left_again_begins_behind_the_answer() -> None:
    line = left()
    ((_, leaving, _),) = back(line, LISTED)
    joining = line.protocol.join("group:x", Position(1, 7), line.now, 5.0)
    line.protocol.flush_requests(line.now)
    line.give(message(8), [2, leaving, {}], [2, joining, {"epoch": 1, "offset": 9, "outcome": "replayed"}])
    line.give(message(8), message(9))
    assert [item.offset if isinstance(item, Message) else item for item in line.items()] == [8, 9]
    assert line.protocol.joined == {"group:x"}


def test_a_new_session_forgets_what_was_left() -> None:
    line = left()
    line.protocol.start_afresh()
    assert back(line, resumed=False) == []
    line.protocol.connection_lost(LOST)
    assert back(line, LISTED) == []
    line.give(message(9))
    assert [item.channel for item in line.items()] == ["group:x"]


def test_a_leave_without_an_answer_is_asked_again_at_once_and_answered() -> None:
    line = left(answered=False)
    ((kind, request_id, channel),) = back(line, LISTED)
    assert (kind, channel) == (LEAVE, "group:x")
    line.give(message(8), [2, request_id, {}])
    assert line.protocol.outputs() == [outputs.Opened(True), outputs.Answered(request_id, None)]
    assert line.protocol.joined == frozenset()


@pytest.mark.parametrize("resumed", [True, False])
def test_a_leave_without_an_answer_is_done_when_the_channel_is_not_listed(resumed: bool) -> None:
    """It is neither joined again nor asked to be left: the gateway would refuse that."""
    line = opened()
    line.join("group:x", 1, 7)
    request_id = ask_to_leave(line, answered=False)
    line.protocol.connection_lost(LOST)
    line.protocol.outputs()
    assert back(line, resumed=resumed) == []
    assert line.protocol.outputs() == [outputs.Answered(request_id, None), outputs.Opened(resumed)]
    assert line.protocol.joined == frozenset()
    line.protocol.connection_lost(LOST)
    assert [frame[0] for frame in back(line, LISTED)] == ([LEAVE] if resumed else [])


def test_a_leave_that_came_to_its_deadline_is_still_what_was_wanted() -> None:
    line = left(answered=False)
    line.advance(6)
    assert [type(result) for result in answers(line).values()] == [RequestTimeout]
    assert [frame[0] for frame in back(line, LISTED)] == [LEAVE]
    assert line.protocol.joined == frozenset()


def test_what_was_asked_before_a_leave_comes_before_it() -> None:
    """A message that is said again is refused to who has left."""
    line = opened()
    line.join("group:x", 1, 7)
    said = line.protocol.publish("group:x", "bye", "key", line.now, 5.0)
    leaving = ask_to_leave(line, answered=False)
    line.protocol.connection_lost(LOST)
    assert [frame[:2] for frame in back(line, LISTED)] == [[PUBLISH, said], [LEAVE, leaving]]
    line.give(message(8))
    assert [item.channel for item in line.items()] == ["group:x"]
    line.give([2, said, {"epoch": 1, "offset": 10}], [2, leaving, {}])
    line.protocol.connection_lost(LOST)
    assert [frame[0] for frame in back(line, LISTED)] == [LEAVE]


def test_who_was_refused_to_leave_has_not_left() -> None:
    line = opened(channels={"user:ann": [1, 0, "live"]})
    request_id = line.protocol.leave("user:ann", line.now, 5.0)
    line.give([3, request_id, 402, "not_joined", {}])
    assert [type(result) for result in answers(line).values()] == [RequestRefused]
    line.protocol.connection_lost(LOST)
    assert back(line, {"user:ann": [1, 1, "replayed"]}) == []
    line.give(message(1, channel="user:ann"))
    assert [item.channel for item in line.items()] == ["user:ann"]


def test_a_second_leave_takes_nothing_from_the_first() -> None:
    line = opened()
    line.join("group:x", 1, 7)
    ask_to_leave(line)
    again = ask_to_leave(line, answered=False)
    line.give([3, again, 402, "not_joined", {}])
    line.protocol.connection_lost(LOST)
    assert [frame[0] for frame in back(line, LISTED)] == [LEAVE]


@pytest.mark.parametrize("answer", ["refused", "nothing"])
def test_without_an_answer_nothing_is_heard_of_it_until_it_is_joined(answer: str) -> None:
    line = left()
    ((_, leaving, _),) = back(line, LISTED)
    if answer == "refused":
        line.give([3, leaving, 5, "unavailable", {}])
    else:
        line.advance(6)
    line.give(message(8))
    assert [o for o in line.protocol.outputs() if not isinstance(o, outputs.Opened)] == []
    line.join("group:x", 1, 9)
    line.give(message(10))
    assert [item.offset if isinstance(item, Message) else item for item in line.items()] == [10]


def test_another_process_leaves_it_again_too() -> None:
    line = left()
    state = line.protocol.state()
    assert state is not None
    given = SessionState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert given == state
    line.protocol = core.Protocol(core.Identity(user="ann"), Encoding.JSON, given)
    assert [frame[0] for frame in back(line, LISTED)] == [LEAVE]
    old = {name: value for name, value in state.to_dict().items() if name != "left"}
    assert SessionState.from_dict(old).left == frozenset()


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    memory = Left()
    for number in range(REMEMBERED_MAX + 2):
        memory.asks(f"group:{number}")
        memory.answered(number, f"group:{number}")
    assert len(memory.channels) == REMEMBERED_MAX
    assert memory.channels.isdisjoint({"group:0", "group:1"})


def test_events_of_others_are_heard() -> None:
    line = left()
    back(line, LISTED)
    line.give([13, "group:y", "joined", {"session": "s"}])
    assert line.items() == [Event("group:y", "joined", {"session": "s"})]
