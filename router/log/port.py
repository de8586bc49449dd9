"""The log port: the promises that both sides keep, and the values that pass through it.

One object a router process, used by its control thread's event loop alone. Whatever is awaited here ends within the
deadline that the log was made with, by a result or by a LogError. `tests/contract/` holds both sides against this page.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from core.ban_list import RESUME_AGE_MAX_MS
from core.shards import byte_of

# How long the date of a session that is over is kept: longer than a node is without a router. Whoever told of it before
# its end and tells it again to the next one does not begin it again.
ENDED_KEPT_MS = 600_000


class LogError(Exception):
    """The tree of what a log says when it cannot do what was asked."""


class LogUnavailable(LogError):
    """It is away, full, or too slow. What was asked may have happened; asking again is safe."""


class LogDeposed(LogError):
    """Another router took the next epoch: nothing that this one appends is taken any more. It has to end."""


class LogLost(LogDeposed):
    """Its place was removed while it was used, and nobody else has it: a router that is started makes it anew."""


class LogBroken(LogError):
    """What is stored cannot be read, and what to do about it is in the message."""


class LogInUse(LogBroken):
    """Another process has it open: only one may. Who, is in the message."""


class Position(NamedTuple):
    """Where a channel or a reader stands."""

    epoch: int
    offset: int


@dataclass(frozen=True)
class Opened:
    """What `open` found."""

    epoch: int
    """This router's own, higher than any before."""
    seeds: bytes
    """48 bytes: the keys of the hashes that name idempotency keys, the same for every router of this log."""
    complete: bool
    """Whether `recover` gives everything that is kept: then `load` is never needed."""


@dataclass(frozen=True)
class Loaded:
    """What the log has of a channel."""

    position: Position
    """Of its last message, also when that is not kept any more; (0, 0): the channel is not known."""
    records: bytes = b""
    """Its kept messages as log records, oldest first; empty unless they were asked for."""


class Standing(NamedTuple):
    """A channel of which messages are kept."""

    channel: bytes
    position: Position
    """Of its last message."""
    time_ms: int
    """When the newest that is kept was made, wall clock."""


