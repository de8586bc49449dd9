"""The client's tables: small, bounded, and given back."""

import pytest

from core.client import MEMORY
from core.client_loop import REFUSED
from tests.core.client_harness import Driver, wait_for

MEMBERS_MAX = 200
# What malloc adds to the memberships and to the name, and the entry in the table of handles.
ALLOCATOR_BYTES = 2 * 32 + 8


def test_an_idle_joined_connection_takes_less_than_300_bytes() -> None:
    assert MEMORY["connection"] + MEMORY["member"] + ALLOCATOR_BYTES < 300


def test_members_of_a_channel_share_it(driver: Driver) -> None:
    first, _ = driver.connect("group:a")
    driver.connect("group:a", "group:b")
    assert (driver.live("channel"), driver.live("membership")) == (2, 3)
    driver.command("close", first)
    wait_for(lambda: driver.live("membership") == 3, "FIN waits for its answer")
    driver.sessions[0].frame()
    driver.sessions[0].send([15])
    wait_for(lambda: driver.live("membership") == 2, "one connection less")
    assert driver.live("channel") == 2


def test_joining_twice_is_one_membership(driver: Driver) -> None:
    handle, session = driver.connect("group:a")
    driver.command("join", handle, "group:a")
    session.joined("group:a", offset=7)
    wait_for(lambda: driver.count("joined") == 2, "the second answer")
    assert driver.live("membership") == 1


def test_a_connection_joins_so_many_channels_and_no_more(driver: Driver) -> None:
    driver.open(*(f"group:{number}" for number in range(MEMBERS_MAX + 1)))
    _, code, _, _, text = driver.expect(REFUSED)
    assert (code, text) == (0, "too many channels of one connection")
    wait_for(lambda: driver.live("membership") == MEMBERS_MAX, "the bound")


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_channel_without_a_sensible_name_is_refused(driver: Driver, name: str) -> None:
    handle = driver.open()
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        driver.loop.join(handle, name)


def test_a_channel_outlives_its_members_while_a_request_names_it(driver: Driver) -> None:
    handle, session = driver.connect("group:a")
    driver.publish(handle, "group:a")
    number = session.frame()[1]
    driver.command("leave", handle, "group:a")
    session.send([2, session.frame()[1], {}])
    wait_for(lambda: driver.live("membership") == 0, "left")
    assert driver.live("channel") == 1
    session.send([2, number, {"epoch": 5, "offset": 1}])
    wait_for(lambda: driver.live("channel") == 0, "the answer lets it go")
    assert driver.count("accepted") == 1
