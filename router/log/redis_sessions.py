"""Sessions, cursors and bans in Redis: a hash a session, a string a cursor, one hash for the bans.

As with what is appended (redis_append), replicas have it before it counts as stored, and what was stored in the last
minute is kept here: each new connection is given it again before anything else is asked there, for its server may have
come back, or be primary now, without it. In order it changes nothing of what is there: the last that is said counts.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
import msgspec

from core.namespace_spec import DAY_S, NamespaceSpec
from router.log.bridge_scripts import CURSOR_BRIDGED, SESSION_BRIDGED
from router.log.port import ENDED_KEPT_MS, Ban, Changes, LogBroken, LogUnavailable, Position, Session, SessionChange
from router.log.redis_append import KEPT_S, REPLICA_MISSED_S
from router.log.redis_keys import Keys
from router.log.redis_link import Link, error_of, is_stale, pack
from router.log.redis_nodes import Nodes
from router.log.redis_scripts import CURSOR, SESSION

# Commands sent before answers are waited for, so that neither side holds more than a few megabytes.
CHUNK = 1_000
# Of what was stored in the last KEPT_S: some 170,000 changes, four seconds of a Redis.
KEPT_BYTES_MAX = 64 * 1024 * 1024
# What is kept beside the commands: measured, as memory that the process has more.
SLOT_BYTES = 120
CHUNK_BYTES = 200
_CHANNEL = b"c:"
_Command = tuple[int, bytes]


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def chunks(commands: Sequence[_Command]) -> Iterable[Sequence[_Command]]:
    return (commands[at : at + CHUNK] for at in range(0, len(commands), CHUNK))


async def ask_all(nodes: Nodes, commands: Sequence[_Command]) -> list[Any]:
    """Send packed commands, each with its slot, to whoever has it; the answers in the same order.

    Raises:
        LogUnavailable, LogBroken: some were not answered, or with an error.
    """
    answers: list[Any] = []
    for chunk in chunks(commands):
        try:
            answers += await _ask_chunk(nodes, chunk)
        except _Stale:  # answered at once by whoever is not the right one any more: the next one is asked
            answers += await _ask_chunk(nodes, chunk)
    return answers


class _Stale(LogUnavailable):
    """Another connection is to be used."""


async def _groups(nodes: Nodes, chunk: Sequence[_Command]) -> dict[Link, list[int]]:
    """Which commands go where."""
    groups: dict[Link, list[int]] = {}
    for index, (slot, _) in enumerate(chunk):
        groups.setdefault(nodes.up(slot) or await nodes.link(slot), []).append(index)
    return groups


def _check(link: Link, answers: Iterable[Any]) -> None:
    """Raise the first error among answers."""
    for answer in answers:
        if isinstance(answer, hiredis.HiredisError):
            error = error_of(answer, link.name)
            if is_stale(answer):
                link.drop(str(error))
                raise _Stale(str(error))
            raise error


async def _ask_chunk(nodes: Nodes, chunk: Sequence[_Command]) -> list[Any]:
    groups = await _groups(nodes, chunk)
    found: list[Any] = [None] * len(chunk)
    sent = [
        (link, indices, link.send(b"".join(chunk[index][1] for index in indices), len(indices)))
        for link, indices in groups.items()
    ]
    for link, indices, future in sent:
        got = await future  # deadline: the connection's, which is dropped then
        _check(link, got)
        for index, answer in zip(indices, got, strict=True):
            found[index] = answer
    return found


class _Kept:
    """A chunk that was stored: of each slot how many commands, and these."""

    __slots__ = ("made", "size", "slots")

    def __init__(self, chunk: Sequence[_Command]) -> None:
        slots: dict[int, list[bytes]] = {}
        for slot, command in chunk:
            slots.setdefault(slot, []).append(command)
        self.slots = [(slot, len(commands), b"".join(commands)) for slot, commands in slots.items()]
        self.size = CHUNK_BYTES + sum(SLOT_BYTES + len(data) for *_, data in self.slots)
        self.made = time.monotonic()


def position_of(text: bytes) -> Position:
    epoch, mark, offset = text.partition(b"-")
    if not (mark and epoch.isdigit() and offset.isdigit()):
        raise LogBroken(f"`{text[:64].decode(errors='replace')}` in Redis is no position: remove what does not belong")
    return Position(int(epoch), int(offset))


class Sessions:
    """Sessions, cursors and bans.

    Args:
        nodes: the servers.
        keys: names.
        namespaces: those of users' own channels say how long a cursor is kept.
        deadline_s: for replicas to follow.
        clock_ms: the wall clock.
        bridged: other regions are told of what is stored (router/log/bridge.py).

    """

    def __init__(
        self,
        nodes: Nodes,
        keys: Keys,
        namespaces: Sequence[NamespaceSpec],
        deadline_s: float,
        clock_ms: Callable[[], int] = wall_ms,
        *,
        bridged: bool = False,
    ) -> None:
        self._nodes = nodes
        self._keys = keys
        self._clock_ms = clock_ms
        self._bridged = bridged
        self._session_sha, self._cursor_sha = (
            one.sha for one in ((SESSION_BRIDGED, CURSOR_BRIDGED) if bridged else (SESSION, CURSOR))
        )
        age_s = max((one.history_age_s for one in namespaces if one.domain == "session"), default=0)
        self._cursor_ms = (2 * age_s + DAY_S) * 1000
        self._wait_ms = int(deadline_s * 500)
        self._replicas: dict[Link, int] = {}
        self._replicated = -math.inf
        """When a server that had replicas was lost (`time.monotonic`): another one is not trusted alone for a while,
        unless it has always been so.
        """
        self._alone: set[Link] = set()
        self._kept: deque[_Kept] = deque()
        self.kept_bytes = 0
        self.epochs: list[int] = [0] * len(keys.users)
        """Where several routers write: of each shard, under which it is ours, or was last."""

    # --------------------------------------------------------------------------------------------------------- storing

    def on_marks(self, marks: Iterable[bool]) -> None:
        """The router begins: whether Redis says of shards that they are replicated."""
        if any(marks):
            self._replicated = time.monotonic()

    async def on_link(self, link: Link, replicas: int, *, alone: bool = False) -> None:
        """A connection is about to be used, to a server with so many replicas to wait for: give it what it may lack.
        `alone`: it has not had one lately, as others of a cluster may have.

        Raises:
            LogUnavailable, LogBroken: it does not take it.
        """
        if any(count for one, count in self._replicas.items() if one.why_lost):
            self._replicated = time.monotonic()
        self._replicas = {one: count for one, count in self._replicas.items() if not one.why_lost}
        self._alone = {one for one in self._alone if not one.why_lost}
        self._replicas[link] = replicas
        if alone:
            self._alone.add(link)
        data: list[bytes] = []
        size = 0
        for slot, count, commands in [one for kept in self._kept for one in kept.slots]:
            if self._nodes.owner(slot) == link.address:
                data.append(commands)
                size += count
            if size >= CHUNK:
                _check(link, await link.send(b"".join(data), size))  # deadline: the connection's
                data, size = [], 0
        if size:
            _check(link, await link.send(b"".join(data), size))  # deadline: the connection's

    def has_for(self, link: Link) -> bool:
        """Whether its server is given something of what is kept here."""
        return any(self._nodes.owner(slot) == link.address for slot in self._slots())

    def is_whole(self) -> bool:
        """Whether none of the servers that got something lately is out of sight."""
        return all(self._nodes.up(slot) is not None for slot in self._slots())

    async def heal(self) -> None:
        """See to it that these servers have what is kept here."""
        for slot in self._slots():
            await self._nodes.link(slot)

    def _slots(self) -> set[int]:
        return {slot for kept in self._kept for slot, *_ in kept.slots}

    async def store(self, commands: Sequence[_Command]) -> None:
        """Send commands that change something; returns when replicas have it as well.

        Raises:
            LogUnavailable, LogBroken: some may not be stored.
        """
        for chunk in chunks(commands):
            try:
                await self._store_chunk(chunk)
            except _Stale:
                await self._store_chunk(chunk)
            self._keep(_Kept(chunk))

    async def _store_chunk(self, chunk: Sequence[_Command]) -> None:
        groups = await _groups(self._nodes, chunk)
        missed = time.monotonic() - self._replicated < REPLICA_MISSED_S
        sent = []
        for link, indices in groups.items():
            data = [chunk[index][1] for index in indices]
            count = self._replicas.get(link, 0) or int(missed and link not in self._alone)
            if count:
                data.append(pack("WAIT", count, self._wait_ms))
            sent.append((link, count, link.send(b"".join(data), len(data))))
        for link, count, future in sent:
            answers = await future  # deadline: the connection's, which is dropped then
            _check(link, answers)
            if count and answers[-1] < count:
                # How many there are is asked again with the next connection.
                link.drop(f"{answers[-1]} of {count} replicas of {link.name} have it: see their logs")
        for link, *_ in sent:
            if link.why_lost:  # whatever was answered: the next server may know less, and was not given this again
                raise LogUnavailable(link.why_lost)

    def _keep(self, made: _Kept) -> None:
        self._kept.append(made)
        self.kept_bytes += made.size
        while self._kept[0].made < made.made - KEPT_S or self.kept_bytes > KEPT_BYTES_MAX:
            self.kept_bytes -= self._kept.popleft().size
            if not self._kept:
                break

    # -------------------------------------------------------------------------------------------------------- the port

    async def save(self, changes: Changes) -> None:
        """See the port."""
        commands = [self._session(id_, change) for id_, change in changes.sessions.items()]
        for channel, position in changes.cursors.items():
            key, slot = self._keys.cursor(channel)
            fence, epoch = self._fence(self._keys.shard_of_cursor(channel.encode()))
            text = b"%020d-%020d" % position
            command = pack("EVALSHA", self._cursor_sha, 1 + len(fence), key, *fence, text, self._cursor_ms, *epoch)
            commands.append((slot, command))
        await self.store(commands)

    def _fence(self, shard: int) -> tuple[list[bytes], list[bytes]]:
        """The key and the epoch by which a script sees whether a shard is another router's; none where one has all."""
        if not self._keys.shared:
            return [], []
        return [self._keys.users[shard] + b"epoch"], [b"%020d" % self.epochs[shard]]

    def _session(self, id_: bytes, change: SessionChange) -> _Command:
        key, slot = self._keys.session(id_)
        fence, epoch = self._fence(self._keys.shard_of_session(id_))
        fields: list[bytes] = []
        raised: list[bytes] = []
        gone: list[bytes] = []
        for channel, position in change.channels.items():
            name = _CHANNEL + channel.encode()
            if position is None:
                gone.append(name)
            else:
                (fields if channel in change.joined else raised).extend((name, b"%d-%d" % position))
        expires = b"" if change.expires_ms is None else b"%d" % change.expires_ms
        ended = b"1" if change.ended else b"0"
        # An empty value says "not opened", so the real one is marked.
        opened = b"" if change.opened is None else b"o" + change.opened
        head = (ended, opened, expires, change.date, ENDED_KEPT_MS, (len(fields) + len(raised)) >> 1, len(raised) >> 1)
        return slot, pack(
            "EVALSHA", self._session_sha, 1 + len(fence), key, *fence, *head, *fields, *raised, *gone, *epoch
        )

    async def sessions(self, ids: Sequence[bytes]) -> list[Session | None]:
        """See the port."""
        commands = []
        for id_ in ids:
            key, slot = self._keys.session(id_)
            commands.append((slot, pack("HGETALL", key)))
        return [self._read(answer) for answer in await ask_all(self._nodes, commands)]

    async def dates(self, ids: Sequence[bytes]) -> list[bytes]:
        """See the port."""
        commands = []
        for id_ in ids:
            key, slot = self._keys.session(id_)
            commands.append((slot, pack("HGET", key, b"date")))
        return [answer or b"" for answer in await ask_all(self._nodes, commands)]

    def _read(self, fields: dict[bytes, bytes]) -> Session | None:
        opened = fields.pop(b"opened", None)
        if opened is None:
            return None
        expires_ms = int(fields.pop(b"expires", b"0"))
        fields.pop(b"date", None)
        if expires_ms and expires_ms <= self._clock_ms():
            return None
        channels = {name.removeprefix(_CHANNEL).decode(): position_of(text) for name, text in fields.items()}
        return Session(opened[1:], expires_ms, channels)

    async def cursors(self, channels: Sequence[str]) -> list[Position | None]:
        """See the port."""
        commands = []
        for channel in channels:
            key, slot = self._keys.cursor(channel)
            commands.append((slot, pack("GET", key)))
        return [None if text is None else position_of(text) for text in await ask_all(self._nodes, commands)]

    async def ban(self, ban: Ban) -> None:
        """See the port."""
        user = ban.user.encode()
        if ban.kept_ms <= self._clock_ms():
            command = pack("HDEL", self._keys.bans, user)
        else:
            said = msgspec.msgpack.encode((ban.until_ms, ban.reason, ban.since_ms))
            command = pack("HSET", self._keys.bans, user, said)
        commands = [(self._keys.bans_slot, command)]
        if self._bridged and ban.kept_ms > self._clock_ms():
            commands.append((self._keys.bans_slot, pack("PUBLISH", self._keys.bans, user + b"\0" + said)))
        await self.store(commands)

    async def bans(self) -> list[Ban]:
        """See the port."""
        [fields] = await ask_all(self._nodes, [(self._keys.bans_slot, pack("HGETALL", self._keys.bans))])
        now, kept, over = self._clock_ms(), [], []
        for user, said in fields.items():
            ban = Ban(user.decode(), *msgspec.msgpack.decode(said, type=tuple[int, str, int]))
            if ban.kept_ms > now:
                kept.append(ban)
            else:
                over.append(user)
        if over:
            command = pack("HDEL", self._keys.bans, *over)
            await ask_all(self._nodes, [(self._keys.bans_slot, command)])
        return sorted(kept, key=lambda one: one.user)
