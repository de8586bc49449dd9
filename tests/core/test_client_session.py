"""The protocol as a client speaks it, and the check of every delivery."""

from typing import Any

import pytest

from core import client_loop, stamp
from core.client_loop import CLOSED, CONNECTED, FAILED, JOINED, PAUSED, PUBLISHED, REFUSED
from tests.core.client_harness import (
    ACK,
    ERROR,
    EVENT,
    FIN,
    FIN_ACK,
    HELLO,
    JOIN,
    LEAVE,
    MESSAGE,
    PING,
    PONG,
    REPLY,
    TRANSPORTS,
    Driver,
    Session,
)

A = "group:a"
FAULTS = ("lost", "repeated", "out_of_order", "corrupt", "told_gaps", "unchecked")


def message(offset: int, channel: str = A, epoch: int = 5, data: Any = None) -> list[Any]:
    payload = stamp.write(60, 1, 2, 3) if data is None else data
    return [MESSAGE, channel, offset, payload, {"from": "bob", "time": 1, "epoch": epoch}]


def faults(driver: Driver) -> dict[str, int]:
    """What is not 0 of the faults."""
    return {name: driver.count(name) for name in FAULTS if driver.count(name)}


def deliver(driver: Driver, session: Session, *messages: list[Any]) -> None:
    before = driver.count("delivered")
    session.send(*messages)
    driver.wait_count("delivered", before + len(messages))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("who", [{"user": "alice"}, {"token": "e30.e30.x"}])
