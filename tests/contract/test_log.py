"""The log port's promises (router/log/port.py), on each side."""

import asyncio
import time

import pytest

from core import log_records
from router.log.port import (
    Ban,
    Changes,
    Loaded,
    Log,
    LogDeposed,
    LogError,
    LogUnavailable,
    Position,
    Session,
    SessionChange,
    Standing,
)
from tests.contract.conftest import MakeStore
from tests.contract.running import message, messages, on_a_loop, recovered, run
from tests.contract.stores import Store

FUTURE_MS = 4_000_000_000_000
SESSION = bytes(range(16))
OTHER = bytes(range(16, 32))


async def opened(store: Store, epoch: int = 1) -> tuple[Log, int]:
    log = await store.log()
    return log, (await log.open(epoch)).epoch


def positions(loaded: Loaded) -> list[tuple[int, int]]:
    return [(entry.epoch, entry.offset) for entry in log_records.entries(loaded.records)]


# ------------------------------------------------------------------------------------------------------------ messages


@on_a_loop
async def test_what_was_appended_is_loaded_in_its_order_whole(store: Store) -> None:
    log, epoch = await opened(store)
    first, second = messages(b"group:a", epoch, 1, 3), message(b"group:b", epoch, 1, key=(2**64 - 1, 7))
    await log.append(first + second)
    await log.append(messages(b"group:a", epoch, 4, 5))
    a, unknown, b = await log.load([b"group:a", b"group:none", b"group:b"], messages=True)
    assert a == Loaded(Position(epoch, 5), first + a.records[len(first) :])
    assert positions(a) == [(epoch, offset) for offset in range(1, 6)]
    assert b == Loaded(Position(epoch, 1), second)
    assert unknown == Loaded(Position(0, 0), b"")


@on_a_loop
async def test_a_load_of_positions_brings_no_messages(store: Store) -> None:
    log, epoch = await opened(store)
    await log.append(messages(b"group:a", epoch, 1, 3) + message(b"group:b", epoch, 1))
    wanted = [Loaded(Position(epoch, 3)), Loaded(Position(epoch, 1)), Loaded(Position(0, 0))]
    assert await log.load([b"group:a", b"group:b", b"group:c"], messages=False) == wanted


@on_a_loop
async def test_appends_under_way_are_answered_and_applied_in_order(store: Store) -> None:
    log, epoch = await opened(store)
    answered: list[int] = []

    async def append(number: int) -> None:
        await log.append(messages(b"group:a", epoch, number * 10 + 1, number * 10 + 10))
        answered.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(append(number))
    assert answered == list(range(30))
    (a,) = await log.load([b"group:a"], messages=True)
    assert a.position == Position(epoch, 300)
    whole = positions(a)
    assert whole == [(epoch, offset) for offset in range(301 - len(whole), 301)]
    assert whole


@on_a_loop
async def test_the_same_batch_again_changes_nothing(store: Store) -> None:
    log, epoch = await opened(store)
    batch = messages(b"group:a", epoch, 1, 3)
    await log.append(batch)
    await log.append(batch)
    await asyncio.gather(log.append(messages(b"group:a", epoch, 4, 4)), log.append(messages(b"group:a", epoch, 4, 4)))
    await log.append(batch)
    (a,) = await log.load([b"group:a"], messages=True)
    assert positions(a) == [(epoch, 1), (epoch, 2), (epoch, 3), (epoch, 4)]


