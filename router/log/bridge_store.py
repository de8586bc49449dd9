"""Our region's log, where it follows another one's: the same batches under the same ids, what is beyond dropped.

What is done here is repeated without harm, and by several at once: the scripts look at the shard's position.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import hiredis

from router.log.bridge_scripts import (
    BEGIN_COPY,
    BRIDGE_ENTRIES,
    COPY_CHANNEL,
    COPY_KEY,
    HAS_STATE,
    MERGE_BAN,
    PLACE,
    REPEAT_STATE,
    UNDO,
    WHERE,
    repeat,
)
from router.log.bridge_source import COPY, NOWHERE, Entry, entry_of, names_of, text_of, where_of
from router.log.port import LogUnavailable, Position
from router.log.redis_keys import Keys
from router.log.redis_link import Link, error_of, pack
from router.log.redis_nodes import Nodes
from router.log.redis_sessions import position_of
from router.log.redis_url import parse

# Of what was dropped, named in the log; all of it is counted.
NAMED_MAX = 100
# A megabyte of messages of 100 bytes is some 5,000 of them, a tenth of a second of a Redis.
PIECE_BYTES = 1024 * 1024
_EPOCH = b"%020d"
_CHANNEL = b"}:c:"
_log = logging.getLogger("holdfast.log")


class Followed:
    """A shard that is followed: where another region leads it, and where ours is."""

    __slots__ = (
        "at",
        "held",
        "is_live",
        "leader",
        "partial",
        "said",
        "shard",
        "states_at",
        "subscribed",
        "told",
        "turn",
    )

    def __init__(self, shard: int, leader: int, before: "Followed | None" = None) -> None:
        """`before`: as it was followed up to now, in whatever region."""
        self.shard = shard
        self.leader = leader
        """The shard's epoch under which it is led there."""
        self.at: Position | None = None
        """Our position, once it is known."""
        self.states_at = b"0-0"
        """The last of that region's states that we have."""
        self.partial = False
        """A copy of it did not come to its end: some of it is later than our position, and may be dropped there yet."""
        self.said: int = 0 if before is None else before.said
        """The epoch that the data plane was told last."""
        self.is_live = False
        """We have all that was there before it was subscribed to: what comes is what follows."""
        self.subscribed = False
        self.told: Position | None = None if before is None else before.told
        """Up to where the data plane was told what is in our log."""
        self.turn = 0
        """When it was read last: the one that was not for longest is next."""
        self.held: list[tuple[bytes, bytes]] = []
        """What came since it was subscribed to, while it is not live yet."""


class Dropped(list[tuple[bytes, bytes]]):
    """Records that were taken back: channel and position."""


