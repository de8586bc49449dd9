"""Coming back over a replay or a gap, and going on in another process from where the application was."""

import json
from typing import Any

import pytest
from holdfast_client import Event, Message, Position, SessionState
from holdfast_client import protocol as core
from holdfast_client.codec import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.client.python.test_protocol import LOST, Line, message, opened


def offsets(line: Line) -> list[Any]:
    return [item.offset if isinstance(item, Message) else item.kind for item in line.items()]


def go_on(state: SessionState | None) -> Line:
    """The same session in another process."""
    assert state is not None
    line = Line()
    line.protocol = core.Protocol(core.Identity(user="ann"), Encoding.JSON, state)
    return line


def take(line: Line, count: int) -> None:
    """The application takes so many of what was received."""
    for item in line.items()[:count]:
        line.protocol.taken(item, line.now)


def test_what_is_replayed_of_a_channel_of_unknown_position_is_delivered() -> None:
    """The gateway knows the position, since a channel left out of HELLO stands at its last ACK."""
    line = opened()
    line.protocol.connection_lost(LOST)
    line.connect(resumed=True, channels={"group:x": [1, 7, "replayed"]})
    line.give(message(6), message(7), message(8))
    assert offsets(line) == [6, 7, 8]


def test_a_new_session_is_given_what_its_user_has_not_acknowledged() -> None:
    line = Line()
    line.connect(channels={"user:ann": [1, 2, "replayed"]})
    line.give(message(1, channel="user:ann"), message(2, channel="user:ann"), message(3, channel="user:ann"))
    assert offsets(line) == [1, 2, 3]


def test_a_new_session_drops_what_the_one_before_had_of_it() -> None:
    line = opened(channels={"user:ann": [1, 0, "live"]})
    line.give(message(1, channel="user:ann"), message(2, channel="user:ann"))
    line.items()
    line.protocol.connection_lost(LOST)
    line.protocol.start_afresh()
    line.connect(session="s2", channels={"user:ann": [1, 3, "replayed"]})
    line.give(*(message(offset, channel="user:ann") for offset in (1, 2, 3)))
    assert offsets(line) == [3]


def test_a_gap_up_to_the_position_told_is_where_the_channel_stands() -> None:
    line = opened()
    line.join("group:x", 1, 4)
    line.protocol.connection_lost(LOST)
    line.connect(resumed=True, channels={"group:x": [3, 9, "gap"]})
    line.give([13, "group:x", "gap", {"from": 5, "to": 9, "reason": "trimmed"}])
    assert offsets(line) == ["gap"]
    line.protocol.connection_lost(LOST)
    assert line.connect(resumed=True)[2]["resume"] == {"group:x": [3, 9]}
    line.give([13, "group:x", "gap", {"from": 5, "to": 9, "reason": "trimmed"}])
    assert offsets(line) == [], "it was told before"


def test_a_gap_with_something_behind_it_ends_with_the_next_message() -> None:
    line = opened()
    line.join("group:x", 1, 4)
    line.protocol.connection_lost(LOST)
    line.connect(resumed=True, channels={"group:x": [3, 9, "gap"]})
    line.give([13, "group:x", "gap", {"from": 5, "to": 8, "reason": "trimmed"}])
    line.protocol.connection_lost(LOST)
    assert line.connect(resumed=True)[2]["resume"] == {"group:x": [1, 4]}
    line.give(message(9, 3))
    assert offsets(line) == ["gap", "gap", 9]


def test_what_was_taken_and_not_acknowledged_is_acknowledged_on_the_next_connection() -> None:
    line = opened()
    line.join("group:x")
    line.give(message(1), message(2))
    take(line, 1)
    line.protocol.connection_lost(LOST)
    line.protocol.taken(Message("group:x", 1, 2, None), line.now)
    line.connect(resumed=True, channels={"group:x": [1, 2, "live"]})
    line.sent()
    line.advance(15)
    assert line.sent() == [[10, {"group:x": 2}]]


def test_a_new_session_is_not_told_what_another_one_took() -> None:
    line = opened()
    line.join("group:x")
    line.give(message(1))
    take(line, 1)
    line.protocol.connection_lost(LOST)
    line.protocol.start_afresh()
    line.connect(session="s2")
    line.advance(15)
    assert 10 not in line.sent_types()


def test_another_process_goes_on_from_what_was_taken() -> None:
    line = opened(channels={"user:ann": [1, 3, "live"]})
    line.join("group:x")
    line.give(message(1), message(2), message(3))
    take(line, 2)
    state = line.protocol.state()
    assert state is not None
    assert state.positions == {"user:ann": Position(1, 3), "group:x": Position(1, 2)}
    other = go_on(SessionState.from_dict(json.loads(json.dumps(state.to_dict()))))
    hello = other.connect(resumed=True, channels={"user:ann": [1, 3, "live"], "group:x": [1, 3, "replayed"]})
    assert hello[2]["session"] == "s1"
    assert hello[2]["token"] == "r1"
    assert hello[2]["resume"] == {"group:x": [1, 2], "user:ann": [1, 3]}
    other.give(message(3), message(4))
    assert offsets(other) == [3, 4]
    assert other.protocol.joined == {"group:x"}


def test_another_process_joins_again_when_the_session_is_over() -> None:
    line = opened()
    line.join("group:x", 1, 4)
    other = go_on(line.protocol.state())
    other.protocol.start_afresh()
    other.connect(session="s2")
    assert next(frame for frame in other.sent() if frame[0] == 6)[2:] == ["group:x", {"since": [1, 4]}]


def test_events_taken_move_the_application_too() -> None:
    line = opened()
    line.join("group:x", 1, 4)
    line.protocol.taken(Event("group:x", "reset", {"epoch": 2, "offset": 1, "held": [1, 4]}), line.now)
    state = line.protocol.state()
    assert state is not None
    assert state.positions == {"group:x": Position(2, 1)}


def test_there_is_nothing_to_export_before_a_session_and_after_its_end() -> None:
    line = Line()
    assert line.protocol.state() is None
    line.connect()
    assert line.protocol.state() is not None
    line.protocol.start_afresh()
    assert line.protocol.state() is None


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"session": "s", "resume_token": "t", "user": "u", "joined": [], "positions": {"a": [1]}},
        {"session": 1, "resume_token": "t", "user": "u", "joined": [], "positions": {}},
        {"session": "s", "resume_token": "t", "user": "u", "joined": [3], "positions": {}},
        {"session": "s", "resume_token": "t", "user": "u", "joined": None, "positions": {}},
    ],
)
def test_what_was_not_exported_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no exported session"):
        SessionState.from_dict(value)


@given(
    st.lists(st.integers(1, 12), max_size=12),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_whatever_was_taken_another_process_misses_nothing_and_gets_nothing_twice(
    lengths: list[int], taken: int, extra: int
) -> None:
    """Received up to any point, taken up to any other, and replayed from where the export says."""
    last = len(lengths)
    line = opened()
    line.join("group:x")
    line.give(*(message(offset) for offset in range(1, last + 1)))
    had = line.items()[: min(taken, last)]
    for item in had:
        line.protocol.taken(item, line.now)
    other = go_on(line.protocol.state())
    hello = other.connect(resumed=True, channels={"group:x": [1, last + extra, "replayed"]})
    (_, since) = hello[2]["resume"]["group:x"]
    other.give(*(message(offset) for offset in range(since + 1, last + extra + 1)))
    both = [item.offset for item in [*had, *other.items()] if isinstance(item, Message)]
    assert both == list(range(1, last + extra + 1))
