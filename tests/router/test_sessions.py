"""Sessions are written behind and read back, also when the store is slow or away, or a change is still on its way."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import notes, records
from core.codes import Code
from core.shards import byte_of
from router.log.embedded import EmbeddedLog
from router.log.port import LogDeposed, LogUnavailable, Position, Session
from router.sessions import OPEN_GRACE_MS, Sessions
from tests.router.said import body_of, closed, state, told
from tests.router.session_store import Store

DEADLINE_S = 30.0
NOW_S, TTL_S = 1_000_000.0, 60
NOW_MS, TTL_MS = int(NOW_S * 1000), TTL_S * 1000
ALICE, BOB = b"a" * 16, b"b" * 16


class Desk:
    """Sessions over a store, with what they tell the data plane."""

    def __init__(self, log: Any) -> None:
        self.store = log
        self.told: asyncio.Queue[tuple[int, dict[str, Any]]] = asyncio.Queue()
        self.full = 0
        """How often there will be no room for what it tells."""
        self.lost, self.now_us = 0, 1_000
        self.stored_ms: list[int] = []
        self.gone: set[int] = set()
        self.sessions = Sessions(
            log,
            self._put,
            ttl_s=TTL_S,
            clock=lambda: NOW_S,
            own=["user", "inbox"],
            ticks_us=lambda: self.now_us,
            on_lost=self._lose,
            on_stored=self.stored_ms.append,
            is_gone=lambda byte: byte in self.gone,
        )
        self.tasks = [asyncio.create_task(self.sessions.write()), asyncio.create_task(self.sessions.read())]

    def _lose(self) -> None:
        self.lost += 1

    def _put(self, kind: int, **fields: Any) -> None:
        if self.full:
            self.full -= 1
            raise BufferError
        self.told.put_nowait((kind, fields))

    async def resumed(self, session: bytes, user: str) -> dict[str, list[int]]:
        """What a resume is told of a session's channels."""
        code, told = await self.asked(session, user)
        assert code == 0
        return told

    async def asked(self, session: bytes, user: str, flags: int = records.RESUMES) -> tuple[int, dict[str, list[int]]]:
        """The code that a resume is answered with, and what it is told of the session's channels."""
        self.sessions.on_open(7, flags, 3, session, body_of(user))
        kind, fields = await self.told.get()
        assert (kind, fields["request"], fields["conn"]) == (notes.SESSION_OPENED, 7, 3)
        return fields["first"], {name: rest for name, *rest in msgpack.unpackb(fields["text"])}

    async def cursor(self, channel: str, known: str = "read") -> tuple[int, int]:
        self.sessions.on_cursor(8, 4, channel.encode())
        kind, fields = await self.told.get()
        assert (kind, fields["request"], fields["conn"], fields["text"]) == (notes.CURSOR_READ, 8, 4, channel.encode())
        assert records.CURSORS[fields["first"]] == known
        return fields["second"], fields["third"]

    async def told_of(self, *ids: bytes) -> tuple[int, Any]:
        """What an operator is told of sessions: the code, and the body."""
        self.sessions.on_question(9, b"".join(ids))
        kind, fields = await self.told.get()
        assert (kind, fields["request"]) == (notes.SESSIONS_READ, 9)
        return fields["first"], msgpack.unpackb(fields["text"])

    async def stored(self) -> None:
        assert await self.sessions.flush(DEADLINE_S)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def run(body: Callable[[Desk], Awaitable[None]]) -> None:
    async def whole() -> None:
        desk = Desk(Store())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await body(desk)
        finally:
            await desk.close()

    asyncio.run(whole())