@on_a_loop
async def test_a_position_alone_is_kept_without_its_message(store: Store) -> None:
    log, epoch = await opened(store)
    await log.append(log_records.pack(log_records.POSITION, b"group:a", epoch, 9, time_ms=time.time_ns() // 1_000_000))
    assert await log.load([b"group:a"], messages=True) == [Loaded(Position(epoch, 9), b"")]


@on_a_loop
async def test_what_is_kept_is_loaded_after_trimming_and_by_the_next_router(store: Store) -> None:
    log, epoch = await opened(store)
    for offset in range(1, 201):
        await log.append(message(b"group:a", epoch, offset))
    await store.trim(log)
    for router in (log, (await opened(store, epoch + 1))[0]):
        (a,) = await router.load([b"group:a"], messages=True)
        assert a.position == (epoch, 200)
        assert positions(a)[-store.history :] == [(epoch, offset) for offset in range(201 - store.history, 201)]


@on_a_loop
async def test_a_channel_named_twice_is_loaded_twice(store: Store) -> None:
    log, epoch = await opened(store)
    await log.append(message(b"group:a", epoch, 1))
    one, other = await log.load([b"group:a", b"group:a"], messages=True)
    assert one == other
    assert positions(one) == [(epoch, 1)]


@on_a_loop
async def test_names_and_bodies_of_any_bytes_are_kept(store: Store) -> None:
    log, epoch = await opened(store)
    names = [b"group:" + bytes([byte]) * 249 for byte in (0x00, 0x0A, 0x7B, 0x7D, 0xFF)]
    batch = [message(name, epoch, 1, body=bytes(range(256)) * 40) for name in names]
    await log.append(b"".join(batch))
    assert [one.records for one in await log.load(names, messages=True)] == batch


@on_a_loop
async def test_channels_that_everybody_hears_are_known_to_the_next_router(store: Store) -> None:
    log, epoch = await opened(store)
    assert await log.standing(["global"]) == []
    now_ms = time.time_ns() // 1_000_000
    names = [b"global:%d" % number for number in range(40)]
    for number, name in enumerate(names):
        made = [
            log_records.pack(log_records.MESSAGE, name, epoch, offset, time_ms=now_ms + number) for offset in (1, 2)
        ]
        await log.append(
            b"".join([*made, message(b"group:%d" % number, epoch, 1), message(b"user:a", epoch, number + 1)])
        )
    alone = log_records.pack(log_records.POSITION, b"global:alone", epoch, 9, time_ms=now_ms)
    trimmed = log_records.pack(log_records.POSITION, names[7], epoch, 9, time_ms=now_ms)
    await log.append(alone + trimmed)
    expected = [Standing(name, Position(epoch, 2), now_ms + number) for number, name in enumerate(names)]
    expected[7] = expected[7]._replace(position=Position(epoch, 9))
    expected.reverse()
    assert await log.standing(["global"]) == expected
    assert await log.standing(["board"]) == []
    assert await log.standing([]) == []
    log, _ = await opened(store)
    assert await log.standing(["board", "global"]) == expected


# ------------------------------------------------------------------------------------------------- epochs and restarts


@on_a_loop
async def test_each_epoch_is_higher_than_any_before_whatever_is_wished(store: Store) -> None:
    taken = []
    for wish in (1000, 1000, 5, 2000, 0):  # 5 and 0: the clock stepped back
        log, epoch = await opened(store, wish)
        await log.append(message(b"group:a", epoch, 1))
        taken.append(epoch)
    assert taken[0] == 1000
    assert taken[3] == 2000
    assert taken == sorted(set(taken))


@on_a_loop
async def test_an_epoch_is_above_all_into_which_claims_of_an_earlier_router_reach(store: Store) -> None:
    """It had more of them than an epoch has numbers for, and the clock stepped back."""
    opened_then = SessionChange(b"said", FUTURE_MS)
    log, epoch = await opened(store, 1000)
    await log.save(Changes({SESSION: opened_then}, claims=epoch))  # its own
    await log.save(Changes({SESSION: opened_then}, claims=epoch + 6))
    await log.save(Changes({OTHER: opened_then}, claims=epoch + 5))
    assert (await opened(store, 0))[1] == 1007
    log, epoch = await opened(store, 1007)
    assert epoch == 1008
    await log.save(Changes({}, claims=1010))
    assert (await opened(store, 1010))[1] == 1011
    log, epoch = await opened(store, 2000)
    assert epoch == 2000
    assert [one is not None for one in await log.sessions([SESSION, OTHER])] == [True, True]


@on_a_loop
async def test_the_seeds_are_the_same_for_every_router(store: Store) -> None:
    found = [(await (await store.log()).open(1)).seeds for _ in range(3)]
    assert len(found[0]) == 48
    assert len(set(found[0])) > 8
    assert set(found) == {found[0]}


def test_another_store_has_other_seeds(make_store: MakeStore) -> None:
    found = []
    for store in (make_store(), make_store()):

        async def body(store: Store = store) -> None:
            found.append((await (await store.log()).open(1)).seeds)

        run(store, body)
    assert found[0] != found[1]


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "crashed"])
def test_what_was_answered_is_there_for_the_next_router(store: Store, closed: bool) -> None:
    async def body() -> None:
        log, first = await opened(store)
        await log.append(messages(b"group:a", first, 1, 3) + message(b"group:b", first, 1))
        if closed:
            await log.close()
        log, second = await opened(store)
        await log.append(message(b"group:a", second, 4))
        a, b = await log.load([b"group:a", b"group:b"], messages=True)
        assert positions(a) == [(first, 1), (first, 2), (first, 3), (second, 4)]
        assert a.position == Position(second, 4)
        assert positions(b) == [(first, 1)]

    run(store, body)


