"""A whole run: fuzzed connections against a running node, sane sessions beside them, and the account at the end."""

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import msgpack
import uvloop
import websockets

from tests.conftest import Node, wait_until
from tests.fuzz.peer import DEADLINE_S
from tests.fuzz.session import Plan, Session, Wrong

PARALLEL = 48
SUBSCRIBERS = 4
FAULTS_MAX = 15
WATCH_S = 1.0
# Freed memory that the allocator keeps; a leak of 100 bytes a connection would pass it in the full run.
RSS_GROWTH_BYTES_MAX = 24 * 1024 * 1024
ZERO = ("connection", "ring", "buffer", "segment", "timer", "membership", "pending", "request")
# For a handshake that a busy machine holds up, of either side: three seconds were too few.
SETTINGS = {
    "HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS": "12000",
    "HOLDFAST_GATEWAY_FIN_TIMEOUT_MS": "1000",
    "HOLDFAST_LOG_LEVEL": "warning",
}


class Sane:
    """A session by the book over a third-party WebSocket library: one publishes, the others must hear all of it."""

    def __init__(self, url: str, group: str, text: bool) -> None:
        self.url, self.group, self.text = url, group, text
        self.received: list[Any] = []
        self.replies: dict[int, asyncio.Future[Any]] = {}
        self.next = 0

    async def start(self) -> None:
        self.socket = await websockets.connect(self.url, open_timeout=DEADLINE_S, ping_interval=None, max_queue=None)
        self.reading = asyncio.create_task(self.read())
        await self.ask(0, {"v": 1, "user": "sane"})
        await self.ask(6, self.group)

    async def ask(self, kind: int, *rest: Any) -> Any:
        self.next += 1
        answer = self.replies[self.next] = asyncio.get_running_loop().create_future()
        frame = [kind, self.next, *rest]
        await self.socket.send(json.dumps(frame) if self.text else msgpack.packb(frame))
        async with asyncio.timeout(DEADLINE_S):
            return await answer

    async def read(self) -> None:
        async for message in self.socket:
            frame = json.loads(message) if isinstance(message, str) else msgpack.unpackb(message, strict_map_key=False)
            if frame[0] in (1, 2) and frame[1] in self.replies:
                self.replies.pop(frame[1]).set_result(frame[2])
            elif frame[0] == 9 and frame[1] == self.group:
                self.received.append((frame[2], frame[3]))
            elif frame[0] in (3, 14):
                raise AssertionError(f"a sane session got {frame!r}")

    async def stop(self) -> None:
        await self.socket.close()
        await self.reading


