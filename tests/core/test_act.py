"""What the gateway does with each frame of a client, the malformed ones as the protocol page's table says."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import notes, records
from core.codes import Code
from tests.core.edge_harness import ERROR, FIN, FIN_ACK, JOIN, PUBLISH, Edge

HELLO, PING, PONG, ACK, HISTORY, PRESENCE, REFRESH, CALL = 0, 4, 5, 10, 11, 12, 16, 17


@pytest.mark.parametrize(
    "frame",
    [
        5,
        {},
        [],
        ["8"],
        [-1],
        [1, 1, {}],
        [9, "group:a", 1, "x", {}],
        [18, 1],
        [2**63],
        [PING],
        [PING, 1],
        [PING, "1", 2],
        [PING, 1, 2, 3],
        [PONG, 1, -2],
        [ACK],
        [ACK, []],
        [ACK, {"group:a": -1}],
        [ACK, {5: 1}],
        [ACK, {}, 1],
        [FIN],
        [FIN, "bye"],
        [FIN, 0, "", {}, 1],
        [PUBLISH],
        [PUBLISH, -1, "group:a", "x"],
        [PUBLISH, "1", "group:a", "x"],
    ],
    ids=repr,
)
def test_what_is_no_frame_ends_the_session(edge: Edge, frame: Any) -> None:
    alice = edge.open("alice")
    alice.send(frame)
    assert alice.frame()[:2] == [FIN, Code.BAD_FRAME]
    assert alice.frame() is None
    alice.close()
    edge.wait_empty()
    assert edge.counter("bad_frames") == 1


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        (["group:a"], Code.BAD_REQUEST),
        (["group:a", "x", {}, 1], Code.BAD_REQUEST),
        ([5, "x"], Code.BAD_REQUEST),
        (["group:a", "x", []], Code.BAD_REQUEST),
        (["group:" + "a" * 250, "x"], Code.BAD_REQUEST),
        (["nowhere:a", "x"], Code.NO_SUCH_CHANNEL),
        (["group:", "x"], Code.NO_SUCH_CHANNEL),
        (["group", "x"], Code.NO_SUCH_CHANNEL),
        (["group:stranger", "x"], Code.NOT_JOINED),
        (["group:a", "x", {"key": "k" * 65}], Code.TOO_LARGE),
        (["group:a", "x" * 64_600], Code.TOO_LARGE),
        (["group:a", "x", {"key": 5}], Code.BAD_REQUEST),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_publish_that_cannot_be_is_refused_and_the_session_stays(edge: Edge, rest: list[Any], code: Code) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    number = alice.request(PUBLISH, *rest)
    assert alice.frame()[:3] == [ERROR, number, code]
    alice.send([PUBLISH, 0, *rest])  # the same without an answer
    alice.send([PUBLISH, 7, "group:a", None, {"key": "k" * 64, "other": [1], 5: 6}])
    one = edge.router.expect(records.PUBLISH)
    assert (one["seq"] > 0, one["key"], one["data"]) == (True, b"k" * 64, b"\xc0")


def test_global_channels_are_published_to_in_development_only(edges: Callable[..., Edge]) -> None:
    development, production = edges(), edges(development=False)
    alice = development.open("alice")
    alice.request(PUBLISH, "global:news", "x")
    assert development.router.expect(records.PUBLISH)["name"] == b"global:news"
    bob = production.open("bob")
    bob.request(PUBLISH, "global:news", "x")
    assert bob.frame()[2] == Code.NOT_ALLOWED


def test_a_session_publishes_no_faster_than_its_bucket(edges: Callable[..., Edge]) -> None:
    edge = edges(publish_rate=1, publish_burst=3)
    alice = edge.open("alice")
    alice.send(*([PUBLISH, number, "user:bob", "x"] for number in range(1, 6)))
    for _ in range(3):
        edge.router.expect(records.PUBLISH)
    refused = alice.frames(2)
    assert [(frame[1], frame[2]) for frame in refused] == [(4, Code.RATE_LIMITED), (5, Code.RATE_LIMITED)]
    assert all(frame[4]["retry_after"] > 0 for frame in refused)


@pytest.mark.parametrize("kind", [HELLO, JOIN, 7, HISTORY, PRESENCE, REFRESH, CALL])
def test_control_frames_go_to_the_control_thread_as_they_are(edge: Edge, kind: int) -> None:
    alice = edge.open("alice")
    alice.send([kind, 5, "anything", {"x": [1, 2]}])
    _, state, conn, _, _, _, session, text, user = edge.note(notes.FRAME)
    assert (conn, session, user) == (alice.conn, alice.session, b"alice")
    assert state == 2  # open
    assert msgpack.unpackb(text) == [kind, 5, "anything", {"x": [1, 2]}]


@pytest.mark.parametrize("frame", [[JOIN, 1, "group:a"], [PING, 1, 2], [PUBLISH, 1, "user:a", 1], [ACK, {}]], ids=repr)
def test_nothing_but_hello_comes_first(edge: Edge, frame: list[Any]) -> None:
    client = edge.client()
    client.send(frame)
    assert client.frame()[:2] == [FIN, Code.BAD_FRAME]


def test_acknowledgements_are_counted_and_heartbeats_echoed(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.send([ACK, {"group:a": 5, "user:alice": 0}], [ACK, {}], [PONG, 1, 5], [PING, 2**63, 2**64 - 1])
    assert alice.frame() == [PONG, 2**63, 2**64 - 1]
    assert (edge.counter("acks"), edge.counter("pongs_heard")) == (2, 1)


@given(st.lists(st.recursive(st.integers(-5, 30) | st.text(max_size=5) | st.none(), st.lists), max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_answered_or_passed_on(edge: Edge, frame: list[Any]) -> None:
    """After any frame the connection answers FIN, or still answers a PING."""
    client = edge.client()
    client.send(frame)
    client.send([FIN, 0])
    answer = client.frame()
    assert answer[0] in (FIN, FIN_ACK)
    assert client.frame() is None
    client.close()
    edge.notes.clear()
    edge.loop.take()
