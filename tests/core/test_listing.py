"""The registry in the data plane: every connection that fits is found once, and only those are ended."""

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from core import conn, listing, notes, records
from core.codes import Code
from tests.core.edge_harness import FIN, FIN_ACK, Edge, wait_for
from tests.core.registry_views import listed, turn, vitals

ACCEPTED, HANDSHAKING, OPEN, CLOSING, CLOSED = range(5)
KICKED = {"first": int(Code.KICKED), "extra": b"enough"}
LOOPBACK = bytes(10) + b"\xff\xff\x7f\x00\x00\x01"


def one_more_closed(edge: Edge, before: int) -> bool:
    return edge.counter("entered_closed") > before


def users(found: list[dict[str, Any]]) -> list[str | None]:
    return sorted(one["user"] or "-" for one in found)


def test_a_record_says_what_is_known(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    record = vitals(edge, alice.conn)
    assert record["conn"] == alice.conn
    assert (record["user"], record["session"]) == ("alice", alice.session)
    assert (record["address"], record["port"]) == (LOOPBACK, alice.socket.getsockname()[1])
    assert (record["was"], record["state"], record["reason"]) == (OPEN, OPEN, 0)
    assert not record["websocket"]
    assert not record["json"]
    assert record["encoded"]
    assert not record["tls"]
    assert (record["queued_bytes"], record["memberships"], record["requests"]) == (0, 2, 0)
    now = time.monotonic() * 1000 / listing.TICK_MS
    assert now - 100 < record["created"] <= record["heard"] <= now
    assert now - 100 < record["created"] <= record["sent"] <= now


def test_of_a_connection_without_hello_there_is_no_user(edge: Edge) -> None:
    edge.client()
    wait_for(lambda: edge.live("connection") == 1, "it is there")
    [record] = listed(edge)
    assert (record["user"], record["session"], record["state"]) == (None, None, ACCEPTED)


def test_of_a_websocket_the_encoding_is_known_from_hello_on(edge: Edge) -> None:
    with socket.create_connection(("127.0.0.1", edge.ws_port), timeout=10) as client:
        wait_for(lambda: edge.live("connection") == 1, "it is there")
        [record] = listed(edge)
        assert (record["websocket"], record["encoded"]) == (True, False)
        client.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        client.sendall(b"\x81\x88\0\0\0\0[0,1,{}]")
        edge.note(notes.FRAME)
        [record] = listed(edge)
        assert (record["encoded"], record["json"], record["state"]) == (True, True, HANDSHAKING)


def test_behind_a_proxy_the_clients_address_is_the_one_that_it_told(edges: Callable[..., Edge]) -> None:
    edge = edges(proxy_protocol=True)
    client = edge.client()
    client.socket.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 7400\r\n")
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    wait_for(lambda: any(one["port"] == 4711 for one in listed(edge)), "the header was read")
    [record] = listed(edge, address=address)
    assert record["address"] == address
    assert listed(edge, address=LOOPBACK) == []


def test_each_filter_leaves_the_others_out(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    edge.client()
    wait_for(lambda: edge.live("connection") == 3, "all are there")
    assert users(listed(edge)) == ["-", "alice", "bob"]
    assert users(listed(edge, user="bob")) == ["bob"]
    assert listed(edge, user="bo") == []
    assert listed(edge, user="x" * 300) == []
    assert users(listed(edge, session=alice.session)) == ["alice"]
    assert listed(edge, session=b"?" * 16) == []
    assert users(listed(edge, states=1 << OPEN)) == ["alice", "bob"]
    assert users(listed(edge, states=1 << ACCEPTED)) == ["-"]
    assert users(listed(edge, address=LOOPBACK)) == ["-", "alice", "bob"]
    assert listed(edge, address=bytes(15) + b"\1") == []
    assert users(listed(edge, user="bob", session=bob.session, states=1 << OPEN, address=LOOPBACK)) == ["bob"]
    assert listed(edge, user="bob", session=alice.session) == []


def test_older_and_idle_are_held_against_the_clock(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    assert listed(edge, older=20) == listed(edge, idle=20) == []
    wait_for(lambda: len(listed(edge, older=3, idle=3)) == 2, "three ticks are over")
    alice.send([4, 1, 1])
    assert alice.frame() == [5, 1, 1]
    assert users(listed(edge, older=3)) == ["alice", "bob"]
    assert users(listed(edge, idle=3)) == ["bob"]
    assert bob.conn


def test_queued_finds_those_that_read_too_slowly(edges: Callable[..., Edge]) -> None:
    edge = edges(queue_bytes_max=1 << 24)
    slow, quick = edge.open("slow", receive_bytes=4096), edge.open("quick")
    edge.put(notes.SEND, slow.conn, text=b"\xc6" + (6_000_000).to_bytes(4, "big") + bytes(6_000_000))
    edge.put(notes.SEND, quick.conn, text=b"\x90")
    wait_for(lambda: users(listed(edge, queued_bytes=100_000)) == ["slow"], "only the slow one has much queued")
    assert users(listed(edge, queued_bytes=0)) == ["quick", "slow"]


def test_one_by_one_each_connection_is_found_once(edge: Edge) -> None:
    opened = {edge.open(f"user-{number}").conn for number in range(5)}
    slot, seen = 0, []
    while slot != listing.END:
        slot, found = turn(edge, slot=slot, limit=1)
        assert len(found) <= 1
        seen += [one["conn"] for one in found]
    assert sorted(seen) == sorted(opened)


def test_whoever_stays_is_found_once_while_others_come_and_go(edge: Edge) -> None:
    made = [edge.open(f"user-{number}") for number in range(30)]
    stay, leave = made[::2], made[1::2]
    slot, seen = 0, []
    while slot != listing.END:
        slot, found = turn(edge, slot=slot, limit=2)
        seen += [one["conn"] for one in found]
        if leave:
            closed = edge.counter("entered_closed")
            leave.pop(0).reset()
            wait_for(partial(one_more_closed, edge, closed), "one has left")
            edge.open(f"late-{len(leave)}")
    assert [one.conn for one in stay if seen.count(one.conn) != 1] == []
    assert len(seen) == len(set(seen))


def test_one_turn_looks_at_a_bounded_number_of_slots_and_packs_a_bounded_number(edges: Callable[..., Edge]) -> None:
    count = listing.SLOTS_A_TURN + 300
    edge = edges(connections_max=10_000, handshakes_max=10_000, hello_timeout_ms=60_000)
    made = []
    try:
        for _ in range(count):
            made.append(socket.create_connection(("127.0.0.1", edge.port), timeout=10))
        wait_for(lambda: edge.live("connection") == count, "all are there")
        goes_on, found = turn(edge, states=1 << OPEN)
        assert (goes_on, found) == (listing.SLOTS_A_TURN, [])
        assert turn(edge, slot=goes_on, states=1 << OPEN) == (listing.END, [])
        goes_on, found = turn(edge, limit=10_000)
        assert len(found) == goes_on == listing.RECORDS_A_TURN
        assert len({one["conn"] for one in listed(edge)}) == count
        assert turn(edge, address=bytes(16)) == (listing.PEERS_A_TURN, [])
        assert listed(edge, address=bytes(16)) == []
    finally:
        for one in made:
            one.close()
    wait_for(lambda: edge.live("connection") == 0, "all are gone")
    assert turn(edge) == (listing.END, [])


@pytest.mark.parametrize("slot", [1, 10**6, 2**32 - 2])
def test_a_slot_that_is_not_there_is_the_end(edge: Edge, slot: int) -> None:
    edge.open("alice")
    assert turn(edge, slot=slot) == (listing.END, [])


def test_a_note_without_a_whole_query_is_passed_over(edge: Edge) -> None:
    edge.put(notes.LIST, request=9, text=listing.query()[:-1])
    edge.put(notes.RECLAIM, request=9)
    edge.open("alice")
    assert users(listed(edge)) == ["alice"]


# ------------------------------------------------------------------------------------------------------------ reclaim


def test_a_reclaimed_connection_hears_fin_and_has_until_its_deadline_to_answer(edge: Edge) -> None:
    alice = edge.open("alice")
    goes_on, [record] = turn(edge, notes.RECLAIM, KICKED, conn=alice.conn)
    assert goes_on == listing.END
    assert (record["was"], record["state"], record["reason"]) == (OPEN, CLOSING, Code.KICKED)
    assert (record["user"], record["memberships"]) == ("alice", 1)
    assert alice.frame() == [FIN, Code.KICKED, "enough", {"class": "stop"}]
    assert {edge.router.take()["kind"] for _ in range(2)} == {records.CLOSE, records.UNSUBSCRIBE}
    now = vitals(edge, alice.conn)
    assert (now["was"], now["state"], now["user"], now["session"]) == (CLOSING, CLOSING, None, alice.session)
    alice.send([FIN_ACK])
    alice.shut()
    assert alice.ended()
    alice.close()
    edge.wait_empty()
    assert turn(edge, conn=alice.conn) == (listing.END, [])
    assert edge.counter("closed_kicked") == 1


@pytest.mark.parametrize(("code", "is_over"), [(Code.KICKED, True), (Code.DRAINING, False), (Code.BANNED, False)])
def test_a_session_that_is_kicked_is_over_and_one_that_is_told_to_come_back_is_not(
    edge: Edge, code: Code, is_over: bool
) -> None:
    alice = edge.open("alice")
    turn(edge, notes.RECLAIM, {"first": int(code), "extra": b"enough"}, conn=alice.conn)
    assert alice.frame()[:2] == [FIN, code]
    while (said := edge.router.take())["kind"] != records.CLOSE:
        assert said["kind"] != records.OPEN
    assert (said["aux"] & records.OVER != 0) is is_over
    alice.send([FIN_ACK])
    alice.shut()
    assert alice.ended()


def test_reclaiming_what_ends_already_changes_nothing(edge: Edge) -> None:
    alice = edge.open("alice")
    for was in (OPEN, CLOSING):
        record = turn(edge, notes.RECLAIM, {"first": int(Code.BANNED) if was == CLOSING else 604}, conn=alice.conn)[1][
            0
        ]
        assert (record["was"], record["state"], record["reason"]) == (was, CLOSING, Code.KICKED)
    assert alice.frame()[:2] == [FIN, Code.KICKED]
    alice.send([FIN_ACK])
    alice.shut()
    assert alice.ended()
    assert edge.counter("fins_sent") == 1


def test_without_a_transport_that_could_say_fin_it_is_closed_at_once(edge: Edge) -> None:
    with socket.create_connection(("127.0.0.1", edge.ws_port), timeout=10) as client:
        wait_for(lambda: edge.live("connection") == 1, "it is there")
        [record] = turn(edge, notes.RECLAIM, KICKED)[1]
        assert (record["was"], record["state"]) == (ACCEPTED, CLOSED)
        assert client.recv(1) == b""
    edge.wait_empty()


def test_only_those_that_fit_are_ended(edge: Edge) -> None:
    first, second, other = edge.open("alice"), edge.open("alice"), edge.open("bob")
    goes_on, found = turn(edge, notes.RECLAIM, KICKED, user="alice")
    assert goes_on == listing.END
    assert {one["conn"] for one in found} == {first.conn, second.conn}
    for one in (first, second):
        assert one.frame()[:2] == [FIN, Code.KICKED]
    other.send([4, 1, 1])
    assert other.frame() == [5, 1, 1]
    assert users(listed(edge, states=1 << OPEN)) == ["bob"]


def test_a_stale_id_never_reaches_whoever_has_the_slot_now(edge: Edge) -> None:
    edge.open("carol")
    alice = edge.open("alice")
    alice.reset()
    wait_for(lambda: edge.live("connection") == 1, "alice is gone")
    while edge.router.take()["kind"] != records.CLOSE:
        continue
    bob = edge.open("bob")
    assert bob.conn & 0xFFFFFFFF == alice.conn & 0xFFFFFFFF
    assert turn(edge, notes.RECLAIM, KICKED, conn=alice.conn) == (listing.END, [])
    bob.send([4, 1, 1])
    assert bob.frame() == [5, 1, 1]


def test_those_that_may_come_back_are_told_when_each_at_its_own_time(edge: Edge) -> None:
    made = [edge.open("alice") for _ in range(8)]
    turn(edge, notes.RECLAIM, {"first": int(Code.DRAINING), "second": 10_000}, user="alice")
    told = [one.frame()[3] for one in made]
    assert {one["class"] for one in told} == {"resume"}
    assert all(10_000 <= one["after"] <= 15_000 for one in told)
    assert len({one["after"] for one in told}) > 1


# ------------------------------------------------------------------------------------------------------------ queries


def test_queries_hold_what_they_say() -> None:
    plain = listing.query()
    assert len(plain) == 72
    assert listing.query(user="grün", channel="ü")[72:] == "grünü".encode()
    for asked in ({"user": ""}, {"channel": ""}, {"device": 0}):
        assert listing.query(**asked)[:72] != plain
    assert (1 << len(conn.STATES) - 1) - 1 == listing.ANY_STATE


@pytest.mark.parametrize("wrong", [{"session": b"x"}, {"address": b"x" * 17}, {"slot": -1}, {"older": 2**32}])
def test_queries_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        listing.query(**wrong)


def test_members_of_a_channel_are_found_and_counted(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    edge.open("carol")
    edge.join(alice, "group:a")
    edge.join_known(bob, "group:a")
    assert users(listed(edge, channel="group:a")) == ["alice", "bob"]
    assert users(listed(edge, channel="group:a", user="bob")) == ["bob"]
    assert users(listed(edge, channel="user:bob", user="bob")) == ["bob"]
    assert users(listed(edge, channel="user:bob", user="alice")) == []
    for channel in ("group:b", "group:", "group", "", "x" * 300):
        assert listed(edge, channel=channel) == []


def test_everybody_is_a_member_of_a_global_channel(edge: Edge) -> None:
    edge.open("alice")
    edge.client()
    wait_for(lambda: edge.live("connection") == 2, "both are there")
    assert users(listed(edge, channel="global:news")) == ["alice"]


@pytest.mark.parametrize(("channel", "count"), [("group:a", 2), ("group:b", 0), ("global:news", 3), ("user:bob", 1)])
def test_how_many_members_there_are_is_told_on_every_turn(edge: Edge, channel: str, count: int) -> None:
    edge.open("carol")
    edge.join(edge.open("alice"), "group:a")
    edge.join_known(edge.open("bob"), "group:a")
    edge.put(notes.LIST, request=99, text=listing.query(channel=channel, limit=1))
    assert edge.note(notes.LISTED)[2] == count


def test_the_class_of_the_device_is_a_filter(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.put(notes.REFRESH, alice.conn, flags=3 * notes.OPEN_DEVICE)
    edge.open("bob")
    assert users(listed(edge, device=3)) == ["alice"]
    assert users(listed(edge, device=0)) == ["bob"]
    assert listed(edge, device=4) == []


def test_ending_all_members_of_a_channel_ends_nobody_else(edge: Edge) -> None:
    clients = {user: edge.open(user) for user in ("alice", "bob", "carol")}
    edge.join(clients["alice"], "group:a")
    edge.join_known(clients["bob"], "group:a")
    edge.join(clients["carol"], "group:b")
    _, found = turn(edge, notes.RECLAIM, KICKED, channel="group:a")
    assert users(found) == ["alice", "bob"]
    for user in ("alice", "bob"):
        assert clients[user].frame()[:2] == [FIN, Code.KICKED]
    assert users(listed(edge, channel="group:b")) == ["carol"]
    assert listed(edge, channel="group:a") == []
