"""Ten thousand sessions in twenty groups each resume at once after their worker was killed.

    python -m loadtest.resume [--sessions 10000] [--channels 20] [--processes 2]

Twice as many sessions as are to resume come to a node of two workers, and one worker is killed. Every group is talked
in while they are away, which takes TALK_S, and then all that were cut come back at once, wherever they are let in: each
has missed a message in each of its groups. Told are the times from the kill until the last of them was welcomed and
until the last of them had everything, what was lost or came twice, the latency of other traffic on the surviving worker
while they are away, and from when they come back until the last has everything, and who used the CPU of it. `make bench
ARGS=resume` runs the same and judges it.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from core import client_loop
from core.client_loop import ClientLoop
from core.ledger import Stats
from loadtest.bench.tokens import SECRET, token
from loadtest.measure import BenchError, Server, get, holdfast, machine_busy_s, metric_sum, process_tree

GROUPS_PER_CHANNEL = 100
JOIN_DEADLINE_S = 120.0
RESUME_DEADLINE_S = 60.0
TALKERS = 60
# All that stay get each message of their groups meanwhile, 200,000 deliveries. Said in 0.5 s they are more than two
# cores send and read, and the latency of all other traffic is then that of the queue that the talk itself makes.
TALK_S = 3.0
TALK_DEADLINE_S = 10.0
LIVE_RATE = 100
LIVE_BEFORE_S = 3.0
# What would come a second time has come by then.
AFTER_S = 1.0
PAYLOAD_BYTES = 100
# With a secret a server listens on all addresses, and these are some of its own. A kernel that has given most ports of
# one pair of addresses away takes very long to find a free one, and that would be the load client's time.
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 17)]
SUMS = ("cut", "back", "resumed", "delivered", "lost", "repeated", "out_of_order", "told_gaps", "corrupt", "refused")
ENVIRONMENT = {"HOLDFAST_AUTH_SECRET": SECRET}
Threads = Mapping[tuple[int, int], tuple[str, float]]


class Loop:
    """A client thread."""

    def __init__(self, port: int, most: int) -> None:
        self.loop = ClientLoop(
            Stats(),
            [(address, port) for address in ADDRESSES],
            connections_max=most,
            handshake_timeout_ms=60_000,
            request_timeout_ms=60_000,
            tell_requests=False,
        )
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def take(self, wait_s: float) -> list[tuple[int, int, int, int, int, str]]:
        """What happened, after waiting so long at most."""
        select.select([self.loop.event_fd], [], [], wait_s)
        return self.loop.take()

    def until(self, counter: str, count: int, deadline_s: float) -> None:
        """Wait until a counter has come so far.

        Raises:
            BenchError: it has not in time.
        """
        end = time.monotonic() + deadline_s
        while self.loop.counts()[counter] < count:
            if time.monotonic() > end:
                raise BenchError(f"{counter}: {self.loop.counts()[counter]} of {count} in {deadline_s:g} s")
            self.take(0.05)

    def close(self) -> None:
        self.loop.stop()
        self._thread.join(10.0)


def come(loop: Loop, user: str, number: int) -> int:
    """A session on its way in; its handle."""
    place = number % len(ADDRESSES)
    return loop.loop.open(token=token(user, SECRET, time.time()), resumable=True, endpoint=place)


# ------------------------------------------------------------------------------------------------ the sessions' process


class Crowd:
    """The sessions of one client process, from the worker's end on."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._away: list[int] = []
        self._comes_back = False
        self.cut = self.back = 0
        self.last_back = self.last_delivery = 0.0
        self.delivered = loop.loop.counts()["delivered"]

    def come_back(self) -> None:
        """All that are away, and whoever is cut from now on."""
        self._comes_back = True
        for handle in self._away:
            self._loop.loop.reconnect(handle)
        self._away.clear()

    def step(self) -> None:
        """What happened in a moment."""
        for kind, handle, *_ in self._loop.take(0.02):
            if kind == client_loop.FAILED:
                self.cut += 1
                self._away.append(handle)
            elif kind == client_loop.CONNECTED:
                self.back += 1
                self.last_back = time.monotonic()
        if self._comes_back:
            self.come_back()
            self._loop.loop.flush()
        delivered = self._loop.loop.counts()["delivered"]
        if delivered != self.delivered:
            self.delivered, self.last_delivery = delivered, time.monotonic()

    def told(self) -> dict[str, float]:
        """What became of it."""
        return {name: getattr(self, name) for name in ("cut", "back", "last_back", "last_delivery")}


def sessions(pipe: Connection, port: int, first: int, count: int, channels: int, groups: int) -> None:
    """A client process: opens its sessions, and has those that are cut come back when it is told to."""
    loop = Loop(port, count + 1)
    for number in range(first, first + count):
        handle = come(loop, f"s{number}", number)
        for place in range(channels):
            loop.loop.join(handle, f"group:r{(number * 7 + place * (groups // channels)) % groups}")
    loop.loop.flush()
    loop.until("joined", count * channels, JOIN_DEADLINE_S)
    loop.take(0)
    loop.loop.times()
    pipe.send("joined")
    crowd = Crowd(loop)
    told: tuple[int, int, int] | None = None
    while True:
        if pipe.poll():
            if heard(pipe, 0.0) != "come back":
                break
            crowd.come_back()
        crowd.step()
        if told != (crowd.cut, crowd.back, crowd.delivered):
            told = crowd.cut, crowd.back, crowd.delivered
            pipe.send(("so far", *told))
    pipe.send({**crowd.told(), **loop.loop.counts(), "connect": loop.loop.times()["connect"]})
    loop.close()


