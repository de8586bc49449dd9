"""Where a log under contract stores: one class a side. To add a side, write its class, and name it in conftest.py."""

import asyncio
import fcntl
from collections import Counter
from pathlib import Path
from typing import Protocol

from core import log_records
from core.namespace_spec import BUILT_IN, NamespaceSpec
from router.log.embedded import EmbeddedLog
from router.log.port import Log
from router.log.redis import RedisLog


class Store(Protocol):
    """A place that outlives the logs that are opened on it."""

    name: str
    history: int
    """Messages kept per channel of the namespace `group`, once `trim` is done."""

    async def log(self) -> Log:
        """A log on this place, not opened yet. Whatever the ones before it hold so that nobody else may come in is
        taken away from them, as if their process had died; the objects live on, and may be asked again.
        """

    async def trim(self, log: Log) -> None:
        """See to it that no more than `history` messages of a channel are kept."""

    async def end(self) -> None:
        """Give up everything that `log` gave, within the same event loop."""


class EmbeddedStore:
    """A directory, with segments so small that there are many."""

    name = "embedded"
    history = 4

    def __init__(self, directory: Path, *, segment_bytes: int = 4_000, sync: str = "always") -> None:
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._sync = sync
        self._logs: list[EmbeddedLog] = []

    async def log(self) -> EmbeddedLog:
        for former in self._logs:
            if former._lock is not None and former._lock.is_mine():
                fcntl.flock(former._lock._fd, fcntl.LOCK_UN)
        log = EmbeddedLog(self.directory, sync=self._sync, segment_bytes=self._segment_bytes)
        self._logs.append(log)
        return log

    async def trim(self, log: Log) -> None:
        await log.sift(await kept_of(log, self.history))

    async def end(self) -> None:
        await asyncio.gather(*(log.close() for log in self._logs))


class RedisStore:
    """Keys of a prefix in Redis, of which each test has its own."""

    name = "redis"
    history = 8

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self._logs: list[RedisLog] = []

    async def log(self) -> RedisLog:
        kept = NamespaceSpec(name="group", domain="group", history_messages=self.history)
        namespaces = (*(one for one in BUILT_IN if one.name != kept.name), kept)
        log = RedisLog(self._url, prefix=self._prefix, namespaces=namespaces)
        self._logs.append(log)
        return log

    async def trim(self, log: Log) -> None:
        await log.sift(await kept_of(log, self.history))

    async def end(self) -> None:
        await asyncio.gather(*(log.close() for log in self._logs))


class Keep:
    """What a router answers to a sift: of each channel its last messages, and the position of what goes last."""

    def __init__(self, last: dict[bytes, tuple[int, int]], first_kept: dict[bytes, tuple[int, int]]) -> None:
        self.asked = 0
        self._last, self._first_kept = last, first_kept

    async def __call__(self, records: bytes) -> bytes:
        self.asked += 1
        kept = []
        for entry in log_records.entries(records):
            position = (entry.epoch, entry.offset)
            if entry.kind == log_records.MESSAGE and position >= self._first_kept.get(entry.channel, (2**63, 0)):
                kept.append(entry.record)
            elif position == self._last[entry.channel]:
                kept.append(log_records.pack(log_records.POSITION, entry.channel, entry.epoch, entry.offset))
        return b"".join(kept)


async def kept_of(log: Log, history: int) -> Keep:
    """The answers of a router that keeps `history` messages of each channel; 0: the positions alone."""
    entries = [entry async for batch in log.recover() for entry in log_records.entries(batch)]
    counts = Counter(entry.channel for entry in entries if entry.kind == log_records.MESSAGE)
    last = {entry.channel: (entry.epoch, entry.offset) for entry in entries}
    first: dict[bytes, tuple[int, int]] = {}
    for entry in entries:
        if entry.kind == log_records.MESSAGE:
            if counts[entry.channel] <= history:
                first.setdefault(entry.channel, (entry.epoch, entry.offset))
            counts[entry.channel] -= 1
    return Keep(last, first)
