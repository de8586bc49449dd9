"""Sessions, cursors and bans in Redis: a hash a session, a string a cursor, one hash for the bans."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
import msgspec

from core.namespace_spec import DAY_S, NamespaceSpec
from router.log.port import ENDED_KEPT_MS, Ban, Changes, LogBroken, LogUnavailable, Position, Session, SessionChange
from router.log.redis_keys import Keys
from router.log.redis_link import Link, error_of, is_stale, pack
from router.log.redis_nodes import Nodes
from router.log.redis_scripts import CURSOR, SESSION

# Commands sent before answers are waited for, so that neither side holds more than a few megabytes.
CHUNK = 1_000
# For replicas to follow: reads on the same connection wait as long.
FOLLOW_MS = 200
_CHANNEL = b"c:"
_Command = tuple[int, bytes]
Followers = Callable[[Link], int]


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def chunks(commands: Sequence[_Command]) -> Iterable[Sequence[_Command]]:
    return (commands[at : at + CHUNK] for at in range(0, len(commands), CHUNK))


async def ask_all(nodes: Nodes, commands: Sequence[_Command], followers: Followers = lambda link: 0) -> list[Any]:
    """Send packed commands, each with its slot, to whoever has it; the answers in the same order.

    Args:
        nodes: the servers.
        commands: what to send.
        followers: how many replicas of a server must have what was sent there.

    Raises:
        LogUnavailable, LogBroken: some were not answered, or with an error, or replicas do not follow.
    """
    answers: list[Any] = []
    for chunk in chunks(commands):
        try:
            answers += await _ask_chunk(nodes, chunk, followers)
        except _Stale:  # answered at once by whoever is not the right one any more: the next one is asked
            answers += await _ask_chunk(nodes, chunk, followers)
    return answers


class _Stale(LogUnavailable):
    """Another connection is to be used."""


async def _ask_chunk(nodes: Nodes, chunk: Sequence[_Command], followers: Followers) -> list[Any]:
    groups: dict[Link, list[int]] = {}
    for index, (slot, _) in enumerate(chunk):
        groups.setdefault(nodes.up(slot) or await nodes.link(slot), []).append(index)
    found: list[Any] = [None] * len(chunk)
    sent = []
    for link, indices in groups.items():
        data = [chunk[index][1] for index in indices]
        wanted = followers(link)
        if wanted:
            data.append(pack("WAIT", wanted, FOLLOW_MS))
        sent.append((link, indices, wanted, link.send(b"".join(data), len(data))))
    for link, indices, wanted, future in sent:
        got = await future  # deadline: the connection's, which is dropped then
        for index, answer in zip(indices, got, strict=False):
            if isinstance(answer, hiredis.HiredisError):
                error = error_of(answer, link.name)
                if is_stale(answer):
                    link.drop(str(error))
                    raise _Stale(str(error))
                raise error
            found[index] = answer
        if wanted and not (isinstance(got[-1], int) and got[-1] >= wanted):
            raise LogUnavailable(f"{got[-1]} of {wanted} replicas of {link.name} have it: see their logs")
    return found


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
        clock_ms: the wall clock.
        followers: how many replicas of a server must have what is stored of sessions and cursors there.

    """

    def __init__(
        self,
        nodes: Nodes,
        keys: Keys,
        namespaces: Sequence[NamespaceSpec],
        clock_ms: Callable[[], int] = wall_ms,
        followers: Followers = lambda link: 0,
    ) -> None:
        self._nodes = nodes
        self._followers = followers
        self._keys = keys
        self._clock_ms = clock_ms
        age_s = max((one.history_age_s for one in namespaces if one.domain == "session"), default=0)
        self._cursor_ms = (2 * age_s + DAY_S) * 1000

    async def save(self, changes: Changes) -> None:
        """See the port."""
        commands = [self._session(id_, change) for id_, change in changes.sessions.items()]
        for channel, position in changes.cursors.items():
            key, slot = self._keys.cursor(channel)
            text = b"%020d-%020d" % position
            commands.append((slot, pack("EVALSHA", CURSOR.sha, 1, key, text, self._cursor_ms)))
        await ask_all(self._nodes, commands, self._followers)

    def _session(self, id_: bytes, change: SessionChange) -> _Command:
        key, slot = self._keys.session(id_)
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
        return slot, pack("EVALSHA", SESSION.sha, 1, key, *head, *fields, *raised, *gone)

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
        await ask_all(self._nodes, [(self._keys.bans_slot, command)])

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
