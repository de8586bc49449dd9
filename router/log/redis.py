"""The log in Redis: a stream a channel, in shards that each take a batch by one script.

Keys, with `hf:` as prefix, s0 to s15 for shards of channels, u0 to u255 for users' and sessions' own:

    hf:log                     a hash: the epoch of the last router that opened the log, who that is, the one up to
                               which its claims have numbers, if that is higher, the seeds, and this format (FORMAT)
    hf:{s7}:epoch             a hash: the epoch that may append to the shard, its last batch, whether it is replicated
    hf:{s7}:c:<channel>       a stream: id epoch-offset, field m: the log record (core/log_records.pxd)
    hf:{s7}:keys, …:tail      streams: idempotency keys of the window, and origins of the last minute
    hf:{s7}:global            a sorted set: keys of channels that everybody hears, by when each leaves it
    hf:{u7}:s:<session>       a hash: what HELLO said of it, when it expires, its date, and where it stands
    hf:{u7}:cursor:<channel>  a string: where a user stands
    hf:bans                    a hash

Where several routers write it, it is another one: router/log/redis_shared.py.

Redis 7.0 or later (or a Valkey).
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from core import log_records
from core.namespace_spec import BUILT_IN, NamespaceSpec
from core.owned import ACCOUNT
from core.redis_batch import tail_records
from router.log.bridge_scripts import BRIDGED, append_bridged
from router.log.port import (
    Ban,
    Changes,
    Loaded,
    LogBroken,
    LogDeposed,
    LogError,
    LogUnavailable,
    Opened,
    Position,
    Session,
    Sift,
    Standing,
)
from router.log.redis_append import DEPOSED_BY, REPLICA_MISSED_S, REPLICATED, Appender
from router.log.redis_keys import Keys
from router.log.redis_link import Link, pack
from router.log.redis_nodes import Nodes
from router.log.redis_scripts import ALL, APPEND, CLAIMS, FENCE, LOAD, NEWEST, OPEN, TRIM
from router.log.redis_sessions import Sessions, ask_all, position_of, wall_ms
from router.log.redis_settings import concerns_of
from router.log.redis_url import Address, parse
from router.log.unknown import DAYS, NAMED_MAX, say_unknown

DEADLINE_S = 2.0
HOLDER_BYTES = 8
SEED_BYTES = 48
VERSION_MIN = (7, 0)
# Of all keys together. To be raised with any change that a program of before would misread: it refuses the log then.
# What is older is read as it is, and is of this format once it is opened; what has no number is older than all.
FORMAT = 1
# By which a router sees whether it is still its own.
ROOT_FIELDS = ("epoch", "holder")
OPEN_ROUNDS_MAX = 8
RECOVER_ENTRIES = 500
SCAN_COUNT = 500
# Of each call of `sift`; the next one goes on where it ended.
SIFT_S = 0.5
HEAL_FIRST_S = 0.1
HEAL_LAST_S = 2.0
# For what may be lost to be given again before the end; a router that is told to stop has a deadline of its own.
SETTLE_DEADLINE_S = 2.0
# So that no answer is of more than some dozen megabytes.
LOAD_CHANNELS = 32
KEPT_BYTES_MAX = 256 * 1024 * 1024
_SIZE_TIME = struct.Struct("<I20xQ")  # of a log record: its size, and when it was made
_log = logging.getLogger("holdfast")


def _beside_body(channel: bytes) -> int:
    """How many bytes of a record are not its message's, at most."""
    return log_records.HEAD_BYTES + len(channel) + 7


def _has_it(holder: bytes | None) -> str:
    """Who has the log, as far as it is known, to stand behind a message."""
    return f": {holder.decode(errors='replace')} has it" if holder else ""


