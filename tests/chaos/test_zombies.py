"""Peers that vanish without a word are let go on time; peers behind a bad link are not taken for such.

There are 10,000 zombies; with HOLDFAST_CHAOS=full as many behind each bad link, and for longer.
"""

import bisect
import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest

from tests.chaos.idlers import Idlers
from tests.chaos.namespace import Namespace, namespace, why_not
from tests.conftest import Node, free_ports, wait_until
from tools import provision

FULL = os.environ.get("HOLDFAST_CHAOS") == "full"
ZOMBIES = 10_000
BEHIND_A_BAD_LINK = 10_000 if FULL else 1_000
INTERVALS = 8 if FULL else 3
SECRET = "a secret of more than thirty-two bytes, for chaos"
PING_S, MISSES, TICK_S = 2.0, 3, 0.1
POLL_S = 0.02
# Between a deadline and our reading of it lie the worker's turn, our poll, and whatever else this machine does.
SLACK_S = 1.5
LISTEN = "0A"
# A proxy opens two files for each connection, and may open 20,000 of them here.
THROUGH_ONE_PROXY = 4_000
DELAY_MS = 200

needs_namespace = pytest.mark.skipif(bool(why_not()), reason=why_not())
needs_toxiproxy = pytest.mark.skipif(
    provision.find_program("toxiproxy-server") is None, reason="needs toxiproxy-server: make provision"
)


@pytest.fixture
def away() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


@pytest.fixture
def gateway(holdfast: Callable[..., Node]) -> Callable[..., Node]:
    """Start one node with one worker, and short heartbeats."""

    def start(host: str = "127.0.0.1") -> Node:
        return holdfast(
            "--workers",
            "1",
            "--host",
            host,
            HOLDFAST_AUTH_SECRET=SECRET,
            HOLDFAST_GATEWAY_PING_MS=str(int(PING_S * 1000)),
            HOLDFAST_GATEWAY_MISSES=str(MISSES),
            HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS=str(int(PING_S * MISSES * 1000)),  # thousands come at once
        )

    return start


def tokens(count: int) -> Iterator[str]:
    for number in range(count):
        yield jwt.encode({"sub": f"idler{number}"}, SECRET, algorithm="HS256")


def kernel_holds(port: int) -> int:
    """Sockets of the gateway's port in this machine's tables, whatever their state, but for the listening ones."""
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        found += int(local.rpartition(":")[2], 16) == port and state != LISTEN
    return found


def watch(node: Node, since: float, until: float, count: int) -> list[tuple[float, int]]:
    """(seconds since `since`, connections lost so far) again and again, until all are gone or the time is over."""
    seen: list[tuple[float, int]] = []
    while not seen or (seen[-1][1] < count and seen[-1][0] < until):
        asked = time.monotonic() - since
        seen.append((asked, int(node.metric("holdfast_heartbeats_lost_total"))))
        time.sleep(POLL_S)
    return seen


@needs_namespace
def test_zombies_are_gone_after_the_interval_times_misses_and_one_tick(
    gateway: Callable[..., Node], away: Namespace
) -> None:
    node = gateway(away.here)
    idlers = Idlers([(away.here, node.port)], ZOMBIES, away.enter)
    try:
        idlers.open(tokens(ZOMBIES))
        # A whole interval, so that each has heard a PING or sent one, and its phase is its own.
        wait_until(lambda: node.metric("holdfast_pings_sent_total") >= ZOMBIES, "each was sent a PING", 3 * PING_S)
        assert node.metric("holdfast_heartbeats_lost_total") == 0
        begun = time.monotonic()
        away.lose(100)  # a few commands: packets get lost from the first of them on, and none passes after the last
        cut = time.monotonic()
        seen = watch(node, cut, 2 * PING_S * MISSES, ZOMBIES)
        report("zombies", seen)
        # Each was heard during the last interval before the cut.
        early = [lost for at, lost in seen if at + cut - begun < PING_S * (MISSES - 1)]
        assert max(early) == 0, f"given up early: {seen}"
        assert seen[-1][1] == ZOMBIES, f"still there: {seen[-1]}"
        # The poll before the last one was the last that missed some of them.
        at = seen[-2][0]
        assert at <= PING_S * MISSES + TICK_S + SLACK_S, f"gone late: {seen[-3:]}"
        wait_until(lambda: kernel_holds(node.port) == 0, lambda: f"the kernel holds {kernel_holds(node.port)}", 2.0)
    finally:
        idlers.stop()
    wait_until(lambda: node.live("connection") == 0, "nothing of them is left")
    assert node.metric("holdfast_illegal_states_total") == 0