@on_a_loop
async def test_a_deposed_router_is_refused_and_changes_nothing(store: Store) -> None:
    former, old = await opened(store)
    await former.append(message(b"group:a", old, 1))
    log, epoch = await opened(store)
    for _ in range(2):
        with pytest.raises(LogDeposed):
            await former.append(message(b"group:a", old, 2))
    await log.append(message(b"group:a", epoch, 2))
    (a,) = await log.load([b"group:a"], messages=True)
    assert positions(a) == [(old, 1), (epoch, 2)]


@on_a_loop
async def test_the_keys_and_origins_of_the_window_are_recovered_in_order(store: Store) -> None:
    log, epoch = await opened(store)
    now = time.time_ns() // 1_000_000
    wanted = []
    for offset in range(1, 41):
        channel, key, origin = b"group:%d" % (offset % 3), (offset, 2**64 - offset), (5, 6, offset)
        record = log_records.pack(
            log_records.MESSAGE, channel, epoch, offset, time_ms=now, key=key, origin=origin, body=b"x" * 200
        )
        await log.append(record)
        wanted.append((channel, epoch, offset, now, key, origin))
    log, _ = await opened(store)
    found = [(one.channel, one.epoch, one.offset, one.time_ms, one.key, one.origin) for one in await recovered(log)]
    for channel in (b"group:0", b"group:1", b"group:2"):
        assert [one for one in found if one[0] == channel] == [one for one in wanted if one[0] == channel]


@on_a_loop
async def test_all_that_is_kept_is_recovered_when_the_log_says_so(store: Store) -> None:
    log, epoch = await opened(store)
    batches = [messages(b"group:%d" % (number % 5), epoch, number * 4 + 1, number * 4 + 4) for number in range(60)]
    for batch in batches:
        await log.append(batch)
    log = await store.log()
    if (await log.open(1)).complete:
        assert b"".join([batch async for batch in log.recover()]) == b"".join(batches)
    else:
        assert {one.channel for one in await recovered(log)} == {b"group:%d" % number for number in range(5)}


@on_a_loop
async def test_a_new_store_recovers_nothing(store: Store) -> None:
    log, _ = await opened(store)
    assert await recovered(log) == []
    assert await log.sessions([SESSION]) == [None]
    assert await log.cursors(["user:alice"]) == [None]
    assert await log.bans() == []


@on_a_loop
async def test_positions_survive_trimming_and_reopening(store: Store) -> None:
    log, epoch = await opened(store)
    for offset in range(1, 101):
        await log.append(message(b"group:a", epoch, offset) + message(b"group:b", epoch, offset))
        if offset % 30 == 0:
            await store.trim(log)
    await log.append(message(b"group:rare", epoch, 1))
    for _ in range(3):
        await store.trim(log)
        for one in await log.load([b"group:a", b"group:b"], messages=True):
            kept = positions(one)
            assert one.position == Position(epoch, 100)
            assert kept == [(epoch, offset) for offset in range(101 - len(kept), 101)]
            assert len(kept) >= store.history
        assert (await log.load([b"group:rare"], messages=True))[0].position == Position(epoch, 1)
        log, _ = await opened(store)


# ------------------------------------------------------------------------------------------ sessions, cursors and bans


async def save(log: Log, session: bytes = SESSION, **change: object) -> None:
    await log.save(Changes(sessions={session: SessionChange(**change)}))  # type: ignore[arg-type]


@on_a_loop
async def test_a_session_is_stored_as_it_changes_and_survives(store: Store) -> None:
    log, _ = await opened(store)
    joined = {"user:alice": Position(1, 2), "group:a": Position(3, 4)}
    await save(log, opened=b"\x81hello", expires_ms=FUTURE_MS, channels=joined)
    await save(log, channels={"group:a": Position(3, 9), "group:b": Position(2**40, 2**40)})
    await save(log, channels={"user:alice": None, "group:never": None}, expires_ms=FUTURE_MS + 5)
    await save(log, channels={"group:a": Position(3, 4), "group:c": Position(5, 6)})
    wanted = Session(
        b"\x81hello",
        FUTURE_MS + 5,
        {"group:a": Position(3, 9), "group:b": Position(2**40, 2**40), "group:c": Position(5, 6)},
    )
    assert await log.sessions([OTHER, SESSION]) == [None, wanted]
    log, _ = await opened(store)
    assert await log.sessions([SESSION, OTHER, SESSION]) == [wanted, None, wanted]


@on_a_loop
async def test_opening_a_session_again_keeps_its_channels(store: Store) -> None:
    log, _ = await opened(store)
    await save(log, opened=b"one", expires_ms=FUTURE_MS, channels={"group:a": Position(1, 1)})
    await save(log, opened=b"two")
    assert await log.sessions([SESSION]) == [Session(b"two", FUTURE_MS, {"group:a": Position(1, 1)})]


