"""The wide area between regions: it takes as long as it is told to, loses what it counts, and what is cut is cut."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chaos.namespace import enter
from tests.chaos.switch import Machine, why_not
from tests.chaos.wan import Kind, Wan, running_wan

PORT, BUS_PORT = 7_000, 7_410
DEADLINE_S = 20.0
REGIONS = ("eu", "us", "ap")
ROUND_TRIPS_MS = {("eu", "us"): 40.0, ("eu", "ap"): 40.0, ("us", "ap"): 80.0}
LOST_PER_MILLE, SENT = 1, 30_000
SLACK_MS = 15.0
"""Of the median of ten, on a machine that has other things to do."""
BULK_BYTES = 4 << 20

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def wan() -> Iterator[Wan]:
    if reason := why_not():
        pytest.skip(reason)
    with running_wan(*REGIONS) as made:
        for (one, other), round_trip_ms in ROUND_TRIPS_MS.items():
            made.delay(one, other, round_trip_ms)
        yield made
        made.check()


@pytest.fixture(autouse=True)
def fair(wan: Wan) -> Iterator[None]:
    yield
    wan.heal()
    wan.lose(0)


def inside(machine: Machine, make: Callable[[], Any]) -> Any:
    """What `make` makes, in a namespace."""
    made: list[Any] = []

    def run() -> None:
        enter(machine.name)
        made.append(make())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE_S)
    return made[0]


def mouth(machine: Machine, kind: int) -> socket.socket:
    made: socket.socket = inside(machine, lambda: socket.socket(socket.AF_INET, kind))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(DEADLINE_S)
    return made


@pytest.fixture
def mouths(wan: Wan) -> Iterator[dict[str, socket.socket]]:
    """Of datagrams, one a region."""
    made = {name: mouth(wan.add(name, "a"), socket.SOCK_DGRAM) for name in REGIONS}
    for name, one in made.items():
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        one.bind((wan.add(name, "a").host, PORT))
    yield made
    for one in made.values():
        one.close()


@contextlib.contextmanager
def connected(wan: Wan, one: str, other: str, port: int = PORT) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection from one region to another."""
    with (
        mouth(wan.add(other, "a"), socket.SOCK_STREAM) as listener,
        mouth(wan.add(one, "a"), socket.SOCK_STREAM) as near,
    ):
        listener.bind((wan.add(other, "a").host, port))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        far.settimeout(DEADLINE_S)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with far:
            yield near, far


def round_trip_ms(near: socket.socket, far: socket.socket) -> float:
    began = time.monotonic()
    near.sendall(b"?")
    assert far.recv(1) == b"?"
    far.sendall(b"!")
    assert near.recv(1) == b"!"
    return (time.monotonic() - began) * 1000


@pytest.mark.parametrize("pair", ROUND_TRIPS_MS)
def test_a_round_trip_takes_what_it_is_to_take(wan: Wan, pair: tuple[str, str]) -> None:
    with connected(wan, *pair) as (near, far):
        found_ms = statistics.median(round_trip_ms(near, far) for _ in range(10))
    assert ROUND_TRIPS_MS[pair] <= found_ms < ROUND_TRIPS_MS[pair] + SLACK_MS


def test_inside_of_a_region_and_from_here_nothing_is_delayed(wan: Wan) -> None:
    near, far = wan.add("eu", "a"), wan.add("eu", "b")
    before = wan.crossed()
    with mouth(far, socket.SOCK_DGRAM) as ear, mouth(near, socket.SOCK_DGRAM) as own:
        ear.bind((far.host, PORT))
        own.sendto(b"near", (far.host, PORT))
        assert ear.recv(100) == b"near"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"from here", (far.host, PORT))
            assert ear.recv(100) == b"from here"
    assert wan.crossed() == before


def test_loss_is_what_it_is_said_to_be_and_counted(wan: Wan, mouths: dict[str, socket.socket]) -> None:
    """Each datagram either comes or is counted as lost; and so many are as chance has it."""
    eu, us = mouths["eu"], mouths["us"]
    wan.lose(LOST_PER_MILLE)
    came = 0
    for number in range(SENT):
        eu.sendto(b"x", us.getsockname())
        if number % 200 == 199:  # no queue on the way overflows
            us.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while us.recv(1):
                    came += 1
    us.settimeout(DEADLINE_S)
    while came + wan.lost() < SENT:
        came += len(us.recv(1))
    expected = SENT * LOST_PER_MILLE / 1_000
    assert expected / 3 < wan.lost() < expected * 3