@needs_namespace
def test_nobody_is_given_up_over_a_link_that_loses_every_twentieth_packet(
    gateway: Callable[..., Node], away: Namespace
) -> None:
    node = gateway(away.here)
    idlers = Idlers([(away.here, node.port)], BEHIND_A_BAD_LINK, away.enter)
    try:
        idlers.open(tokens(BEHIND_A_BAD_LINK))
        away.lose(5)
        stay(node, idlers, BEHIND_A_BAD_LINK)
        # Each was sent a PING or sent one in every interval, and it or its answer is several packets.
        assert away.lost() > BEHIND_A_BAD_LINK * INTERVALS / 20, f"only {away.lost()} packets got lost"
        away.lose(0)
    finally:
        idlers.stop()


@needs_toxiproxy
def test_nobody_is_given_up_over_a_link_with_200_ms_delay(gateway: Callable[..., Node]) -> None:
    node = gateway()
    proxies = -(-BEHIND_A_BAD_LINK // THROUGH_ONE_PROXY)
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(delayed(node.port)) for _ in range(proxies)]
        idlers = Idlers([("127.0.0.1", door) for door in doors], BEHIND_A_BAD_LINK)
        try:
            idlers.open(tokens(BEHIND_A_BAD_LINK), proxies)
            stay(node, idlers, BEHIND_A_BAD_LINK)
            trips, took_ms = (node.metric(f"holdfast_round_trip{name}_total") for name in ("s", "_ms"))
            assert took_ms / trips >= 2 * DELAY_MS, f"{trips} round trips took {took_ms} ms"
        finally:
            idlers.stop()


def stay(node: Node, idlers: Idlers, count: int) -> None:
    """Several heartbeats long all of them stay, by both sides' accounts, and both were active."""
    before = node.metric("holdfast_pongs_heard_total")
    end = time.monotonic() + INTERVALS * PING_S
    while time.monotonic() < end:
        assert node.metric("holdfast_heartbeats_lost_total") == 0
        assert idlers.count("failed") == 0, idlers.failures()[:5]
        time.sleep(POLL_S * 10)
    assert idlers.count("open") == count
    assert node.live("connection") == count
    heard = node.metric("holdfast_pongs_heard_total") - before
    assert heard >= (INTERVALS - 1) * count, f"{heard} PONGs of {count} clients in {INTERVALS} intervals"


@contextlib.contextmanager
def delayed(port: int) -> Iterator[int]:
    """A port of loopback that leads to `port`, 200 ms away in each direction."""
    program = provision.find_program("toxiproxy-server")
    assert program
    admin, door = free_ports(2)
    process = subprocess.Popen(
        [program, "-host", "127.0.0.1", "-port", str(admin)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: answers(admin), "toxiproxy answers")
        post(admin, "/proxies", name="far", listen=f"127.0.0.1:{door}", upstream=f"127.0.0.1:{port}")
        for stream in ("upstream", "downstream"):
            toxic = {"name": stream, "type": "latency", "stream": stream, "attributes": {"latency": DELAY_MS}}
            post(admin, "/proxies/far/toxics", **toxic)
        yield door
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def post(port: int, path: str, **body: object) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status in (200, 201)


def report(what: str, seen: list[tuple[float, int]]) -> None:
    """When the first and the last went, and half of them, for whoever reads the log."""
    counts = [lost for _, lost in seen]
    total = counts[-1]
    moments = [seen[bisect.bisect_left(counts, part)][0] for part in (1, total // 2, total)] if total else []
    print(f"{what}: {total}; the first, the middle and the last after {[f'{at:.2f} s' for at in moments]}")
