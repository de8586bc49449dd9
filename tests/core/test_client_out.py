"""What a client sends: in order, masked, whole, and with a bound on what the server leaves unread."""

import pytest

from core import client_loop, stamp
from core.client_loop import FAILED
from tests.core.client_harness import PUBLISH, TRANSPORTS, Driver, wait_for

LARGE = stamp.PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [24, 25, 90, 100, 130, 65_000 - 5_100, LARGE])
def test_payloads_of_every_length_class_arrive_unchanged(driver: Driver, transport: str, size: int) -> None:
    handle, session = driver.connect("group:a", transport=transport)
    driver.loop.publish(handle, "group:a", size, intended_ns=12345)
    driver.loop.flush()
    kind, _, channel, payload, options = session.frame()
    assert (kind, channel, options, len(payload)) == (PUBLISH, "group:a", {}, size)
    assert stamp.read(payload) == (12345, handle & 0xFFFFFFFF, 0)


def test_commands_of_many_connections_keep_their_order_in_each(driver: Driver) -> None:
    pairs = [driver.connect("group:a") for _ in range(3)]
    for number in range(50):
        for handle, _ in pairs:
            driver.loop.publish(handle, "group:a", 24 + number)
    driver.loop.flush()
    for _, session in pairs:
        frames = [session.frame() for _ in range(50)]
        assert [len(frame[3]) for frame in frames] == list(range(24, 74))
        assert [stamp.read(frame[3])[2] for frame in frames] == list(range(50))  # type: ignore[index]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_the_socket_does_not_take_follows_later(driver: Driver, transport: str) -> None:
    handle, session = driver.connect("group:a", transport=transport)
    for _ in range(200):
        driver.loop.publish(handle, "group:a", LARGE)
    driver.loop.flush()
    wait_for(lambda: driver.live("buffer") == 1, "a backlog")
    for number in range(200):
        found = stamp.read(session.frame()[3])
        assert found is not None
        assert found[2] == number
    wait_for(lambda: driver.live("buffer") == 0, "the backlog is gone")
    driver.publish(handle, "group:a")
    assert stamp.read(session.frame()[3])[2] == 200  # type: ignore[index]


def test_a_server_that_reads_nothing_is_given_up(driver: Driver) -> None:
    handle, _ = driver.connect("group:a")
    for _ in range(400):
        driver.loop.publish(handle, "group:a", LARGE)
    driver.loop.flush()
    assert driver.expect(FAILED) == (handle, 0, 0, 0, "the server does not read what is sent to it")
    assert driver.live("buffer") == 0


def test_a_publish_without_its_session_or_membership_is_held_back(driver: Driver) -> None:
    handle = driver.open("group:a")
    driver.publish(handle, "group:a")
    driver.wait_count("held_back", 1)
    session = driver.accept()
    session.upgrade()
    session.welcome()
    driver.expect(client_loop.CONNECTED)
    driver.publish(handle, "group:a")
    driver.wait_count("held_back", 2)
    session.joined("group:a")
    driver.expect(client_loop.JOINED)
    driver.publish(handle, "group:a")
    assert session.frame()[0] == PUBLISH
    assert driver.count("published") == 1
