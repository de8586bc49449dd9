"""Whatever is done to a log in whatever order, it holds what a dictionary would."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import log_records
from router.log.port import Ban, Changes, Log, LogDeposed, Position, Session, SessionChange
from tests.contract.conftest import MakeStore
from tests.contract.running import messages, run
from tests.contract.stores import Store

CHANNELS = [b"group:a", b"group:b", b"group:c"]
SESSIONS = [bytes([number]) * 16 for number in range(3)]
USERS = ["alice", "bob"]
FUTURE_MS = 4_000_000_000_000

POSITION = st.builds(Position, st.integers(0, 3), st.integers(0, 9))
CHANGE = st.builds(
    SessionChange,
    opened=st.sampled_from([None, b"one", b"two"]),
    expires_ms=st.sampled_from([None, None, 1, FUTURE_MS, FUTURE_MS + 1]),
    channels=st.dictionaries(st.sampled_from(["group:a", "user:alice", ""]), st.none() | POSITION),
    joined=st.sets(st.sampled_from(["group:a", "user:alice"])),
    ended=st.sampled_from([False, False, True]),
)
# Batches that are appended at once: of each, how many messages a channel gets.
APPENDS = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4)
STEP = st.one_of(
    st.tuples(st.just("append"), APPENDS),
    st.tuples(st.just("append again"), st.none()),
    st.tuples(st.just("save"), st.dictionaries(st.sampled_from(SESSIONS), CHANGE, min_size=1)),
    st.tuples(st.just("cursor"), st.tuples(st.sampled_from(USERS), POSITION)),
    st.tuples(st.just("ban"), st.tuples(st.sampled_from(USERS), st.sampled_from([1, FUTURE_MS, FUTURE_MS + 1]))),
    st.tuples(st.just("trim"), st.none()),
    st.tuples(st.just("reopen"), st.booleans()),
)


@dataclass
class Model:
    """What a log ought to hold."""

    store: Store
    log: Log
    epoch: int
    positions: dict[bytes, list[tuple[int, int]]] = field(default_factory=lambda: {name: [] for name in CHANNELS})
    sessions: dict[bytes, Session] = field(default_factory=dict)
    cursors: dict[str, Position] = field(default_factory=dict)
    bans: dict[str, int] = field(default_factory=dict)
    last: bytes = b""

    async def do(self, what: str, how: object) -> None:
        await getattr(self, what.replace(" ", "_"))(how)

    async def append(self, batches: list[list[int]]) -> None:
        made = [b"".join(map(self._more, CHANNELS, counts)) for counts in batches if any(counts)]
        if made:
            self.last = made[-1]
            await asyncio.gather(*(self.log.append(batch) for batch in made))

    def _more(self, channel: bytes, count: int) -> bytes:
        there = self.positions[channel]
        first = there[-1][1] + 1 if there else 1
        there += [(self.epoch, offset) for offset in range(first, first + count)]
        return messages(channel, self.epoch, first, first + count - 1)

    async def append_again(self, _: object) -> None:
        if self.last:
            await self.log.append(self.last)

    async def save(self, changes: dict[bytes, SessionChange]) -> None:
        await self.log.save(Changes(sessions=changes))
        for session, change in changes.items():
            self._change(session, change)

    def _change(self, session: bytes, change: SessionChange) -> None:
        stored = self.sessions.pop(session, None)
        stored = None if change.ended else stored
        if stored is None and change.opened is None:
            return
        channels = {} if stored is None else dict(stored.channels)
        for name, position in change.channels.items():
            before = channels.pop(name, (0, 0))
            if position is not None:
                channels[name] = position if name in change.joined else max(position, before)
        opened = change.opened if stored is None or change.opened is not None else stored.opened
        assert opened is not None
        kept = 2**62 if stored is None else stored.expires_ms
        expires = kept if change.expires_ms is None else change.expires_ms
        if expires > 1:
            self.sessions[session] = Session(opened, expires, channels)

    async def cursor(self, how: tuple[str, Position]) -> None:
        user, position = how
        await self.log.save(Changes(cursors={f"user:{user}": position}))
        self.cursors[user] = max(position, self.cursors.get(user, position))

    async def ban(self, how: tuple[str, int]) -> None:
        user, until_ms = how
        await self.log.ban(Ban(user, until_ms, "why"))
        self.bans.pop(user, None)
        if until_ms > 1:
            self.bans[user] = until_ms

    async def trim(self, _: object) -> None:
        await self.store.trim(self.log)

    async def reopen(self, close: bool) -> None:
        former, old = self.log, self.epoch
        if close:
            await former.close()
        self.log, self.last = await self.store.log(), b""
        self.epoch = (await self.log.open(1)).epoch
        assert self.epoch > old
        if not close:
            with pytest.raises(LogDeposed):
                await former.append(messages(b"group:a", old, 1_000, 1_000))

    async def check(self) -> None:
        for channel, loaded in zip(CHANNELS, await self.log.load(CHANNELS, messages=True), strict=True):
            there = self.positions[channel]
            kept = [(entry.epoch, entry.offset) for entry in log_records.entries(loaded.records)]
            assert loaded.position == (there[-1] if there else (0, 0))
            assert kept == there[len(there) - len(kept) :]
            assert len(kept) >= min(len(there), self.store.history)
        found = dict(zip(SESSIONS, await self.log.sessions(SESSIONS), strict=True))
        for session in SESSIONS:
            assert _without_end(found[session]) == _without_end(self.sessions.get(session))
        cursors = await self.log.cursors([f"user:{user}" for user in USERS])
        assert cursors == [self.cursors.get(user) for user in USERS]
        assert {ban.user: ban.until_ms for ban in await self.log.bans()} == self.bans


def _without_end(session: Session | None) -> Session | None:
    """One that never expires may be stored as one that expires in any far future."""
    far = session is not None and session.expires_ms > FUTURE_MS + 1
    return Session(session.opened, 0, session.channels) if session is not None and far else session


@given(st.lists(STEP, max_size=25))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_log_holds_what_a_dictionary_would(make_store: MakeStore, steps: list[tuple[str, object]]) -> None:
    store = make_store()

    async def body() -> None:
        log = await store.log()
        model = Model(store, log, (await log.open(1)).epoch)
        for what, how in steps:
            await model.do(what, how)
        await model.check()
        await model.reopen(True)
        await model.check()

    run(store, body)
