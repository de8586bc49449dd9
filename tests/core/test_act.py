"""What the gateway does with each frame of a client, the malformed ones as the protocol page's table says."""

from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import notes, records
from core.codes import Code
from core.namespace_spec import BUILT_IN, NamespaceSpec
from tests.core import wire
from tests.core.edge_harness import EPOCH, ERROR, FIN, FIN_ACK, JOIN, LEAVE, PUBLISH, REPLY, Edge

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
    assert {name: count for name, count in edge.stats.read()["errors"].items() if count} == {code.name.lower(): 1}
    assert (edge.counter("errors_sent"), edge.counter("refused_unanswered")) == (1, 1)


def test_global_channels_are_published_to_in_development_only(edges: Callable[..., Edge]) -> None:
    development, production = edges(), edges(development=False)
    alice = development.open("alice")
    alice.request(PUBLISH, "global:news", "x")
    assert development.router.expect(records.PUBLISH)["name"] == b"global:news"
    bob = production.open("bob")
    bob.request(PUBLISH, "global:news", "x")
    assert bob.frame()[2] == Code.NOT_ALLOWED


def namespaced(**options: Any) -> list[NamespaceSpec]:
    """The built-in namespaces, and `mine` with these options."""
    base = next(spec for spec in BUILT_IN if spec.domain == options.get("domain", "group"))
    return [*BUILT_IN, msgspec.structs.replace(base, name="mine", **options)]


def listed(**lists: list[str]) -> bytes:
    """The lists of a token."""
    packed: bytes = msgpack.packb(lists)
    return packed


@pytest.mark.parametrize(
    ("options", "channel", "code"),
    [
        ({}, "mine:x", Code.NOT_JOINED),
        ({"publish": "anyone"}, "mine:x", None),
        ({"publish": "server"}, "mine:x", Code.NOT_ALLOWED),
        ({"domain": "session"}, "mine:bob", None),
        ({"domain": "session", "publish": "members"}, "mine:alice", None),
        ({"domain": "session", "publish": "members"}, "mine:alice2", Code.NOT_ALLOWED),
        ({"domain": "session", "publish": "members"}, "mine:alic", Code.NOT_ALLOWED),
        ({"domain": "session", "publish": "server"}, "mine:alice", Code.NOT_ALLOWED),
        ({"domain": "global"}, "mine:x", Code.NOT_ALLOWED),
        ({"domain": "global", "publish": "anyone"}, "mine:x", None),
    ],
)
def test_a_namespace_says_who_may_publish(
    edges: Callable[..., Edge], options: dict[str, Any], channel: str, code: Code | None
) -> None:
    edge = edges(development=False, namespaces=namespaced(**options))
    alice = edge.open("alice")
    number = alice.request(PUBLISH, channel, "x")
    if code is None:
        assert edge.router.expect(records.PUBLISH)["name"] == channel.encode()
    else:
        assert alice.frame()[:3] == [ERROR, number, code]


def test_a_member_publishes_where_members_may(edges: Callable[..., Edge]) -> None:
    edge = edges(namespaces=namespaced())
    alice = edge.open("alice")
    edge.join(alice, "mine:x")
    alice.request(PUBLISH, "mine:x", "y")
    assert edge.router.expect(records.PUBLISH)["name"] == b"mine:x"


def test_a_namespace_bounds_the_data(edges: Callable[..., Edge]) -> None:
    edge = edges(namespaces=namespaced(publish="anyone", payload_bytes_max=100))
    alice = edge.open("alice")
    alice.request(PUBLISH, "mine:x", "d" * 98)  # two bytes of MessagePack before them
    assert len(edge.router.expect(records.PUBLISH)["data"]) == 100
    number = alice.request(PUBLISH, "mine:x", "d" * 99)
    assert alice.frame()[:3] == [ERROR, number, Code.TOO_LARGE]
    alice.request(PUBLISH, "user:bob", "d" * 99)
    edge.router.expect(records.PUBLISH)


def test_a_tokens_list_is_a_limit_to_publishing(edges: Callable[..., Edge]) -> None:
    edge = edges(namespaces=namespaced(publish="anyone"))
    alice = edge.open("alice", rights=listed(publish=["user:bob", "mine:team-*"]))
    for channel in ("user:bob", "mine:team-7", "mine:team-"):
        alice.request(PUBLISH, channel, "x")
        assert edge.router.expect(records.PUBLISH)["name"] == channel.encode()
    for channel in ("user:bobby", "mine:tea", "mine:x", "global:news"):
        number = alice.request(PUBLISH, channel, "x")
        assert alice.frame()[:3] == [ERROR, number, Code.NOT_ALLOWED]
    bob = edge.open("bob", rights=listed(join=["mine:a"]))  # says nothing of publishing
    bob.request(PUBLISH, "mine:x", "x")
    edge.router.expect(records.PUBLISH)


