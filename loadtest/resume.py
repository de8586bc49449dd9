"""Ten thousand sessions in twenty groups each resume at once after their worker was killed.

    python -m loadtest.resume [--sessions 10000] [--channels 20] [--processes 2]

Twice as many sessions as are to resume come to a node of two workers; one worker is killed, every group is talked in,
and those that were cut come back at once, wherever they are let in. Told are the time until the last of them was
welcomed, the time until the last of them had everything that was said, what was lost or came twice, the latency of
other traffic on the surviving worker meanwhile, and the CPU that each thread used from the kill to the last delivery.
A result is written to loadtest/results/.
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
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from core import client_loop
from core.client_loop import ClientLoop
from core.ledger import Stats
from loadtest.measure import BenchError, Server, get, holdfast, machine_busy_s, process_tree

GROUPS_PER_CHANNEL = 100
JOIN_DEADLINE_S = 240.0
RESUME_DEADLINE_S = 60.0
TALKERS = 60
LIVE_RATE = 100
LIVE_BEFORE_S = 3.0
PAYLOAD_BYTES = 100
SUMS = ("cut", "back", "resumed", "delivered", "lost", "repeated", "out_of_order", "told_gaps", "corrupt")
RESULTS = Path(__file__).parent / "results"


class Loop:
    """A client thread, and what it told so far."""

    def __init__(self, port: int, most: int) -> None:
        self.loop = ClientLoop(
            Stats(),
            [("127.0.0.1", port)],
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


def sessions(pipe: Connection, port: int, first: int, count: int, channels: int, groups: int) -> None:
    """A client process: opens its sessions, and has those that are cut come back at once."""
    crowd = Loop(port, count + 1)
    for number in range(first, first + count):
        handle = crowd.loop.open(user=f"s{number}", resumable=True)
        for place in range(channels):
            crowd.loop.join(handle, f"group:r{(number * 7 + place * (groups // channels)) % groups}")
    crowd.loop.flush()
    crowd.until("joined", count * channels, JOIN_DEADLINE_S)
    crowd.take(0)
    pipe.send("joined")
    cut = back = 0
    first_cut = last_back = last_delivery = 0.0
    delivered = crowd.loop.counts()["delivered"]
    while not pipe.poll():
        for kind, handle, *_ in crowd.take(0.02):
            if kind == client_loop.FAILED:
                first_cut = first_cut or time.monotonic()
                cut += 1
                crowd.loop.reconnect(handle)
            elif kind == client_loop.CONNECTED:
                back += 1
                last_back = time.monotonic()
        crowd.loop.flush()
        if crowd.loop.counts()["delivered"] != delivered:
            delivered, last_delivery = crowd.loop.counts()["delivered"], time.monotonic()
        if pipe.poll(0) is False and cut and back == cut:
            pipe.send(("so far", cut, back, delivered))
            time.sleep(0.02)
    heard(pipe, 0.0)
    told = {"cut": cut, "back": back, "first_cut": first_cut, "last_back": last_back, "last_delivery": last_delivery}
    pipe.send({**told, **crowd.loop.counts()})
    crowd.close()


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


def percentile(times: Iterable[tuple[int, int]], share: float) -> float:
    """Milliseconds below which that share of the deliveries took."""
    rising = list(times)
    wanted, seen = share * sum(count for _, count in rising), 0
    for took_ns, count in rising:
        seen += count
        if seen >= wanted:
            return took_ns / 1e6
    return 0.0


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


def staying_on(loop: Loop, server: Server, prefix: str) -> list[int]:
    """New sessions on the worker that stays."""
    handles = {f"{prefix}{number}": loop.loop.open(user=f"{prefix}{number}") for number in range(TALKERS)}
    loop.loop.flush()
    loop.until("connected", TALKERS, 30.0)
    return [handle for user, handle in handles.items() if place_of(server, user) == 1]


def live_members(live: Loop, server: Server) -> list[int]:
    """Members of the group whose messages are timed."""
    staying = staying_on(live, server, "l")
    for handle in staying:
        live.loop.join(handle, "group:live")
    live.loop.flush()
    live.until("joined", len(staying), JOIN_DEADLINE_S)
    return staying


def talkers(talk: Loop, server: Server, groups: int) -> list[tuple[int, range]]:
    """Members of the groups on the worker that stays: (handle, the groups that it talks in)."""
    staying = staying_on(talk, server, "t")
    each = -(-groups // len(staying))
    parts = [range(number * each, min(groups, (number + 1) * each)) for number in range(len(staying))]
    for handle, part in zip(staying, parts, strict=True):
        for group in part:
            talk.loop.join(handle, f"group:r{group}")
    talk.loop.flush()
    talk.until("joined", groups, JOIN_DEADLINE_S)
    return list(zip(staying, parts, strict=True))


def settled(pipes: list[Connection]) -> Callable[[], bool]:
    """Whether anything still comes, or may: False once all are back and nothing came for two seconds."""
    state: dict[int, Any] = {}
    end, last, since = time.monotonic() + RESUME_DEADLINE_S, -1, 0.0

    def goes_on() -> bool:
        nonlocal last, since
        for number, pipe in enumerate(pipes):
            while pipe.poll():
                state[number] = heard(pipe, 0.0)
        received = sum(one[3] for one in state.values())
        if len(state) < len(pipes) or received != last:
            last, since = received, time.monotonic()
        return time.monotonic() < end and time.monotonic() - since < 2.0

    return goes_on


def thread_seconds(pids: Iterable[int]) -> dict[tuple[int, int], tuple[str, float]]:
    """(pid, thread): its name, and the CPU seconds that it has used; what ends meanwhile is left out."""
    found = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            process = Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ").strip()
            process = process.removeprefix("holdfast ") if process.startswith("holdfast ") else f"program {pid}"
            for task in Path(f"/proc/{pid}/task").iterdir():
                name = "main" if task.name == str(pid) else (task / "comm").read_text().strip()
                ran_ns = int((task / "schedstat").read_text().split()[0])
                found[pid, int(task.name)] = (f"{process}: {name}", ran_ns / 1e9)
    return found


def used_between(
    before: dict[tuple[int, int], tuple[str, float]], after: dict[tuple[int, int], tuple[str, float]]
) -> dict[str, float]:
    """CPU seconds by name, the most first; of threads that ended in between nothing is known."""
    used: dict[str, float] = {}
    for key, (name, seconds) in after.items():
        used[name] = used.get(name, 0.0) + seconds - before.get(key, (name, 0.0))[1]
    return dict(sorted(((name, round(each, 3)) for name, each in used.items() if each >= 0.005), key=lambda one: -one[1]))


def measure(server: Server, total: int, channels: int, processes: int) -> dict[str, Any]:
    """One run on a server that is ready."""
    groups = max(channels, total * channels // (2 * GROUPS_PER_CHANNEL))
    pipes = crowd_of(server.ws_port, total, channels, groups, processes)
    talk, live = Loop(server.ws_port, TALKERS + 1), Loop(server.ws_port, TALKERS + 1)
    staying = talkers(talk, server, groups)
    listeners = live_members(live, server)
    for pipe in pipes:
        heard(pipe, JOIN_DEADLINE_S)
    live_until = time.monotonic() + LIVE_BEFORE_S
    _live(live, listeners[0], lambda: time.monotonic() < live_until)
    before = live.loop.times()["delivery"]
    cpu = thread_seconds([*server.pids(), *process_tree(os.getpid())])
    machine_s = machine_busy_s()
    os.kill(worker_pid(server, 0), signal.SIGKILL)
    for handle, part in staying:
        for group in part:
            talk.loop.publish(handle, f"group:r{group}", PAYLOAD_BYTES)
    talk.loop.flush()
    _live(live, listeners[0], settled(pipes))
    machine_s = machine_busy_s() - machine_s
    used = used_between(cpu, thread_seconds([*server.pids(), *process_tree(os.getpid())]))
    during = live.loop.times()["delivery"]
    told = []
    for pipe in pipes:
        pipe.send("stop")
        while isinstance(one := heard(pipe, RESUME_DEADLINE_S), tuple):
            continue
        told.append(one)
    talk.close()
    live.close()
    first = min(one["first_cut"] for one in told if one["cut"])
    return {
        "sessions": total,
        "channels": channels,
        "groups": groups,
        "welcomed_s": max(one["last_back"] for one in told) - first,
        "caught_up_s": max(one["last_delivery"] for one in told) - first,
        "expected": total * channels,
        "live_p99_ms_before": percentile(before, 0.99),
        "live_p99_ms_during": percentile(during, 0.99),
        "live_p50_ms_during": percentile(during, 0.5),
        "live_max_ms_during": percentile(during, 1.0),
        "cpu_s": used,
        "machine_cpu_s": machine_s,
        **{name: sum(one[name] for one in told) for name in SUMS},
    }


def _live(talk: Loop, handle: int, goes_on: Callable[[], bool]) -> None:
    """Open-loop traffic in one group of sessions that stay, as long as it is to go on."""
    due = time.time_ns()
    while goes_on():
        now = time.time_ns()
        while due <= now:
            talk.loop.publish(handle, "group:live", PAYLOAD_BYTES, due)
            due += 1_000_000_000 // LIVE_RATE
        talk.loop.flush()
        talk.take(0.005)


def main() -> int:
    """Run it once, print the figures, and write them down."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.resume", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000, help="how many are to resume, about")
    parser.add_argument("--channels", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "resume.json")
    asked = parser.parse_args()
    with holdfast(2, environment={"HOLDFAST_GATEWAY_CHANNELS_PER_SESSION_MAX": "1000"}) as server:
        result = measure(server, 2 * asked.sessions, asked.channels, asked.processes)
    asked.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
