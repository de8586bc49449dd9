"""One process's connections: a core thread drives them, a greenlet takes what it tells, in batches."""

import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any, Protocol

import gevent
from gevent.event import Event
from gevent.socket import wait_read
from gevent.threadpool import ThreadPool
from locust.env import Environment

from core import client_loop
from core.client_loop import ClientLoop
from core.ledger import Stats
from loadtest.locust_users.figures import METHOD, Figures
from loadtest.locust_users.options import Load

POUR_S = 0.5
RETRY_S = 1.0
LOOK_S = 0.2
QUIET_S = 1.0  # without a delivery, before what is missing is taken for lost
STOP_S = 10.0
FDS_BESIDE = 256


class Owner(Protocol):
    """Who holds connections, and hears when one is away and in how many seconds it may come back."""

    def on_away(self, handle: int, after_s: float) -> None: ...


class Fleet:
    """The connections of a process.

    Attributes:
        load: what the run does.
        quiet: set once nothing more may be published and nobody may leave; the end of a run.

    """

    def __init__(self, environment: Environment, load: Load, index: int) -> None:
        """Start the thread.

        Args:
            environment: locust's, whose statistics are filled.
            load: what to do.
            index: of this process among the workers, from 0; users and source addresses are named by it.

        Raises:
            OSError: the gateway's name cannot be resolved.

        """
        self.load, self.index, self.quiet = load, index, False
        self._environment = environment
        self._owners: dict[int, Owner] = {}
        self._places: Counter[str] = Counter()
        self._opened = 0
        self._tokens = cycle(load.tokens) if load.tokens else None
        self._audited: tuple[int, int, int] = (0, 0, 0)
        self._audit_came = Event()
        self._dirty = False
        self._connections_max = files_max() - FDS_BESIDE
        # A source address has 28,000 ports to one gateway: each process on this machine takes another one.
        loopback = load.host.startswith("127.") and 0 < index < 250
        self.loop = ClientLoop(
            Stats(),
            [(load.host, load.port)],
            connections_max=self._connections_max,
            path=load.path,
            connect_rate=load.connect_rate,
            source=f"127.0.0.{1 + index}" if loopback else "",
            tell_requests=False,
        )
        self._figures = Figures(environment.stats)
        # A thread of the system's: one of gevent's would never give the hub back.
        self._pool = ThreadPool(1)
        self._thread = self._pool.spawn(self.loop.run)
        self._pump = gevent.spawn(self._run)

    # ---- for the users

    def open(self, owner: Owner, count: int, resumable: bool = False) -> list[int]:
        """Open connections; they are dialled at the pace of the run.

        Raises:
            ValueError: they are more than this process may have.

        """
        if len(self._owners) + count > self._connections_max:
            raise ValueError(
                f"{len(self._owners) + count} connections, but this process may open {self._connections_max}: "
                "use fewer users or connections a user, more workers, or a higher limit of open files"
            )
        handles = []
        for _ in range(count):
            name = f"locust-{self.index}-{self._opened}"
            self._opened += 1
            if self._tokens:
                handle = self.loop.open(resumable=resumable, token=next(self._tokens))
            else:
                handle = self.loop.open(resumable=resumable, user=name)
            self._owners[handle] = owner
            handles.append(handle)
        return handles

    def places(self, kind: str, count: int) -> int:
        """The number of the first of `count` more connections of a kind; other processes begin elsewhere."""
        first = self._places[kind] + self.index * count
        self._places[kind] += count
        return first

    @contextmanager
    def commands(self) -> Iterator[ClientLoop]:
        """Commands to the thread, which is rung once at the end."""
        yield self.loop
        self.loop.flush()

    def close(self, handles: list[int]) -> None:
        with self.commands() as loop:
            for handle in handles:
                loop.close(handle)

    # ---- the greenlet

    def _run(self) -> None:
        poured = 0.0
        while True:
            try:
                wait_read(self.loop.event_fd, timeout=POUR_S, timeout_exc=gevent.Timeout(POUR_S))
                self.take()
            except gevent.Timeout:
                pass
            if time.monotonic() - poured >= POUR_S:
                poured = time.monotonic()
                self.pour()

    def take(self) -> None:
        """Hear what the thread tells."""
        for kind, handle, first, second, third, text in self.loop.take():
            if kind == client_loop.AUDITED:
                self._audited = (first, second, third)
                self._audit_came.set()
            elif kind == client_loop.CLOSED:
                self._owners.pop(handle, None)
            elif kind == client_loop.PAUSED:
                self._away(handle, self.load.away_s)
            elif kind == client_loop.FAILED:
                self._fault("connection", f"FIN {first} {text}" if first else text)
                self._away(handle, max(second / 1000, RETRY_S))
            elif kind == client_loop.REFUSED:
                self._fault(client_loop.REQUESTS[second], f"ERROR {first} {text}" if first else text)

    def _away(self, handle: int, after_s: float) -> None:
        owner = self._owners.get(handle)
        if owner is not None:
            owner.on_away(handle, after_s)

    def _fault(self, name: str, text: str) -> None:
        fault: dict[str, Any] = {"request_type": METHOD, "name": name, "response_time": None, "response_length": 0}
        self._environment.events.request.fire(**fault, exception=text, context={})

    def pour(self) -> None:
        """Fill locust's statistics with what is new."""
        self._figures.pour(self.loop.counts(), self.loop.times())

    # ---- the end

    def settle(self) -> dict[str, int]:
        """Publish nothing more, wait until all that is under way has come, and call what has not come lost.

        Returns:
            The final counts.

        """
        self.quiet = True
        end = time.monotonic() + self.load.settle_s
        still, before = time.monotonic(), -1
        while time.monotonic() < end:
            missing, under_way, _ = self.audit()
            delivered = self.loop.counts()["delivered"]
            if missing or under_way or delivered != before:
                still, before = time.monotonic(), delivered
            elif time.monotonic() - still >= QUIET_S:
                break
            gevent.sleep(LOOK_S)
        self.audit(final=True)
        self.pour()
        return self.loop.counts()

    def audit(self, final: bool = False) -> tuple[int, int, int]:
        """Messages missing, requests under way, sessions open."""
        self._audit_came.clear()
        with self.commands() as loop:
            loop.audit(final)
        if not self._audit_came.wait(STOP_S):
            raise TimeoutError("the client thread does not answer")
        return self._audited

    def stop(self) -> None:
        """FIN on every connection, and the end of the thread."""
        self.quiet = True
        self.close(list(self._owners))
        end = time.monotonic() + STOP_S
        while self._owners and time.monotonic() < end:
            gevent.sleep(LOOK_S)
        self.loop.stop()
        self._thread.get(timeout=STOP_S)
        self.take()
        self._pump.kill()
        self._pool.kill()


def files_max() -> int:
    """Raise the limit of open files as far as it goes, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
