"""Thousands of clients that do nothing but live: the core in client mode, in a thread of the test."""

import threading
from collections.abc import Callable, Iterable

from core import client_loop
from core.client_loop import ClientLoop
from core.ledger import Stats
from tests.conftest import wait_until

STOP_DEADLINE_S = 20.0
CONNECTS_A_SECOND = 2_000


class Idlers:
    """Clients that connect, answer heartbeats and send their own. `enter` runs in their thread before anything else."""

    def __init__(self, endpoints: Iterable[tuple[str, int]], most: int, enter: Callable[[], None] = lambda: None):
        self.loop = ClientLoop(
            Stats(),
            list(endpoints),
            connections_max=most,
            connect_rate=CONNECTS_A_SECOND,
            handshake_timeout_ms=60_000,
            tell_requests=False,
        )
        self._enter = enter
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._enter()
        self.loop.run()

    def open(self, tokens: Iterable[str], endpoints: int = 1, deadline_s: float = 90.0) -> None:
        """One client a token, the endpoints in turn; returns once all are welcomed."""
        before, count = self.count("connected"), 0
        for number, token in enumerate(tokens):
            self.loop.open(token=token, endpoint=number % endpoints, tcp=True)
            count += 1
        self.loop.flush()
        wait_until(
            lambda: self.count("connected") - before == count or self.count("failed"),
            lambda: f"{count} sessions: {self.told()}",
            deadline_s,
        )
        assert self.count("connected") - before == count, (self.told(), self.failures()[:3])

    def told(self) -> dict[str, int]:
        return self.loop.counts()

    def count(self, name: str) -> int:
        return self.told()[name]

    def failures(self) -> list[str]:
        """What became of those that did not end as they wanted."""
        return [note[5] for note in self.loop.take() if note[0] == client_loop.FAILED]

    def stop(self) -> None:
        self.loop.stop()
        self._thread.join(STOP_DEADLINE_S)
        assert not self._thread.is_alive(), "the clients do not stop"