def test_a_session_is_stored_at_hello_and_kept_current() -> None:
    async def body(desk: Desk) -> None:
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        await desk.stored()
        assert desk.store.stored[ALICE] == Session(body_of("alice"), NOW_MS + TTL_MS + OPEN_GRACE_MS, {})
        desk.sessions.on_state(
            state(ALICE, records.JOINED, "group:a", 1, 5, "alice")
            + state(ALICE, records.JOINED, "group:b", 1, 0, "alice")
            + state(ALICE, records.ACKED, "group:a", 2, 9)
            + state(ALICE, records.LEFT, "group:b", 1, 1, "alice")
            + state(ALICE, records.ACKED, "user:alice", 1, 3)
        )
        await desk.stored()
        assert desk.store.stored[ALICE].channels == {"group:a": (2, 9), "user:alice": (1, 3)}
        assert desk.store.marks == {"user:alice": (1, 3)}
        desk.sessions.on_state(closed(ALICE))
        await desk.stored()
        assert desk.store.stored[ALICE].expires_ms == NOW_MS + TTL_MS
        desk.sessions.on_state(state(ALICE, records.HERE, ""))
        await desk.stored()
        assert desk.store.stored[ALICE].expires_ms == NOW_MS + TTL_MS + OPEN_GRACE_MS
        desk.sessions.on_state(closed(ALICE, records.OVER))
        await desk.stored()
        assert desk.store.stored == {}

    run(body)


def test_many_changes_are_one_write() -> None:
    async def body(desk: Desk) -> None:
        for number in range(100):
            desk.sessions.on_open(1, 0, 2, bytes([number]) * 16, body_of("u"))
            desk.sessions.on_state(state(bytes([number]) * 16, records.JOINED, "group:a", 1, number, "u"))
        await desk.stored()
        assert len(desk.store.saves) == 1
        assert len(desk.store.stored) == 100

    run(body)


def test_a_resume_is_told_the_channels_and_the_users_cursor() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(
            body_of("alice"), 1, {"group:a": Position(1, 5), "user:alice": Position(1, 2)}
        )
        desk.store.marks["user:alice"] = Position(1, 4)
        assert await desk.resumed(ALICE, "alice") == {"group:a": [1, 5], "user:alice": [1, 2, 4]}
        # Another session in which nothing is stored of it: its own channel stands at the user's cursor.
        desk.store.stored[BOB] = Session(body_of("alice"), 1, {})
        assert await desk.resumed(BOB, "alice") == {"user:alice": [1, 4, 4]}

    run(body)


def test_a_read_sees_what_is_not_written_yet() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5), "group:b": Position(1, 1)})
        desk.store.gate.clear()
        desk.sessions.on_state(state(ALICE, records.ACKED, "group:a", 1, 6) + state(ALICE, records.LEFT, "group:b"))
        await desk.store.asked.wait()  # this much is being written
        desk.sessions.on_state(
            state(ALICE, records.JOINED, "group:c", 1, 7, "alice") + state(ALICE, records.ACKED, "user:alice", 1, 8)
        )
        asked = asyncio.create_task(desk.resumed(ALICE, "alice"))
        await asyncio.sleep(0)
        desk.store.gate.set()
        assert await asked == {"group:a": [1, 6], "group:c": [1, 7], "user:alice": [1, 8, 8]}
        assert await desk.cursor("user:alice") == (1, 8)

    run(body)


def test_what_an_earlier_router_was_told_sets_no_stored_position_back() -> None:
    told_joined, told_left = (records.STATES_TOLD | what for what in (records.JOINED, records.LEFT))

    async def body(desk: Desk) -> None:
        desk.sessions.on_open(1, 0, 5, ALICE, body_of("alice"))
        desk.sessions.on_state(state(ALICE, records.ACKED, "group:a", 7, 3))
        assert await desk.sessions.flush(DEADLINE_S)
        for at, (what, name, offset) in enumerate(
            [
                (told_joined, "group:a", 0),
                (told_joined, "group:b", 1),
                (told_joined, "group:c", 1),
                (told_left, "group:c", 0),
                (told_left, "group:d", 0),
                (told_joined, "group:d", 2),
            ]
        ):
            desk.sessions.on_state(told((1, 2_000 + at), state(ALICE, what, name, 7, offset)))
        wanted = {"group:a": Position(7, 3), "group:b": Position(7, 1), "group:d": Position(7, 2)}
        await desk.sessions._take_told()
        assert desk.sessions._overlaid(ALICE, desk.store.stored[ALICE]) == wanted
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels == wanted

    run(body)


def test_what_is_heard_now_is_stored_soon_though_more_comes_all_the_time() -> None:
    async def body(desk: Desk) -> None:
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        flushed = asyncio.create_task(desk.sessions.flush(DEADLINE_S))
        while not flushed.done():
            desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
            await asyncio.sleep(0)
        assert flushed.result()
        assert ALICE in desk.store.stored

    run(body)