@on_a_loop
async def test_a_session_that_is_over_is_not_brought_back_by_what_comes_late(store: Store) -> None:
    log, _ = await opened(store)
    await save(log, opened=b"one", expires_ms=FUTURE_MS, channels={"group:a": Position(1, 1)})
    await save(log, ended=True, channels={"group:a": Position(1, 2)})
    assert await log.sessions([SESSION]) == [None]
    await save(log, channels={"group:a": Position(1, 3)}, expires_ms=FUTURE_MS)
    assert await log.sessions([SESSION]) == [None]
    await save(log, opened=b"new", expires_ms=FUTURE_MS)
    assert await log.sessions([SESSION]) == [Session(b"new", FUTURE_MS, {})]


@on_a_loop
async def test_what_was_acknowledged_stays_so_unless_the_channel_is_joined(store: Store) -> None:
    log, _ = await opened(store)
    await save(log, opened=b"one", expires_ms=FUTURE_MS, channels={"group:a": Position(2, 10)})
    for lower in (Position(2, 9), Position(1, 99)):
        await save(log, channels={"group:a": lower})
        assert await log.sessions([SESSION]) == [Session(b"one", FUTURE_MS, {"group:a": Position(2, 10)})]
    for higher in (Position(2, 100), Position(10, 1)):
        await save(log, channels={"group:a": higher, "group:b": Position(1, 1)})
        wanted = Session(b"one", FUTURE_MS, {"group:a": higher, "group:b": Position(1, 1)})
        assert await log.sessions([SESSION]) == [wanted]
    await save(log, channels={"group:a": Position(2, 5), "group:b": Position(1, 0)}, joined={"group:a"})
    wanted = Session(b"one", FUTURE_MS, {"group:a": Position(2, 5), "group:b": Position(1, 1)})
    assert await log.sessions([SESSION]) == [wanted]


@on_a_loop
async def test_a_session_that_was_over_and_is_opened_again_starts_empty(store: Store) -> None:
    log, _ = await opened(store)
    await save(log, opened=b"one", expires_ms=FUTURE_MS, channels={"group:a": Position(1, 1)})
    await save(log, ended=True, opened=b"two", expires_ms=FUTURE_MS, channels={"group:b": Position(1, 0)})
    assert await log.sessions([SESSION]) == [Session(b"two", FUTURE_MS, {"group:b": Position(1, 0)})]


@on_a_loop
async def test_an_expired_session_is_not_known_any_more(store: Store) -> None:
    log, _ = await opened(store)
    await save(log, opened=b"one", expires_ms=FUTURE_MS, channels={"group:a": Position(1, 1)})
    await save(log, OTHER, opened=b"other", expires_ms=FUTURE_MS)
    await save(log, expires_ms=1)
    assert [one is None for one in await log.sessions([SESSION, OTHER])] == [True, False]
    await save(log, channels={"group:a": Position(1, 2)}, expires_ms=FUTURE_MS)
    assert await log.sessions([SESSION]) == [None]
    await store.trim(log)
    assert [one is None for one in await log.sessions([SESSION, OTHER])] == [True, False]


@on_a_loop
async def test_the_date_of_a_session_never_goes_back_in_one_order(store: Store) -> None:
    log, _ = await opened(store)
    await save(log, channels={"group:a": Position(1, 1)}, date=b"order--a0000000000000001")  # never opened: unknown
    assert await log.dates([SESSION]) == [b""]
    for date, wanted in [
        (b"order--a0000000000000009", b"order--a0000000000000009"),
        (b"order--a0000000000000010", b"order--a0000000000000010"),
        (b"order--a0000000000000009", b"order--a0000000000000010"),
        (b"", b"order--a0000000000000010"),
        (b"order--b0000000000000001", b"order--b0000000000000001"),
        (b"order--b0000000000000000", b"order--b0000000000000001"),
    ]:
        for change in ({"opened": b"one"}, {"channels": {"group:a": Position(1, 1)}}, {}):
            await save(log, **change, expires_ms=FUTURE_MS, date=date)
            assert await log.dates([OTHER, SESSION]) == [b"", wanted]
    log, _ = await opened(store)
    assert await log.dates([SESSION]) == [b"order--b0000000000000001"]
    assert await log.sessions([SESSION]) == [Session(b"one", FUTURE_MS, {"group:a": Position(1, 1)})]


