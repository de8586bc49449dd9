"""The load process of those who do as they should: thousands of sessions that are held, speak, leave and come back.

    python -m loadtest.soak.regulars PLAN HOST PORT WS_PORT

They live in the core in client mode (core.client_loop): one thread without the GIL, which checks every delivery. Prints
`joined` once all have come. SIGTERM: no more is said, what is under way may come, all leave, and one line of JSON is
printed.
"""

import heapq
import itertools
import json
import random
import resource
import select
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

from core import client_loop
from core.client_loop import ClientLoop
from core.ledger import Stats
from loadtest.soak.plan import Plan

SOURCE = "127.0.0.3"
LOUD = "group:soak-loud"
LOUD_BYTES = 8_192
LOUD_MEMBERS = 3  # regulars, so that what is said there is checked too
PAYLOAD_BYTES = (40, 400)
AWAY_S = (0.5, 3.0)
SIDE_JOINS = 400  # second groups held at once
TURN_S = 0.02
SETTLE_S = 30.0
QUIET_S = 1.0
LEAVE_S = 60.0
TEXTS_MAX = 64
TCP_SHARE = 0.5
# The client thread's files beside its sockets.
FILES_BESIDE = 64


def group(number: int) -> str:
    return f"group:soak-{number}"


def files_max() -> int:
    """Raises the limit of open files as far as it goes, and returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Pace:
    """So many of something a second, as whole ones that are due."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._began, self._given = per_s, time.monotonic(), 0

    def due(self) -> int:
        """How many more are due now."""
        count = int((time.monotonic() - self._began) * self._per_s) - self._given
        self._given += count
        return count


