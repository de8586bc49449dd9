"""A rolling restart under load: nothing lost or doubled for those who come back, nobody refused, nobody too quickly.

1,000 connections and 2,000 deliveries a second in every run of the tests, 10,000 and 20,000 with HOLDFAST_CHAOS=full
(make chaos).
"""

import asyncio
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.crowd import DRAINING, crowd_of, most_in_a_second
from tests.chaos.witnesses import witnesses_of
from tests.conftest import Node, wait_until
from tests.process.clients import FIN, HELLO, WELCOME, Gone, TcpClient, run

FULL = os.environ.get("HOLDFAST_CHAOS") == "full"
WORKERS = 4
CONNECTIONS = 10_000 if FULL else 1_000
MEMBERS = 100 if FULL else 20
PUBLISHES_A_S = 200 if FULL else 100
WITNESSES, SAID_A_S = 8, 40
DRAIN_MS = 10_000 if FULL else 1_500
# Each in turn: its successor's start, the window, FIN_ACKs; on a machine that has other things to do as well.
RESTARTED_WITHIN_S = WORKERS * (DRAIN_MS / 1000 + 20)
PROBE_S = 0.02


class Prober:
    """Comes and goes all the time; whoever is not taken in is written down."""

    def __init__(self, node: Node) -> None:
        self.came, self.failures = 0, list[str]()
        self._node = node
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: run(self._live(), RESTARTED_WITHIN_S + 60), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the prober does not end"

    async def _live(self) -> None:
        while not self._stopped.is_set():
            try:
                await self._probe()
                self.came += 1
            except (OSError, Gone, TimeoutError) as error:
                self.failures.append(repr(error))
            await asyncio.sleep(PROBE_S)

    async def _probe(self) -> None:
        client = await TcpClient.dial(self._node.port)
        try:
            await client.send(HELLO, 1, {"v": 1, "user": "prober"})
            frame = await client.receive()
            # One that came in just before its worker began to leave is told to come back, which is no refusal.
            if frame[0] != WELCOME and frame[:2] != [FIN, DRAINING]:
                self.failures.append(f"{frame}")
            if frame[0] == WELCOME:
                await client.send(FIN, 0, "bye", {})
        finally:
            await client.abort()


@contextlib.contextmanager
def prober_of(node: Node) -> Iterator[Prober]:
    prober = Prober(node)
    prober.start()
    try:
        yield prober
    finally:
        prober.stop()


def paces(node: Node) -> list[float]:
    """The pace that each drain set out with, as its log tells."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", node.log.read_text(errors="replace"))
    return [float(found) for found in re.findall(r"drain_begins.*?\bpace=(\d+)", text)]


def is_restarted(node: Node, before: list[int]) -> bool:
    """Every place has another process, all of them serve, and nobody of before is left."""
    now = node.workers
    return len(now) == WORKERS and not set(now) & set(before) and node.get("/readyz")[0] == 200


@pytest.mark.slow
@pytest.mark.timeout(600 if FULL else 180)
def test_a_rolling_restart_loses_nothing_refuses_nobody_and_keeps_its_pace(holdfast: Any) -> None:
    node: Node = holdfast("--workers", str(WORKERS), HOLDFAST_GATEWAY_DRAIN_MS=str(DRAIN_MS))
    with (
        crowd_of(node, CONNECTIONS, members=MEMBERS, publishes=PUBLISHES_A_S) as crowd,
        witnesses_of(node, WITNESSES, SAID_A_S) as witnesses,
        prober_of(node) as prober,
    ):
        before, delivered, began = node.workers, crowd.count("delivered"), time.monotonic()
        os.kill(node.pid, signal.SIGHUP)
        wait_until(
            lambda: is_restarted(node, before),
            lambda: f"every worker is another: {before}, now {node.workers}\n{node.log_tail()}",
            RESTARTED_WITHIN_S,
        )
        took_s = time.monotonic() - began
        delivered = crowd.count("delivered") - delivered
        crowd.wait_back()
        crowd.settle()
        witnesses.stop()
        # Everybody was told to go by FIN, and came back; nobody was cut, refused or timed out.
        strange = [end for end in crowd.ends if end.code != DRAINING]
        assert not strange, strange[:10]
        assert len({end.handle for end in crowd.ends}) == CONNECTIONS
        assert not crowd.refusals
        assert not prober.failures, prober.failures[:10]
        assert prober.came > 0
        # Every offset once, as live as may be or from HISTORY.
        assert not crowd.faults()
        assert crowd.count("caught_up") == crowd.count("missed_away")
        assert not witnesses.complaints()
        assert witnesses.published > WITNESSES
        # Never more came back within a second than the pace that each drain had set itself.
        set_out = paces(node)
        assert len(set_out) == WORKERS, set_out
        most = most_in_a_second(crowd.dialled_at_s)
        print(
            f"restarted in {took_s:.1f} s; {delivered / took_s:,.0f} deliveries a second; {len(crowd.ends):,} moves,"
            f" {crowd.count('resumed'):,} resumed; {crowd.count('delivered'):,} deliveries in all, and"
            f" {crowd.count('caught_up'):,} from HISTORY; at most {most} came back in a second, paces {set_out};"
            f" {prober.came} probes; {witnesses.published:,} messages with keys"
        )
        # That the load was there at all, on a machine that has other things to do as well.
        assert delivered / took_s > PUBLISHES_A_S * MEMBERS / 2
        assert most <= max(set_out), f"{most} in a second; the paces were {set_out}"
    assert node.metric("holdfast_process_restarts_total") == 0