class RedisLog:
    """A log in Redis.

    Args:
        url: see redis_url.
        namespaces: how long what is kept.
        prefix: of every key.
        replicas: how many replicas must have what is answered; None: one, where there is one.
        deadline_s: for each command; what takes longer is LogUnavailable.
        key_window_s: for how long idempotency keys are remembered.
        kept_bytes_max: of what was appended lately, to be given again.
        on_kept: called with how much of that is kept whenever it changes.
        clock_ms: the wall clock.
        shards: that several routers lead (router/log/redis_shared.py); 0: this router has all of the log.
        bridge_entries: that are kept for other regions (router/log/bridge.py); 0: there are none.

    Raises:
        ValueError: the URL or the prefix is none.

    """

    def __init__(
        self,
        url: str,
        *,
        namespaces: Sequence[NamespaceSpec] = BUILT_IN,
        prefix: str = "hf:",
        replicas: int | None = None,
        deadline_s: float = DEADLINE_S,
        key_window_s: int = 300,
        kept_bytes_max: int = KEPT_BYTES_MAX,
        on_kept: Callable[[int], None] = lambda bytes_: None,
        clock_ms: Callable[[], int] = wall_ms,
        shards: int = 0,
        bridge_entries: int = 0,
    ) -> None:
        self.keys = Keys(prefix, namespaces, shards)
        self._url = parse(url)
        self._wanted_replicas = replicas
        self._clock_ms = clock_ms
        self._deadline_s = deadline_s
        append = append_bridged(bridge_entries) if bridge_entries else APPEND
        self._scripts = (*ALL, append, *BRIDGED) if bridge_entries else ALL
        self._seeds = b""
        self._epoch = 0
        self._holder = os.urandom(HOLDER_BYTES).hex().encode()
        """Which of the routers that shards were taken by is this."""
        self._claims = 0
        """The next router's epoch is higher."""
        # Appends have connections of their own: a long answer to something else would hold them up.
        self._append_nodes = Nodes(self._url, deadline_s, self._greet_append)
        self._nodes = Nodes(self._url, deadline_s, self._greet_other)
        self.appender = Appender(
            self._append_nodes, self.keys, key_window_s * 1000, deadline_s, kept_bytes_max, on_kept, append
        )
        self._sessions = Sessions(self._nodes, self.keys, namespaces, deadline_s, clock_ms, bridged=bridge_entries > 0)
        self._links = 0
        self._healing: asyncio.Task[None] | None = None
        self._scans: dict[Address, bytes] = {}
        self._told_unknown: set[bytes] = set()
        self._told_settings: set[tuple[str, str]] = set()
        self._closed = False

    # --------------------------------------------------------------------------------------------------------- opening

    async def open(self, epoch: int) -> Opened:
        """See the port."""
        for _ in range(OPEN_ROUNDS_MAX):
            epoch, self._seeds = await self._take_root(epoch)
            highest = await self._fence(epoch)
            if highest < epoch:
                self._epoch = self._claims = self.appender.epoch = epoch
                await self._wait_for_replicas([self.keys.root_slot, *self.keys.shard_slots])
                await self._ask_marks()
                return Opened(epoch, self._seeds, complete=False)
            epoch = highest + 1
        raise LogUnavailable("other routers open this log at the same time, again and again: stop all but one")

    async def _take_root(self, wish: int) -> tuple[int, bytes]:
        """Raise the log's epoch; what it is then, and the seeds."""
        root, slot = self.keys.root, self.keys.root_slot
        while True:
            await ask_all(self._nodes, [(slot, pack("HSETNX", root, "seeds", os.urandom(SEED_BYTES)))])
            fields = pack("HMGET", root, "epoch", "claims", "seeds")
            [(stored, claims, seeds)] = await ask_all(self._nodes, [(slot, fields)])
            if len(seeds) != SEED_BYTES:
                raise LogBroken(f"{root.decode()} in Redis has no seeds of ours: use another prefix")
            epoch = max(wish, int(stored or 0) + 1, int(claims or 0) + 1)
            [(higher, later)] = await ask_all(self._nodes, [(slot, self._open(epoch))])
            if later:
                raise LogBroken(
                    f"the log at {root.decode()} in Redis is of format {later.decode(errors='replace')}, and this"
                    f" program reads up to format {FORMAT}: start the version of Holdfast that wrote it, or use another"
                    " prefix"
                )
            if not higher:
                return epoch, seeds

    def _open(self, epoch: int, *, again: bool = False) -> bytes:
        """The command that takes the root."""
        who = f"process {os.getpid()} on {socket.gethostname()}"
        return pack("EVALSHA", OPEN.sha, 1, self.keys.root, b"%020d" % epoch, FORMAT, who, int(again))

    def _claimed(self, claims: int) -> bytes:
        """The command that keeps later routers above claims."""
        return pack("EVALSHA", CLAIMS.sha, 1, self.keys.root, b"%020d" % self._epoch, b"%020d" % claims)

    async def _deposer(self) -> str:
        """Who has the log now, as far as it is known, to stand behind a message."""
        with contextlib.suppress(LogError):
            [who] = await ask_all(self._nodes, [(self.keys.root_slot, pack("HGET", self.keys.root, "holder"))])
            return _has_it(who)
        return ""

    async def _fence(self, epoch: int) -> int:
        """Tell every shard; the highest epoch that was not below this one, or 0."""
        commands = [
            (slot, pack("EVALSHA", FENCE.sha, 1, start + b"epoch", b"%020d" % epoch, self._holder))
            for start, slot in zip(self.keys.shards, self.keys.shard_slots, strict=True)
        ]
        return max(int(answer or 0) for answer in await ask_all(self._nodes, commands))

    async def _wait_for_replicas(self, slots: Sequence[int]) -> None:
        """Give the replicas time to know of it: a fail-over should not bring back those that were deposed."""
        for link in {link for slot in slots if (link := self._nodes.up(slot)) is not None}:
            count = self._replicas(await self._info(link))
            if count:
                await link.ask(["WAIT", count, int(self._deadline_s * 500)])

    async def _ask_marks(self) -> None:
        """Which shards had a replica when an earlier router appended to them."""
        if self._wanted_replicas == 0:  # there are none any more, say those who know
            return
        commands = [
            (slot, pack("HGET", start + b"epoch", REPLICATED))
            for start, slot in zip(self.keys.shards, self.keys.shard_slots, strict=True)
        ]
        marks = [mark is not None for mark in await ask_all(self._nodes, commands)]
        self.appender.on_marks(marks)
        self._sessions.on_marks(marks)

    async def _greet(self, link: Link) -> None:
        version = tuple(int(part) for part in link.version.split(".")[:2])
        if version < VERSION_MIN:
            raise LogBroken(f"{link.name} is version {link.version}, but 7.0 or later is needed: upgrade it")
        await link.ask(*(("SCRIPT", "LOAD", script.text) for script in self._scripts))

    async def _greet_append(self, link: Link) -> None:
        await self._greet(link)
        await self._check_is_whole(link)
        if self.appender.on_link(link, self._replicas(await self._info(link))):
            self._nodes.drop_all("the connection for appends was lost: another server may be the primary now")
        await self._say_settings(link)
        self._heal_soon()

    async def _greet_other(self, link: Link) -> None:
        await self._greet(link)
        if self._sessions.kept_bytes:
            self._heal_soon()  # whoever connects may have a deadline of its own, too short for what is given again
        await self._stop_if_deposed(link)
        said = await self._info(link)
        await self._sessions.on_link(link, self._replicas(said), alone=self._is_alone(said))

    async def _stop_if_deposed(self, link: Link) -> None:
        """A router that was replaced must not say again what another one has changed since: whoever has the root is
        asked, also where that is not the one that is connected to. While that one does not answer, the others' sessions
        must not wait for it.
        """
        here = self._nodes.owner(self.keys.root_slot) == link.address
        root = link if here else self._nodes.up(self.keys.root_slot)
        if not self._epoch or root is None or not (here or self._sessions.has_for(link)):
            return
        try:
            # deadline: that of each command
            [said] = await root.ask(["HMGET", self.keys.root, *ROOT_FIELDS])
        except LogUnavailable:
            if here:
                raise
            return
        self._judge_root(*said)

    def _judge_root(self, stored: bytes | None, holder: bytes | None) -> None:
        """Raise LogDeposed if the epoch at the root is a later router's."""
        if int(stored or 0) > self._epoch:
            raise LogDeposed(DEPOSED_BY.format(self._epoch) + _has_it(holder))

    async def _check_is_whole(self, link: Link) -> None:
        """Raise LogUnavailable if a server has lost what is to be had from elsewhere before anything is appended."""

    def _heal_soon(self) -> None:
        self._links += 1
        if self._healing is None or self._healing.done():
            self._healing = ACCOUNT.task(self._heal(), "what Redis may have lost is given to it again")

    async def _say_settings(self, link: Link) -> None:
        """Warn of settings of a server that lose messages, of each once: it may be connected to again and again."""
        for concern in await concerns_of(link) or ():
            if (link.name, concern) not in self._told_settings:
                self._told_settings.add((link.name, concern))
                _log.warning("%s keeps less than what is promised: %s", link.name, concern)

    def _replicas(self, said: Mapping[bytes, bytes]) -> int:
        """How many have to follow, of those that a server's INFO tells of."""
        if self._wanted_replicas is not None:
            return self._wanted_replicas
        return min(1, int(said.get(b"connected_slaves", 0)))

    @staticmethod
    def _is_alone(said: Mapping[bytes, bytes]) -> bool:
        """Whether it has had no replica for so long that none can have taken its place unsaid: a server keeps what it
        would send them from the first one on, and for an hour (repl-backlog-ttl) after the last one.
        """
        had = int(said.get(b"repl_backlog_active", 1)) or int(said.get(b"connected_slaves", 1))
        return not had and int(said.get(b"uptime_in_seconds", 0)) > REPLICA_MISSED_S

    @staticmethod
    async def _info(link: Link) -> dict[bytes, bytes]:
        [answer] = await link.ask(["INFO", "replication", "server"])
        text = answer if isinstance(answer, bytes) else bytes(str(answer), "ascii")
        return dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)

    async def _heal(self) -> None:
        pause_s = HEAL_FIRST_S
        while not self._closed:
            await asyncio.sleep(pause_s)
            links = self._links
            try:
                await self._tell_again()
                await self.appender.heal()
                if links == self._links:
                    return
            except LogUnavailable:
                pause_s = min(2 * pause_s, HEAL_LAST_S)
            except LogError as error:
                _log.warning("what Redis may have lost was not given to it again: %s", error)
                return

    async def _settle(self) -> None:
        """Give Redis what it lost of the last seconds: a server that was killed a moment ago may have acknowledged what
        it had not written (appendfsync everysec), and after this nobody has it any more.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_DEADLINE_S):
                while True:
                    try:
                        await self._tell_again()
                        await self.appender.heal()
                        return
                    except LogUnavailable:
                        await asyncio.sleep(HEAL_FIRST_S)
                    except LogDeposed:  # who has it now has what its own start found
                        return
                    except LogError as error:
                        _log.warning("what Redis may have lost was not given to it again: %s", error)
                        return
        _log.warning(
            "what Redis may have lost of the last seconds was not given to it again within %g s", SETTLE_DEADLINE_S
        )

    async def _tell_again(self) -> None:
        """A server that has forgotten this router, or never knew it, is told of it."""
        if self._epoch:
            await self._take_again()
        await self._sessions.heal()

    async def _take_again(self) -> None:
        root, slot = self.keys.root, self.keys.root_slot
        seeds = pack("HSETNX", root, "seeds", self._seeds)
        opened = self._open(self._epoch, again=True)
        await ask_all(self._nodes, [(slot, seeds), (slot, opened), (slot, self._claimed(self._claims))])
        await self._fence(self._epoch)

    # -------------------------------------------------------------------------------------------------------- messages

    async def append(self, batch: bytes) -> None:
        """See the port."""
        try:
            await self.appender.append(batch)
        except LogDeposed as error:
            raise LogDeposed(f"{error}{await self._deposer()}") from error

    async def recover(self) -> AsyncIterator[bytes]:
        """See the port. They are records without bodies, for their keys and origins."""
        async for batch in self._recover(range(len(self.keys.shards))):
            yield batch

    async def _recover(self, shards: Sequence[int]) -> AsyncIterator[bytes]:
        for name in (b"keys", b"tail"):
            after = dict.fromkeys(shards, b"-")
            left = list(shards)
            while left:
                commands = [
                    (
                        self.keys.shard_slots[number],
                        pack("XRANGE", self.keys.shards[number] + name, after[number], b"+", "COUNT", RECOVER_ENTRIES),
                    )
                    for number in left
                ]
                answers = await ask_all(self._nodes, commands)
                for number, entries in zip(left, answers, strict=True):
                    if entries:
                        after[number] = b"(" + entries[-1][0]
                        yield self._recovered(entries, number if self.keys.shared else 0)
                left = [number for number, got in zip(left, answers, strict=True) if len(got) == RECOVER_ENTRIES]

    @staticmethod
    def _recovered(entries: list[Any], shard: int) -> bytes:
        try:
            return b"".join(tail_records(fields[1], shard) for _, fields in entries)
        except ValueError as error:
            raise LogBroken(
                f"keys and origins in Redis cannot be read: {error}; remove them, or use another prefix"
            ) from None

    async def load(self, channels: Sequence[bytes], *, messages: bool) -> list[Loaded]:
        """See the port."""
        loaded: list[Loaded] = []
        step = LOAD_CHANNELS if messages else max(len(channels), 1)
        for at in range(0, len(channels), step):
            piece = channels[at : at + step]
            answers = await ask_all(self._nodes, [self._load(channel, messages) for channel in piece])
            loaded += map(self._loaded, piece, answers)
        return loaded

    def _load(self, channel: bytes, messages: bool) -> tuple[int, bytes]:
        """The command for a channel."""
        key, slot = self.keys.channel(channel)
        retention = self.keys.retention(channel)
        count = retention.messages if messages else 0
        return slot, pack("EVALSHA", LOAD.sha, 1, key, count, retention.bytes, _beside_body(channel))

    def _loaded(self, channel: bytes, answer: list[bytes]) -> Loaded:
        if not answer:
            return Loaded(Position(0, 0))
        last, *newest_first = answer
        oldest_ms = self._clock_ms() - self.keys.retention(channel).age_ms
        kept = []
        for record in reversed(newest_first):
            if len(record) < log_records.HEAD_BYTES or len(record) != (head := _SIZE_TIME.unpack_from(record))[0]:
                raise LogBroken(f"{channel!r} in Redis holds something that is no record of ours: remove it")
            if head[1] > oldest_ms:
                kept.append(record)
        return Loaded(position_of(last), b"".join(kept))

    async def standing(self, namespaces: Sequence[str]) -> list[Standing]:
        """See the port. Each batch with a message of such a channel that is not listed yet lists it."""
        wanted = {name.encode() for name in namespaces}
        lists = await ask_all(
            self._nodes,
            [
                (slot, pack("ZRANGE", start + b"global", 0, -1))
                for start, slot in zip(self.keys.shards, self.keys.shard_slots, strict=True)
            ],
        )
        channels = [name.partition(b"}:c:")[2] for names in lists for name in names]
        channels = [channel for channel in channels if channel.partition(b":")[0] in wanted]
        answers = await ask_all(self._nodes, [self._newest(channel) for channel in channels])
        found = [
            Standing(channel, position_of(answer[0]), _SIZE_TIME.unpack_from(answer[1])[1])
            for channel, answer in zip(channels, answers, strict=True)
            if answer and len(answer[1]) == log_records.HEAD_BYTES  # else it is told to whoever loads it
        ]
        return sorted(found, key=lambda one: one.time_ms, reverse=True)

    def _newest(self, channel: bytes) -> tuple[int, bytes]:
        """The command for a channel."""
        key, slot = self.keys.channel(channel)
        return slot, pack("EVALSHA", NEWEST.sha, 1, key, log_records.HEAD_BYTES)

    async def sift(self, keep: Sift) -> None:
        """See the port: trims by age and bytes, some keys each time. `keep` is not asked: a stream loses its oldest."""
        await self._check_is_mine()
        until = asyncio.get_running_loop().time() + SIFT_S
        links = {link.address: link for slot in self.keys.shard_slots if (link := await self._nodes.link(slot))}
        tag = self.keys.tag
        pattern = self.keys.shards[0].replace(b"{%s0}" % tag, b"{%s*}" % tag) + b"c:*"
        for address, link in links.items():
            while True:
                asked: list[bytes | str | int] = [
                    "SCAN",
                    self._scans.get(address, b"0"),
                    "MATCH",
                    pattern,
                    "COUNT",
                    SCAN_COUNT,
                ]
                [(cursor, names)] = await link.ask(asked)
                self._scans[address] = cursor
                names = self._to_sift(names)
                self._say_unknown(names)
                await ask_all(self._nodes, [self._trim(name) for name in names])
                if cursor == b"0" or asyncio.get_running_loop().time() > until:
                    break

    def _to_sift(self, names: list[bytes]) -> list[bytes]:
        """Of the keys of channels those that this router sees to."""
        return names

    def _say_unknown(self, names: list[bytes]) -> None:
        """Warn, once of each, of namespaces that are not configured: Redis is not read at a start."""
        found = {name.partition(b"}:c:")[2].partition(b":")[0] for name in names}
        new = {space for space in found if not self.keys.is_known(space)} - self._told_unknown
        if new and len(self._told_unknown) < NAMED_MAX:
            self._told_unknown |= new
            counts = [(space.decode(errors="replace"), None) for space in new]
            say_unknown("the log in Redis", counts, f"until their keys expire, or they are {DAYS} days old")

    async def _check_is_mine(self) -> None:
        """Who appends nothing would not notice that another has the log, and would keep its clients for ever."""
        [said] = await ask_all(self._nodes, [(self.keys.root_slot, pack("HMGET", self.keys.root, *ROOT_FIELDS))])
        self._judge_root(*said)

    def _trim(self, name: bytes) -> tuple[int, bytes]:
        """The command for the channel with this key."""
        channel = name.partition(b"}:c:")[2]
        retention = self.keys.retention(channel)
        oldest_ms = self._clock_ms() - retention.age_ms
        slot = self.keys.shard_slots[self.keys.shard_of(channel)]
        settings = oldest_ms, retention.expire_ms, retention.bytes, _beside_body(channel)
        return slot, pack("EVALSHA", TRIM.sha, 1, name, *settings)

    # -------------------------------------------------------------------------------------------------------- sessions

    async def save(self, changes: Changes) -> None:
        """See the port."""
        if changes.claims > self._claims:
            await self._store_claims(changes.claims)
        await self._sessions.save(changes)

    async def _store_claims(self, claims: int) -> None:
        try:
            await self._sessions.store([(self.keys.root_slot, self._claimed(claims))])
        except LogDeposed as error:
            raise LogDeposed(f"{DEPOSED_BY.format(self._epoch)}{await self._deposer()}") from error
        self._claims = claims

    async def sessions(self, ids: Sequence[bytes]) -> list[Session | None]:
        """See the port."""
        return await self._sessions.sessions(ids)

    async def dates(self, ids: Sequence[bytes]) -> list[bytes]:
        """See the port."""
        return await self._sessions.dates(ids)

    async def cursors(self, channels: Sequence[str]) -> list[Position | None]:
        """See the port."""
        return await self._sessions.cursors(channels)

    async def ban(self, ban: Ban) -> None:
        """See the port."""
        await self._sessions.ban(ban)

    async def bans(self) -> list[Ban]:
        """See the port."""
        return await self._sessions.bans()

    async def close(self) -> None:
        """See the port."""
        if self._closed:
            return
        self._closed = True
        if self._healing is not None:
            self._healing.cancel()
            await asyncio.wait([self._healing], timeout=1)
        if not (self.appender.is_whole() and self._sessions.is_whole()):
            await self._settle()
        await self._append_nodes.close()
        await self._nodes.close()