def test_nothing_is_written_of_what_another_router_has() -> None:
    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        for session, user in ((ALICE, "alice"), (BOB, "bob")):
            desk.sessions.on_open(1, 0, 2, session, body_of(user))
            desk.sessions.on_state(state(session, records.ACKED, f"user:{user}", 1, 1))
        await desk.store.asked.wait()
        desk.gone = {ALICE[0], byte_of(b"user:alice")}  # while it is tried again
        desk.store.fails = None
        await desk.stored()
        desk.sessions.on_state(state(ALICE, records.HERE, ""))
        await desk.stored()
        assert list(desk.store.stored) == [BOB]
        assert list(desk.store.marks) == ["user:bob"]

    run(body)


def test_a_flush_behind_a_write_that_fails_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.SAVE_RETRY_S", 0.001)

    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        await desk.store.asked.wait()
        desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
        assert not await desk.sessions.flush(0.01)
        desk.store.fails = None
        assert await desk.sessions.flush(DEADLINE_S)
        assert {ALICE, BOB} <= desk.store.stored.keys()

    run(body)


def test_a_read_sees_what_was_written_while_it_was_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5)})
        cursors = desk.store.cursors

        async def after_a_write(channels: Sequence[str]) -> list[Position | None]:
            found: list[Position | None] = await cursors(channels)
            desk.sessions.on_state(
                state(ALICE, records.JOINED, "group:b", 1, 7) + state(ALICE, records.ACKED, "user:alice", 1, 8)
            )
            assert await desk.sessions.flush(DEADLINE_S)
            return found

        monkeypatch.setattr(desk.store, "cursors", after_a_write)
        assert await desk.resumed(ALICE, "alice") == {"group:a": [1, 5], "group:b": [1, 7], "user:alice": [1, 8, 8]}

    run(body)


def test_each_channel_of_a_user_has_its_cursor_and_groups_have_none() -> None:
    async def body(desk: Desk) -> None:
        for channel in ("user:alice", "inbox:alice", "group:a"):
            desk.sessions.on_state(state(ALICE, records.ACKED, channel, 1, 5))
        await desk.stored()
        assert await desk.cursor("inbox:alice") == (1, 5)
        assert set(desk.store.marks) == {"user:alice", "inbox:alice"}

    run(body)


def test_a_session_that_was_over_is_over() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5)})
        desk.sessions.on_state(closed(ALICE, records.OVER))
        await desk.stored()
        assert (await desk.asked(ALICE, "alice"))[0] == Code.SESSION_EXPIRED
        await desk.stored()
        assert desk.store.stored == {}

    run(body)


@pytest.mark.parametrize("flags", [records.RESUMES, records.RESUMES | records.ALIVE], ids=["good", "old"])
def test_a_token_resumes_the_session_that_is_stored_and_begins_none(flags: int) -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5)})
        assert await desk.asked(ALICE, "alice", flags) == (0, {"group:a": [1, 5]})
        await desk.stored()
        assert desk.store.stored[ALICE].expires_ms == NOW_MS + TTL_MS + OPEN_GRACE_MS
        assert (await desk.asked(BOB, "bob", flags))[0] == Code.SESSION_EXPIRED
        desk.sessions.on_state(closed(BOB))
        await desk.stored()
        assert set(desk.store.stored) == {ALICE}
        desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
        assert (await desk.asked(BOB, "bob", flags))[0] == 0  # before its beginning was written
        desk.sessions.on_state(closed(ALICE, records.OVER))
        assert (await desk.asked(ALICE, "alice", flags))[0] == Code.SESSION_EXPIRED  # before its end was written
        await desk.stored()
        assert set(desk.store.stored) == {BOB}

    run(body)


def test_an_old_token_waits_for_a_store_that_is_away() -> None:
    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        assert (await desk.asked(ALICE, "alice", records.RESUMES | records.ALIVE))[0] == Code.UNAVAILABLE

    run(body)


