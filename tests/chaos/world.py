"""The world of a chaos run: a node, what it stands on, and every fault that can be made to it.

All doors are the operator's or the kernel's: signals, a full file system, Redis's own settings, the clock. No fault is
taken to have struck because it was made: each is proved by what the processes, the kernel or the log show of it.
"""

import asyncio
import contextlib
import os
import random
import resource
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos import clock as clocks
from tests.chaos.clock import Clock
from tests.chaos.placement import Placement
from tests.chaos.schedule import Schedule
from tests.conftest import Node, stand_still, stands_still, wait_until
from tests.servers.redis import Cluster, Sentinels, Server, errors

READY_S = 60.0
TAKE_OVER_S = 60.0
# From when there is no room to when the router has noticed, which writes all the time.
NOTICED_S = 20.0
MOVED_S = 30.0
# Above what it has now: the next batch or the one after it does not fit.
MEMORY_LEFT_BYTES = 32_768
LEFT_BYTES = 4_096
ROUTER_IS_BACK = "child_is_back child=router"
TORN_BYTES = 16_384
TORN_HEAD = struct.Struct("<4sIIIQQ")
"""Of a batch, as in router/log/segments.py."""


class World:
    """Strikes as a schedule says. Everything is whole again when `heal` returns."""

    def __init__(
        self,
        node: Node,
        *,
        disk: Path | None = None,
        log: Path | None = None,
        redis: Server | None = None,
        many: Sentinels | Cluster | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.node, self.disk, self.log, self.redis, self.many, self.clock = node, disk, log, redis, many, clock
        self._killed: Server | None = None
        self.struck = 0
        self._workers = len(node.workers)
        self._stopped: list[int] = []
        self._proofs: list[Callable[[], None]] = []
        """What is to be true of what was struck once all is whole again: assertions."""
        self._router_ended: int | None = None
        """Where the node's log ended when a router was killed in this schedule."""
        self._living: list[int] = []
        """The workers then."""
        self._at_first = Placement({})
        self._acts: dict[str, Callable[[int], object]] = {
            "wait": lambda pick: None,
            "kill worker": self._kill_worker,
            "kill router": self._kill_router,
            "await router": lambda pick: wait_until(self._is_router_back, "a later router serves", READY_S),
            "kill node": lambda pick: self._kill_node(),
            "start node": lambda pick: self.node.start_again(),
            "await journal": lambda pick: wait_until(self._journals, "sessions are stored", READY_S),
            "tear tails": self._tear,
            "kill redis": lambda pick: self._kill_redis(),
            "start redis": lambda pick: self._server.start(),
            "kill primary": self._kill_primary,
            "await another primary": lambda pick: self._await_other(),
            "start killed": lambda pick: self._start_killed(),
            "fill disk": lambda pick: self._fill_disk(),
            "free disk": lambda pick: self._free_disk(),
            "fill redis": lambda pick: self._limit_memory(),
            "free redis": lambda pick: self._server.do("CONFIG", "SET", "maxmemory", 0),
            "step clock back": self._step_back,
            "stop router": lambda pick: self._stop(self.node.routers, pick),
            "stop worker": lambda pick: self._stop(self.node.workers, pick),
            "continue worker": lambda pick: self._continue(),
            "kill other workers": lambda pick: self._kill_others(),
            "continue router": lambda pick: self._continue(),
            "note sessions": lambda pick: self._note_sessions(),
            "see them moved": lambda pick: self._see_moved(),
        }

    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.node.port

    async def strike(self, schedule: Schedule, note: Callable[[str], None]) -> None:
        """Step by step; `note` hears of each. AssertionError: something did not strike."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._strike, schedule, lambda what: loop.call_soon_threadsafe(note, what))

    def _strike(self, schedule: Schedule, note: Callable[[str], object]) -> None:
        """In a thread of its own: the loop has its talkers to serve, and comes late to what is to strike at once."""
        self._proofs.clear()
        self._router_ended = None
        self._living = []
        for step in schedule.steps:
            time.sleep(step.after_s)
            note(step.act)
            self._acts[step.act](step.pick)
        self.struck += 1
        self.heal()
        for proof in self._proofs:
            proof()
        note("all is whole again")

    def heal(self) -> None:
        self._continue()
        if self.many is not None:
            self.many.wait_whole()
        wait_until(lambda: self._is_ready(), lambda: f"the node serves\n{self.node.log_tail()}", READY_S)

    def _is_ready(self) -> bool:
        try:
            return self.node.get("/readyz")[0] == 200
        except OSError:
            return False

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._proofs.append(lambda: self._check_replaced(pid))

    def _check_replaced(self, *pids: int) -> None:
        workers, routers = self.node.workers, self.node.routers
        assert (len(workers), len(routers)) == (self._workers, 1), f"workers {workers}, routers {routers}"
        left = set(pids) & {self.node.pid, *workers, *routers}
        assert not left, f"killed, and still there: {left} of workers {workers}, routers {routers}"

    def _kill_router(self, pick: int) -> None:
        (pid,) = self.node.routers
        self._living = self.node.workers  # to look for them afterwards takes as long as a router's start
        self._router_ended = len(self._said())
        self._kill(pid)

    def _kill_worker(self, pick: int) -> None:
        pids = self._living or self.node.workers
        self._kill(pids[pick % len(pids)])
        self._check_together(1)

    def _kill_others(self) -> None:
        pids = [pid for pid in self._living or self.node.workers if pid not in self._stopped]
        assert pids, "there are no other workers"
        for pid in pids:
            self._kill(pid)
        self._check_together(len(pids))

    def _check_together(self, count: int) -> None:
        """Who dies with the router was gone before another one served, which it could have told what it knew: by the
        order in which the supervisor saw it.
        """
        if self._router_ended is None:
            return
        before, back, _ = self._said()[self._router_ended :].partition(ROUTER_IS_BACK)
        in_time = not back or before.count("child_ended child=worker") >= count
        assert in_time, "a later router served before the workers were killed"

    def _is_router_back(self) -> bool:
        return ROUTER_IS_BACK in self._said()[self._router_ended :]

    def _said(self) -> str:
        return self.node.log.read_text(errors="replace")

    def _said_count(self, text: str) -> int:
        return self._said().count(text)

    def _kill_node(self) -> None:
        before = [self.node.pid, *self.node.workers, *self.node.routers]
        drains = self._said_count("drain_begins")
        self.node.crash()
        assert self._said_count("drain_begins") == drains, "a worker had the time to begin an orderly end"
        self._proofs.append(lambda: self._check_replaced(*before))

    def _stop(self, pids: list[int], pick: int) -> None:
        pid = pids[pick % len(pids)]
        self._stopped.append(pid)
        stand_still(pid)

    def _continue(self) -> None:
        while self._stopped:
            pid = self._stopped.pop()
            stood = stands_still(pid)
            os.kill(pid, signal.SIGCONT)
            assert stood, f"process {pid} did not stand still until it was to go on"

    def _note_sessions(self) -> None:
        self._at_first = Placement.of(self.node)

    def _see_moved(self) -> None:
        """Before what follows strikes, sessions are at another worker than they were; on a busy machine that takes."""
        wait_until(lambda: self._at_first.is_moved(Placement.of(self.node)), "sessions have moved", MOVED_S)

    def _kill_redis(self) -> None:
        before = self._run_id()
        self._server.kill()

        def check() -> None:
            assert self._run_id() != before, "Redis was not killed"
            assert self._server.do("DBSIZE"), "what Redis had was not on its disk"

        self._proofs.append(check)

    def _run_id(self) -> object:
        """Another one after each start of Redis."""
        return self._server.do("INFO", "server")["run_id"]

    def _kill_primary(self, pick: int) -> None:
        assert self.many is not None
        self._killed = killed = self.many.victim(pick)
        pid = killed.pid
        killed.kill()

        def check() -> None:
            assert killed.pid != pid, "the primary was not killed"
            assert killed.do("PING"), "it did not come back"

        self._proofs.append(check)

    def _await_other(self) -> None:
        many, killed = self.many, self._killed
        assert many is not None
        assert killed is not None
        wait_until(lambda: many.replaced(killed), "another took its place", TAKE_OVER_S)

    def _start_killed(self) -> None:
        """It finds that another took its place, or that nobody has yet."""
        assert self._killed is not None
        self._killed.start()

    def _fill_disk(self) -> None:
        """Until the file system takes no more, or until the kernel lets the router's files grow no further; the router
        is away from its log then.
        """
        if self.disk is None:
            assert self.log is not None
            largest = max((path.stat().st_size for path in self.log.rglob("*.log")), default=0)
            self._limit_files(largest + LEFT_BYTES)
        else:
            with (self.disk / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
                while ballast.write(bytes(LEFT_BYTES)):
                    pass
        self._await_away()

    def _await_away(self) -> None:
        """Until the router has found that it cannot write."""
        wait_until(lambda: self.node.metric("holdfast_log_away"), "the router finds no room for its log", NOTICED_S)

    def _tear(self, pick: int) -> None:
        """What a power cut leaves of a write that nobody was answered for: a part of a batch, pages that were never
        written, or whatever stood on the disk there. The journal of the sessions ends as well.
        """
        assert self.log is not None
        dice = random.Random(pick)
        whole = 8 * dice.randrange(8, TORN_BYTES // 8)
        head = TORN_HEAD.pack(b"HFLB", dice.getrandbits(32), whole, 0, 1 << 40, 0)
        last = max(self.log.rglob("segment-*.log"))
        journals = self._journals()
        assert journals, "the sessions have no journal that could be torn"
        for path in (last, *journals):
            kinds = (head + dice.randbytes(dice.randrange(whole)), bytes(whole), dice.randbytes(whole))
            torn = kinds[dice.randrange(len(kinds))]
            with path.open("ab") as file:
                file.write(torn)
            if path is last:
                cut = f"{path}: a crash left its last {len(torn)} bytes torn; they are cut."
        self._proofs.append(lambda: self._check_said(cut))

    def _journals(self) -> list[Path]:
        """Of the sessions' store; there is none until it is written to after a start."""
        assert self.log is not None
        return list(self.log.rglob("*-wal"))

    def _check_said(self, text: str) -> None:
        assert text in self.node.log.read_text(errors="replace"), f"nothing says: {text}\n{self.node.log_tail()}"

    def _limit_files(self, size: int) -> None:
        for pid in self.node.routers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def _free_disk(self) -> None:
        if self.disk is None:
            self._limit_files(resource.RLIM_INFINITY)
            return
        (self.disk / "ballast").unlink()

    @property
    def _server(self) -> Server:
        assert self.redis is not None
        return self.redis

    def _limit_memory(self) -> None:
        """No more than Redis has now, and nothing is thrown out for it; it refuses the router's batches then."""
        before = errors(self._server, "OOM")
        self._server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        used = self._server.do("INFO", "memory")["used_memory"]
        self._server.do("CONFIG", "SET", "maxmemory", used + MEMORY_LEFT_BYTES)
        wait_until(lambda: errors(self._server, "OOM") > before, "Redis is out of memory", NOTICED_S)
        self._await_away()

    def _step_back(self, pick: int) -> None:
        """The wall clock of all processes of the node, by up to an hour more each time."""
        clock, node = self.clock, self.node
        assert clock is not None
        clock.step_back(node, clocks.LEAST_S + pick % 3_600)

        def check() -> None:
            for who, found in (("later router", clocks.of_router(node)), ("supervisor", clocks.of_supervisor(node))):
                assert not clock.complaint(found), f"the {who}'s clock did not step: {clock.complaint(found)}"

        self._proofs.append(check)