@pytest.mark.parametrize(
    ("join", "rights", "development", "allowed"),
    [
        ("anyone", b"", False, True),
        ("anyone", listed(join=["mine:x"]), False, True),
        ("anyone", listed(join=["mine:y"]), False, False),
        ("anyone", listed(publish=[]), False, True),
        ("token", b"", False, False),
        ("token", b"", True, True),
        ("token", listed(publish=["mine:x"]), False, False),
        ("token", listed(join=["user:*", "mine:*"]), False, True),
        ("token", listed(join=["mine:xy"]), False, False),
        ("token", listed(join=[]), True, False),
        ("server", b"", True, False),
        ("server", listed(join=["mine:x"]), False, False),
    ],
)
def test_a_namespace_and_the_token_say_who_may_join(
    edges: Callable[..., Edge], join: str, rights: bytes, development: bool, allowed: bool
) -> None:
    edge = edges(development=development, namespaces=namespaced(join=join))
    alice = edge.open("alice", rights=rights)
    if allowed:
        edge.join(alice, "mine:x")
    else:
        number = alice.request(JOIN, "mine:x")
        assert alice.frame()[:3] == [ERROR, number, Code.NOT_ALLOWED]
    alice.close()
    edge.wait_empty()


def test_a_user_has_a_channel_in_each_namespace_of_its_domain(edges: Callable[..., Edge]) -> None:
    edge = edges(namespaces=namespaced(domain="session"), channels_max=1)
    alice = edge.client()
    opening = edge.hello(alice, "alice", [["mine:alice"]])
    edge.router.send(wire.opened(alice.conn, opening["seq"]))
    welcome = alice.frame()[2]["channels"]
    assert set(welcome) == {"user:alice", "mine:alice"}
    edge.join_known(alice, "mine:alice")  # it is in already
    for channel in ("mine:bob", "mine:alic", "user:bob"):
        number = alice.request(JOIN, channel)
        assert alice.frame()[:3] == [ERROR, number, Code.NOT_ALLOWED]
    number = alice.request(LEAVE, "mine:alice")
    assert alice.frame()[:3] == [ERROR, number, Code.NOT_ALLOWED]
    edge.join(alice, "group:a")  # own channels do not count into the bound
    number = alice.request(JOIN, "group:b")
    subscribed = edge.router.expect(records.SUBSCRIBE)
    edge.router.send(wire.subscribed(subscribed["channel"], 5, 0))
    assert alice.frame()[:3] == [ERROR, number, Code.TOO_MANY_CHANNELS]
    edge.router.expect(records.UNSUBSCRIBE)
    alice.request(PUBLISH, "user:bob", "x")
    assert edge.router.expect(records.PUBLISH)["sender"] == b"alice"


@pytest.mark.parametrize("kind", [JOIN, PUBLISH])
def test_a_channel_without_a_namespace_is_none(edges: Callable[..., Edge], kind: int) -> None:
    edge = edges(namespaces=namespaced())
    alice = edge.open("alice")
    for channel in ("yours:x", "mine:", "mine", ":x", "MINE:x"):
        number = alice.request(kind, channel, *(["x"] if kind == PUBLISH else []))
        answer = alice.frame()
        assert answer[:3] == [ERROR, number, Code.NO_SUCH_CHANNEL]
        assert "namespace" in answer[3]


def test_a_session_publishes_no_faster_than_its_bucket(edges: Callable[..., Edge]) -> None:
    edge = edges(publish_rate=1, publish_burst=3)
    alice = edge.open("alice")
    alice.send(*([PUBLISH, number, "user:bob", "x"] for number in range(1, 6)))
    for _ in range(3):
        edge.router.expect(records.PUBLISH)
    refused = alice.frames(2)
    assert [(frame[1], frame[2]) for frame in refused] == [(4, Code.RATE_LIMITED), (5, Code.RATE_LIMITED)]
    assert all(frame[4]["retry_after"] > 0 for frame in refused)


