"""However and whenever a client's connection ends, all that went with it is given back and its handle goes."""

from collections.abc import Callable

import pytest

from core import client_loop
from core.client_loop import CLOSED, FAILED, PAUSED
from tests.core.client_harness import FIN, FIN_ACK, Driver, wait_for

KINDS = ("fd", "timer", "ring", "buffer", "request")


def queued(driver: Driver) -> int:
    """Waiting for its turn: the pace has let the first one go."""
    driver.open(tcp=True)
    driver.accept(tcp=True)
    return driver.open(tcp=True)


def upgrading(driver: Driver) -> int:
    handle = driver.open()
    driver.accept()
    wait_for(lambda: driver.count("bytes_out") > 0, "the request")
    return handle


def greeting(driver: Driver) -> int:
    handle = driver.open(tcp=True)
    assert driver.accept(tcp=True).frame()[0] == 0
    return handle


def half_read(driver: Driver) -> int:
    handle, session = driver.connect("group:a")
    session.raw(b"\x82\x7e\x01\x00abc")
    wait_for(lambda: driver.live("ring") == 1, "a partial frame")
    return handle


def asking(driver: Driver) -> int:
    handle, _ = driver.connect("group:a")
    driver.publish(handle, "group:a")
    driver.publish(handle, "group:a")
    return handle


def leaving(driver: Driver) -> int:
    handle, session = driver.connect("group:a")
    driver.command("pause", handle)
    assert session.frame()[0] == FIN
    return handle


STAGES = [queued, upgrading, greeting, half_read, asking, leaving]


@pytest.mark.parametrize("stage", STAGES)
def test_stopping_in_any_stage_gives_everything_back(drivers: type[Driver], stage: Callable[[Driver], int]) -> None:
    stage(drivers(connect_rate=1 if stage is queued else 0))


@pytest.mark.parametrize("stage", STAGES)
def test_closing_in_any_stage_ends_the_handle(drivers: type[Driver], stage: Callable[[Driver], int]) -> None:
    driver = drivers(connect_rate=2 if stage is queued else 0)
    handle = stage(driver)
    driver.command("close", handle)
    if stage in (half_read, asking, leaving):
        driver.sessions[-1].close()
    while driver.expect_any()[0] != CLOSED:
        continue
    if stage is not queued:
        assert {kind: driver.live(kind) for kind in KINDS} == dict.fromkeys(KINDS, 0)
        assert driver.live("connection") == 0


def test_who_leaves_gives_up_what_it_asked_but_not_what_it_published(driver: Driver) -> None:
    handle, session = driver.connect("group:a")
    driver.command("join", handle, "group:b")
    session.frame()
    driver.command("pause", handle)
    assert session.frame()[0] == FIN
    session.close()
    assert driver.expect(PAUSED)[0] == handle
    assert driver.count("unanswered") == 0
    other, session = driver.connect("group:a")
    driver.publish(other, "group:a")
    session.frame()
    driver.command("pause", other)
    assert session.frame()[0] == FIN
    session.close()
    assert driver.expect(PAUSED)[0] == other
    assert (driver.count("unanswered"), driver.count("failed")) == (1, 0)


def test_a_broken_connection_is_kept_until_python_has_decided(driver: Driver) -> None:
    handle, session = driver.connect("group:a")
    driver.publish(handle, "group:a")
    session.frame()
    session.close()
    assert driver.expect(FAILED)[0] == handle
    assert (driver.count("unanswered"), driver.count("failed")) == (1, 1)
    assert {kind: driver.live(kind) for kind in KINDS} == dict.fromkeys(KINDS, 0)
    assert (driver.live("connection"), driver.live("membership")) == (1, 1)
    driver.command("reconnect", handle)
    again = driver.accept()
    again.upgrade()
    again.welcome()
    driver.expect(client_loop.CONNECTED)
    again.joined("group:a", offset=3)
    driver.expect(client_loop.JOINED)


def test_a_handle_is_never_given_twice(drivers: type[Driver]) -> None:
    driver = drivers(connections_max=1)
    seen = set()
    for _ in range(5):
        handle, session = driver.connect()
        seen.add(handle)
        driver.command("close", handle)
        session.frame()
        session.send([FIN_ACK])
        driver.expect(CLOSED)
    assert len(seen) == 5
    handle, session = driver.connect("group:a")
    for old in seen:
        driver.publish(old, "group:a")
        driver.command("close", old)
    driver.publish(handle, "group:a")
    assert session.frame()[0] == 8
    assert driver.audit() == (0, 1, 1)


def test_pausing_one_that_is_away_and_reconnecting_one_that_is_open_do_nothing(driver: Driver) -> None:
    handle, session = driver.connect()
    driver.command("reconnect", handle)
    driver.command("pause", handle)
    session.frame()
    session.send([FIN_ACK])
    driver.expect(PAUSED)
    driver.command("pause", handle)
    driver.command("leave", handle, "group:a")
    driver.command("history", handle, "group:a")
    assert driver.audit() == (0, 0, 0)
    assert driver.count("connected") == 1
