"""HISTORY as a client asks for it: what was missed while away is caught up page by page, or counted as lost."""

from typing import Any

import pytest

from core import client_loop
from core.client_loop import CONNECTED, FAILED, JOINED, REFUSED
from tests.core.client_harness import ERROR, FIN, HISTORY, JOIN, MESSAGE, REPLY, Driver, Session
from tests.core.test_client_session import A, deliver, faults, message


def back_after(driver: Driver, *, offset: int, epoch: int = 5) -> tuple[int, Session]:
    """Had offset 1 of the group, was cut off, came back as somebody new, and joined at `offset`."""
    handle, session = driver.connect(A, transport="tcp")
    deliver(driver, session, message(1))
    return handle, cut_and_back(driver, handle, session, offset, epoch)


def cut_and_back(driver: Driver, handle: int, session: Session, offset: int, epoch: int = 5) -> Session:
    session.close()
    driver.expect(FAILED)
    driver.command("reconnect", handle)
    session = driver.accept(True)
    session.welcome()
    driver.expect(CONNECTED)
    session.joined(A, offset=offset, epoch=epoch)
    driver.expect(JOINED)
    return session


def asked(session: Session) -> tuple[int, Any]:
    """Number and options of the HISTORY that comes next."""
    kind, number, channel, options = session.frame()
    assert (kind, channel) == (HISTORY, A)
    return number, options


@pytest.fixture
def catching(drivers: type[Driver]) -> Driver:
    return drivers(catch_up=True)


def test_what_was_missed_is_asked_for_and_counted(catching: Driver) -> None:
    _, session = back_after(catching, offset=4)
    number, options = asked(session)
    assert options == {"since": [5, 1], "limit": 256}
    session.send([REPLY, number, {"messages": [message(2), message(3), message(4)], "epoch": 5, "offset": 4}])
    deliver(catching, session, message(5))
    assert [catching.count(name) for name in ("missed_away", "caught_up", "delivered")] == [3, 3, 2]
    assert faults(catching) == {}
    assert catching.audit() == (0, 0, 1)


def test_a_page_that_is_not_all_is_followed_by_the_next(catching: Driver) -> None:
    _, session = back_after(catching, offset=6)
    session.send([REPLY, asked(session)[0], {"messages": [message(2), message(3)], "epoch": 5, "offset": 6}])
    number, options = asked(session)
    assert options["since"] == [5, 3]
    # What is beyond the place where JOIN put it comes live as well: it is not of this account.
    found = [message(offset) for offset in range(4, 9)]
    session.send([REPLY, number, {"messages": found, "epoch": 5, "offset": 8}])
    catching.wait_count("caught_up", 5)
    assert faults(catching) == {}
    assert catching.audit() == (0, 0, 1)


@pytest.mark.parametrize(
    ("offsets", "caught_up", "lost"), [([], 0, 4), ([4, 5], 2, 2), ([2, 5], 2, 2), ([2, 3, 5], 3, 1), ([1, 6], 0, 4)]
)
def test_what_history_has_no_more_is_lost(catching: Driver, offsets: list[int], caught_up: int, lost: int) -> None:
    _, session = back_after(catching, offset=5)
    session.send([REPLY, asked(session)[0], {"messages": list(map(message, offsets)), "epoch": 5, "offset": 5}])
    catching.wait_count("lost", lost)
    assert catching.count("caught_up") == caught_up
    assert catching.audit() == (0, 0, 1)


def test_a_kept_message_that_nobody_stamped_so_is_corrupt(catching: Driver) -> None:
    _, session = back_after(catching, offset=2)
    session.send([REPLY, asked(session)[0], {"messages": [message(2, data=b"?")], "epoch": 5, "offset": 2}])
    catching.wait_count("corrupt", 1)
    assert catching.count("caught_up") == 1


def test_a_refused_history_loses_what_it_was_asked_for(catching: Driver) -> None:
    _, session = back_after(catching, offset=3)
    session.send([ERROR, asked(session)[0], 5, "not now", {"retry_after": 10}])
    assert catching.expect(REFUSED)[2] == client_loop.REQUESTS.index("catch_up")
    assert faults(catching) == {"lost": 2}


def test_a_channel_that_was_left_meanwhile_owes_nothing(catching: Driver) -> None:
    handle, session = back_after(catching, offset=3)
    number, _ = asked(session)
    catching.command("leave", handle, A)
    session.send([REPLY, session.frame()[1], {}], [ERROR, number, 402, "join the group first", {}])
    session.send([MESSAGE, "user:alice", 1, b"", {}])
    catching.wait_count("unchecked", 1)
    assert (faults(catching), catching.audit()) == ({"unchecked": 1}, (0, 0, 1))


def test_whoever_is_cut_off_meanwhile_asks_again(catching: Driver) -> None:
    handle, session = back_after(catching, offset=3)
    asked(session)
    deliver(catching, session, message(4))
    session = cut_and_back(catching, handle, session, offset=4)
    number, options = asked(session)
    assert options["since"] == [5, 1]
    session.send([REPLY, number, {"messages": [message(2), message(3), message(4)], "epoch": 5, "offset": 4}])
    catching.wait_count("caught_up", 3)
    assert (faults(catching), catching.count("unanswered")) == ({}, 0)


def test_nothing_is_asked_of_another_epoch_or_unless_told(drivers: type[Driver]) -> None:
    for catch_up, epoch in ((True, 6), (False, 5)):
        driver = drivers(catch_up=catch_up)
        handle, session = back_after(driver, offset=4, epoch=epoch)
        driver.command("leave", handle, A)
        assert session.frame()[0] == 7, "LEAVE comes next, no HISTORY before it"
        assert faults(driver) == {}


def test_a_message_that_overtakes_the_answer_to_join_begins_the_membership(catching: Driver) -> None:
    handle, session = catching.connect(A, transport="tcp")
    deliver(catching, session, message(1))
    session.send([FIN, 1, "draining", {"class": "resume", "after": 0}])
    catching.expect(FAILED)
    assert session.frame() == [15]
    assert session.frame() is None, "the client ends its direction first"
    session.close()
    catching.command("reconnect", handle)
    session = catching.accept(True)
    session.welcome()
    catching.expect(CONNECTED)
    assert session.frame()[0::2][0] == JOIN
    session.send([MESSAGE, *message(4)[1:]])
    number, options = asked(session)
    assert options["since"] == [5, 1]
    session.send([REPLY, number, {"messages": [message(2), message(3)], "epoch": 5, "offset": 4}])
    catching.wait_count("caught_up", 2)
    assert faults(catching) == {}


def test_a_plain_history_is_counted_but_not_judged(driver: Driver) -> None:
    handle, session = driver.connect(A)
    driver.command("history", handle, A)
    kind, number, channel, options = session.frame()
    assert (kind, channel, options) == (HISTORY, A, {"limit": 20, "reverse": True})
    session.send([REPLY, number, {"messages": [message(9)], "epoch": 5, "offset": 9}])
    driver.wait_count("histories", 1)
    assert driver.loop.times()["history"]
    assert faults(driver) == {}