@pytest.mark.parametrize("kind", [HELLO, HISTORY, PRESENCE, REFRESH, CALL])
def test_control_frames_go_to_the_control_thread_as_they_are(edge: Edge, kind: int) -> None:
    alice = edge.open("alice")
    alice.send([kind, 5, "anything", {"x": [1, 2]}])
    _, state, conn, _, _, _, session, text, user = edge.note(notes.FRAME)
    assert (conn, session, user) == (alice.conn, alice.session, b"alice")
    assert state == 2  # open
    assert msgpack.unpackb(text) == [kind, 5, "anything", {"x": [1, 2]}]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ([JOIN, 1], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", {}, {}], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", 5], Code.BAD_REQUEST),
        ([JOIN, 1, 5], Code.BAD_REQUEST),
        ([JOIN, 1, b"group:a"], Code.BAD_REQUEST),
        ([JOIN, 1, "group:" + "a" * 250], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", {"since": [1, True]}], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", {"since": [1, -1]}], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", {"since": [1]}], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", {"since": [1, 2, 3]}], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", {"since": {}}], Code.BAD_REQUEST),
        ([JOIN, 1, "group:a", {5: 1, "since": False, "x": [1]}], Code.BAD_REQUEST),
        ([JOIN, 1, "lobby"], Code.NO_SUCH_CHANNEL),
        ([JOIN, 1, "lobby", 5], Code.NO_SUCH_CHANNEL),
        ([JOIN, 1, "group:"], Code.NO_SUCH_CHANNEL),
        ([JOIN, 1, "room:a"], Code.NO_SUCH_CHANNEL),
        ([JOIN, 1, "user:eve"], Code.NOT_ALLOWED),
        ([JOIN, 1, "user:alic"], Code.NOT_ALLOWED),
        ([JOIN, 1, "user:alices", {"since": 5}], Code.NOT_ALLOWED),
        ([LEAVE, 1, "user:alice"], Code.NOT_ALLOWED),
        ([LEAVE, 1, "user:eve"], Code.NOT_ALLOWED),
        ([LEAVE, 1, "global:x"], Code.NOT_ALLOWED),
        ([LEAVE, 1, "group:a", {}], Code.BAD_REQUEST),
        ([LEAVE, 1], Code.BAD_REQUEST),
        ([LEAVE, 1, "group:a"], Code.NOT_JOINED),
    ],
    ids=repr,
)
def test_a_join_or_leave_that_cannot_be_is_refused_and_the_session_stays(
    edge: Edge, frame: list[Any], code: Code
) -> None:
    alice = edge.open("alice")
    alice.send(frame)
    assert alice.frame()[:3] == [ERROR, 1, code]
    alice.send([frame[0], 0, *frame[2:]], [PING, 1, 2])  # the same without an answer
    assert alice.frame() == [PONG, 1, 2]
    assert edge.live("membership") == 1
    assert not edge.notes


@pytest.mark.parametrize("kind", [JOIN, LEAVE])
@pytest.mark.parametrize("rest", [[], [-1, "group:a"], ["1", "group:a"], [None, "group:a"], [1.0, "group:a"]], ids=repr)
def test_a_join_or_leave_without_a_usable_number_is_no_frame(edge: Edge, kind: int, rest: list[Any]) -> None:
    alice = edge.open("alice")
    alice.send([kind, *rest])
    assert alice.frame()[:2] == [FIN, Code.BAD_FRAME]


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({}, "live"),
        ({"since": None}, "live"),
        ({"since": [EPOCH, 7]}, "live"),
        ({"since": [EPOCH - 1, 2**64 - 1]}, "reset"),
        ({5: [], "other": {"since": 5}, "since": [0, 0]}, "reset"),
    ],
    ids=repr,
)
def test_join_and_leave_are_done_without_the_control_thread(edge: Edge, options: dict[Any, Any], outcome: str) -> None:
    alice = edge.open("alice")
    before = edge.counter("gil_takes")
    alice.send([JOIN, 5, "group:ä", options])
    one = edge.router.expect(records.SUBSCRIBE)
    edge.router.send(wire.subscribed(one["channel"], EPOCH, 7))
    if outcome == "reset":  # the router alone knows what the position is worth
        edge.router.send(wire.caught(edge.router.expect(records.CATCHUP), (EPOCH, 7), outcome=outcome))
    assert alice.frame() == [REPLY, 5, {"epoch": EPOCH, "offset": 7, "outcome": outcome}]
    alice.send([JOIN, 6, "user:alice", {}], [LEAVE, 7, "group:ä"], [LEAVE, 8, "group:ä"])
    assert [frame[:2] for frame in alice.frames(3)] == [[REPLY, 6], [REPLY, 7], [ERROR, 8]]
    assert edge.counter("gil_takes") == before


def test_of_a_since_that_is_said_twice_the_last_counts(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    good, bad = b"\xa5since" + msgpack.packb([EPOCH, 0]), b"\xa5since\x05"
    head = b"\x94\x06\x01\xa7group:a\x82"
    for options, kind in ((bad + good, REPLY), (good + bad, ERROR)):
        body = head + options
        alice.socket.sendall(len(body).to_bytes(4, "big") + body)
        assert alice.frame()[0] == kind


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


@pytest.fixture
def hasty(edges: Callable[..., Edge]) -> Edge:
    """One that does not wait long for clients to close first."""
    return edges(fin_timeout_ms=100)


@given(st.lists(st.recursive(st.integers(-5, 30) | st.text(max_size=5) | st.none(), st.lists), max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_answered_or_passed_on(hasty: Edge, frame: list[Any]) -> None:
    """After any frame the connection answers FIN, or still answers a FIN of ours, and ends."""
    client = hasty.client()
    client.send(frame)
    client.send([FIN, 0])
    answer = client.frame()
    assert answer[0] in (FIN, FIN_ACK)
    assert client.frame() is None
    client.close()
    hasty.notes.clear()
    hasty.loop.take()
