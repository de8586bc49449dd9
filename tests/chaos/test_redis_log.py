"""The Redis log under seeded faults: whatever happens to the server, each batch is in the log once and in its order.

Four batches are under way at any time, as with a router. One seed makes one schedule; a failure names it. There are 25
of them, and 200 with HOLDFAST_CHAOS=full; HOLDFAST_CHAOS_SEED takes others.
"""

import asyncio
import random
import signal
from collections.abc import Iterator

import pytest

from router.log.opening import open_log
from router.log.redis import RedisLog
from tests.chaos.rounds import FULL, SEED
from tests.conftest import stand_still, stands_still
from tests.router.log.conftest import again, run
from tests.router.log.redis_records import message, now_ms, offsets
from tests.servers.redis import ALWAYS, LASTING, Server, errors, running

SEEDS = 200 if FULL else 25
FIRST = (SEED - 1) * 1_000
FAULTS = 6
BATCHES_PER_FAULT = 12
UNDER_WAY = 4
CHANNELS = [f"group:{number}" for number in range(40)]
DEADLINE_S = 0.5
FURTHER_S = 0.005


class Router:
    """Appends random batches of a few channels, each again and again until it is in the log."""

    def __init__(self, log: RedisLog, epoch: int, dice: random.Random) -> None:
        self.offsets = dict.fromkeys(CHANNELS, 0)
        self._log, self._epoch, self._dice = log, epoch, dice
        self._room = asyncio.Semaphore(UNDER_WAY)
        self.under_way = 0

    def batch(self) -> bytes:
        parts = []
        for channel in self._dice.choices(CHANNELS, k=self._dice.randint(1, 30)):
            self.offsets[channel] += 1
            offset = self.offsets[channel]
            parts.append(message(channel, self._epoch, offset, b"%d" % offset, key=(offset, 1)))
        return b"".join(parts)

    async def publish(self, count: int, group: asyncio.TaskGroup, struck: asyncio.Event) -> None:
        """So many batches, and further ones until it has struck; returns when all are at least on their way."""
        while count > 0 or not struck.is_set():
            await self._room.acquire()
            self.under_way += 1
            group.create_task(self._append(self.batch()))
            count -= 1
            if count < 0:
                await asyncio.sleep(FURTHER_S)

    async def _append(self, batch: bytes) -> None:
        await again(lambda: self._log.append(batch))
        self.under_way -= 1
        self._room.release()


class Faults:
    """What may happen to a server while batches are on their way to it. Each leaves it running, and is over once the
    server shows that it has struck.
    """

    def __init__(self, server: Server, router: Router, dice: random.Random) -> None:
        self._server, self._router, self._dice = server, router, dice

    async def any(self) -> None:
        fault = self._dice.choice([self.kill, self.kill, self.stand_still, self.no_memory, self.forget, self.cut])
        await fault()

    async def kill(self) -> None:
        before = self._server.do("INFO", "server")["run_id"]
        self._server.kill()
        self._server.start(wait=False)
        await asyncio.to_thread(self._server.wait)
        assert self._server.do("INFO", "server")["run_id"] != before

    async def stand_still(self) -> None:
        """For longer than anybody waits, or for less."""
        pid = self._server.pid
        await asyncio.to_thread(stand_still, pid)
        await asyncio.sleep(DEADLINE_S * self._dice.choice([0.1, 1.5]))
        assert stands_still(pid)
        assert self._router.under_way, "nobody waited for it"
        self._server.signal(signal.SIGCONT)

    async def no_memory(self) -> None:
        before, times = self._errors("OOM"), self._dice.randint(1, 4)
        while times > 0 or self._errors("OOM") == before:
            self._server.do("CONFIG", "SET", "maxmemory", 1)
            await asyncio.sleep(self._dice.uniform(0, 0.03))
            self._server.do("CONFIG", "SET", "maxmemory", 0)
            await asyncio.sleep(self._dice.uniform(0, 0.03))
            times -= 1

    async def forget(self) -> None:
        before = self._errors("NOSCRIPT")
        while self._errors("NOSCRIPT") == before:
            self._server.do("SCRIPT", "FLUSH")
            await asyncio.sleep(FURTHER_S)

    async def cut(self) -> None:
        cut = 0
        while not cut:
            cut = self._server.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(FURTHER_S)

    def _errors(self, kind: str) -> int:
        return errors(self._server, kind)


@pytest.fixture(params=[LASTING, ALWAYS], ids=["everysec", "always"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(*request.param) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_each_batch_is_in_the_log_once_and_in_order(server: Server, seed: int) -> None:
    dice = random.Random(seed)

    async def work() -> None:
        log = RedisLog(server.url, prefix=f"chaos{seed}:", clock_ms=now_ms, deadline_s=DEADLINE_S)
        router = Router(log, (await open_log(log, 1)).epoch, dice)
        faults = Faults(server, router, dice)
        async with asyncio.TaskGroup() as group:
            for _ in range(FAULTS):
                struck = asyncio.Event()
                publishing = group.create_task(router.publish(BATCHES_PER_FAULT, group, struck))
                await asyncio.sleep(dice.uniform(0, 0.02))
                await faults.any()
                struck.set()
                await publishing
        # Closing gives again what is missing as well, but for so long only.
        await again(log.appender.heal)
        await log.close()
        # A router that comes after it finds all of it.
        log = RedisLog(server.url, prefix=f"chaos{seed}:", clock_ms=now_ms)
        await open_log(log, 1)
        for channel, loaded in zip(
            CHANNELS, await log.load([c.encode() for c in CHANNELS], messages=True), strict=True
        ):
            assert offsets(loaded) == list(range(1, router.offsets[channel] + 1)), channel
        await log.close()

    run(work())