@on_a_loop
async def test_when_a_session_ended_is_known_after_it(store: Store) -> None:
    log, _ = await opened(store)
    await save(log, opened=b"one", expires_ms=FUTURE_MS, channels={"group:a": Position(1, 1)}, date=b"order--a2")
    await save(log, OTHER, ended=True, date=b"order--a7")  # its beginning was not stored
    await save(log, ended=True, date=b"order--a3")
    assert await log.dates([SESSION, OTHER]) == [b"order--a3", b"order--a7"]
    await save(log, channels={"group:a": Position(1, 3)}, expires_ms=FUTURE_MS, date=b"order--a4")
    await save(log, expires_ms=FUTURE_MS, date=b"order--a5")
    assert await log.sessions([SESSION, OTHER]) == [None, None]
    assert await log.dates([SESSION]) == [b"order--a3"]
    await save(log, opened=b"new", date=b"order--a1")
    ((found,), dates) = await log.sessions([SESSION]), await log.dates([SESSION])
    assert found is not None
    assert (found.opened, found.channels, dates) == (b"new", {}, [b"order--a3"])
    await save(log, ended=True)
    await save(log, ended=True, opened=b"newer", expires_ms=FUTURE_MS, date=b"order--a4")
    assert await log.sessions([SESSION]) == [Session(b"newer", FUTURE_MS, {})]
    assert await log.dates([SESSION]) == [b"order--a4"]


@on_a_loop
async def test_many_sessions_are_saved_and_read_at_once(store: Store) -> None:
    log, _ = await opened(store)
    ids = [number.to_bytes(16, "big") for number in range(500)]
    channels = {f"group:{number}": Position(1, number) for number in range(20)}
    await log.save(
        Changes({one: SessionChange(opened=one, expires_ms=FUTURE_MS, channels=dict(channels)) for one in ids})
    )
    assert await log.sessions(ids) == [Session(one, FUTURE_MS, channels) for one in ids]


@on_a_loop
async def test_a_cursor_never_goes_back(store: Store) -> None:
    log, _ = await opened(store)
    wanted = Position(0, 0)
    for position in (
        Position(5, 10),
        Position(5, 9),
        Position(4, 99),
        Position(5, 10),
        Position(6, 2),
        Position(5, 50),
    ):
        await log.save(Changes(cursors={"user:alice": position, "user:bob": Position(1, 1)}))
        wanted = max(wanted, position)
        assert await log.cursors(["user:bob", "user:alice", "user:eve"]) == [Position(1, 1), wanted, None]
    log, _ = await opened(store)
    assert await log.cursors(["user:alice"]) == [Position(6, 2)]


@on_a_loop
async def test_bans_hold_until_their_time_is_over_or_they_are_ended(store: Store) -> None:
    log, _ = await opened(store)
    await log.ban(Ban("eve", FUTURE_MS, "spam"))
    await log.ban(Ban("mallory", FUTURE_MS + 1))
    await log.ban(Ban("past", 1))
    assert sorted(await log.bans(), key=lambda ban: ban.user) == [
        Ban("eve", FUTURE_MS, "spam"),
        Ban("mallory", FUTURE_MS + 1),
    ]
    await log.ban(Ban("eve", FUTURE_MS + 7, "worse"))
    await log.ban(Ban("mallory", 1))
    log, _ = await opened(store)
    assert await log.bans() == [Ban("eve", FUTURE_MS + 7, "worse")]


@on_a_loop
async def test_a_ban_that_is_over_is_kept_as_long_as_it_kills_resume_tokens(store: Store) -> None:
    log, _ = await opened(store)
    over = Ban("eve", 1, "spam", since_ms=FUTURE_MS)
    await log.ban(over)
    await log.ban(Ban("past", 1, since_ms=1))
    log, _ = await opened(store)
    assert await log.bans() == [over]


# -------------------------------------------------------------------------------------------------------------- errors


@on_a_loop
async def test_a_closed_log_is_unavailable(store: Store) -> None:
    log, epoch = await opened(store)
    await log.append(message(b"group:a", epoch, 1))
    await log.close()
    await log.close()
    for call in (
        log.append(message(b"group:a", epoch, 2)),
        log.load([b"group:a"], messages=True),
        log.sessions([SESSION]),
        log.dates([SESSION]),
        log.save(Changes(cursors={"user:alice": Position(1, 1)})),
        log.cursors(["user:alice"]),
        log.bans(),
        log.standing(["global"]),
    ):
        with pytest.raises(LogUnavailable, match="closed"):
            await call


def test_every_error_of_a_log_is_of_one_tree() -> None:
    assert all(issubclass(kind, LogError) for kind in (LogUnavailable, LogDeposed))
