"""WELCOME always fits in max_frame: what a session may join by the bytes of its channels' names."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import msgpack
import pytest

from core import records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import EPOCH, ERROR, FIN, JOIN, LEAVE, REPLY, Client, Edge
from tests.core.test_opening import hello, subscribe

MAX_FRAME = 8192


def named(number: int, filler: str) -> str:
    """A group's name of 255 bytes."""
    start = f"group:{number:03}"
    return start + filler * ((255 - len(start)) // len(filler.encode()))


def welcome_bytes(channels: Iterable[str], user: str = "u", lists: bytes = b"") -> int:
    """The longest WELCOME with these channels as JSON, as much as all global channels may take of it left out."""
    token = bytes(16) + msgpack.packb([bytes(16), user, 2**32 - 1, 2**40, "d" * 32, lists, 1.5])
    told = {
        "session": "0" * 32,
        "user": user,
        "resume_token": "x" * (-(-len(token) // 3) * 4),
        "node": "n" * 63,
        "ping": 3600.125,
        "misses": 100,
        "max_frame": 16_777_216,
        "resumed": False,
        "channels": {name: [2**53, 2**64 - 1, "replayed"] for name in channels},
        "unread": 2**64 - 1,
    }
    return len(json.dumps([1, 2**53, told], ensure_ascii=False, separators=(",", ":")).encode())


def join(edge: Edge, client: Client, name: str) -> list[Any]:
    """The answer to a JOIN of a channel that nobody is in yet."""
    client.request(JOIN, name)
    asked = edge.router.expect(records.SUBSCRIBE)
    edge.router.send(wire.subscribed(asked["channel"], EPOCH, 0))
    answer: list[Any] = client.frame()
    if answer[0] == ERROR:
        assert edge.router.expect(records.UNSUBSCRIBE)["channel"] == asked["channel"]
    return answer


def test_a_session_in_as_many_groups_of_the_longest_names_as_it_may_join_is_welcomed_in_one_frame(
    edges: Callable[..., Edge],
) -> None:
    edge = edges(channels_max=256)
    alice = edge.open("alice")
    joined = [name for name in (named(number, "x") for number in range(256)) if join(edge, alice, name)[0] == REPLY]
    assert 90 < len(joined) < 256
    assert welcome_bytes(["user:alice", *joined], "alice") <= 65_536 // 2


@pytest.mark.parametrize("filler", ["x", '"', "\x01", "\u20ac"])
def test_a_group_for_which_welcome_has_no_room_is_refused_until_another_is_left(
    edges: Callable[..., Edge], filler: str
) -> None:
    edge = edges(channels_max=100, max_frame=MAX_FRAME)
    alice = edge.open("alice")
    joined: list[str] = []
    while (answer := join(edge, alice, named(len(joined), filler)))[0] == REPLY:
        joined.append(named(len(joined), filler))
    assert answer[2] == Code.TOO_MANY_CHANNELS
    assert answer[3] == "the names of the session's channels fill half of max_frame: leave one before joining another"
    own = ["user:alice", *joined]
    assert welcome_bytes(own, "alice") <= MAX_FRAME // 2 < welcome_bytes([*own, named(99, filler)], "alice") + 256
    edge.join_known(alice, joined[0])  # it is in that one
    alice.send([LEAVE, 5, joined[0]])
    assert alice.frame() == [REPLY, 5, {}]
    edge.router.expect(records.UNSUBSCRIBE)
    assert join(edge, alice, named(99, filler))[0] == REPLY


def test_the_users_name_and_the_tokens_lists_take_room_too(edges: Callable[..., Edge]) -> None:
    edge = edges(channels_max=100, max_frame=MAX_FRAME)
    rights = msgpack.packb({"join": ["group:*", "x" * 200, "y" * 200]})
    counts = []
    for user, lists in (("a", b""), ("b" * 250, b""), ("c", rights)):
        client = edge.open(user, rights=lists)
        names = [f"group:{user[0]}-{number}" for number in range(60)]
        joined = [name for name in names if join(edge, client, name)[0] == REPLY]
        assert 0 < len(joined) < len(names)
        assert welcome_bytes([f"user:{user}", *joined], user, lists) <= MAX_FRAME // 2
        counts.append(len(joined))
    assert counts[0] > max(counts[1:])


def test_a_resume_leaves_the_groups_for_which_there_is_no_room_any_more(edges: Callable[..., Edge]) -> None:
    """The last ones of the store first; the store hears of it."""
    edge = edges(channels_max=100, max_frame=MAX_FRAME)
    held, more = named(0, "x"), [named(number, "x") for number in range(1, 17)]
    client = hello(edge, [["user:alice", EPOCH, 0], [held, EPOCH, 0]], resumes=True, unread=False)
    subscribe(edge, {"user:alice": 0, held: 0})
    stored = [["user:alice", EPOCH, 0, 0], *([name, EPOCH, 0] for name in [held, *more])]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored))
    subscribe(edge, dict.fromkeys(more, 0))
    channels = set(client.frame()[2]["channels"])
    fit = [name for name in more if name in channels]
    assert channels == {"user:alice", held, *fit}
    assert fit == more[: len(fit)] != more
    assert welcome_bytes(channels, "alice") <= MAX_FRAME // 2
    said = {each["name"].decode(): each["what"] for each in (edge.router.state() for _ in range(len(more) + 2))}
    assert {name for name, what in said.items() if what == records.LEFT} == {*more} - {*fit}


def test_global_channels_that_are_over_make_room_for_groups_first(edges: Callable[..., Edge]) -> None:
    edge = edges(channels_max=100, max_frame=MAX_FRAME)
    over = {f"global:{number}{'x' * 240}": 0 for number in range(15)}
    groups = {named(number, "x"): 0 for number in range(3)}
    named_by_client = [["user:alice", EPOCH, 0], *([name, EPOCH, 0] for name in {**groups, **over})]
    client = hello(edge, named_by_client, resumes=True, unread=False)
    subscribe(edge, {"user:alice": 0, **groups, **over})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"]))
    channels = set(client.frame()[2]["channels"])
    assert groups.keys() < channels
    assert welcome_bytes(channels, "alice") <= MAX_FRAME // 2


def test_a_session_that_finds_no_room_by_itself_is_sent_away(edges: Callable[..., Edge]) -> None:
    edge = edges(max_frame=MAX_FRAME)
    client = edge.client()
    one = edge.hello(client, "alice", rights=msgpack.packb({"join": ["x" * 200] * 16}))
    edge.router.send(wire.opened(client.conn, one["seq"]))
    kind, code, reason, options = client.frame()
    assert (kind, code, options["class"]) == (FIN, Code.BAD_TOKEN, "stop")
    assert reason.startswith("the user id, or the token's lists, are too long for WELCOME")
    client.close()
    edge.wait_empty()