def test_hello_says_who_it_is(driver: Driver, transport: str, who: dict[str, str]) -> None:
    tcp = transport == "tcp"
    driver.open(tcp=tcp, **{"user": None, **who})
    session = driver.accept(tcp)
    if not tcp:
        session.upgrade()
        assert session.request.startswith(b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:")
    assert session.welcome() == {"v": 1, **who}
    handle, took_ns, resumed, _, _ = driver.expect(CONNECTED)
    assert (took_ns > 0, resumed) == (True, 0)
    assert driver.loop.times()["connect"]
    assert handle


def test_a_publish_is_answered_with_its_position_and_round_trip(driver: Driver) -> None:
    handle, session = driver.connect(A)
    driver.publish(handle, A)
    number = session.frame()[1]
    session.send([REPLY, number, {"epoch": 5, "offset": 1}], message(1))
    assert driver.expect(PUBLISHED)[1] == 1
    driver.wait_count("delivered", 1)
    times = driver.loop.times()
    assert [sum(count for _, count in times[name]) for name in ("join", "publish", "delivery")] == [1, 1, 1]
    assert faults(driver) == {}
    assert driver.audit() == (0, 0, 1)


@pytest.mark.parametrize(
    ("offsets", "found"),
    [
        ([1, 2, 3, 4], {}),
        ([1, 2, 4], {"lost": 1}),
        ([1, 2, 2, 3], {"repeated": 1}),
        ([1, 3, 2, 4], {"out_of_order": 1}),
        ([1, 5, 3, 3, 6], {"lost": 2, "out_of_order": 1, "repeated": 1}),
        ([0], {"repeated": 1}),
        ([100], {"lost": 99}),
    ],
)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_fault_is_told_apart(driver: Driver, transport: str, offsets: list[int], found: dict[str, int]) -> None:
    _, session = driver.connect(A, transport=transport)
    deliver(driver, session, *map(message, offsets))
    assert faults(driver) == found


@pytest.mark.parametrize("data", [b"", b"x" * 60, "text", None, stamp.write(60, 1, 2, 3)[:-1] + b"#", [b"y"]])
def test_a_payload_that_nobody_stamped_so_is_corrupt(driver: Driver, data: object) -> None:
    _, session = driver.connect(A)
    deliver(driver, session, [MESSAGE, A, 1, data, {}])
    assert faults(driver) == {"corrupt": 1}


def test_channels_that_were_not_joined_are_counted_but_not_judged(driver: Driver) -> None:
    _, session = driver.connect(A)
    deliver(driver, session, message(7, "user:alice"), message(9, "user:alice"), message(1))
    assert faults(driver) == {"unchecked": 2}


def test_two_groups_of_one_connection_are_counted_apart(driver: Driver) -> None:
    _, session = driver.connect(A, "group:b")
    deliver(driver, session, message(1), message(1, "group:b"), message(2), message(2, "group:b"))
    assert faults(driver) == {}


def test_a_lost_tail_is_found_by_what_an_answer_told(driver: Driver) -> None:
    handle, session = driver.connect(A)
    driver.publish(handle, A)
    session.send([REPLY, session.frame()[1], {"epoch": 5, "offset": 1}])
    driver.expect(PUBLISHED)
    assert driver.audit() == (1, 0, 1)
    assert faults(driver) == {}
    assert driver.audit(final=True) == (1, 0, 1)
    assert faults(driver) == {"lost": 1}
    assert driver.audit() == (0, 0, 1)


def test_a_lost_tail_is_found_by_what_another_member_got(driver: Driver) -> None:
    _, first = driver.connect(A)
    driver.connect(A)
    deliver(driver, first, message(1), message(2))
    assert driver.audit(final=True)[0] == 2
    assert faults(driver) == {"lost": 2}


def test_a_gap_that_the_server_tells_of_is_not_lost_in_silence(driver: Driver) -> None:
    _, session = driver.connect(A)
    deliver(driver, session, message(1))
    session.send([EVENT, A, "gap", {"from": 2, "to": 5, "reason": "trimmed"}], [EVENT, A, "joined", {}])
    driver.wait_count("events", 2)
    deliver(driver, session, message(6))
    assert faults(driver) == {"told_gaps": 4}


def test_what_a_gap_leaves_out_is_lost(driver: Driver) -> None:
    _, session = driver.connect(A)
    session.send([EVENT, A, "gap", {"from": 4, "to": 5}])
    driver.wait_count("events", 1)
    assert faults(driver) == {"told_gaps": 2, "lost": 3}


def test_a_later_epoch_may_begin_anew(driver: Driver) -> None:
    _, session = driver.connect(A)
    deliver(driver, session, message(1), message(2), message(1, epoch=6), message(2, epoch=6), message(2, epoch=6))
    assert faults(driver) == {"repeated": 1}
    assert driver.audit()[0] == 0


def test_a_message_may_overtake_the_answer_to_join(driver: Driver) -> None:
    handle, session = driver.connect()
    driver.command("join", handle, A)
    number = session.frame()[1]
    session.send(message(8), [REPLY, number, {"epoch": 5, "offset": 7, "outcome": "live"}], message(9))
    driver.expect(JOINED)
    driver.wait_count("delivered", 2)
    assert faults(driver) == {}


def test_leaving_a_channel_ends_the_check_with_the_answer(driver: Driver) -> None:
    handle, session = driver.connect(A)
    driver.command("leave", handle, A)
    kind, number, name = session.frame()
    assert (kind, name) == (LEAVE, A)
    session.send(message(1), [REPLY, number, {}], message(9))
    driver.wait_count("delivered", 2)
    assert faults(driver) == {"unchecked": 1}


def test_a_refused_publish_says_why(driver: Driver) -> None:
    handle, session = driver.connect(A)
    driver.publish(handle, A)
    session.send([ERROR, session.frame()[1], 403, "too many messages", {"retry_after": 250}])
    publish = client_loop.REQUESTS.index("publish")
    assert driver.expect(REFUSED) == (handle, 403, publish, 250, "too many messages")
    assert (driver.count("refused"), driver.count("publish_refused"), driver.count("accepted")) == (1, 1, 0)


def test_a_refused_join_leaves_no_membership(driver: Driver) -> None:
    handle, session = driver.connect()
    driver.command("join", handle, A)
    session.send([ERROR, session.frame()[1], 404, "leave one first", {}])
    assert driver.expect(REFUSED)[1:3] == (404, client_loop.REQUESTS.index("join"))
    assert driver.live("membership") == 0


def test_an_answer_to_nothing_changes_nothing(driver: Driver) -> None:
    _, session = driver.connect(A)
    session.send([REPLY, 77, {"offset": 1000}], [ERROR, 78, 400, "no", {}], [FIN_ACK], [99], message(1))
    driver.wait_count("delivered", 1)
    assert faults(driver) == {}
    assert driver.count("refused") == 0
    assert driver.audit() == (0, 0, 1)


def test_a_request_without_an_answer_is_overdue(drivers: type[Driver]) -> None:
    driver = drivers(request_timeout_ms=100)
    handle, session = driver.connect(A)
    driver.publish(handle, A)
    session.frame()
    assert driver.expect(REFUSED)[4] == "no answer in time"
    assert (driver.count("overdue"), driver.live("request")) == (1, 0)


# ---- heartbeats


def quick(driver: Driver, *channels: str, misses: int = 100) -> Session:
    """A session with heartbeats every 200 ms."""
    driver.open(*channels, tcp=True)
    session = driver.accept(tcp=True)
    session.welcome(ping=0.2, misses=misses)
    driver.expect(CONNECTED)
    for channel in channels:
        session.joined(channel)
        driver.expect(JOINED)
    return session


def test_a_ping_is_echoed_as_it_is(driver: Driver) -> None:
    _, session = driver.connect()
    session.send([PING, 9, 1234567890123], [PING, 1 << 60, 1.5])
    assert [session.frame(), session.frame()] == [[PONG, 9, 1234567890123], [PONG, 1 << 60, 1.5]]
    assert driver.count("pings") == 2


def test_silence_is_filled_with_pings_that_count_up(driver: Driver) -> None:
    session = quick(driver)
    frames = [session.frame() for _ in range(3)]
    assert [frame[:2] for frame in frames] == [[PING, 1], [PING, 2], [PING, 3]]
    session.send([PONG, 1, frames[0][2]])
    driver.wait_count("pongs", 1)


def test_what_came_is_acknowledged_within_a_heartbeat(driver: Driver) -> None:
    session = quick(driver, A, "group:b")
    session.send(message(1), message(2), message(1, "group:b"))
    assert session.frame() == [ACK, {A: 2, "group:b": 1}]
    assert session.frame()[0] == PING  # nothing new since


def test_a_silent_server_is_gone(driver: Driver) -> None:
    quick(driver, misses=2)
    assert driver.expect(FAILED)[4] == "the server was silent for too long"


# ---- ends, and coming back


def test_closing_says_fin_and_counts_what_comes_before_the_answer(driver: Driver) -> None:
    handle, session = driver.connect(A)
    driver.command("close", handle)
    assert session.frame() == [FIN, 0, "bye", {}]
    session.send(message(1), [FIN_ACK])
    assert driver.expect(CLOSED)[0] == handle
    assert (driver.count("delivered"), driver.count("left"), driver.count("failed")) == (1, 1, 0)
    assert session.frame() is None


def test_an_unanswered_fin_has_a_deadline(drivers: type[Driver]) -> None:
    driver = drivers(fin_timeout_ms=100)
    handle, _ = driver.connect()
    driver.command("close", handle)
    assert driver.expect(FAILED)[4] == "no FIN_ACK in time"
    assert driver.expect(CLOSED)[0] == handle


def test_a_fin_of_the_server_is_acknowledged_and_told(driver: Driver) -> None:
    handle, session = driver.connect(A)
    session.send([FIN, 1, "draining", {"class": "resume", "after": 1500}])
    assert driver.expect(FAILED) == (handle, 1, 1500, 0, "draining")
    assert session.frame() == [FIN_ACK]
    session.close()
    driver.wait_count("failed", 1)
    driver.command("close", handle)
    assert driver.expect(CLOSED)[0] == handle


def test_on_tcp_the_client_closes_first_after_its_fin_ack(driver: Driver) -> None:
    handle, session = driver.connect(A, transport="tcp")
    session.send([FIN, 1, "draining", {"class": "resume", "after": 1500}])
    driver.expect(FAILED)
    assert session.frame() == [FIN_ACK]
    assert session.frame() is None
    session.close()
    driver.command("close", handle)
    assert driver.expect(CLOSED)[0] == handle


def test_crossing_fins_end_in_order(driver: Driver) -> None:
    handle, session = driver.connect()
    driver.command("close", handle)
    assert session.frame()[0] == FIN
    session.send([FIN, 1, "draining", {}])
    assert session.frame() == [FIN_ACK]
    session.close()
    assert driver.expect(CLOSED)[0] == handle
    assert (driver.count("left"), driver.count("failed")) == (1, 0)


def pause(driver: Driver, handle: int, session: Session) -> None:
    driver.command("pause", handle)
    assert session.frame() == [FIN, 1, "draining", {}]
    session.send([FIN_ACK])
    assert driver.expect(PAUSED)[0] == handle


def come_back(driver: Driver, handle: int) -> Session:
    driver.command("reconnect", handle)
    session = driver.accept(tcp=True)
    return session


def test_a_resumed_session_goes_on_where_it_was(driver: Driver) -> None:
    handle, session = driver.connect(A, transport="tcp", resumable=True)
    deliver(driver, session, message(1), message(2))
    pause(driver, handle, session)
    session = come_back(driver, handle)
    asked = session.welcome(resumed=True, channels={"user:alice": [5, 0, "live"], A: [5, 4, "replayed"]})
    assert asked == {"v": 1, "session": "s1", "token": "r1", "resume": {A: [5, 2]}}
    assert driver.expect(CONNECTED)[2] == 1
    deliver(driver, session, message(3), message(4), message(5))
    assert faults(driver) == {}
    assert (driver.count("resumed"), driver.count("joined"), driver.count("missed_away")) == (1, 1, 0)


def test_a_session_that_is_gone_begins_afresh_and_catches_up(driver: Driver) -> None:
    handle, session = driver.connect(A, transport="tcp", resumable=True)
    deliver(driver, session, message(1))
    pause(driver, handle, session)
    session = come_back(driver, handle)
    assert session.frame()[2]["session"] == "s1"
    session.send([FIN, 201, "session_expired", {"class": "fresh"}])
    assert driver.expect(FAILED)[1] == 201
    assert session.frame() == [FIN_ACK]
    session.close()
    driver.wait_count("failed", 1)
    session = come_back(driver, handle)
    assert "session" not in session.welcome()
    assert driver.expect(CONNECTED)[2] == 0
    kind, number, channel, *_ = session.frame()
    assert (kind, channel) == (JOIN, A)
    session.send([REPLY, number, {"epoch": 5, "offset": 3, "outcome": "live"}])
    deliver(driver, session, message(4))
    assert faults(driver) == {}
    assert (driver.count("resumed"), driver.count("missed_away")) == (0, 2)


def test_a_resumed_channel_that_is_not_replayed_in_full_is_found(driver: Driver) -> None:
    handle, session = driver.connect(A, transport="tcp", resumable=True)
    deliver(driver, session, message(1))
    pause(driver, handle, session)
    session = come_back(driver, handle)
    session.welcome(resumed=True, channels={A: [5, 3, "live"]})
    driver.expect(CONNECTED)
    assert driver.audit(final=True)[0] == 2
    assert faults(driver) == {"lost": 2}


def test_a_reset_channel_begins_where_the_server_says(driver: Driver) -> None:
    handle, session = driver.connect(A, transport="tcp", resumable=True)
    deliver(driver, session, *map(message, range(1, 9)))
    pause(driver, handle, session)
    session = come_back(driver, handle)
    session.welcome(resumed=True, channels={A: [6, 2, "reset"]})
    driver.expect(CONNECTED)
    deliver(driver, session, message(3, epoch=6))
    assert faults(driver) == {}
    assert driver.audit()[0] == 0


def test_a_session_that_cannot_be_resumed_is_begun_afresh_on_the_same_connection(driver: Driver) -> None:
    handle, session = driver.connect(A, transport="tcp", resumable=True)
    deliver(driver, session, message(1))
    pause(driver, handle, session)
    session = come_back(driver, handle)
    kind, number, asked = session.frame()
    assert (kind, asked["session"]) == (HELLO, "s1")
    session.send([ERROR, number, 406, "replay is not served", {}])
    assert session.welcome() == {"v": 1, "user": "alice"}
    assert driver.expect(CONNECTED)[2] == 0
    session.joined(A, offset=9)
    driver.expect(JOINED)
    deliver(driver, session, message(10))
    assert faults(driver) == {}
    assert (driver.count("missed_away"), driver.count("refused")) == (8, 0)


def test_a_session_that_is_not_kept_joins_again(driver: Driver) -> None:
    handle, session = driver.connect(A, transport="tcp")
    driver.command("pause", handle)
    assert session.frame() == [FIN, 0, "bye", {}]
    session.send([FIN_ACK])
    driver.expect(PAUSED)
    session = come_back(driver, handle)
    assert session.welcome() == {"v": 1, "user": "alice"}
    driver.expect(CONNECTED)
    assert session.frame()[0::2] == [JOIN, A]