class Regulars:
    """All of them. Everything but `loop.run` happens in the calling thread."""

    def __init__(self, plan: Plan, host: str, port: int, ws_port: int) -> None:
        self.plan, self.rng = plan, random.Random(plan.seed)
        self.loop = ClientLoop(
            Stats(),
            [(host, ws_port), (host, port)],
            connections_max=min(files_max() - FILES_BESIDE, 2 * plan.connections),
            connect_rate=plan.connect_rate,
            source=SOURCE,
            tell_requests=False,
            catch_up=True,
        )
        self.faults: Counter[str] = Counter()
        self._homes: dict[int, str] = {}
        """Channel of each handle that is not closed."""
        self._open: list[int] = []
        self._places: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._away: list[tuple[float, int]] = []
        self._side: dict[tuple[int, str], None] = {}
        """Second groups, the oldest first."""
        self._loud: list[int] = []
        """Members of LOUD; they stay all the time, and are not among `_open`."""
        self._loud_here = 0
        self._names = itertools.count()
        self._audited: tuple[int, int, int] | None = None
        self._quiet = False
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    # ---- one turn

    def turn(self) -> None:
        """Take what happened, for at most one tick."""
        select.select([self.loop.event_fd], [], [], TURN_S)
        for event in self.loop.take():
            self._on_event(*event)
        now = time.monotonic()
        while self._away and self._away[0][0] <= now and not self._quiet:
            self.loop.reconnect(heapq.heappop(self._away)[1])
        self.loop.flush()

    def _on_event(self, kind: int, handle: int, first: int, second: int, _third: int, text: str) -> None:
        if kind == client_loop.AUDITED:
            self._audited = (first, second, _third)
        elif kind == client_loop.CONNECTED:
            self._leaving.discard(handle)
            if handle in self._loud:
                self._loud_here += 1
            else:
                self._add(handle)
        elif kind == client_loop.PAUSED:
            self._return(handle, self.rng.uniform(*AWAY_S))
        elif kind == client_loop.FAILED:
            self._fault(f"FIN {first} {text}" if first else text)
            self._remove(handle)
            self._return(handle, max(second / 1000, AWAY_S[0]))
        elif kind == client_loop.REFUSED:
            self._fault(f"{client_loop.REQUESTS[second]}: ERROR {first} {text}")
        elif kind == client_loop.CLOSED:
            self._homes.pop(handle)
            self._remove(handle)
            self._leaving.discard(handle)
            if not self._quiet:
                self.come()

    def _fault(self, text: str) -> None:
        self.faults[text if len(self.faults) < TEXTS_MAX else "other"] += 1

    def _return(self, handle: int, after_s: float) -> None:
        if handle in self._homes:
            heapq.heappush(self._away, (time.monotonic() + after_s, handle))

    def _add(self, handle: int) -> None:
        self._places[handle] = len(self._open)
        self._open.append(handle)

    def _remove(self, handle: int) -> None:
        """The last of the open ones takes its place."""
        place = self._places.pop(handle, None)
        if place is None:
            return
        last = self._open.pop()
        if last != handle:
            self._open[place] = last
            self._places[last] = place

    def _pick(self) -> int:
        """Somebody who is here, no longer counted as such."""
        handle = self.rng.choice(self._open)
        self._remove(handle)
        self._leaving.add(handle)
        return handle

    # ---- what they do

    def come(self) -> None:
        """One more, whom nobody knows yet."""
        number = next(self._names)
        tcp = self.rng.random() < TCP_SHARE
        handle = self.loop.open(user=f"regular-{number}", endpoint=int(tcp), tcp=tcp, resumable=True)
        self._homes[handle] = group(number % self.plan.groups)
        self.loop.join(handle, self._homes[handle])
        if number < LOUD_MEMBERS:
            self.loop.join(handle, LOUD)
            self._loud.append(handle)

    def come_all(self) -> None:
        for _ in range(self.plan.connections):
            self.come()
        while len(self._open) + self._loud_here < self.plan.connections:
            self.turn()
        print(f"joined {self.plan.connections}", flush=True)

    def leave_some(self, count: int) -> None:
        """Half of them for good, half to come back."""
        for _ in range(min(count, len(self._open))):
            if self.rng.random() < 0.5:
                self.loop.close(self._pick())
            else:
                self.loop.pause(self._pick())

    def speak(self, count: int) -> None:
        for _ in range(min(count, len(self._open))):
            handle = self.rng.choice(self._open)
            self.loop.publish(handle, self._homes[handle], self.rng.randint(*PAYLOAD_BYTES))

    def speak_loudly(self, count: int) -> None:
        for _ in range(count):
            self.loop.publish(self.rng.choice(self._loud), LOUD, LOUD_BYTES)

    def wander(self, count: int) -> None:
        """Join a second group; whoever did so longest ago leaves it."""
        for _ in range(min(count, len(self._open))):
            handle, channel = self.rng.choice(self._open), group(self.rng.randrange(self.plan.groups))
            if channel != self._homes[handle] and (handle, channel) not in self._side:
                self.loop.join(handle, channel)
                self._side[handle, channel] = None
            if len(self._side) > SIDE_JOINS:
                handle, channel = next(iter(self._side))
                del self._side[handle, channel]
                if handle in self._places:
                    self.loop.leave(handle, channel)

    # ---- from the beginning to the end

    def run(self, stopped: threading.Event) -> dict[str, Any]:
        self.come_all()
        plan = self.plan
        acts = [
            (Pace(plan.churn), self.leave_some),
            (Pace(plan.publishes), self.speak),
            (Pace(plan.loud), self.speak_loudly),
            (Pace(plan.joins), self.wander),
        ]
        began = time.monotonic()
        while not stopped.is_set():
            self.turn()
            for pace, act in acts:
                act(pace.due())
        lasted_s = time.monotonic() - began
        settled = self.settle()
        left = self.leave_all()
        self.loop.stop()
        self._thread.join(LEAVE_S)
        return {
            "lasted_s": round(lasted_s, 1),
            "counts": self.loop.counts(),
            "settled": settled,
            "faults": dict(self.faults),
            "without_end": left,
            "latency_ms": {name: percentiles(found) for name, found in self.loop.times().items()},
        }

    def settle(self) -> bool:
        """Nothing more is said; wait until all that is under way has come. What has not come then is lost."""
        end, still, before = time.monotonic() + SETTLE_S, time.monotonic(), -1
        while time.monotonic() < end and time.monotonic() - still < QUIET_S:
            missing, under_way, _ = self.audit()
            delivered = self.loop.counts()["delivered"]
            if missing or under_way or delivered != before or self._leaving:
                still, before = time.monotonic(), delivered
        self.audit(final=True)
        return time.monotonic() < end

    def audit(self, final: bool = False) -> tuple[int, int, int]:
        """Messages missing, requests under way, sessions open."""
        self._audited = None
        self.loop.audit(final)
        end = time.monotonic() + SETTLE_S
        while self._audited is None:
            self.turn()
            if time.monotonic() > end:
                raise TimeoutError("the client thread does not answer")
        return self._audited

    def leave_all(self) -> int:
        """All say FIN; how many did not come to their end."""
        self._quiet = True
        for handle in list(self._homes):
            self.loop.close(handle)
        end = time.monotonic() + LEAVE_S
        while self._homes and time.monotonic() < end:
            self.turn()
        return len(self._homes)


def percentiles(found: list[tuple[int, int]]) -> dict[str, float]:
    """Of a histogram's (ns, count), in ms."""
    total, seen, wanted = sum(count for _, count in found), 0, {"p50": 0.5, "p99": 0.99, "max": 1.0}
    out: dict[str, float] = {"count": total}
    for value, count in found:
        seen += count
        for name, share in wanted.items():
            if name not in out and seen >= share * total:
                out[name] = round(value / 1e6, 3)
    return out


def main(arguments: list[str]) -> int:
    plan_text, host, port, ws_port = arguments
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    regulars = Regulars(Plan.from_json(plan_text), host, int(port), int(ws_port))
    print(json.dumps(regulars.run(stopped)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