def test_what_was_acknowledged_stays_so_when_a_join_is_told_again() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 10)})
        desk.sessions.gather()
        desk.sessions.on_told(told((1, 5), state(ALICE, records.JOINED, "group:a", 1, 0, "alice")))
        assert await desk.resumed(ALICE, "alice") == {"group:a": [1, 10]}
        await desk.stored()
        assert desk.store.stored[ALICE].channels == {"group:a": (1, 10)}
        desk.sessions.on_state(state(ALICE, records.JOINED, "group:a", 1, 3, "alice"))  # its client says so itself
        await desk.stored()
        assert desk.store.stored[ALICE].channels == {"group:a": (1, 3)}
        desk.sessions.on_state(state(ALICE, records.LEFT, "group:a") + state(ALICE, records.ACKED, "group:a", 1, 1))
        await desk.stored()
        assert desk.store.stored[ALICE].channels == {"group:a": (1, 1)}

    run(body)


def test_what_is_heard_waits_for_what_is_told_of_the_time_before() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5)})
        desk.sessions.gather()
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.sessions.on_state(state(ALICE, records.LEFT, "group:b") + closed(BOB))
        desk.sessions.on_told(
            told((1, 7), closed(ALICE, records.OVER))
            + told((1, 5), state(ALICE, records.JOINED, "group:b", 1, 2, "alice"))
            + told((1, 6), state(BOB, records.JOINED, "group:b", 1, 2, "bob"))
        )
        await desk.stored()
        assert desk.store.stored == {ALICE: Session(body_of("alice"), NOW_MS + TTL_MS + OPEN_GRACE_MS, {})}

    run(body)


def test_what_waits_is_written_when_the_router_ends_before_anything_was_told() -> None:
    async def body(desk: Desk) -> None:
        desk.sessions.gather()
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        await desk.stored()
        assert set(desk.store.stored) == {ALICE}

    run(body)


def test_more_than_may_wait_for_what_is_told_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.CHANGED_MAX", 1)

    async def body(desk: Desk) -> None:
        desk.sessions.gather()
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
        await desk.stored()
        assert set(desk.store.stored) == {ALICE}

    run(body)


def test_more_than_may_wait_for_its_turn_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.TURNS_BYTES_MAX", 100_000)

    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {})
        for number in range(3):
            desk.sessions.on_state(state(ALICE, records.JOINED, f"group:{number}", 1, 2) * 1_000)
        assert desk.sessions._turns_bytes <= 100_000
        assert set(await desk.resumed(ALICE, "alice")) == {"group:0", "group:1", "group:2"}

    run(body)


def test_a_store_that_is_away_delays_writes_and_no_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.SAVE_RETRY_S", 0.01)

    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.sessions.on_state(state(ALICE, records.JOINED, "group:a", 1, 5, "alice"))
        await desk.store.asked.wait()
        assert await desk.asked(ALICE, "alice") == (Code.UNAVAILABLE, {"group:a": [1, 5]})
        assert await desk.cursor("user:alice", "away") == (0, 0)
        desk.sessions.on_state(state(ALICE, records.ACKED, "group:a", 1, 6))
        desk.store.fails = None
        await desk.stored()
        assert desk.store.stored[ALICE].channels == {"group:a": (1, 6)}

    run(body)


def test_a_store_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.READ_DEADLINE_S", 0.05)

    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5)})
        desk.store.gate.clear()
        assert await desk.asked(ALICE, "alice") == (Code.UNAVAILABLE, {})
        desk.store.gate.set()

    run(body)


def test_an_answer_that_finds_no_room_is_told_when_there_is_some() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5)})
        desk.full = 2
        assert await desk.resumed(ALICE, "alice") == {"group:a": [1, 5]}
        desk.full = 2
        assert await desk.cursor("user:alice") == (0, 0)
        assert desk.full == 0

    run(body)


def test_another_router_ends_the_writing() -> None:
    async def body(desk: Desk) -> None:
        desk.store.fails = LogDeposed("another one")
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        with pytest.raises(LogDeposed):
            await desk.tasks[0]

    run(body)


def test_more_changes_than_may_wait_are_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.CHANGED_MAX", 1)

    async def body(desk: Desk) -> None:
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
        await desk.stored()
        assert (set(desk.store.stored), desk.lost) == ({ALICE}, 1)
        desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
        await desk.stored()
        assert (set(desk.store.stored), desk.lost) == ({ALICE, BOB}, 1)

    run(body)


