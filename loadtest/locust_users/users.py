"""Who there is: each locust user stands for many connections that do the same."""

import random
import time
from collections import deque

from locust import User, constant_pacing, task

from loadtest.locust_users.fleet import Fleet
from loadtest.locust_users.hooks import the_fleet

PACE_S = 0.1  # between two looks at what is due
LURKED_GROUPS = 3
HISTORY_EVERY = 10  # looks
HISTORY_LIMIT = 20


class Connections(User):
    """Opens its connections and lets those that failed come back; what they do is the subclasses' affair."""

    abstract = True
    wait_time = constant_pacing(PACE_S)
    resumable = False

    def on_start(self) -> None:
        """Open the connections; the core dials them at its pace and joins their groups as they come."""
        self.fleet: Fleet = the_fleet(self.environment)
        self.load = self.fleet.load
        self.random = random.Random(f"{self.fleet.index} {type(self).__name__}")
        self.away: deque[tuple[float, int]] = deque()
        first = self.fleet.places(type(self).__name__, self.load.connections)
        self.handles = self.fleet.open(self, self.load.connections, self.resumable)
        self.channels = [self.channels_of(first + place) for place in range(len(self.handles))]
        with self.fleet.commands() as loop:
            for handle, channels in zip(self.handles, self.channels, strict=True):
                for channel in channels:
                    loop.join(handle, channel)
        self.started()

    def on_stop(self) -> None:
        """Ramping down closes; at the end of a run the fleet does, after it has counted."""
        if not self.fleet.quiet:
            self.fleet.close(self.handles)

    def started(self) -> None:
        """What a kind of user does once it has its connections."""

    def channels_of(self, place: int) -> list[str]:
        """The groups of the connection with this number among all of its kind."""
        return [self.busy(place)]

    def busy(self, place: int) -> str:
        return f"group:locust-{place % self.load.groups}"

    def on_away(self, handle: int, after_s: float) -> None:
        self.away.append((time.monotonic() + after_s, handle))

    @task
    def look(self) -> None:
        """Do what is due now."""
        if self.fleet.quiet:
            return
        with self.fleet.commands() as loop:
            for _ in range(len(self.away)):
                due, handle = self.away.popleft()
                if due <= time.monotonic():
                    loop.reconnect(handle)
                else:
                    self.away.append((due, handle))
        self.due()

    def due(self) -> None:
        """What a kind of user does at each look."""


class Idle(Connections):
    """Joined to a group where nobody speaks: heartbeats only."""

    weight = 4

    def channels_of(self, place: int) -> list[str]:
        return [f"group:locust-quiet-{place % self.load.groups}"]


class Chatter(Connections):
    """Each connection speaks in its group, at a fixed rate whatever the server does (open loop)."""

    weight = 3

    def started(self) -> None:
        self.next_ns = float(time.time_ns())
        self.gap_ns = 1e9 / (self.load.publish_rate * len(self.handles))
        self.turn = 0

    def wait_time(self) -> float:
        """Until the next message is due: what a coarser pace would add would look like the server's latency."""
        return min(PACE_S, max(0.001, (self.next_ns - time.time_ns()) / 1e9))

    def due(self) -> None:
        """Publish all that should have been published by now, each stamped with the time at which it should have."""
        now = time.time_ns()
        with self.fleet.commands() as loop:
            while self.next_ns <= now:
                place = self.turn % len(self.handles)
                channel = self.channels[place][0]
                loop.publish(self.handles[place], channel, self.load.payload_bytes, int(self.next_ns))
                self.turn += 1
                self.next_ns += self.gap_ns


class Lurker(Connections):
    """Reads several busy groups, says nothing, and looks a group's history up now and then."""

    weight = 2

    def started(self) -> None:
        self.looks = 0

    def channels_of(self, place: int) -> list[str]:
        return sorted({self.busy(place * LURKED_GROUPS + step) for step in range(LURKED_GROUPS)})

    def due(self) -> None:
        self.looks += 1
        if self.looks % HISTORY_EVERY:
            return
        place = self.random.randrange(len(self.handles))
        with self.fleet.commands() as loop:
            loop.history(self.handles[place], self.channels[place][0], HISTORY_LIMIT)


class Flapper(Connections):
    """Reads a busy group, leaves with FIN again and again, and comes back to its session a little later."""

    weight = 1
    resumable = True

    def started(self) -> None:
        self.credit = 0.0
        self.turn = 0

    def due(self) -> None:
        self.credit += len(self.handles) * PACE_S / self.load.flaps_s
        with self.fleet.commands() as loop:
            while self.credit >= 1:
                self.credit -= 1
                # One that is away already is left alone by the core.
                loop.pause(self.handles[self.turn % len(self.handles)])
                self.turn += 1