@dataclass
class SessionChange:
    """What became of a session since the last save."""

    opened: bytes | None = None
    """MessagePack of what HELLO said of it; None: it was opened before. Whatever else is told of a session that is not
    stored (never opened, over, or expired) changes nothing: a late acknowledgement does not bring it back."""
    expires_ms: int | None = None
    """Wall clock; after it the session is as good as over. None: as before; of one that is new, never."""
    channels: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    """Joined, or acknowledged up to there; None: left."""
    joined: set[str] = field(default_factory=set)
    """Those of `channels` that were joined at the position: it counts. Any other one that is lower than what is stored
    changes nothing: what was acknowledged stays so, whatever is told late."""
    ended: bool = False
    """The session is over: whatever is stored of it goes, but `date` for ENDED_KEPT_MS. With `opened`, it was opened
    again after that."""
    date: bytes = b""
    """Of the newest record that this says, or nothing: 8 bytes name an order, digits say the place in it. What is
    stored never goes back in the same order; one of another order takes its place."""

    def put(self, channel: str, position: tuple[int, int] | None, *, joined: bool = False) -> None:
        """Add what happened in a channel after what this says already."""
        before = self.channels.get(channel)
        if position is None:
            self.joined.discard(channel)
        elif joined or (before is None and channel in self.channels):
            self.joined.add(channel)  # what was stored before it was left does not count
        elif before is not None:
            position = max(position, before)
        self.channels[channel] = position

    def put_all(self, channels: Mapping[str, tuple[int, int]], *, joined: bool) -> None:
        """`put` for many at once."""
        if joined:
            self.channels.update(channels)
            self.joined.update(channels)
            return
        for channel, position in channels.items():
            self.put(channel, position)

    def channels_after(self, stored: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """A session's channels as stored, after this."""
        channels = {} if self.ended else dict(stored)
        if not channels:
            return {name: position for name, position in self.channels.items() if position is not None}
        for name, position in self.channels.items():
            if position is None:
                channels.pop(name, None)
            else:
                before = channels.get(name)
                channels[name] = position if before is None or name in self.joined else max(position, before)
        return channels


@dataclass
class Changes:
    """What `save` writes, all of it or nothing of a session."""

    sessions: dict[bytes, SessionChange] = field(default_factory=dict)
    cursors: dict[str, Position] = field(default_factory=dict)
    """Channel of a user's own (`user:alice`) to the highest position that any of the user's sessions acknowledged.
    A position that is not higher than the stored one changes nothing."""
    claims: int = 0
    """An epoch that no later router may take, nor one below it: numbers of claims reach into it. It is stored before
    what has them for dates, or with it."""

    def add(self, later: "Changes") -> None:
        """Take in what changed later."""
        for session, change in later.sessions.items():
            before = self.sessions.get(session)
            if before is None or change.ended:
                self.sessions[session] = change
                change.date = change.date if before is None else max(change.date, before.date)
                continue
            before.opened = before.opened if change.opened is None else change.opened
            before.date = max(before.date, change.date)
            before.expires_ms = before.expires_ms if change.expires_ms is None else change.expires_ms
            for name, where in change.channels.items():
                before.put(name, where, joined=name in change.joined)
        self.claims = max(self.claims, later.claims)
        for channel, position in later.cursors.items():
            self.cursors[channel] = max(self.cursors.get(channel, position), position)

    def drop(self, is_gone: Callable[[int], bool]) -> None:
        """Leave out what is of some shards, which are told by a byte of each name: see core/shards.pxd."""
        for session in [one for one in self.sessions if is_gone(one[0])]:
            del self.sessions[session]
        for channel in [one for one in self.cursors if is_gone(byte_of(one.encode()))]:
            del self.cursors[channel]


@dataclass(frozen=True)
class Session:
    """What is stored of a session."""

    opened: bytes
    expires_ms: int
    channels: Mapping[str, tuple[int, int]]
    """Each to (epoch, offset)."""


@dataclass(frozen=True)
class Ban:
    """A user who may not come in, and whose sessions of before cannot be resumed after it either."""

    user: str
    until_ms: int
    """Wall clock."""
    reason: str = ""
    since_ms: int = 0
    """When it was made: a resume token that was issued until then is dead for good."""

    @property
    def kept_ms(self) -> int:
        """Wall clock until which it is kept: as long as it holds, and as there may be tokens that it killed."""
        return max(self.until_ms, self.since_ms + RESUME_AGE_MAX_MS if self.since_ms else 0)


class Log(Protocol):
    """A log: of messages by channel, of sessions, of cursors and of bans."""

    async def open(self, epoch: int) -> Opened:
        """Take the log over, once, before anything else. `epoch` is a wish; what was taken is higher than any before.

        Raises:
            LogUnavailable, LogBroken: see there.
        """

    def recover(self) -> AsyncIterator[bytes]:
        """Batches that the router has to know before it serves, in the order in which they were appended.

        All that is kept when `Opened.complete`; else what was appended within the window of the idempotency keys, as
        far as it is still there, so that repeated keys are known.
        """

    async def append(self, batch: bytes) -> None:
        """Append log records (core/log_records.pxd). Returns when all of them survive any process.

        Calls are answered in order; several may be under way, and none is applied before one that came earlier. The
        same batch again (after LogUnavailable) changes nothing that is there already.

        Raises:
            LogUnavailable: nothing is known of it; append the same batch again.
            LogDeposed: see there.
        """

    async def load(self, channels: Sequence[bytes], *, messages: bool) -> list[Loaded]:
        """What is kept of channels, in one round trip, in their order."""

    async def standing(self, namespaces: Sequence[str]) -> list[Standing]:
        """The channels of some namespaces of domain global of which messages are kept, the one with the newest first.

        For whoever has not recovered all: nobody names these channels before they are told of. It may give some whose
        messages are too old already.
        """

    async def sift(self, keep: "Sift") -> None:
        """Called now and then: give back the place of what is not kept any more.

        Most calls find nothing to do, and return without asking `keep`.
        """

    async def save(self, changes: Changes) -> None:
        """Store what became of sessions and cursors."""

    async def sessions(self, ids: Sequence[bytes]) -> list[Session | None]:
        """Sessions, in the order of their ids; None: not known, over, or expired."""

    async def dates(self, ids: Sequence[bytes]) -> list[bytes]:
        """`SessionChange.date` as stored, in the order of the ids, also of sessions that are over; b"": none is."""

    async def cursors(self, channels: Sequence[str]) -> list[Position | None]:
        """Cursors, in the order of the channels."""

    async def ban(self, ban: Ban) -> None:
        """Store a ban in place of the user's last one; a time that is over ends it."""

    async def bans(self) -> list[Ban]:
        """The bans that are kept (`Ban.kept_ms`), with those that are over but are kept still."""

    async def close(self) -> None:
        """Give up what is held; nothing that was answered is lost. One that is closed has nothing left to do."""


class Sift(Protocol):
    """How a log asks the router which of some old records are still kept."""

    async def __call__(self, records: bytes) -> bytes:
        """Those of `records`, a batch of old ones, that have to stay, as a batch in the same order.

        Messages that their namespace's size does not keep any more are not among them, but as positions where one may
        be wanted. A message that is kept stays as it is; the last position of a channel whose message goes stands in
        the message's place as LOG_POSITION; everything else is left out. The log puts the answer where the old records
        were, so that `recover` still gives a channel's records in the order of their positions: nothing is to be
        appended again.
        """
