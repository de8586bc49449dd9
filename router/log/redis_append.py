"""Appending to Redis: a batch is cut into its shards, and each shard takes its own in order, whatever happens.

The batches of a shard are numbered. Redis takes one only when it has the one before, and says which it has: so a batch
that was refused (out of memory, say) is never overtaken by a later one that is already on its way, which would leave a
hole that nothing could fill, since ids in a stream only grow. The batches of the last minute are kept here, as far as
`log.redis_kept_bytes_max` goes: what a server turns out not to have, after it was replaced or came back without its
last second, it is given again, in pieces that it takes within a command's deadline.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import hiredis

from core import log_records
from core.redis_batch import Cutter
from router.log.port import LogDeposed, LogError, LogUnavailable
from router.log.redis_keys import Keys
from router.log.redis_link import Link, error_of, is_stale, pack, words
from router.log.redis_nodes import Nodes
from router.log.redis_scripts import APPEND, Script

# A primary that was replaced and is back is not made a replica by sentinels for about ten seconds (they wait for four
# of their hellos, and look at roles every ten seconds), and may be chosen again meanwhile, with what it had then.
KEPT_S = 60.0
# Beyond what is kept of what is stored.
UNDER_WAY_BYTES_MAX = 256 * 1024 * 1024
# What is kept of a batch and of a command beside its data: measured, as memory that the process has more.
BATCH_BYTES = 512
COMMAND_BYTES = 208
# Of a shard at once, when it is given again what it has not: sixteen of them are some 5,000 messages of 100 bytes,
# 0.1 s of a Redis.
PIECE_BYTES = 128 * 1024
TAIL_MS = 60_000
# Of a shard's keys and tail, each of one batch.
TAIL_ENTRIES_MAX = 100_000
# In which nothing more came to be stored.
ROUNDS_MAX = 8
# A primary that was killed and is back has no replica yet, and none any more once another was promoted: it goes on
# alone until it learns of that, and what it alone has is thrown away then. So a shard that was replicated is not
# appended to without a replica for so long. That it was is written beside its epoch, for the next router: the one
# before may have been killed together with the primary.
REPLICA_MISSED_S = 60.0
REPLICATED = b"replicated"
REFUSED = b"$1\r\n0\r\n"
ACCEPTED = b"$1\r\n1\r\n"
DEPOSED = -1
DEPOSED_BY = "a router with an epoch above {} has this log now: this one has to end"
_log = logging.getLogger("holdfast")

# Python's own hash of a batch, SipHash with 64 bits under a key that each process draws, and the first record's head,
# which holds its position, its time and who published it. So two batches are only taken for one if both agree: by
# chance never within the age of a log, and nobody can look for such a pair who does not know the key.
_Key = tuple[int, bytes]


def _key_of(batch: bytes) -> _Key:
    return hash(batch), batch[: log_records.HEAD_BYTES]


class Command:
    """What one batch has for one shard."""

    __slots__ = ("data", "number", "shard")

    def __init__(self, shard: "Shard", number: int, data: bytes) -> None:
        self.shard = shard
        self.number = number
        self.data = data


class Shard:
    """What we know of a shard: numbers of its batches."""

    __slots__ = ("had", "kept", "last", "marked", "number", "replicated", "sent", "slot", "stored")

    def __init__(self, number: int, slot: int) -> None:
        self.number = number
        self.slot = slot
        self.last = 0
        """Given to a batch."""
        self.sent = 0
        """Sent on the connection that is there now, or known to be stored."""
        self.stored = 0
        """Known to be stored."""
        self.had = 0
        """Known to have been stored, whatever became of it."""
        self.replicated = -REPLICA_MISSED_S
        """When a replica was last known to have all of it (`time.monotonic`)."""
        self.marked = False
        """That it is replicated is written in Redis."""
        self.kept: deque[Command] = deque()
        """The last ones, all of those not stored among them."""

    def doubt(self, number: int) -> None:
        """What is stored from this batch on is not known."""
        self.stored = min(self.stored, number - 1)
        self.sent = min(self.sent, self.stored)

    def between(self, first: int, last: int, room: float = math.inf) -> list[Command]:
        """Those of these numbers that are kept, without a look at the thousands that are kept before them; of no more
        than `room` bytes, but one.
        """
        found: list[Command] = []
        if not self.kept:
            return found
        newest = self.kept[-1].number
        first = max(first, newest - len(self.kept) + 1)
        for number in range(first, min(last, newest) + 1):
            command = self.kept[number - newest - 1]
            room -= len(command.data)
            if found and room < 0:
                break
            found.append(command)
        return found

    def piece(self, number: int) -> list[Command]:
        """Those up to this one that have to be sent, as far as they may go at once."""
        return self.between(self.sent + 1, number, PIECE_BYTES)

    def is_behind(self, number: int) -> bool:
        """Whether more has to be sent than goes at once."""
        return number > self.sent + 1 and bool(found := self.piece(number)) and found[-1].number < number


class Batch:
    """A batch that was appended lately, or is to be."""

    __slots__ = ("commands", "made", "size")

    def __init__(self, commands: list[Command], size: int, made: float) -> None:
        self.commands = commands
        self.size = size
        self.made = made

    def is_stored(self) -> bool:
        return all(one.shard.stored >= one.number for one in self.commands)


class Appender:
    """The batches of one router.

    Args:
        nodes: the servers, through connections that nothing else uses.
        keys: names.
        key_window_ms: for how long idempotency keys are kept.
        deadline_s: for replicas to follow.
        kept_bytes_max: of what is stored and kept all the same.
        on_kept: called with the bytes that are kept whenever that changes.
        script: APPEND, or what stands in its place.

    """

    def __init__(
        self,
        nodes: Nodes,
        keys: Keys,
        key_window_ms: int,
        deadline_s: float,
        kept_bytes_max: int,
        on_kept: Callable[[int], None] = lambda bytes_: None,
        script: Script = APPEND,
    ) -> None:
        self.epoch = 0
        self.kept_bytes_max = kept_bytes_max
        self._nodes = nodes
        self._keys = keys
        self._on_kept = on_kept
        self._deadline_s = deadline_s
        self._cutter = Cutter(
            words("EVALSHA", script.sha),
            keys.shards,
            [words(start + b"epoch", start + b"keys", start + b"tail", start + b"global") for start in keys.shards],
            words(key_window_ms, TAIL_MS, TAIL_ENTRIES_MAX),
            [(name, words(one.messages), words(one.settings)) for name, one in keys.retentions],
            keys.shared,
        )
        self._shards = [Shard(number, slot) for number, slot in enumerate(keys.shard_slots)]
        self._recent: dict[_Key, Batch] = {}
        self._giving = asyncio.Lock()
        self.kept_bytes = 0
        self._deposed = ""
        self._given_up = 0
        self._replicas: dict[Link, int] = {}

    async def append(self, batch: bytes) -> None:
        """Append a batch; see the port."""
        if self._deposed:
            raise LogDeposed(self._deposed)
        key = _key_of(batch)
        found = self._recent.get(key)
        if found is None:
            found = self._keep(key, batch)
        else:
            for one in found.commands:
                one.shard.doubt(one.number)
        await self._push({one.shard: one.number for one in found.commands})

    def parts(self, batch: bytes) -> list[tuple[int, int]] | None:
        """The shards of a batch that was appended lately, and which number it has in each; None: it was not."""
        found = self._recent.get(_key_of(batch))
        return None if found is None else [(one.shard.number, one.number) for one in found.commands]

    def first_kept(self, shard: int) -> int:
        """The number of the oldest batch of a shard that can be given again, or of the next one."""
        one = self._shards[shard]
        return one.kept[0].number if one.kept else one.last + 1

    async def heal(self) -> None:
        """Give the servers what they turn out not to have of the last seconds."""
        self._forget()
        await self._push({shard: shard.last for shard in self._shards if not self._is_sure(shard)})

    def is_whole(self) -> bool:
        """Whether the servers have everything, and none of those that got something lately is out of sight."""
        self._forget()
        return all(self._is_sure(shard) for shard in self._shards)

    def _is_sure(self, shard: "Shard") -> bool:
        return shard.stored >= shard.last and not (shard.kept and self._nodes.up(shard.slot) is None)

    def on_link(self, link: Link, replicas: int) -> bool:
        """A connection is about to be used, to a server with so many replicas to wait for; it may know less than was
        stored, which the answer to the last batch of each shard will tell. Whether another one was lost.
        """
        lost = any(one.why_lost for one in self._replicas)
        if any(count for one, count in self._replicas.items() if one.why_lost):
            self._replicated(shard for shard in self._shards if shard.marked)
        self._replicas = {one: count for one, count in self._replicas.items() if not one.why_lost}
        self._replicas[link] = replicas
        self._cutter.forget()
        for shard in self._shards:
            if shard.kept:
                shard.doubt(shard.kept[-1].number)
        return lost

    def on_marks(self, marks: Iterable[bool]) -> None:
        """The router begins: of which shards is written that they are replicated."""
        for shard, marked in zip(self._shards, marks, strict=True):
            shard.marked = marked
        self._replicated(shard for shard in self._shards if shard.marked)

    def open_shards(self, marks: Mapping[int, bool]) -> None:
        """Where several routers write: these shards are ours from now on, each under an epoch of its own; is written
        that they are replicated?
        """
        for number, marked in marks.items():
            self._shards[number] = shard = Shard(number, self._keys.shard_slots[number])
            shard.marked = marked
        self._replicated(self._shards[number] for number, marked in marks.items() if marked)

    def close_shards(self, numbers: Iterable[int]) -> None:
        """They are another's: what is stored of them is not given again."""
        for number in numbers:
            shard = self._shards[number]
            while shard.kept and shard.kept[0].number <= shard.had:
                shard.kept.popleft()
            shard.stored = max(shard.stored, shard.had)
            shard.sent = max(shard.sent, shard.stored)

    @staticmethod
    def _replicated(shards: Iterable[Shard]) -> None:
        for shard in shards:
            shard.replicated = time.monotonic()

    # ------------------------------------------------------------------------------------------------------- preparing

    def _keep(self, key: _Key, batch: bytes) -> Batch:
        self._forget()
        if self.kept_bytes > self.kept_bytes_max + UNDER_WAY_BYTES_MAX:
            raise LogUnavailable(f"more than {UNDER_WAY_BYTES_MAX} bytes wait for Redis")
        commands = self._cut(batch)
        size = BATCH_BYTES + sum(COMMAND_BYTES + len(one.data) for one in commands)
        made = Batch(commands, size, time.monotonic())
        self._recent[key] = made
        self.kept_bytes += made.size
        self._on_kept(self.kept_bytes)
        return made

    def _forget(self) -> None:
        """What is stored and old, or too much, oldest first."""
        limit, before = time.monotonic() - KEPT_S, self.kept_bytes
        while self._recent:
            key = next(iter(self._recent))
            oldest = self._recent[key]
            if (oldest.made > limit and self.kept_bytes <= self.kept_bytes_max) or not oldest.is_stored():
                break
            for one in oldest.commands:
                if one.shard.kept and one.shard.kept[0] is one:  # else its shard was closed
                    one.shard.kept.popleft()
            self.kept_bytes -= oldest.size
            del self._recent[key]
        if self.kept_bytes != before:
            self._on_kept(self.kept_bytes)

    def _cut(self, batch: bytes) -> list[Command]:
        """Cut a batch into a command a shard, numbered."""
        numbers = [shard.last + 1 for shard in self._shards]
        commands = []
        for number, data in self._cutter.cut(batch, self.epoch, numbers):
            shard = self._shards[number]
            shard.last += 1
            command = Command(shard, shard.last, data)
            shard.kept.append(command)
            commands.append(command)
        return commands

    # --------------------------------------------------------------------------------------------------------- sending

    async def _push(self, wanted: dict[Shard, int]) -> None:
        """See to it that each of these shards has this batch and all before it."""
        left = ROUNDS_MAX
        while left:
            for shard in wanted:
                if self._nodes.up(shard.slot) is None:
                    await self._nodes.link(shard.slot)
            stored = sum(shard.stored for shard in wanted)
            if not await self._send_some(wanted):
                return
            left -= sum(shard.stored for shard in wanted) <= stored
        raise LogUnavailable("Redis loses what was appended as fast as it is given again: see its log")

    async def _send_some(self, wanted: dict[Shard, int]) -> bool:
        """One round, and one at a time where a lot is to be given again; whether another is needed."""
        if any(shard.is_behind(number) for shard, number in wanted.items()):
            async with self._giving:  # deadline: a round's, for whoever has the lock
                return await self._send(wanted)
        return await self._send(wanted)

    async def _send(self, wanted: dict[Shard, int]) -> bool:
        """One round; whether another is needed."""
        groups: dict[Link, list[Command]] = {}
        for shard, number in wanted.items():
            link = self._nodes.up(shard.slot)
            if link is None:
                raise LogUnavailable("the connection to Redis was lost at once")
            groups.setdefault(link, []).extend(self._unsent(shard, number))
        sent = []
        for link, commands in groups.items():
            data = [one.data for one in commands]
            replicas = self._replicas.get(link, 0)
            missed = not replicas and self._was_replicated(commands)
            if not missed:
                data += self._marks(commands, replicas > 0)
            replicas = replicas or int(missed)
            if replicas:
                data.append(pack("WAIT", replicas, int(self._deadline_s * 500)))
            sent.append((link, commands, replicas, link.send(b"".join(data), len(data))))
        for *_, future in sent:
            await asyncio.wait([future])  # deadline: the connection's, which is dropped then
        errors = [self._judge(link, commands, replicas, future) for link, commands, replicas, future in sent]
        if self._given_up:
            _log.error(
                "Redis lost %d batches that it had acknowledged, and they are too old to be given again: readers will "
                "be told of a gap; see its persistence (appendonly) and its replicas",
                self._given_up,
            )
            self._given_up = 0
        for error in sorted(filter(None, errors), key=lambda one: not isinstance(one, LogDeposed)):
            raise error
        return any(shard.stored < number for shard, number in wanted.items())

    def _unsent(self, shard: Shard, number: int) -> Iterable[Command]:
        """The batches up to this one that have to be sent, as far as they go at once; of those that are under way
        already, the last again, since its answer is what is waited for.
        """
        unsent = shard.piece(number) or shard.between(number, number)
        shard.sent = max(shard.sent, unsent[-1].number if unsent else number)
        return unsent

    def _judge(
        self, link: Link, commands: list[Command], replicas: int, future: asyncio.Future[list[Any]]
    ) -> LogError | None:
        """Note what was answered; what is wrong with it."""
        if link.why_lost:  # whatever was answered: the next server may know less
            return LogUnavailable(link.why_lost)
        answers = future.result()
        failed: hiredis.HiredisError | None = None
        for command, answer in zip(commands, answers, strict=False):
            if isinstance(answer, hiredis.HiredisError):
                failed = failed or answer
                command.shard.doubt(command.number)
            elif answer == DEPOSED and self._keys.shared and command.number <= command.shard.had:
                self._note(command, command.shard.had)  # it was there before the shard became another's
            elif answer == DEPOSED:
                self._deposed = DEPOSED_BY.format(self.epoch)
                return LogDeposed(self._deposed)
            else:
                self._note(command, answer)
        if failed is None:
            return self._judge_wait(link, commands, replicas, answers[-1])
        error = error_of(failed, link.name)
        if is_stale(failed):
            link.drop(str(error))
        return error

    @staticmethod
    def _was_replicated(commands: list[Command]) -> bool:
        """Whether one of these shards had a replica a moment ago."""
        limit = time.monotonic() - REPLICA_MISSED_S
        return any(one.shard.replicated > limit for one in commands)

    def _marks(self, commands: list[Command], replicated: bool) -> list[bytes]:
        """The commands that write which of these shards are replicated from now on, or are no more."""
        starts = {self._keys.shards[one.shard.number] for one in commands if one.shard.marked != replicated}
        if replicated:
            return [pack("HSET", start + b"epoch", REPLICATED, 1) for start in starts]
        return [pack("HDEL", start + b"epoch", REPLICATED) for start in starts]

    @staticmethod
    def _judge_wait(link: Link, commands: list[Command], replicas: int, answer: Any) -> LogError | None:
        if not replicas:
            for one in commands:
                one.shard.marked = False
            return None
        if isinstance(answer, int) and answer >= replicas:
            for one in commands:
                one.shard.replicated = time.monotonic()
                one.shard.marked = True
            return None
        error = LogUnavailable(f"{answer} of {replicas} replicas of {link.name} have it: see their logs")
        link.drop(str(error))  # how many there are is asked again with the next connection
        return error

    def _note(self, command: Command, has: int) -> None:
        """The server says which batch it has."""
        shard = command.shard
        if has >= command.number:
            shard.stored = max(shard.stored, command.number)
            shard.had = max(shard.had, command.number)
            shard.sent = max(shard.sent, shard.stored)
            return
        # It misses some; they are sent again, from the first that is kept.
        shard.stored = shard.sent = has
        first = shard.kept[0]
        if has + 1 < first.number:
            self._given_up += first.number - 1 - has
            if first.data.endswith(REFUSED):  # another server may have made it so before
                first.data = first.data.removesuffix(REFUSED) + ACCEPTED
