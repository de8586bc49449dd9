"""What of our region's log other regions have: which chunks of the data plane are replicated, and who does not answer.

Followers write up to where they have each shard into `hf:{h7}:confirmed` of the leader's Redis, a hash by region, and
publish it under that name; what is published under `hf:log:beats` says that a region's followers are there. This reads
both on a connection of its own. A chunk is replicated once each shard that has a part in it is confirmed as far by some
other region. Whoever waits for that waits for no region: what no region confirms for BREAKER_S is refused at once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from core.owned import ACCOUNT, Held, end_tasks
from router.log.bridge_source import NOWHERE, Source, beats
from router.log.port import LogError, Position
from router.log.redis_keys import Keys
from router.log.redis_link import Link, pack
from router.log.redis_sessions import position_of

BREAKER_S = 2.0
TICK_S = 0.25
RETRY_S = 0.25
# Chunks that wait; beyond it two that follow each other count as one: memory, while all regions are away.
CHUNKS_MAX = 4096
MARKS_MAX = 240
_log = logging.getLogger("holdfast.log")


class _Chunk:
    """A batch of the data plane that is not known to be replicated."""

    __slots__ = ("data", "made", "number", "parts")

    def __init__(self, number: int, data: bytes, made: float) -> None:
        self.number = number
        self.data: bytes | None = data
        self.made = made
        self.parts: dict[int, tuple[int, int]] = {}
        """By shard, its epoch and the number of its batch; known once `data` is None."""


class _Led:
    """A shard that is led here."""

    __slots__ = ("appended", "begun", "confirmed", "epoch", "is_led", "is_told", "marks")

    def __init__(self, epoch: int, begun: Position, confirmed: dict[str, Position]) -> None:
        self.epoch = epoch
        self.begun = begun
        """Where it was when it was opened."""
        self.confirmed = confirmed
        self.appended = 0
        self.is_led = False
        self.is_told = False
        self.marks: deque[tuple[int, float]] = deque()
        """Numbers of batches, and when they were the last one."""

    def last(self) -> Position:
        return Position(self.epoch, self.appended) if self.appended else self.begun


class Replicated:
    """See the module.

    Args:
        source: our own region's log; what it is told of has to come to `on_push`.
        keys: names.
        others: the other regions.
        parts_of: by batch, the numbers that it has in its shards; None: it was not appended yet.
        on_replicated: told of the number of the chunk up to which all are replicated, and whether some region
            confirms; when nothing is new but that, of the last number again.
        on_led: told of a shard whose records from before it was led here are replicated.
        on_link: told of each new connection: our server may have less than it had.
        clock: in seconds.

    """

    def __init__(
        self,
        source: Source,
        keys: Keys,
        others: Collection[str],
        parts_of: Callable[[bytes], list[tuple[int, int]] | None],
        *,
        on_replicated: Callable[[int, bool], None],
        on_led: Callable[[int], None],
        on_link: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.confirming = False
        """Whether some region confirms."""
        self._source = source
        self._keys = keys
        self._parts_of = parts_of
        self._on_replicated = on_replicated
        self._on_led = on_led
        self._on_link = on_link
        self._clock = clock
        self._led: dict[int, _Led] = {}
        self._names: dict[bytes, int] = {}
        self._chunks: deque[_Chunk] = deque()
        self._last = 0
        self._heard = dict.fromkeys(others, float("-inf"))
        """When a region was heard of last."""
        self._confirms = dict.fromkeys(others, float("-inf"))
        """When it last confirmed something."""
        self._open = dict.fromkeys(others, True)
        self._link: Link | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._held: Held | None = None

    def start(self) -> None:
        """Listen from now on, until `close`."""
        self._held = ACCOUNT.hold("handle", "what other regions confirm", object_=self)
        self._tasks = [
            ACCOUNT.task(self._listen(), "confirmations of other regions", owner=self._held),
            ACCOUNT.task(self._watch(), "breakers of other regions", owner=self._held),
        ]

    # ----------------------------------------------------------------------------------------------- what is led here

    def open(self, shard: int, epoch: int, at: Position, known: Mapping[str, Position]) -> None:
        """A shard is ours, and stood at a position when it was opened; what other regions said then is known."""
        self._led[shard] = _Led(epoch, at, dict(known))
        name = self._keys.shards[shard] + b"confirmed"
        self._names[name] = shard
        if self._link is not None:
            self._listen_to(self._link, [name])

    def confirmed(self, shard: int) -> Position:
        """How far the region that has most of a shard that is led here has it."""
        one = self._led.get(shard)
        return max(one.confirmed.values(), default=NOWHERE) if one is not None else NOWHERE

    def confirmed_anew(self, shard: int, known: Mapping[str, Position]) -> None:
        """Other regions were asked once more: what they said before does not count."""
        one = self._led.get(shard)
        if one is not None:
            one.confirmed = dict(known)

    def led(self, shard: int) -> None:
        """The data plane leads it now, and may be told of it."""
        one = self._led.get(shard)
        if one is not None:
            one.is_led = True
            self._say_led(shard, one)

    def close_shards(self, shards: Collection[int]) -> None:
        """They are not ours any more: nothing is waited for."""
        for shard in shards:
            self._led.pop(shard, None)
            self._names.pop(self._keys.shards[shard] + b"confirmed", None)
        self._advance()

    def on_batch(self, number: int, data: bytes) -> None:
        """The data plane handed over a chunk, which is appended behind all before it."""
        self._chunks.append(_Chunk(number, data, self._clock()))
        self._resolve()
        if len(self._chunks) > CHUNKS_MAX:
            self._merge()

    def _resolve(self) -> None:
        """Find out what those that were appended by now have in which shards."""
        unknown = []
        for chunk in reversed(self._chunks):
            if chunk.data is None:
                break
            unknown.append(chunk)
        for chunk in reversed(unknown):
            assert chunk.data is not None
            parts = self._parts_of(chunk.data)
            if parts is None:
                return
            chunk.data = None
            for shard, number in parts:
                one = self._led.get(shard)
                if one is not None:
                    chunk.parts[shard] = (one.epoch, number)
                    one.appended = max(one.appended, number)

    def _merge(self) -> None:
        """The two oldest that were appended count as one."""
        first, second = self._chunks[0], self._chunks[1]
        if first.data is None and second.data is None:
            second.parts = first.parts | second.parts
            self._chunks.popleft()

    def say(self, records: Mapping[int, bytes]) -> bool:
        """See `Source.say`: on the connection that is there for what others confirm."""
        return self._source.say(records)

    # -------------------------------------------------------------------------------------------------- what is heard

    def on_push(self, channel: bytes, text: bytes) -> None:
        """A follower said something."""
        region, _, said = text.partition(b" ")
        name = region.decode(errors="replace")
        if name not in self._heard:
            return
        self._heard[name] = self._clock()
        shard = self._names.get(channel)
        if shard is not None:
            self._confirmed(shard, name, position_of(said))
            self._advance()
        if self._open[name]:
            self._look()

    def _confirmed(self, shard: int, region: str, at: Position) -> None:
        one = self._led[shard]
        if at > one.confirmed.get(region, NOWHERE):
            one.confirmed[region] = at
            self._confirms[region] = self._clock()
        self._say_led(shard, one)

    def _say_led(self, shard: int, one: _Led) -> None:
        if one.is_led and not one.is_told and any(at >= one.begun for at in one.confirmed.values()):
            one.is_told = True
            self._on_led(shard)

    def _advance(self) -> None:
        """Tell of the chunks that are replicated by now."""
        self._resolve()
        number = 0
        while self._chunks and self._chunks[0].data is None and self._is_replicated(self._chunks[0]):
            number = self._chunks.popleft().number
        if number:
            self._last = number
            self._on_replicated(number, self.confirming)

    def _is_replicated(self, chunk: _Chunk) -> bool:
        while chunk.parts:
            shard, (epoch, number) = next(iter(chunk.parts.items()))
            one = self._led.get(shard)
            if one is not None and one.epoch == epoch and not _has(one, epoch, number):
                return False
            del chunk.parts[shard]
        return True

    # ---------------------------------------------------------------------------------------------------- who is away

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._look()

    def _look(self) -> None:
        """Judge each region."""
        self._resolve()
        now = self._clock()
        for one in self._led.values():
            if one.appended and (not one.marks or one.marks[-1][0] != one.appended):
                one.marks.append((one.appended, now))
                if len(one.marks) > MARKS_MAX:
                    del one.marks[1]
        lags = self.lags()
        for region, was in self._open.items():
            seconds = max((lag for (_, name), (_, lag) in lags.items() if name == region), default=0.0)
            silent = now - self._heard[region] > BREAKER_S
            stuck = seconds > BREAKER_S and now - self._confirms[region] > BREAKER_S
            self._open[region] = silent or stuck
            if self._open[region] != was:
                _log.warning("region `%s` %s", region, "does not confirm any more" if not was else "confirms")
        confirming = not all(self._open.values())
        if confirming != self.confirming:
            self.confirming = confirming
            self._on_replicated(self._last, confirming)

    def breakers(self) -> dict[str, bool]:
        """By region, whether it is taken to be away."""
        return dict(self._open)

    def lags(self) -> dict[tuple[int, str], tuple[int, float]]:
        """By shard that is led here and other region: batches that it has not confirmed, and since when (seconds)."""
        self._resolve()
        found = {}
        now = self._clock()
        for shard, one in self._led.items():
            least = one.appended
            for region in self._heard:
                at = one.confirmed.get(region, NOWHERE)
                has = at.offset if at.epoch == one.epoch else one.appended if at.epoch > one.epoch else 0
                least = min(least, has)
                since = next((made for number, made in one.marks if number > has), now)
                found[shard, region] = (max(0, one.appended - has), now - since)
            while one.marks and one.marks[0][0] <= least:
                one.marks.popleft()
        return found

    # --------------------------------------------------------------------------------------------------- the connection

    async def _listen(self) -> None:
        while True:
            try:
                link = await self._source.link()
                if link is not self._link:
                    self._link = link
                    self._on_link()
                    self._listen_to(link, [beats(self._keys), *self._names])
                    # Said before we were there, or while the connection was lost.
                    await self._read(list(self._led))
                await self._source.ask([pack("PING")])
                await self._read(self._late())
            except LogError as error:
                self._link = None
                _log.debug("what other regions confirm is not known now: %s", error)
            await asyncio.sleep(RETRY_S)

    def _listen_to(self, link: Link, names: list[bytes]) -> None:
        link.send(pack("SUBSCRIBE", *names) + pack("PING"), 1)

    def _late(self) -> list[int]:
        """Shards of which no region that is there confirms what waits: a confirmation may have been missed, as the one
        that came just before it was listened to.
        """
        least = self._clock() - BREAKER_S
        there = {region for region, heard in self._heard.items() if heard >= least}
        lags = self.lags()
        return [
            shard
            for shard, one in self._led.items()
            if there and (not one.is_told or all(lags[shard, region][1] > RETRY_S for region in there))
        ]

    async def _read(self, shards: list[int]) -> None:
        answers: list[Any] = await self._source.ask(
            [pack("HGETALL", self._keys.shards[shard] + b"confirmed") for shard in shards]
        )
        for shard, said in zip(shards, answers, strict=True):
            for region, at in said.items():
                name = region.decode(errors="replace")
                if shard in self._led and name in self._heard:
                    self._confirmed(shard, name, position_of(at))
        self._advance()

    async def close(self) -> None:
        """Stop."""
        await end_tasks(self._tasks)
        await self._source.close()
        if self._held is not None:
            self._held.close()


def _has(one: _Led, epoch: int, number: int) -> bool:
    """Whether some region has a batch of ours. One that has a later epoch's has said nothing of this one."""
    return any(at.epoch == epoch and at.offset >= number for at in one.confirmed.values())
