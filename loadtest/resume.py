"""Ten thousand sessions in twenty groups each resume at once after their worker was killed.

    python -m loadtest.resume [--sessions 10000] [--channels 20] [--processes 2]

Twice as many sessions as are to resume come to a node of two workers; one worker is killed, every group is talked in,
and those that were cut come back at once, wherever they are let in. Told are the time until the last of them was
welcomed, the time until the last of them had everything that was said, what was lost or came twice, and the latency
of other traffic on the surviving worker meanwhile. A result is written to loadtest/results/.
"""

import argparse
import json
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from core import client_loop
from core.client_loop import ClientLoop
from core.ledger import Stats
from loadtest.measure import BenchError, Server, get, holdfast

GROUPS_PER_CHANNEL = 100
JOIN_DEADLINE_S = 240.0
RESUME_DEADLINE_S = 60.0
TALKERS = 60
LIVE_RATE = 100
LIVE_BEFORE_S = 3.0
PAYLOAD_BYTES = 100
RESULTS = Path(__file__).parent / "results"


class Loop:
    """A client thread, and what it told so far."""

    def __init__(self, port: int, most: int, connect_rate: int = 0) -> None:
        self.loop = ClientLoop(
            Stats(),
            [("127.0.0.1", port)],
            connections_max=most,
            connect_rate=connect_rate,
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
    crowd = Loop(port, count + 1, connect_rate=2_000)
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
    pipe.recv()
    told = {"cut": cut, "back": back, "first_cut": first_cut, "last_back": last_back, "last_delivery": last_delivery}
    pipe.send({**told, **crowd.loop.counts()})
    crowd.close()


def place_of(server: Server, user: str) -> tuple[int, str]:
    """The worker that has a user's connection."""
    listed = json.loads(get(f"http://127.0.0.1:{server.admin_port}/api/connections?user={user}"))
    (one,) = listed["connections"]
    return int(one["id"].partition("-")[0]), one["id"]


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


def measure(server: Server, total: int, channels: int, processes: int) -> dict[str, Any]:
    """One run on a server that is ready."""
    groups = max(channels, total * channels // (2 * GROUPS_PER_CHANNEL))
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for number in range(processes):
        mine, theirs = context.Pipe()
        share = total // processes
        child = context.Process(target=sessions, args=(theirs, server.ws_port, number * share, share, channels, groups))
        child.start()
        pipes.append(mine)
        children.append(child)
    talk = Loop(server.ws_port, TALKERS + 1)
    handles = {f"t{number}": talk.loop.open(user=f"t{number}") for number in range(TALKERS)}
    talk.loop.flush()
    talk.until("connected", TALKERS, 30.0)
    places = {user: place_of(server, user)[0] for user in handles}
    staying = [handles[user] for user, place in places.items() if place == 1]
    per_talker = -(-groups // len(staying))
    for number, handle in enumerate(staying):
        talk.loop.join(handle, "group:live")
        for group in range(number * per_talker, min(groups, (number + 1) * per_talker)):
            talk.loop.join(handle, f"group:r{group}")
    talk.loop.flush()
    talk.until("joined", len(staying) + groups, JOIN_DEADLINE_S)
    for pipe in pipes:
        if not pipe.poll(JOIN_DEADLINE_S) or pipe.recv() != "joined":
            raise BenchError("the sessions have not joined in time")
    live_until = time.monotonic() + LIVE_BEFORE_S
    _live(talk, staying, lambda: time.monotonic() < live_until)
    before = talk.loop.times()["delivery"]
    os.kill(worker_pid(server, 0), signal.SIGKILL)
    for number, handle in enumerate(staying):
        for group in range(number * per_talker, min(groups, (number + 1) * per_talker)):
            talk.loop.publish(handle, f"group:r{group}", PAYLOAD_BYTES)
    state: dict[int, tuple[int, int, int]] = {}
    end = time.monotonic() + RESUME_DEADLINE_S
    settled = [0.0, -1.0]

    def goes_on() -> bool:
        for number, pipe in enumerate(pipes):
            while pipe.poll():
                state[number] = pipe.recv()[1:]
        received = float(sum(one[2] for one in state.values()))
        if len(state) < processes or received != settled[1]:
            settled[:] = [time.monotonic(), received]
        return time.monotonic() < end and time.monotonic() - settled[0] < 2.0

    _live(talk, staying, goes_on)
    during = talk.loop.times()["delivery"]
    for pipe in pipes:
        pipe.send("stop")
    told = []
    for pipe in pipes:
        while isinstance(one := pipe.recv(), tuple):
            pass
        told.append(one)
    for child in children:
        child.join(30.0)
    talk.close()
    first = min(one["first_cut"] for one in told if one["cut"])
    sums = {
        name: sum(one[name] for one in told)
        for name in ("cut", "back", "resumed", "delivered", "lost", "repeated", "out_of_order", "told_gaps", "corrupt")
    }
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
        **sums,
    }


def _live(talk: Loop, staying: list[int], goes_on: Any) -> None:
    """Open-loop traffic in one group of sessions that stay, as long as it is to go on."""
    due = time.time_ns()
    while goes_on():
        now = time.time_ns()
        while due <= now:
            talk.loop.publish(staying[0], "group:live", PAYLOAD_BYTES, due)
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
