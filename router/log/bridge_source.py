"""Another region's log, as its Redis has it: what is read of it, and the few things that are written there.

One connection a region, on which questions go and on which entries come unasked: what the scripts of
router/log/bridge_scripts.py publish. A connection loses none of these while it lasts, so that whoever has read all that
is there after it subscribed misses nothing. It is lost rather than that it grows: the server ends one that does not
take what it is sent (client-output-buffer-limit pubsub).
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import hiredis

from router.log.bridge_scripts import FENCE_BRIDGED, WHERE
from router.log.port import LogBroken, LogUnavailable, Position
from router.log.redis_keys import REGION, Keys
from router.log.redis_link import Link, error_of, pack
from router.log.redis_nodes import Nodes
from router.log.redis_sessions import position_of
from router.log.redis_url import Address, parse

# Of a page of a far region's bridge, which is some megabytes at most.
DEADLINE_S = 5.0
SCAN_COUNT = 1000
# Of what pages of several shards have together, roughly: what comes well within DEADLINE_S.
PAGES_BYTES = 4 * 1024 * 1024
PAGE_BYTES_FIRST = 64 * 1024
NOWHERE = Position(0, 0)
_BEATS = b"beats"
# Of a shard, what is being put in the place of a channel.
COPY = b"copy"
# What is published of a shard: its streams, and what is kept nowhere.
STATES, ABROAD = b"states", b"abroad"
PUBLISHED = (b"bridge", STATES, ABROAD)


class Entry(NamedTuple):
    """A batch, as a bridge has it."""

    id: Position
    before: Position
    """The position of a log that has all before it."""
    data: bytes


class Page(NamedTuple):
    """What a shard's bridge has after a position."""

    fence: int
    """The shard's epoch there."""
    at: Position
    """The shard's position there; `entries` may go further."""
    entries: list[Entry]
    states: list[tuple[bytes, bytes, bytes]]
    """Of sessions: id, kind, rest."""
    oldest_state: bytes
    """That is kept; nothing: none is."""
    newest_state: bytes
    """Likewise."""
    states_kept: int


class PushLink(Link):
    """A connection that is told of what it subscribed to."""

    def __init__(self, address: Address, deadline_s: float, on_push: Callable[[list[Any]], None]) -> None:
        super().__init__(address, deadline_s)
        self._on_push = on_push

    def _take(self, answer: Any) -> None:
        if isinstance(answer, hiredis.PushNotification):
            self._on_push(answer)
        else:
            super()._take(answer)


def text_of(position: Position) -> bytes:
    return b"%d-%d" % position


def entry_of(id_: bytes, fields: Sequence[bytes]) -> Entry:
    """An entry as XRANGE gives it."""
    position = position_of(id_)
    before = position_of(fields[3]) if len(fields) > 3 else Position(position.epoch, position.offset - 1)
    return Entry(position, before, fields[1])


def pushed_entry(text: bytes) -> Entry:
    """An entry as it is published."""
    id_, before, data = text.split(b" ", 2)
    return Entry(position_of(id_), position_of(before), data)