def heard(pipe: Connection, deadline_s: float) -> Any:
    """What the other side says next.

    Raises:
        BenchError: nothing, in that time.
    """
    if not pipe.poll(deadline_s):
        raise BenchError(f"a client process says nothing for {deadline_s:g} s")
    return pipe.recv()  # deadline: it is there


def crowd_of(port: int, total: int, channels: int, groups: int, processes: int) -> list[Connection]:
    """Client processes with their sessions, on their way in."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(processes):
        mine, theirs = context.Pipe()
        share = total // processes
        arguments = (theirs, port, number * share, share, channels, groups)
        context.Process(target=sessions, args=arguments, daemon=True).start()
        pipes.append(mine)
    return pipes


# --------------------------------------------------------------------------------------------- who stays, and who talks


def place_of(server: Server, user: str) -> int:
    """The worker that has a user's connection."""
    listed = json.loads(get(f"http://127.0.0.1:{server.admin_port}/api/connections?user={user}"))
    (one,) = listed["connections"]
    return int(one["id"].partition("-")[0])


def worker_pid(server: Server, number: int) -> int:
    """The process of a worker, by its name.

    Raises:
        BenchError: there is none.
    """
    for pid in server.pids():
        if f"worker-{number}" in Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " "):
            return pid
    raise BenchError(f"no process says that it is worker {number}")


def staying_on(loop: Loop, server: Server, prefix: str) -> list[int]:
    """New sessions, those of them that are on the worker that stays."""
    handles = {f"{prefix}{number}": come(loop, f"{prefix}{number}", number) for number in range(TALKERS)}
    loop.loop.flush()
    loop.until("connected", TALKERS, 30.0)
    return [handle for user, handle in handles.items() if place_of(server, user) == 1]


@dataclass
class Traffic:
    """Open-loop traffic: messages to (handle, channel) in turn, so many a second from its first step on."""

    loop: Loop
    to: list[tuple[int, str]]
    rate: float
    count: int = 0
    """Messages in all; 0: without end."""
    sent: int = 0
    began_ns: int = field(default_factory=time.time_ns)

    def step(self) -> None:
        """Send what is due."""
        now = time.time_ns()
        while self.count == 0 or self.sent < self.count:
            due = self.began_ns + int(self.sent * 1e9 / self.rate)
            if due > now:
                break
            handle, channel = self.to[self.sent % len(self.to)]
            self.loop.loop.publish(handle, channel, PAYLOAD_BYTES, due)
            self.sent += 1
        self.loop.loop.flush()


def live_traffic(live: Loop, server: Server) -> Traffic:
    """A group of sessions on the worker that stays, whose messages are timed."""
    staying = staying_on(live, server, "l")
    for handle in staying:
        live.loop.join(handle, "group:live")
    live.loop.flush()
    live.until("joined", len(staying), JOIN_DEADLINE_S)
    return Traffic(live, [(staying[0], "group:live")], LIVE_RATE)


def talk_in(talk: Loop, server: Server, groups: int) -> list[tuple[int, str]]:
    """A member of each group on the worker that stays."""
    staying = staying_on(talk, server, "t")
    members = [(staying[group % len(staying)], f"group:r{group}") for group in range(groups)]
    for handle, channel in members:
        talk.loop.join(handle, channel)
    talk.loop.flush()
    talk.until("joined", groups, JOIN_DEADLINE_S)
    return members


