"""A crowd for chaos: many sessions in groups that speak all the time, check all they hear, and come back when told to.

The connections live in a client thread of the core (`core.client_loop`); a second thread here hears what became of
them, lets them return, and speaks at a steady rate. A test reads counts and waits; it never drives.
"""

import contextlib
import heapq
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core import client_loop
from core.client_loop import ClientLoop
from core.ledger import Stats
from tests.conftest import Node, wait_until

TURN_S = 0.01
RETURN_AT_LEAST_S = 0.01
STOP_S = 20.0
SETTLE_S = 30.0
QUIET_S = 0.5
PAYLOAD_BYTES = 60
DRAINING = 1
# What the checks of the client thread count; all must stay 0.
FAULTS = ("lost", "repeated", "out_of_order", "corrupt", "told_gaps", "overdue")


@dataclass(frozen=True)
class End:
    """An end of a connection that the client did not ask for."""

    at_s: float
    handle: int
    code: int
    after_ms: int
    reason: str


class Crowd:
    """Sessions of a node, over both transports.

    Attributes:
        ends: every end that was not asked for, in order.
        dialled_at_s: when each return was dialled.
        holds_returns: while set, whoever was cut off waits.

    """

    def __init__(self, node: Node, connections: int, *, members: int, publishes: float, seed: int = 1) -> None:
        self.ends: list[End] = []
        self.refusals: list[str] = []
        self.dialled_at_s: list[float] = []
        self.holds_returns = threading.Event()
        self.connections, self._members, self._publishes = connections, members, publishes
        self._rng = random.Random(seed)
        self._homes: dict[int, str] = {}
        self._away: list[tuple[float, int]] = []
        self._audited: tuple[int, int, int] | None = None
        self._audit_wanted = threading.Event()
        self._final = False
        self._speaks, self._stopped = threading.Event(), threading.Event()
        self.loop = ClientLoop(
            Stats(),
            [("127.0.0.1", node.ws_port), ("127.0.0.1", node.port)],
            connections_max=connections,
            source="127.0.0.7",
            tell_requests=False,
            catch_up=True,
        )
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self.loop.run, self._run)]

    @property
    def groups(self) -> int:
        return -(-self.connections // self._members)

    @property
    def open(self) -> int:
        return self.loop.counts()["open"]

    def faults(self) -> dict[str, int]:
        counts = self.loop.counts()
        return {name: counts[name] for name in FAULTS if counts[name]}

    def count(self, name: str) -> int:
        return self.loop.counts()[name]

    # ---- from the test's thread

    def come(self) -> None:
        """All connect and join, then they begin to speak."""
        for number in range(self.connections):
            tcp = number % 2
            handle = self.loop.open(user=f"crowd-{number}", endpoint=tcp, tcp=bool(tcp), resumable=True)
            self._homes[handle] = f"group:crowd-{number // self._members}"
            self.loop.join(handle, self._homes[handle])
        self.loop.flush()
        for thread in self._threads:
            thread.start()
        wait_until(
            lambda: self.count("joined") == self.connections, lambda: f"all have joined: {self.loop.counts()}", 60
        )
        self._speaks.set()

    def wait_back(self, deadline_s: float = 30.0) -> None:
        """Until everybody is here again."""
        wait_until(lambda: self.open == self.connections, lambda: f"all are back: {self.loop.counts()}", deadline_s)

    def settle(self) -> None:
        """Nobody speaks any more; wait until all that is under way has come. What has not come then is lost."""
        self._speaks.clear()
        still, before, end = time.monotonic(), -1, time.monotonic() + SETTLE_S
        while time.monotonic() - still < QUIET_S:
            missing, under_way, _ = self.audit()
            delivered = self.count("delivered")
            if missing or under_way or delivered != before:
                still, before = time.monotonic(), delivered
            if time.monotonic() > end:
                break
        self.audit(final=True)

    def audit(self, final: bool = False) -> tuple[int, int, int]:
        """Messages missing, requests under way, sessions open."""
        self._audited, self._final = None, final
        self._audit_wanted.set()
        found: tuple[int, int, int] = wait_until(lambda: self._audited, "the client thread answers", STOP_S)
        return found

    def leave(self) -> None:
        """All say FIN, and the threads end."""
        self._speaks.clear()
        self._stopped.set()
        for thread in reversed(self._threads):
            if thread.ident is not None:
                thread.join(STOP_S)
                assert not thread.is_alive(), "a thread of the crowd does not end"

    # ---- the second thread

    def _run(self) -> None:
        published, began = 0, time.monotonic()
        while not self._stopped.is_set():
            self._take()
            if not self._speaks.is_set():
                published, began = 0, time.monotonic()
            due = int((time.monotonic() - began) * self._publishes)
            handles = list(self._homes)
            for _ in range(due - published):
                handle = self._rng.choice(handles)
                self.loop.publish(handle, self._homes[handle], PAYLOAD_BYTES)
            published = due
            self._return_due()
            if self._audit_wanted.is_set():
                self._audit_wanted.clear()
                self.loop.audit(self._final)
            self.loop.flush()
            self._stopped.wait(TURN_S)
        self._close_all()

    def _take(self) -> None:
        for kind, handle, first, second, third, text in self.loop.take():
            if kind == client_loop.AUDITED:
                self._audited = (first, second, third)
            elif kind == client_loop.FAILED:
                now = time.monotonic()
                self.ends.append(End(now, handle, first, second, text))
                heapq.heappush(self._away, (now + max(second / 1000, RETURN_AT_LEAST_S), handle))
            elif kind == client_loop.REFUSED:
                self.refusals.append(f"{client_loop.REQUESTS[second]}: {first} {text}")
            elif kind == client_loop.CLOSED:
                self._homes.pop(handle)

    def _return_due(self) -> None:
        now = time.monotonic()
        while self._away and self._away[0][0] <= now and not self.holds_returns.is_set():
            self.loop.reconnect(heapq.heappop(self._away)[1])
            self.dialled_at_s.append(now)

    def _close_all(self) -> None:
        for handle in self._homes:
            self.loop.close(handle)
        self.loop.flush()
        end = time.monotonic() + STOP_S / 2
        while self._homes and time.monotonic() < end:
            self._take()
            self.loop.flush()
            time.sleep(TURN_S)
        self.loop.stop()


@contextlib.contextmanager
def crowd_of(node: Node, connections: int, **options: Any) -> Iterator[Crowd]:
    """A crowd that is there and speaks; gone after it."""
    crowd = Crowd(node, connections, **options)
    try:
        crowd.come()
        yield crowd
    finally:
        crowd.leave()


def most_in_a_second(times_s: list[float]) -> int:
    """The most of these moments that lie within any one second."""
    times_s = sorted(times_s)
    first, most = 0, 0
    for last, time_s in enumerate(times_s):
        while times_s[first] <= time_s - 1:
            first += 1
        most = max(most, last - first + 1)
    return most