def test_an_operator_is_told_what_is_stored_and_what_is_about_to_be() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5), "group:b": Position(1, 6)})
        desk.sessions.on_state(state(ALICE, records.LEFT, "group:b") + state(ALICE, records.ACKED, "group:a", 2, 7))
        assert await desk.told_of(BOB, ALICE) == (0, [None, [1, [["group:a", 2, 7]], "alice"]])
        desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
        desk.sessions.on_state(state(BOB, records.JOINED, "group:a", 2, 7))
        assert await desk.told_of(BOB) == (0, [[1, [["group:a", 2, 7]], "bob"]])
        assert await desk.told_of() == (0, [])

    run(body)


def test_an_operator_is_told_of_a_bounded_number_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.CHANNELS_TOLD_MAX", 3)

    async def body(desk: Desk) -> None:
        channels = {f"group:{number}": Position(1, number) for number in range(2)}
        desk.store.stored = {one: Session(b"", 1, channels) for one in (ALICE, BOB)}
        both = [["group:0", 1, 0], ["group:1", 1, 1]]
        assert await desk.told_of(ALICE, BOB, b"c" * 16) == (0, [[2, both, ""], [2, both[:1], ""], None])
        assert await desk.told_of(ALICE) == (0, [[2, both, ""]])

    run(body)


def test_an_operator_hears_that_the_store_is_away_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.READ_DEADLINE_S", 0.05)

    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        assert await desk.told_of(ALICE) == (Code.UNAVAILABLE, [])
        desk.store.gate.clear()
        assert await desk.told_of(ALICE) == (Code.UNAVAILABLE, [])
        desk.store.gate.set()

    run(body)


def test_sessions_survive_in_the_embedded_log(tmp_path: Path) -> None:
    async def once(first: bool) -> dict[str, list[int]]:
        log = EmbeddedLog(tmp_path, sync="never")
        await log.open(1)
        desk = Desk(log)
        desk.sessions._clock = time.time
        try:
            if first:
                desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
                desk.sessions.on_state(
                    state(ALICE, records.JOINED, "group:a", 1, 5, "alice")
                    + state(ALICE, records.ACKED, "user:alice", 1, 3)
                )
                await desk.stored()
                return {}
            return await desk.resumed(ALICE, "alice")
        finally:
            await desk.close()
            await log.close()

    assert asyncio.run(once(True)) == {}
    assert asyncio.run(once(False)) == {"group:a": [1, 5], "user:alice": [1, 3, 3]}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "join", "leave", "ack", "over", "store", "fail"]),
        st.sampled_from([ALICE, BOB]),
        st.sampled_from(["group:a", "group:b"]),
        st.integers(1, 9),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_a_resume_is_told_what_a_plain_model_knows(steps: list[tuple[str, bytes, str, int]]) -> None:
    async def body(desk: Desk) -> None:
        model: dict[bytes, dict[str, list[int]] | None] = {ALICE: None, BOB: None}
        for what, session, name, offset in steps:
            if what == "store":
                desk.store.fails = None
                await desk.stored()
            elif what == "fail":
                desk.store.fails = LogUnavailable("away")
            elif what == "open" and model[session] is None:
                model[session] = {}
                desk.sessions.on_open(1, 0, 2, session, body_of("u"))
            elif model[session] is None:
                continue  # the data plane tells of open sessions alone
            elif what == "over":
                desk.sessions.on_state(closed(session, records.OVER))
                model = {**model, session: None}
                await asyncio.sleep(offset / 400)  # some are being written, some not yet
            elif what == "leave":
                model[session].pop(name, None)  # type: ignore[union-attr]
                desk.sessions.on_state(state(session, records.LEFT, name))
            else:
                before = model[session].get(name, [1, 0])  # type: ignore[union-attr]
                model[session][name] = [1, offset] if what == "join" else max(before, [1, offset])  # type: ignore[index]
                desk.sessions.on_state(
                    state(session, records.JOINED if what == "join" else records.ACKED, name, 1, offset)
                )
        desk.store.fails = None
        for session, channels in model.items():
            code, told = await desk.asked(session, "u")
            assert (code, told) == (0 if channels is not None else Code.SESSION_EXPIRED, channels or {})

    run(body)