def go_on(traffic: Iterable[Traffic], live: Loop, until: Callable[[], bool]) -> None:
    """Traffic until something is so."""
    while not until():
        for one in traffic:
            one.step()
        live.take(0.005)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """True once so much time has passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def everything(pipes: list[Connection], expected: int) -> Callable[[], bool]:
    """True once all are back and everything has come, or the deadline is over."""
    state: dict[int, tuple[str, int, int, int]] = {}
    late = for_seconds(RESUME_DEADLINE_S)

    def is_there() -> bool:
        for number, pipe in enumerate(pipes):
            while pipe.poll():
                state[number] = heard(pipe, 0.0)
        back = all(back == cut for _, cut, back, _ in state.values())
        delivered = sum(one[3] for one in state.values())
        return late() or (len(state) == len(pipes) and back and delivered >= expected)

    return is_there


# ------------------------------------------------------------------------------------------------------------- figures


def percentile(times: Iterable[tuple[int, int]], share: float) -> float:
    """Milliseconds below which that share of the times is; (ns, count)."""
    rising = sorted(times)
    wanted, seen = share * sum(count for _, count in rising), 0
    for took_ns, count in rising:
        seen += count
        if seen >= wanted:
            return took_ns / 1e6
    return 0.0


def thread_seconds(pids: Iterable[int]) -> dict[tuple[int, int], tuple[str, float]]:
    """(process, thread): the process' name, and the thread's CPU seconds so far; what just ended is left out."""
    found = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            for task in Path(f"/proc/{pid}/task").iterdir():
                ran_ns = int((task / "schedstat").read_text().split()[0])
                found[pid, int(task.name)] = (name, ran_ns / 1e9)
    return found


def used_between(before: Threads, after: Threads) -> list[tuple[str, float]]:
    """(process, CPU seconds) of each thread, those that were started in between included."""
    return [(name, seconds - before.get(key, (name, 0.0))[1]) for key, (name, seconds) in after.items()]


class Accounting:
    """CPU from `begin` on: the server's and the load client's threads, and the machine."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._servers, self._clients = self._pids()

    def _pids(self) -> tuple[set[int], set[int]]:
        """The server's processes and the load client's; looking for them takes a while."""
        servers = set(self._server.pids())
        return servers, set(process_tree(os.getpid())) - servers

    def begin(self) -> None:
        """From now on; quick, since nobody sends live traffic meanwhile."""
        self._server_s, self._client_s = thread_seconds(self._servers), thread_seconds(self._clients)
        self._machine_s, self._began_s = machine_busy_s(), time.monotonic()

    def close(self) -> dict[str, Any]:
        """What was used. Of the worker that was killed, and of its last moments, nothing is known."""
        seconds = time.monotonic() - self._began_s
        machine_s = machine_busy_s() - self._machine_s
        server_pids, client_pids = self._pids()
        servers = used_between(self._server_s, thread_seconds(server_pids))
        clients = used_between(self._client_s, thread_seconds(client_pids))
        processes: dict[str, float] = {}
        for name, used in servers:
            processes[name] = processes.get(name, 0.0) + used
        return {
            "seconds": seconds,
            "server_cpu_s": sum(used for _, used in servers),
            "server_cpu_s_by_process": processes,
            "busiest_thread_s": max(used for _, used in servers),
            "client_cpu_s": sum(used for _, used in clients),
            "busiest_client_thread_s": max(used for _, used in clients),
            "machine_cpu_s": machine_s,
        }


def measure(server: Server, total: int, channels: int, processes: int) -> dict[str, Any]:
    """One run on a server of two workers that is ready."""
    groups = max(channels, total * channels // (2 * GROUPS_PER_CHANNEL))
    pipes = crowd_of(server.ws_port, total, channels, groups, processes)
    talk, live = Loop(server.ws_port, TALKERS + 1), Loop(server.ws_port, TALKERS + 1)
    members = talk_in(talk, server, groups)
    for pipe in pipes:
        heard(pipe, JOIN_DEADLINE_S)
    accounting, worker = Accounting(server), worker_pid(server, 0)
    replayed = metric_sum(server.metrics(), "holdfast_replayed_total")
    timed = live_traffic(live, server)
    live.loop.times()
    go_on([timed], live, for_seconds(LIVE_BEFORE_S))
    before = live.loop.times()["delivery"]
    accounting.begin()
    killed = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    said = Traffic(talk, members, groups / TALK_S, groups)
    late = for_seconds(TALK_DEADLINE_S)
    go_on([timed, said], live, lambda: talk.loop.counts()["accepted"] == groups or late())
    away = live.loop.times()["delivery"]
    came_back = time.monotonic()
    for pipe in pipes:
        pipe.send("come back")
    go_on([timed], live, everything(pipes, total * channels))
    during = live.loop.times()["delivery"]
    used = accounting.close()
    go_on([timed], live, for_seconds(AFTER_S))
    told = [_end(pipe) for pipe in pipes]
    replayed = metric_sum(server.metrics(), "holdfast_replayed_total") - replayed
    for loop in (talk, live):
        loop.close()
    return {
        "sessions": total,
        "channels": channels,
        "groups": groups,
        "welcomed_s": max(one["last_back"] for one in told) - killed,
        "caught_up_s": max(one["last_delivery"] for one in told) - killed,
        "away_s": came_back - killed,
        "expected": total * channels,
        "replayed": replayed,
        "live_p99_ms_before": percentile(before, 0.99),
        "live_p99_ms_away": percentile(away, 0.99),
        "live_p50_ms": percentile(during, 0.5),
        "live_p99_ms": percentile(during, 0.99),
        "live_max_ms": percentile([*away, *during], 1.0),
        "connect_p95_ms": percentile((one for each in told for one in each["connect"]), 0.95),
        **used,
        **{name: sum(one[name] for one in told) for name in SUMS},
    }


def _end(pipe: Connection) -> Any:
    """What a client process has counted, at its end."""
    pipe.send("stop")
    while isinstance(one := heard(pipe, RESUME_DEADLINE_S), tuple):
        continue
    return one


def main() -> int:
    """Run it once and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.resume", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000, help="how many are to resume, about")
    parser.add_argument("--channels", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2, help="of the load client")
    asked = parser.parse_args()
    with holdfast(2, environment=ENVIRONMENT) as server:
        result = measure(server, 2 * asked.sessions, asked.channels, asked.processes)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