class Store:
    """Our region's log.

    Args:
        url: where it is.
        keys: names.
        replicas: of a server, by its INFO, how many have to follow.
        deadline_s: for each command.
        entries: that a bridge keeps.
        on_dropped: told of a shard and of how many records of it were dropped.

    """

    def __init__(
        self,
        url: str,
        keys: Keys,
        replicas: Callable[[Mapping[bytes, bytes]], int],
        deadline_s: float,
        entries: int = BRIDGE_ENTRIES,
        on_dropped: Callable[[int, int], None] = lambda shard, count: None,
    ) -> None:
        self._keys = keys
        self._replicas_of = replicas
        self._wait_ms = int(deadline_s * 500)
        self._replicas = 0
        self._connections = 0
        self._repeat = repeat(entries)
        self._on_dropped = on_dropped
        self._nodes = Nodes(parse(url), deadline_s, self._greet)

    async def _greet(self, link: Link) -> None:
        scripts = (
            self._repeat,
            UNDO,
            BEGIN_COPY,
            COPY_KEY,
            COPY_CHANNEL,
            PLACE,
            WHERE,
            REPEAT_STATE,
            HAS_STATE,
            MERGE_BAN,
        )
        await link.ask(*(("SCRIPT", "LOAD", one.text) for one in scripts))
        [answer] = await link.ask(["INFO", "replication"])
        text = answer if isinstance(answer, bytes) else bytes(str(answer), "ascii")
        self._replicas = self._replicas_of(dict(one.split(b":", 1) for one in text.splitlines() if b":" in one))
        self._connections += 1

    async def connected(self) -> int:
        """Which connection it is by now: a server that was connected to anew may have less than it had.

        Raises:
            LogUnavailable: there is none now.
        """
        await self._nodes.link(0)
        return self._connections

    async def ask(self, commands: Sequence[bytes], *, changes: bool = False) -> list[Any]:
        """Send packed commands; their answers. `changes`: replicas have them as well then.

        Raises:
            LogUnavailable, LogBroken: the first error among the answers, or the connection was lost.
        """
        if not commands:
            return []
        link = await self._nodes.link(0)
        replicas = self._replicas if changes else 0
        sent = [*commands, pack("WAIT", replicas, self._wait_ms)] if replicas else commands
        answers = await link.send(b"".join(sent), len(sent))  # deadline: the connection's
        for answer in answers:
            if isinstance(answer, hiredis.HiredisError):
                error = error_of(answer, link.name)
                link.drop(str(error))
                raise error
        if replicas and answers.pop() < replicas:
            link.drop(f"{link.name} misses replicas: see their logs")
            raise LogUnavailable(link.why_lost)
        return answers

    def _epoch(self, shard: int) -> bytes:
        return self._keys.shards[shard] + b"epoch"

    async def where(self, shards: Sequence[int]) -> list[tuple[int, Position]]:
        """The epoch and the position that each of these shards has."""
        return await where_of(self.ask, self._keys, shards)

    async def partial(self, shards: Sequence[int]) -> set[int]:
        """Those of these shards of which a copy did not come to its end."""
        answers = await self.ask([pack("HEXISTS", self._epoch(one), "copy") for one in shards])
        return {one for one, is_partial in zip(shards, answers, strict=True) if is_partial}

    async def load(self, some: Sequence[Followed], region: str) -> None:
        """Find out where these are, and up to where they have that region's states."""
        found = await self.where([one.shard for one in some])
        names = [self._epoch(one.shard) for one in some]
        states = await self.ask([pack("HMGET", name, _states_field(region), "copy") for name in names])
        # Replicas are waited for by who wrote last: that is us, though another follower may have brought it here.
        await self.ask([pack("HSET", name, "from", region) for name in names], changes=True)
        for one, (_, at), (state, copy) in zip(some, found, states, strict=True):
            one.at = at
            one.states_at = state or b"0-0"
            one.partial = copy is not None

    # -------------------------------------------------------------------------------------------------------- repeating

    async def repeat(self, entries: Sequence[tuple[Followed, Entry]]) -> list[bool]:
        """Do what was done there, in this order, each the next one (`fits`); of each whether we have it. Of a shard
        whose position is not what was thought, or that is a later leader's, it is not known afterwards.
        """
        commands = []
        at: dict[Followed, Position] = {}
        for one, entry in entries:
            before = at.get(one, one.at or NOWHERE)  # not the entry's: see `fits`
            leader = _EPOCH % max(one.leader, entry.id.epoch)
            commands.append(
                pack("EVALSHA", self._repeat.sha, 1, self._epoch(one.shard), entry.data, text_of(before), leader)
            )
            at[one] = entry.id
        done = []
        answers = [answer for some in _pieces(commands) for answer in await self.ask(some, changes=True)]
        for (one, entry), answer in zip(entries, answers, strict=True):
            position = position_of(answer) if answer else None
            has = position is not None and position >= entry.id and position.epoch == entry.id.epoch
            done.append(has)
            if has and one.at is not None:
                one.at = max(one.at, entry.id)
            elif not has:
                one.at = None
        return done

    async def entries(self, one: Followed, after: Position) -> list[Entry]:
        """What our own bridge has of a shard after a position."""
        name = self._keys.shards[one.shard] + b"bridge"
        [found] = await self.ask([pack("XRANGE", name, b"(" + text_of(after), b"+")])
        return [entry_of(*entry) for entry in found]

    async def repeat_states(
        self, region: str, states: Sequence[tuple[Followed, tuple[bytes, bytes, bytes]]], *, replicas: bool = False
    ) -> None:
        """Do what became of sessions there, in this order, each the next one that we do not have. Of a shard whose
        states are not what was thought, or that is a later leader's, it is not known afterwards where it is.
        `replicas`: they have it as well then.
        """
        field = _states_field(region)
        commands, todo = [], []
        at: dict[Followed, bytes] = {}
        for one, (id_, kind, data) in states:
            before = at.get(one, one.states_at)
            if position_of(id_) > position_of(before):
                name, leader = self._epoch(one.shard), _EPOCH % one.leader
                commands.append(pack("EVALSHA", REPEAT_STATE.sha, 1, name, kind, data, id_, before, leader, field))
                todo.append((one, id_))
                at[one] = id_
        answers = [answer for some in _pieces(commands) for answer in await self.ask(some, changes=replicas)]
        for (one, id_), answer in zip(todo, answers, strict=True):
            if answer == -1:
                one.at = None
            elif one.at is not None:
                one.states_at = id_

    async def forget_states(self, region: str, some: Sequence[Followed]) -> None:
        """From now on none of that region's states counts as known here."""
        await self.ask([pack("HDEL", self._epoch(one.shard), _states_field(region)) for one in some], changes=True)
        for one in some:
            one.states_at = b"0-0"

    async def lacking_states(self, some: Mapping[Followed, Collection[bytes]]) -> set[Followed]:
        """Of these shards, those of whose states none says one of these."""
        commands = [
            pack("EVALSHA", HAS_STATE.sha, 1, self._keys.shards[one.shard] + b"states", *said)
            for one, said in some.items()
        ]
        return {one for one, has in zip(some, await self.ask(commands), strict=True) if not has}

    async def merge_bans(self, bans: Mapping[bytes, bytes]) -> int:
        """Take another region's bans, as they are stored there, if they are later ones; how many were."""
        commands = [pack("EVALSHA", MERGE_BAN.sha, 1, self._keys.bans, user, said) for user, said in bans.items()]
        return sum(await self.ask(commands, changes=True))

    # --------------------------------------------------------------------------------------------------------- dropping

    async def undo(self, one: Followed, target: Position, leader: int) -> bool:
        """Drop what is beyond a position of the leader's; False: the bridge does not go back so far."""
        dropped = Dropped()
        command = pack("EVALSHA", UNDO.sha, 1, self._epoch(one.shard), text_of(target), _EPOCH % leader)
        try:
            while True:
                [answer] = await self.ask([command], changes=True)
                if not answer:  # a later leader's
                    one.at = None
                    return True
                if answer[0] == b" ":
                    return False
                one.at = position_of(answer[0])
                if len(answer) == 1:
                    return True
                dropped += zip(answer[1::2], answer[2::2], strict=True)
        finally:
            self.say_dropped(one.shard, f", beyond {target.epoch}-{target.offset},", dropped)

    def say_dropped(self, shard: int, which: str, dropped: Dropped) -> None:
        """Count them and name them."""
        if not dropped:
            return
        self._on_dropped(shard, len(dropped))
        named = [f"{key.partition(_CHANNEL)[2].decode(errors='replace')} {id_.decode()}" for key, id_ in dropped]
        _log.error(
            "shard %d: %d messages that only this region had%s were dropped, since another region went on without "
            "them: %s%s",
            shard,
            len(named),
            which,
            ", ".join(named[:NAMED_MAX]),
            f" and {len(named) - NAMED_MAX} more" if len(named) > NAMED_MAX else "",
        )

    # ---------------------------------------------------------------------------------------------------------- copying

    async def names(self, shards: Collection[int]) -> dict[int, list[bytes]]:
        """See `Source.names`."""
        return await names_of(self.ask, self._keys, shards)

    async def begin_copy(self, some: Collection[Followed], copy: bytes) -> list[Followed]:
        """From now on `restore`, `remove` and `place` put here what was read since, under the name of this copy, as
        long as nobody else changes the shard; those of these shards that are no later leader's.
        """
        answers = await self.ask(
            [pack("EVALSHA", BEGIN_COPY.sha, 1, self._epoch(one.shard), _EPOCH % one.leader, copy) for one in some]
        )
        for one in some:
            one.at = None
        return [one for one, begun in zip(some, answers, strict=True) if begun]

    async def restore(
        self, one: Followed, copy: bytes, dumped: Sequence[tuple[bytes, int, bytes]], dropped: Dropped
    ) -> bool:
        """Put these keys in the place of ours; `dropped` gets the records that only ours had. False: somebody else has
        changed the shard.

        Raises:
            LogUnavailable: it does not take them, since the other Redis is of a later version, say.
        """
        return await self._put(one, copy, [(name, (data, ttl)) for name, ttl, data in dumped], dropped)

    async def remove(self, one: Followed, copy: bytes, names: Sequence[bytes], dropped: Dropped) -> bool:
        """The same of keys that are not there."""
        return await self._put(one, copy, [(name, ()) for name in names], dropped)

    async def _put(
        self, one: Followed, copy: bytes, keys: Sequence[tuple[bytes, Sequence[bytes | int]]], dropped: Dropped
    ) -> bool:
        epoch = self._epoch(one.shard)
        between = self._keys.shards[one.shard] + COPY
        commands = [
            pack("EVALSHA", COPY_CHANNEL.sha, 3, name, epoch, between, copy, *what)
            if _CHANNEL in name
            else pack("EVALSHA", COPY_KEY.sha, 2, name, epoch, copy, *what)
            for name, what in keys
        ]
        answers = [answer for some in _pieces(commands) for answer in await self.ask(some, changes=True)]
        for (name, _), ids in zip(keys, answers, strict=True):
            if ids != -1:
                dropped += ((name, id_) for id_ in reversed(ids))  # oldest first
        return -1 not in answers

    async def place(self, one: Followed, copy: bytes, region: str, at: Position, state: bytes) -> bool:
        """The shard is here now, whatever it had, and has that region's states up to one; False: somebody else has
        changed it.
        """
        name, leader = self._epoch(one.shard), _EPOCH % one.leader
        command = pack("EVALSHA", PLACE.sha, 1, name, copy, leader, text_of(at), _states_field(region), state)
        [placed] = await self.ask([command], changes=True)
        if placed:
            one.at, one.states_at, one.partial = at, state, False
        return bool(placed)

    async def close(self) -> None:
        """Give up the connection."""
        await self._nodes.close()


def _states_field(region: str) -> bytes:
    return b"states:" + region.encode()


def _pieces(commands: Sequence[bytes]) -> Iterable[list[bytes]]:
    """Of no more than PIECE_BYTES each, but one command: what a server takes well within a command's deadline."""
    piece: list[bytes] = []
    room = PIECE_BYTES
    for command in commands:
        room -= len(command)
        if piece and room < 0:
            yield piece
            piece, room = [], PIECE_BYTES - len(command)
        piece.append(command)
    if piece:
        yield piece


def fits(at: Position, entry: Entry) -> str:
    """What an entry is to a log at a position: `old`, the `next` one, one that says that the log is `beyond`, or one
    before which something is `missing`.

    Within an epoch one leader numbers its batches: where its entry goes on from an earlier one than ours, or from the
    number before it, it has lost what is between (its Redis came back without its last second, and what was kept did
    not reach) while we have it.
    """
    if entry.id <= at:
        return "old"
    if entry.before == at:
        return "next"
    if entry.id.epoch == at.epoch:
        return "next" if entry.before < at or entry.id.offset == at.offset + 1 else "missing"
    return "beyond" if entry.before < at else "missing"
