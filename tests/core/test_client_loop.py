"""The client thread's face: commands in, events out, totals, and clear refusals."""

import os
import select
from typing import Any

import pytest

from core import client_loop
from core.client_loop import COUNTS, REQUESTS, TIMES, ClientLoop
from core.ledger import Stats
from tests.core.client_harness import Driver

ENDPOINT = ("127.0.0.1", 9)


@pytest.mark.parametrize(
    ("endpoints", "options", "match"),
    [
        ([], {}, "1 to 16 endpoints, not 0"),
        ([ENDPOINT] * 17, {}, "1 to 16 endpoints, not 17"),
        ([ENDPOINT], {"path": "/" + "x" * 300}, "path has more than 255 bytes"),
        ([ENDPOINT], {"source": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(
    endpoints: list[tuple[str, int]], options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        ClientLoop(Stats(), endpoints, connections_max=1, **options)


def test_a_host_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(OSError, match=r"\[Errno"):
        ClientLoop(Stats(), [("host.invalid", 1)], connections_max=1)


def test_wrong_commands_are_refused(driver: Driver) -> None:
    handle = driver.open()
    with pytest.raises(ValueError, match="either user or token"):
        driver.loop.open()
    with pytest.raises(ValueError, match="either user or token"):
        driver.loop.open(user="a", token="b")
    with pytest.raises(ValueError, match="no endpoint 1"):
        driver.loop.open(user="a", endpoint=1)
    with pytest.raises(ValueError, match="none of them 0"):
        driver.loop.open(user="a\0b")
    with pytest.raises(ValueError, match="24 to 60000 bytes, not 23"):
        driver.loop.publish(handle, "group:a", 23)


def test_the_table_has_its_bound(drivers: type[Driver]) -> None:
    driver = drivers(connections_max=2)
    driver.open()
    driver.open()
    with pytest.raises(BufferError, match="all 2 handles are in use"):
        driver.open()


def test_commands_wait_for_the_flush_and_leave_in_one_batch(driver: Driver) -> None:
    handle, session = driver.connect("group:a")
    wakeups = driver.stats.read()["counters"]["wakeups"]
    for _ in range(100):
        driver.loop.publish(handle, "group:a", 40)
    driver.loop.flush()
    for _ in range(100):
        assert session.frame()[0] == 8
    # The batch is one wake-up; the heartbeat's tick may have come in between.
    assert driver.stats.read()["counters"]["wakeups"] - wakeups < 50


def test_the_event_fd_is_readable_while_there_is_something_to_take(driver: Driver) -> None:
    assert not select.select([driver.loop.event_fd], [], [], 0)[0]
    driver.loop.audit()
    driver.loop.flush()
    assert select.select([driver.loop.event_fd], [], [], 10)[0]
    assert [found[0] for found in driver.loop.take()] == [client_loop.AUDITED]
    assert not select.select([driver.loop.event_fd], [], [], 0)[0]
    assert driver.loop.take() == []


def test_requests_are_told_only_if_wanted(drivers: type[Driver]) -> None:
    driver = drivers(tell_requests=False)
    handle = driver.open("group:a", tcp=True)
    session = driver.accept(tcp=True)
    session.welcome()
    driver.expect(client_loop.CONNECTED)
    session.joined("group:a")
    driver.wait_count("joined", 1)
    driver.publish(handle, "group:a")
    session.send([2, session.frame()[1], {"epoch": 5, "offset": 1}])
    driver.wait_count("accepted", 1)
    assert driver.audit()[1:] == (0, 1)  # the next thing told


def test_counts_and_times_have_their_names(driver: Driver) -> None:
    assert driver.loop.counts() == dict.fromkeys((*COUNTS, "open"), 0)
    assert driver.loop.times() == {name: [] for name in TIMES}
    assert REQUESTS == ("hello", "join", "leave", "publish", "history", "catch_up")
    driver.connect("group:a")
    assert driver.loop.sockets == 1
    counted = driver.loop.counts()
    assert (counted["connected"], counted["joined"], counted["open"]) == (1, 1, 1)


def test_a_loop_that_never_ran_gives_back_what_it_has() -> None:
    before = len(os.listdir("/proc/self/fd"))
    loop = ClientLoop(Stats(), [ENDPOINT], connections_max=10)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del loop
    assert len(os.listdir("/proc/self/fd")) == before