def test_much_at_once_is_not_held_up(wan: Wan) -> None:
    """A window that opens, over the longest way and with loss: more than one segment a round trip."""
    wan.lose(LOST_PER_MILLE)
    with connected(wan, "us", "ap") as (near, far):
        began = time.monotonic()
        sender = threading.Thread(target=near.sendall, args=(bytes(BULK_BYTES),))
        sender.start()
        left = BULK_BYTES
        while left:
            left -= len(far.recv(1 << 20))
        sender.join(DEADLINE_S)
        rate = BULK_BYTES / (time.monotonic() - began)
    print(f"{rate / 1e6:.1f} MB/s over 80 ms with 0.1 % loss; at most {wan.late_ms:.1f} ms late")
    assert rate > 1e6


def test_what_is_carried_is_counted_by_way_and_kind(wan: Wan) -> None:
    before, back = wan.carried("eu", "us", Kind.BUS), wan.carried("us", "eu", Kind.BUS)
    others = wan.crossed(Kind.ETCD, Kind.REDIS, Kind.OTHER)
    with connected(wan, "eu", "us", BUS_PORT) as (near, far):
        near.sendall(bytes(100_000))
        left = 100_000
        while left:
            left -= len(far.recv(left))
    after = wan.carried("eu", "us", Kind.BUS)
    assert 100_000 < after.bytes - before.bytes < 110_000
    assert 100_000 / 1_460 <= after.packets - before.packets < 150
    assert 0 < wan.carried("us", "eu", Kind.BUS).bytes - back.bytes < 10_000
    assert wan.crossed(Kind.ETCD, Kind.REDIS, Kind.OTHER) == others


def test_a_region_that_is_cut_off_is_so_in_both_directions_and_alone(
    wan: Wan, mouths: dict[str, socket.socket]
) -> None:
    wan.cut("eu")
    names = [(one, other) for one in REGIONS for other in REGIONS if one != other]
    for one, other in names:
        mouths[one].sendto(f"{one} in a cut".encode(), mouths[other].getsockname())
    assert mouths["us"].recv(100) == b"ap in a cut"
    assert mouths["ap"].recv(100) == b"us in a cut"
    assert wan.heal() == 4
    for one, other in names:
        mouths[one].sendto(one.encode(), mouths[other].getsockname())
    for other in REGIONS:
        assert sorted(mouths[other].recv(100).decode() for _ in range(2)) == sorted({*REGIONS} - {other})


def test_a_cut_may_be_between_two(wan: Wan, mouths: dict[str, socket.socket]) -> None:
    wan.cut("eu", "us")
    for one, other in (("eu", "us"), ("us", "eu"), ("eu", "ap"), ("ap", "eu"), ("us", "ap"), ("ap", "us")):
        mouths[one].sendto(one.encode(), mouths[other].getsockname())
    assert mouths["eu"].recv(100) == b"ap"
    assert mouths["us"].recv(100) == b"ap"
    assert sorted(mouths["ap"].recv(100) for _ in range(2)) == [b"eu", b"us"]
    assert wan.heal() == 2


def test_what_is_under_way_is_cut_as_well(wan: Wan, mouths: dict[str, socket.socket]) -> None:
    wan.delay("us", "ap", 2_000)
    mouths["us"].sendto(b"under way", mouths["ap"].getsockname())
    wan.cut("us", "ap")
    wan.delay("us", "ap", ROUND_TRIPS_MS["us", "ap"])
    mouths["eu"].sendto(b"meanwhile", mouths["ap"].getsockname())
    assert mouths["ap"].recv(100) == b"meanwhile"
    deadline = time.monotonic() + DEADLINE_S
    while wan.held_back() < 1:
        assert time.monotonic() < deadline, "what was under way has come"
        mouths["eu"].sendto(b"again", mouths["ap"].getsockname())
        assert mouths["ap"].recv(100) == b"again"
    assert wan.heal() == 1