class Source:
    """The log of another region.

    Args:
        region: its name.
        url: where it is.
        keys: names, the same in all regions.
        on_push: told of what is published: the channel, and what.
        deadline_s: for each command.

    Raises:
        ValueError: the URL is none, or a cluster's.

    """

    def __init__(
        self,
        region: str,
        url: str,
        keys: Keys,
        on_push: Callable[[bytes, bytes], None] = lambda channel, text: None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.region = region
        self.is_up = False
        parsed = parse(url)
        if parsed.kind == "cluster":
            raise ValueError(
                f"the log of region `{region}` is in a Redis cluster: with log.regions, use a single Redis or Sentinel"
            )
        self._keys = keys
        self._page_bytes = PAGE_BYTES_FIRST
        """What a page is thought to have."""
        self._told = on_push
        self._nodes = Nodes(parsed, deadline_s, self._greet, self._made)

    def _made(self, address: Address, deadline_s: float) -> Link:
        return PushLink(address, deadline_s, self._on_push)

    async def _greet(self, link: Link) -> None:
        scripts = (("SCRIPT", "LOAD", one.text) for one in (FENCE_BRIDGED, WHERE))
        there, *_ = await link.ask(("HGET", self._keys.root, REGION), *scripts)
        named = there.decode() if isinstance(there, bytes) else ""
        # Followed or fenced in the place of another, it would leave shards unavailable without a word.
        if named not in ("", self.region):
            raise LogUnavailable(
                f"{link.name} has the log of region `{named}`, and not that of `{self.region}`: see log.regions"
            )

    def _on_push(self, said: list[Any]) -> None:
        if said[0] == b"message":
            self._told(said[1], said[2])

    async def link(self) -> Link:
        """The connection, made if need be.

        Raises:
            LogUnavailable: there is none now.
        """
        return await self._nodes.link(0)

    def up(self) -> Link | None:
        """The connection, if it is there."""
        return self._nodes.up(0)

    async def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands in one go; their answers.

        Raises:
            LogUnavailable, LogBroken: the first error among the answers, or the connection was lost.
        """
        if not commands:
            return []
        link = await self.link()
        answers = await link.send(b"".join(commands), len(commands))  # deadline: the connection's
        for answer in answers:
            if isinstance(answer, hiredis.HiredisError):
                error = error_of(answer, link.name)
                link.drop(str(error))
                raise error
        return answers

    # --------------------------------------------------------------------------------------------------------- reading

    async def pages(self, after: Mapping[int, tuple[Position, bytes]], count: int) -> dict[int, Page]:
        """By shard, what its bridge has after a position and its states after an id, so many at most of each; of the
        first ones of these shards, as many as one answer may have of them.
        """
        some = dict(itertools.islice(after.items(), max(1, PAGES_BYTES // self._page_bytes)))
        commands = []
        for shard, (position, state) in some.items():
            start = self._keys.shards[shard]
            commands += [
                pack("EVALSHA", WHERE.sha, 1, start + b"epoch"),
                pack("XRANGE", start + b"bridge", b"(" + text_of(position), b"+", "COUNT", count),
                pack("XLEN", start + b"states"),
                pack("XRANGE", start + b"states", b"-", b"+", "COUNT", 1),
                pack("XREVRANGE", start + b"states", b"+", b"-", "COUNT", 1),
                pack("XRANGE", start + b"states", b"(" + state, b"+", "COUNT", count),
            ]
        try:
            answers = iter(await self.ask(commands))
        except LogUnavailable:
            self._page_bytes = min(4 * self._page_bytes, PAGES_BYTES)
            raise
        found = {}
        for shard, (fence, at), bridge, kept, oldest, newest, states in zip(some, *[answers] * 6, strict=True):
            found[shard] = Page(
                int(fence or 0),
                position_of(at),
                [entry_of(*one) for one in bridge],
                [(id_, fields[1], fields[3]) for id_, fields in states],
                oldest[0][0] if oldest else b"",
                newest[0][0] if newest else b"",
                kept,
            )
        size = sum(len(entry.data) for page in found.values() for entry in page.entries)
        self._page_bytes = max(size // max(len(found), 1), self._page_bytes // 2, 1024)
        return found

    async def where(self, shards: Sequence[int]) -> list[tuple[int, Position]]:
        """The epoch and the position that each shard has there."""
        return await where_of(self.ask, self._keys, shards)

    def subscribe(self, link: Link, shards: Iterable[int], *, bans: bool = False) -> None:
        """What is added to these shards from now on is told, if this connection is the one that is used then."""
        names = [self._keys.shards[one] + name for one in shards for name in PUBLISHED]
        if bans:
            names.append(self._keys.bans)
        if names:
            link.send(pack("SUBSCRIBE", *names) + pack("PING"), 1)  # what answers SUBSCRIBE is no answer but told

    def unsubscribe(self, link: Link, shards: Iterable[int]) -> None:
        """What is added to these shards is not told any more."""
        names = [self._keys.shards[one] + name for one in shards for name in PUBLISHED]
        if names:
            link.send(pack("UNSUBSCRIBE", *names) + pack("PING"), 1)

    # --------------------------------------------------------------------------------------------------------- writing

    async def fence(self, epochs: Mapping[int, int]) -> dict[int, tuple[int, Position]]:
        """Have it refuse lower epochs of shards; by shard the epoch that it knows then, and where it is."""
        answers = await self.ask(
            [
                pack("EVALSHA", FENCE_BRIDGED.sha, 1, self._keys.shards[shard] + b"epoch", b"%020d" % epoch)
                for shard, epoch in epochs.items()
            ]
        )
        return {
            shard: (int(known or epochs[shard]), position_of(at))
            for shard, (known, at) in zip(epochs, answers, strict=True)
        }

    def confirm(self, region: str, positions: Mapping[int, Position]) -> None:
        """Say up to where a region has shards, without waiting for anything."""
        link = self.up()
        if link is None:
            return
        data = []
        for shard, position in positions.items():
            name = self._keys.shards[shard] + b"confirmed"
            said = text_of(position)
            data.append(pack("HSET", name, region, said) + pack("PUBLISH", name, region.encode() + b" " + said))
        data.append(pack("PUBLISH", beats(self._keys), region))
        link.send(b"".join(data), 2 * len(positions) + 1)

    def say(self, records: Mapping[int, bytes]) -> bool:
        """Publish what is in no log to who follows these shards, without waiting for anything.

        Returns:
            False: there is no connection, or it takes no more.
        """
        link = self.up()
        if link is None:
            return False
        data = b"".join(pack("PUBLISH", self._keys.shards[shard] + ABROAD, said) for shard, said in records.items())
        return not link.send(data, len(records)).done()

    # --------------------------------------------------------------------------------------------------------- copying

    async def names(self, shards: Collection[int]) -> dict[int, list[bytes]]:
        """By shard, the names of all keys that are its state: not its epoch, nor what is for bridges."""
        return await names_of(self.ask, self._keys, shards)

    async def dump(self, names: Sequence[bytes]) -> list[tuple[bytes, int, bytes]]:
        """Of these keys, those that are there: name, for how many ms it is kept (0: for good), and what it holds."""
        answers = iter(await self.ask([one for name in names for one in (pack("PTTL", name), pack("DUMP", name))]))
        return [
            (name, max(ttl, 0), data)
            for name, ttl, data in zip(names, answers, answers, strict=True)
            if data is not None
        ]

    async def newest_states(self, shards: Sequence[int]) -> list[bytes]:
        """The id of the newest state of each shard."""
        commands = [pack("XREVRANGE", self._keys.shards[shard] + b"states", b"+", b"-", "COUNT", 1) for shard in shards]
        return [found[0][0] if found else b"0-0" for found in await self.ask(commands)]

    async def bans(self) -> dict[bytes, bytes]:
        """All that it has, as they are stored."""
        [found] = await self.ask([pack("HGETALL", self._keys.bans)])
        if not isinstance(found, dict):
            raise LogBroken(f"the bans of region `{self.region}` cannot be read")
        return found

    async def close(self) -> None:
        """Give up the connection."""
        await self._nodes.close()


def beats(keys: Keys) -> bytes:
    """Under which name followers say that they are alive."""
    return keys.root + b":" + _BEATS


async def where_of(ask: Any, keys: Keys, shards: Sequence[int]) -> list[tuple[int, Position]]:
    """See `Source.where`, of any server."""
    # deadline: that of each command
    answers = await ask([pack("EVALSHA", WHERE.sha, 1, keys.shards[one] + b"epoch") for one in shards])
    return [(int(fence or 0), position_of(at)) for fence, at in answers]


async def names_of(ask: Any, keys: Keys, shards: Collection[int]) -> dict[int, list[bytes]]:
    """See `Source.names`, of any server."""
    found: dict[int, list[bytes]] = {shard: [] for shard in shards}
    starts = {keys.shards[shard]: shard for shard in shards}
    own = {b"epoch", b"bridge", b"states", b"confirmed", COPY}
    pattern = keys.shards[0].replace(b"{%s0}" % keys.tag, b"{%s*}" % keys.tag) + b"*"
    cursor = b"0"
    while True:
        # deadline: that of each command
        [(cursor, names)] = await ask([pack("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)])
        for name in names:
            start, mark, rest = name.partition(b"}:")
            shard = starts.get(start + mark)
            if shard is not None and rest not in own:
                found[shard].append(name)
        if cursor == b"0":
            return {shard: sorted(set(names)) for shard, names in found.items()}