class Beside:
    """The sane sessions: a publisher sends numbers, one after the other's REPLY, and every subscriber hears them."""

    def __init__(self, url: str) -> None:
        group = f"group:sane-{os.getpid()}-{time.monotonic_ns()}"
        self.sessions = [Sane(url, group, text=number % 2 == 0) for number in range(SUBSCRIBERS + 1)]
        self.published = 0
        self.over = asyncio.Event()
        self.slowest_s = 0.0

    async def run(self) -> None:
        for session in self.sessions:
            await session.start()
        while not self.over.is_set():
            started = time.monotonic()
            await self.sessions[0].ask(8, self.sessions[0].group, {"number": self.published})
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            self.published += 1
            try:
                await asyncio.wait_for(self.over.wait(), 0.01)
            except TimeoutError:
                continue

    async def check(self) -> None:
        """Every message at every session, in order, none twice, and all still alive."""
        expected = [(number + 1, {"number": number}) for number in range(self.published)]
        end = time.monotonic() + DEADLINE_S
        while any(len(session.received) < len(expected) for session in self.sessions) and time.monotonic() < end:
            await self.sessions[0].ask(11, self.sessions[0].group, {"limit": 0})  # one round trip
        for session in self.sessions:
            assert not session.reading.done(), session.reading
            assert session.received == expected, f"{len(session.received)} of {len(expected)} messages, or out of order"
            await session.stop()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Account:
    """What must be the same after the run as before."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pids = self.processes()
        self.descriptors = {pid: descriptors(pid) for pid in self.pids}
        self.resident = {pid: resident_bytes(pid) for pid in self.pids}

    def processes(self) -> list[int]:
        return [self.node.pid, *self.node.workers, *self.node.routers]

    def is_alive(self) -> bool:
        return self.processes() == self.pids

    def live(self) -> dict[str, int]:
        ledger = self.node.ledger()
        return {kind: ledger[kind].live for kind in ZERO}

    def growth(self) -> dict[int, int]:
        return {pid: resident_bytes(pid) - self.resident[pid] for pid in self.pids}

    def settle(self) -> None:
        """AssertionError unless nothing of the run is left."""
        assert self.is_alive(), f"processes were {self.pids}, are {self.processes()}\n{self.node.log_tail()}"
        assert self.node.metric("holdfast_process_restarts_total") == 0
        wait_until(lambda: not any(self.live().values()), lambda: f"an empty ledger: {self.live()}")
        # Fewer is right too: a scrape's own connection may have been among those of the start.
        wait_until(
            lambda: all(descriptors(pid) <= count for pid, count in self.descriptors.items()),
            lambda: f"fds were {self.descriptors}, are {[descriptors(pid) for pid in self.pids]}",
        )
        assert self.node.metric("holdfast_illegal_states_total") == 0
        failed = [line for line in self.node.log.read_text(errors="replace").splitlines() if "Traceback" in line]
        assert not failed, f"{len(failed)} tracebacks\n{self.node.log_tail()}"


class Campaign:
    """Runs connections until `count` inputs were sent; keeps what failed."""

    def __init__(self, node: Node, seed: int, count: int) -> None:
        self.node, self.seed, self.count = node, seed, count
        self.plan = Plan(seed, node.port, node.ws_port)
        self.faults: list[str] = []
        self.number = 0
        self.under_way: dict[int, Session] = {}

    async def connections(self, account: Account) -> None:
        while self.plan.inputs < self.count and len(self.faults) < FAULTS_MAX:
            number, self.number = self.number, self.number + 1
            await self.connection(number)

    async def connection(self, number: int) -> None:
        session = self.under_way[number] = Session(self.plan, number)
        try:
            await session.run()
        except (Wrong, TimeoutError, OSError) as error:
            if len(self.faults) < FAULTS_MAX:
                self.faults.append(self.describe(number, session, f"{type(error).__name__}: {error}"))
        finally:
            del self.under_way[number]

    def describe(self, number: int, session: Session, what: str) -> str:
        kind = "ws" if session.websocket else "tcp"
        sent = "\n    ".join(data[:300].hex() + ("…" if len(data) > 300 else "") for data in session.sent[-26:])
        return f"seed {self.seed} connection {number} ({kind}): {what[:1500]}\n  its last inputs:\n    {sent}"

    async def watch(self, account: Account) -> None:
        """Stop at once when a process died, and keep what was being sent then."""
        while True:
            await asyncio.sleep(WATCH_S)
            if not await asyncio.to_thread(account.is_alive):
                sessions = list(self.under_way.items())
                self.faults += [self.describe(number, session, "a process died") for number, session in sessions]
                self.plan.inputs = self.count
                return

    async def run(self, account: Account) -> Beside:
        beside = Beside(self.node.ws_url)
        sane = asyncio.create_task(beside.run())
        watching = asyncio.create_task(self.watch(account))
        await asyncio.gather(*(self.connections(account) for _ in range(PARALLEL)))
        beside.over.set()
        watching.cancel()
        if account.is_alive():
            try:
                await sane
                await beside.check()
            except AssertionError as error:
                self.faults.append(f"seed {self.seed}, the sane sessions: {error}")
        else:
            sane.cancel()
        return beside


def run(node: Node, seed: int, count: int, only: int | None = None) -> list[str]:
    """Fuzz a node and print the figures; what was wrong, empty when nothing was.

    Args:
        node: started with SETTINGS.
        seed: makes the whole run.
        count: inputs.
        only: run this connection of the seed alone.

    """
    print(f"seed {seed}", flush=True)
    # What the first connections make a process load stays with it: it is not what the run leaves behind.
    warm = Campaign(node, seed ^ 1, 500)
    campaign = Campaign(node, seed, count)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if only is not None:
            runner.run(campaign.connection(only))
            return campaign.faults
        runner.run(warm.run(Account(node)))
        wait_until(lambda: node.live("connection") == 0, "the first connections end")
        account = Account(node)
        started = time.monotonic()
        beside = runner.run(campaign.run(account))
    took_s = time.monotonic() - started
    faults = campaign.faults + warm.faults
    try:
        account.settle()
        growth = account.growth()
        assert sum(growth.values()) < RSS_GROWTH_BYTES_MAX, f"memory grew by {growth}"
    except AssertionError as error:
        faults.append(f"seed {seed}: {error}")
    report(campaign.plan, beside, account, took_s)
    return faults


def report(plan: Plan, beside: Beside, account: Account, took_s: float) -> None:
    print(f"inputs {plan.inputs} over {plan.connections} connections in {took_s:.1f} s")
    for title, counted in (("inputs", plan.kinds), ("outcomes", plan.outcomes)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counted.most_common()))
    print(f"beside: {beside.published} messages to {SUBSCRIBERS + 1} sane sessions, slowest {beside.slowest_s:.3f} s")
    if account.is_alive():
        print(f"ledger live: {account.live()}")
        now = {pid: descriptors(pid) for pid in account.pids}
        print(f"fds before {account.descriptors}, after {now}")
        growth = account.growth()
        print(f"RSS before {account.resident}, growth {growth}")


def fresh_seed() -> int:
    return random.SystemRandom().randrange(1 << 32)
