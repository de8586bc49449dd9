"""The world of a chaos run: a node, what it stands on, and every fault that can be made to it.

All doors are the operator's or the kernel's: signals, a full file system, Redis's own settings, the clock.
"""

import asyncio
import os
import random
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path

from tests.chaos.schedule import Schedule
from tests.conftest import Node, stand_still, wait_until
from tests.servers.redis import Cluster, Sentinels, Server

READY_S = 60.0
TAKE_OVER_S = 60.0
# Above what it has now: the next batch or the one after it does not fit.
MEMORY_LEFT_BYTES = 32_768
LEFT_BYTES = 4_096
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
        clock: Path | None = None,
    ) -> None:
        self.node, self.disk, self.log, self.redis, self.many, self.clock = node, disk, log, redis, many, clock
        self._killed: Server | None = None
        self.struck = 0
        self._stopped: list[int] = []
        self._back_s = 0
        self._acts: dict[str, Callable[[int], object]] = {
            "wait": lambda pick: None,
            "kill worker": lambda pick: self._kill(self.node.workers, pick),
            "kill router": lambda pick: self._kill(self.node.routers, pick),
            "kill node": lambda pick: self.node.crash(),
            "start node": lambda pick: self.node.start_again(),
            "tear tails": self._tear,
            "kill redis": lambda pick: self._server.kill(),
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
        }

    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.node.port

    async def strike(self, schedule: Schedule, note: Callable[[str], None]) -> None:
        """Step by step; `note` hears of each."""
        for step in schedule.steps:
            await asyncio.sleep(step.after_s)
            note(step.act)
            await asyncio.to_thread(self._acts[step.act], step.pick)
        self.struck += 1
        await asyncio.to_thread(self.heal)
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

    @staticmethod
    def _kill(pids: list[int], pick: int) -> None:
        if pids:
            os.kill(pids[pick % len(pids)], signal.SIGKILL)

    def _kill_others(self) -> None:
        for pid in self.node.workers:
            if pid not in self._stopped:
                os.kill(pid, signal.SIGKILL)

    def _stop(self, pids: list[int], pick: int) -> None:
        if pids:
            pid = pids[pick % len(pids)]
            self._stopped.append(pid)
            stand_still(pid)

    def _continue(self) -> None:
        while self._stopped:
            os.kill(self._stopped.pop(), signal.SIGCONT)

    def _kill_primary(self, pick: int) -> None:
        assert self.many is not None
        self._killed = self.many.victim(pick)
        self._killed.kill()

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
        """Until the file system takes no more, or until the kernel lets the router's files grow no further."""
        if self.disk is None:
            assert self.log is not None
            largest = max((path.stat().st_size for path in self.log.rglob("*.log")), default=0)
            self._limit_files(largest + LEFT_BYTES)
            return
        with (self.disk / "ballast").open("ab", buffering=0) as ballast:
            try:
                while ballast.write(bytes(LEFT_BYTES)):
                    pass
            except OSError:
                return

    def _tear(self, pick: int) -> None:
        """What a power cut leaves of a write that nobody was answered for: a part of a batch, pages that were never
        written, or whatever stood on the disk there. The journal of the sessions ends as well.
        """
        assert self.log is not None
        dice = random.Random(pick)
        whole = 8 * dice.randrange(8, TORN_BYTES // 8)
        head = TORN_HEAD.pack(b"HFLB", dice.getrandbits(32), whole, 0, 1 << 40, 0)
        last = max(self.log.rglob("segment-*.log"))
        for path in (last, *self.log.rglob("*-wal")):
            kinds = (head + dice.randbytes(dice.randrange(whole)), bytes(whole), dice.randbytes(whole))
            with path.open("ab") as file:
                file.write(kinds[dice.randrange(len(kinds))])

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
        """No more than Redis has now, and nothing is thrown out for it."""
        self._server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        used = self._server.do("INFO", "memory")["used_memory"]
        self._server.do("CONFIG", "SET", "maxmemory", used + MEMORY_LEFT_BYTES)

    def _step_back(self, pick: int) -> None:
        """The wall clock of all processes of the node, by up to an hour more each time."""
        assert self.clock is not None
        self._back_s += 60 + pick % 3_600
        self.clock.write_text(f"-{self._back_s}\n")
