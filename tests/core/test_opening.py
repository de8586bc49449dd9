"""HELLO up to WELCOME: channels of the client and of the store, the cursor of a new device, what the store is told."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import EPOCH, FIN, JOIN, LEAVE, WELCOME, Client, Edge, frame_of

STORED = msgpack.packb({"user": "alice"})
OUTCOME, CURSOR = 1, 2


def heard(edge: Edge) -> dict[str, list[int]]:
    """In which global channels the session begins, by what the store is told next."""
    one = edge.router.state()
    assert one["what"] == records.HEARS
    channels: dict[str, list[int]] = msgpack.unpackb(one["name"])
    return channels


def hello(
    edge: Edge,
    channels: list[list[Any]],
    *,
    resumes: bool = False,
    whole: bool = False,
    unread: bool = True,
    if_alive: bool = False,
) -> Client:
    """A client whose HELLO the control thread let in."""
    client = edge.client()
    client.send([0, 1, {}])
    client.conn = edge.note(notes.FRAME)[2]
    client.session = b"s" * 16
    edge.put(
        notes.OPEN,
        client.conn,
        1,
        flags=notes.OPEN_RESUMES * resumes
        | notes.OPEN_WHOLE * whole
        | notes.OPEN_TELLS_UNREAD * unread
        | notes.OPEN_IF_ALIVE * if_alive,
        second=len(STORED),
        session=client.session,
        text=b"\x93\x01\x01" + (b"\x82" if unread else b"\x81") + msgpack.packb("channels"),
        extra=msgpack.packb(channels) + STORED,
    )
    return client


def subscribe(edge: Edge, positions: dict[str, int]) -> dict[str, int]:
    """Answer SUBSCRIBE for each channel; their handles."""
    handles = {}
    for _ in positions:
        one = edge.router.expect(records.SUBSCRIBE)
        name = one["name"].decode()
        handles[name] = one["channel"]
        edge.router.send(wire.subscribed(one["channel"], EPOCH, positions[name]))
    return handles


def test_the_claim_carries_what_is_stored_and_whether_stored_state_is_wanted(edge: Edge) -> None:
    for resumes in (False, True):
        client = hello(edge, [["user:alice", EPOCH, 0]], resumes=resumes)
        subscribe(edge, {"user:alice": 0})
        one = edge.router.expect(records.OPEN)
        assert (one["aux"], one["body"], one["session"]) == (records.RESUMES * resumes, STORED, client.session)
        edge.router.send(wire.opened(client.conn, one["seq"]))
        assert client.frame()[0] == WELCOME
        client.reset()
        edge.wait_empty()
        edge.router.expect(records.UNSUBSCRIBE)
        edge.router.expect(records.CLOSE)


@pytest.mark.parametrize("code", [Code.SESSION_EXPIRED, Code.UNAVAILABLE])
def test_with_an_old_token_nothing_but_the_stored_session_is_resumed(edge: Edge, code: Code) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0]], resumes=True, whole=True, if_alive=True)
    subscribe(edge, {"user:alice": 0})
    one = edge.router.expect(records.OPEN)
    assert one["aux"] == records.RESUMES | records.ALIVE
    edge.router.send(wire.opened(client.conn, one["seq"], code=code))
    assert client.frame()[:2] == [FIN, code]


@pytest.mark.parametrize("whole", [False, True])
def test_a_session_that_is_not_stored_is_begun_afresh_whatever_its_client_names(edge: Edge, whole: bool) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0], ["group:a", EPOCH, 5]], resumes=True, whole=whole)
    subscribe(edge, {"user:alice": 0, "group:a": 5})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], code=Code.SESSION_EXPIRED))
    kind, code, _, options = client.frame()
    assert (kind, code, options["class"]) == (FIN, Code.SESSION_EXPIRED, "fresh")
    said = [edge.router.take()["kind"] for _ in range(3)]
    assert sorted(said) == sorted([records.UNSUBSCRIBE, records.UNSUBSCRIBE, records.CLOSE])
    # Nor does the next router hear of the claim: it would outdo the end of the session.
    assert [one["kind"] for one in edge.link(EPOCH + 1)] == [records.CLOSE]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("taken", [0, 1])
def test_where_no_sessions_are_stored_only_one_that_says_it_is_whole_is_resumed(
    edge: Edge, whole: bool, taken: int
) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0], ["group:a", EPOCH, 5]], resumes=True, whole=whole)
    subscribe(edge, {"user:alice": 0, "group:a": 5})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], None, taken))
    answer = client.frame()
    if whole:
        assert set(answer[2]["channels"]) == {"user:alice", "group:a"}
    else:
        assert (answer[:2], answer[3]["class"]) == ([FIN, Code.SESSION_EXPIRED], "fresh")


def test_a_channel_that_the_client_left_out_stands_where_the_store_says(edge: Edge) -> None:
    client = hello(edge, [["user:alice"], ["group:a", EPOCH, 5]], resumes=True)
    handles = subscribe(edge, {"user:alice": 7, "group:a": 5})
    one = edge.router.expect(records.OPEN)
    stored = [["group:a", EPOCH, 3], ["group:b", EPOCH, 2], ["user:alice", EPOCH, 6, 4], ["user:eve", EPOCH, 1]]
    edge.router.send(wire.opened(client.conn, one["seq"], stored))
    handles |= subscribe(edge, {"group:b": 2})
    own = edge.router.expect(records.CATCHUP)
    assert (own["since"], own["flags"]) == ((EPOCH, 6), OUTCOME | records.FROM_STORE)
    edge.router.send(wire.caught(own | {"since": (EPOCH - 1, 6)}, (EPOCH, 7)))  # an ACK's epoch is a guess
    _, _, told = client.frame()
    assert told == {
        "channels": {
            "user:alice": [EPOCH, 7, "replayed"],
            "group:a": [EPOCH, 5, "live"],  # the client's own position counts more
            "group:b": [EPOCH, 2, "live"],
        },
        "unread": 3,
    }
    said = {each["name"].decode(): each["what"] for each in (edge.router.state() for _ in range(3))}
    assert said == {"user:alice": records.HERE, "group:a": records.HERE, "group:b": records.HERE}
    catchup = edge.router.expect(records.CATCHUP)
    assert (catchup["channel"], catchup["since"]) == (handles["user:alice"], (EPOCH - 1, 6))


def test_without_the_store_a_resume_goes_on_by_positions_that_are_the_whole_session(edge: Edge) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0], ["group:a", EPOCH, 5]], resumes=True, whole=True)
    subscribe(edge, {"user:alice": 0, "group:a": 5})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], code=Code.UNAVAILABLE))
    assert set(client.frame()[2]["channels"]) == {"user:alice", "group:a"}


@pytest.mark.parametrize(
    ("own", "groups", "whole"),
    [
        ([], [], False),
        ([], [], True),
        ([], [["group:a", EPOCH, 5]], False),
        ([], [["group:a", EPOCH, 5]], True),  # the user's own is one of the session's channels
        ([EPOCH, 0], [["group:a", EPOCH, 5]], False),  # there may be others, which it would pass over in silence
    ],
)
def test_without_the_store_a_resume_that_may_leave_channels_out_is_told_to_come_back(
    edge: Edge, own: list[int], groups: list[list[Any]], whole: bool
) -> None:
    client = hello(edge, [["user:alice", *own], *groups], resumes=True, whole=whole)
    subscribe(edge, {"user:alice": 0, **dict.fromkeys((group[0] for group in groups), 5)})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], code=Code.UNAVAILABLE))
    kind, code, reason, options = client.frame()
    assert (kind, code, options["class"]) == (FIN, Code.UNAVAILABLE, "resume")
    assert reason.startswith("what is stored of the session cannot be read now")
    assert options["after"] >= 1000


def test_a_channel_that_the_store_has_no_more_room_for_is_left_out(edges: Callable[..., Edge]) -> None:
    edge = edges(channels_max=2)
    client = hello(edge, [["user:alice", EPOCH, 0]], resumes=True)
    subscribe(edge, {"user:alice": 0})
    one = edge.router.expect(records.OPEN)
    edge.router.send(wire.opened(client.conn, one["seq"], [[f"group:{n}", EPOCH, 0] for n in range(4)]))
    subscribe(edge, {"group:0": 0, "group:1": 0})
    assert set(client.frame()[2]["channels"]) == {"user:alice", "group:0", "group:1"}


@pytest.mark.parametrize("answers", [b"\xc1", msgpack.packb([["group:b"]]), msgpack.packb(5)])
def test_stored_state_that_is_broken_leaves_the_clients_own_positions(edge: Edge, answers: bytes) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0], ["group:a", EPOCH, 5]], resumes=True)
    subscribe(edge, {"user:alice": 0, "group:a": 5})
    one = edge.router.expect(records.OPEN)
    fixed = client.conn.to_bytes(8, "little") + bytes(16) + one["seq"].to_bytes(4, "little")
    fixed += len(answers).to_bytes(4, "little") + bytes(16)
    edge.router.send(wire.record(records.OPENED, 0, fixed, answers))
    assert set(client.frame()[2]["channels"]) == {"user:alice", "group:a"}
    said = [edge.router.state() for _ in range(2)]
    assert [(each["name"], each["what"], each["position"]) for each in said] == [
        (b"user:alice", records.JOINED, (EPOCH, 0)),
        (b"group:a", records.JOINED, (EPOCH, 5)),
    ]
    assert said[1]["user"] == b"alice"


def test_a_new_device_starts_at_the_last_ack_of_its_user(edge: Edge) -> None:
    client = hello(edge, [["user:alice"]])
    handles = subscribe(edge, {"user:alice": 9})
    one = edge.router.expect(records.OPEN)
    edge.router.send(wire.opened(client.conn, one["seq"]))
    asked = edge.router.expect(records.CATCHUP)
    assert asked["flags"] == OUTCOME | CURSOR
    edge.router.send(wire.caught({**asked, "since": (EPOCH - 1, 6)}, (EPOCH, 9)))
    assert client.frame()[2] == {"channels": {"user:alice": [EPOCH, 9, "replayed"]}, "unread": 3}
    assert edge.router.state()["position"] == (EPOCH - 1, 6)
    catchup = edge.router.expect(records.CATCHUP)
    assert (catchup["since"], catchup["flags"]) == ((EPOCH - 1, 6), 0)
    frames = [(EPOCH, n, frame_of("user:alice", n, n)) for n in (7, 8, 9)]
    edge.router.send(wire.caught(catchup, (EPOCH, 9), frames))
    assert [frame[2] for frame in client.frames(3)] == [7, 8, 9]
    client.send([10, {"user:alice": 9}])
    assert edge.router.state()["position"] == (EPOCH, 9)
    assert handles


def test_nothing_is_unread_where_nothing_was_said(edge: Edge) -> None:
    client = hello(edge, [["user:alice"]])
    subscribe(edge, {"user:alice": 0})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"]))
    assert client.frame()[2] == {"channels": {"user:alice": [EPOCH, 0, "live"]}, "unread": 0}


def test_what_a_session_does_is_told_as_it_happens(edge: Edge) -> None:
    alice = edge.open("alice")
    first = edge.router.state()
    assert (first["what"], first["name"], first["user"]) == (records.JOINED, b"user:alice", b"alice")
    edge.router.send(wire.everybody("global:news", EPOCH, 2))
    edge.join(alice, "group:a", offset=4)
    positions = {"group:a": 3, "group:strange": 8, "global:strange": 1, "global:news": 7, "user:alice": 0}
    alice.send([JOIN, 5, "group:a", {}], [10, positions])
    alice.send([10, {"group:a": 99}], [LEAVE, 6, "group:a"])
    said = [(one["what"], one["name"], one["position"]) for one in (edge.router.state() for _ in range(5))]
    assert said == [
        (records.JOINED, b"group:a", (EPOCH, 4)),
        (records.ACKED, b"group:a", (EPOCH, 3)),
        (records.ACKED, b"global:news", (EPOCH, 2)),
        (records.ACKED, b"group:a", (EPOCH, 4)),  # no more than it was given
        (records.LEFT, b"group:a", (EPOCH, 4)),
    ]


def test_acks_beyond_the_rate_are_passed_over_and_the_session_goes_on(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a", offset=4)
    for _ in range(100):
        alice.send(*[[10, {"group:a": 2}]] * 100)
    alice.send([JOIN, 5, "group:a", {}])
    answer = alice.frame()
    assert edge.counter("acks") == 10_000
    assert answer[:2] in ([2, 5], [3, 5])  # answered, be it by rate_limited
    edge.router.heartbeat()
    assert len(edge.router.states) < 5_000


@pytest.mark.parametrize("code", [Code.KICKED, Code.RESUMED_ELSEWHERE])
def test_a_claim_that_another_connection_won_ends_the_hello_and_says_whose_it_is(edge: Edge, code: Code) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0]])
    subscribe(edge, {"user:alice": 0})
    seq = edge.router.expect(records.OPEN)["seq"]
    why = "alice logged in from a device of class phone, on node b"
    edge.router.send(wire.refused(client.conn, seq, code, why))
    assert client.frame()[:3] == [FIN, code, why]
    said = [edge.router.take()["kind"] for _ in range(2)]
    assert sorted(said) == sorted([records.UNSUBSCRIBE, records.CLOSE])
    # Nor does the next router hear of the claim: it is the winner's.
    assert [one["kind"] for one in edge.link(EPOCH + 1)] == []


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.OVERLOADED])
def test_a_claim_that_nobody_can_judge_now_has_the_client_come_back(edge: Edge, code: Code) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0]])
    subscribe(edge, {"user:alice": 0})
    edge.router.send(wire.refused(client.conn, edge.router.expect(records.OPEN)["seq"], code, "the directory is away"))
    kind, told, why, options = client.frame()
    assert (kind, told, why) == (FIN, code, "nobody can tell now whose the session is")
    assert options["after"] >= 1000


def test_what_a_refused_claim_says_is_cut_where_it_would_not_fit(edge: Edge) -> None:
    client = hello(edge, [["user:alice", EPOCH, 0]])
    subscribe(edge, {"user:alice": 0})
    seq = edge.router.expect(records.OPEN)["seq"]
    edge.router.send(wire.refused(client.conn, seq, Code.KICKED, "x" * 1000))
    assert client.frame()[:3] == [FIN, Code.KICKED, "x" * 255]


def test_bye_ends_the_session_and_a_lost_connection_does_not(edge: Edge) -> None:
    for frames, flags in (([[FIN, int(Code.BYE), "", {}]], records.OVER), ([], 0), ([[FIN, 1, "", {}]], 0)):
        alice = edge.open("alice")
        if frames:
            alice.send(*frames)
        else:
            alice.reset()
        edge.router.expect(records.UNSUBSCRIBE)
        assert edge.router.expect(records.CLOSE)["aux"] == flags


def test_a_new_router_is_told_of_sessions_and_memberships_again(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a", offset=4)
    waiting = hello(edge, [["user:alice", EPOCH, 0]], resumes=True)
    before = edge.router.expect(records.OPEN)
    assert [edge.router.state()["what"] for _ in range(2)] == [records.JOINED] * 2
    said = edge.link(EPOCH + 1)
    opens = {one["conn"]: one for one in said if one["kind"] == records.OPEN}
    assert (opens[alice.conn]["aux"], opens[alice.conn]["seq"]) == (records.AGAIN, 0)
    again = opens[waiting.conn]
    assert (again["aux"], again["seq"], again["body"]) == (records.RESUMES, before["seq"], STORED)
    assert [(one["what"], one["name"]) for one in edge.router.states if not one["what"] & records.STATES_TOLD] == [
        (records.HERE, b"user:alice"),
        (records.HERE, b"group:a"),
    ]


def test_a_new_session_is_told_and_stored_where_the_global_channels_stand(edge: Edge) -> None:
    edge.link(EPOCH)
    edge.router.send(wire.everybody("global:news", EPOCH, 4), wire.everybody("global:quiet", EPOCH, 0))
    client = hello(edge, [["user:alice"]], unread=False)
    subscribe(edge, {"user:alice": 0})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"]))
    assert client.frame()[2]["channels"] == {
        "user:alice": [EPOCH, 0, "live"],
        "global:news": [EPOCH, 4, "live"],
        "global:quiet": [EPOCH, 0, "live"],
    }
    assert edge.router.state()["name"] == b"user:alice"
    assert heard(edge) == {"global:news": [EPOCH, 4], "global:quiet": [EPOCH, 0]}


def test_a_session_that_is_older_than_a_global_channel_gets_it_from_where_it_began(edge: Edge) -> None:
    edge.router.send(wire.everybody("global:news", EPOCH, 9), wire.everybody("global:old", EPOCH, 5))
    client = hello(edge, [["user:alice", EPOCH, 0]], resumes=True, unread=False)
    subscribe(edge, {"user:alice": 0})
    stored = [["user:alice", EPOCH, 0, 0], ["global:old", EPOCH, 5]]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored))
    one = edge.router.expect(records.CATCHUP)
    assert (one["name"], one["flags"]) == (b"global:news", OUTCOME | records.FROM_LISTING)
    edge.router.send(wire.caught({**one, "since": (EPOCH - 1, 7)}, (EPOCH, 9)))
    assert client.frame()[2]["channels"] == {
        "user:alice": [EPOCH, 0, "live"],
        "global:old": [EPOCH, 5, "live"],
        "global:news": [EPOCH, 9, "replayed"],
    }
    again = edge.router.expect(records.CATCHUP)
    assert again["since"] == (EPOCH - 1, 7)
    said = [(EPOCH, offset, frame_of("global:news", offset, "x")) for offset in (8, 9)]
    edge.router.send(wire.caught(again, (EPOCH, 9), said))
    assert [client.frame()[:4] for _ in said] == [[9, "global:news", 8, "x"], [9, "global:news", 9, "x"]]
    assert edge.router.state()["name"] == b"user:alice"
    assert heard(edge) == {"global:news": [EPOCH - 1, 7]}


def test_a_resume_of_which_nothing_is_known_goes_on_live_in_global_channels(edge: Edge) -> None:
    edge.router.send(wire.everybody("global:news", EPOCH, 3))
    client = hello(edge, [["user:alice", EPOCH, 0]], resumes=True, unread=False)
    subscribe(edge, {"user:alice": 0})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"]))
    assert client.frame()[2]["channels"]["global:news"] == [EPOCH, 3, "live"]


@pytest.mark.parametrize("gone", [1, 130], ids=["one", "more than there may be at once"])
def test_global_channels_that_are_over_are_left_and_take_nobodys_place(edge: Edge, gone: int) -> None:
    """The store names those that the session heard of; the router, asked for each, does not tell of these any more."""
    edge.link(EPOCH)
    edge.router.send(wire.everybody("global:news", EPOCH, 7))
    client = hello(edge, [["user:alice", EPOCH, 0]], resumes=True, unread=False)
    subscribe(edge, {"user:alice": 0})
    over = {f"global:old-{number}": 5 for number in range(gone)}
    stored = [["user:alice", EPOCH, 0, 0], *([name, EPOCH, 5] for name in over), ["global:news", EPOCH, 7]]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored))
    subscribe(edge, over)
    assert client.frame()[2]["channels"] == {"user:alice": [EPOCH, 0, "live"], "global:news": [EPOCH, 7, "live"]}
    said = {each["name"].decode(): each["what"] for each in (edge.router.state() for _ in range(gone + 1))}
    assert said == {"user:alice": records.HERE, **dict.fromkeys(over, records.LEFT)}


def test_a_global_channel_that_the_router_tells_of_late_is_not_over(edge: Edge) -> None:
    edge.link(EPOCH)
    client = hello(edge, [["user:alice", EPOCH, 0]], resumes=True, unread=False)
    subscribe(edge, {"user:alice": 0})
    stored = [["user:alice", EPOCH, 0, 0], ["global:news", EPOCH, 7]]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored))
    asked = edge.router.expect(records.SUBSCRIBE)
    assert asked["name"] == b"global:news"
    edge.router.send(
        wire.everybody("global:news", EPOCH, 7),
        wire.subscribed(asked["channel"], EPOCH, 7),
    )
    assert client.frame()[2]["channels"] == {"user:alice": [EPOCH, 0, "live"], "global:news": [EPOCH, 7, "live"]}


def test_a_client_is_told_of_each_global_channel_that_it_names_be_it_over_or_not(edge: Edge) -> None:
    edge.link(EPOCH)
    client = hello(edge, [["user:alice", EPOCH, 0], ["global:old", EPOCH, 5]], resumes=True, unread=False)
    subscribe(edge, {"user:alice": 0, "global:old": 5})
    stored = [["user:alice", EPOCH, 0, 0], ["global:old", EPOCH, 4]]
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"], stored))
    assert client.frame()[2]["channels"] == {"user:alice": [EPOCH, 0, "live"], "global:old": [EPOCH, 5, "live"]}


def test_no_global_channel_is_stored_with_a_session_but_those_that_the_router_told_of(edge: Edge) -> None:
    """Whatever a client calls them: nothing bounds their names, and of one that is over there is nothing to miss."""
    other = edge.open("other")
    edge.router.send(wire.everybody("global:news", EPOCH, 7))
    edge.join(other, "group:a")  # the worker has read what came before its answer
    other.send([LEAVE, 9, "group:a"])
    edge.router.expect(records.UNSUBSCRIBE)
    edge.router.states.clear()
    named = [["global:news", EPOCH, 6], ["global:old", EPOCH, 5]]
    client = hello(edge, [["user:alice", EPOCH, 0], *named], unread=False)
    subscribe(edge, {"user:alice": 0})
    edge.router.send(wire.caught(edge.router.expect(records.CATCHUP), (EPOCH, 7)))
    subscribe(edge, {"global:old": 5})
    edge.router.send(wire.opened(client.conn, edge.router.expect(records.OPEN)["seq"]))
    assert client.frame()[2]["channels"]["global:old"] == [EPOCH, 5, "live"]
    assert edge.router.state()["name"] == b"user:alice"
    assert heard(edge) == {"global:news": [EPOCH, 6]}
