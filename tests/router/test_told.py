"""What several workers told an earlier router of a session counts in the order in which it happened."""

import asyncio
import random
import struct
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import records
from core.codes import Code
from router.log.port import LogBroken, LogUnavailable, Position, Session
from router.told import TURN_RECORDS, Said, claims_of, date_of, in_order, known_date, walk
from tests.router.said import body_of, record, state, told
from tests.router.said import closed as ended
from tests.router.test_sessions import ALICE, BOB, DEADLINE_S, Desk, run

A, B = 0, 1
LONG = 10**12  # by A's clock, whose machine was started long before B's


def opened(conn: int, session: bytes = ALICE) -> bytes:
    return record(records.OPEN, records.OPENS_TOLD, struct.pack("=Q16sIIQQ", conn, session, 0, 2, 0, 0), b"{}")


def closed(conn: int, flags: int = 0) -> bytes:
    return record(records.CLOSE, records.CLOSES_TOLD | flags, struct.pack("=Q16sIIQQ", conn, ALICE, 0, 0, 0, 0))


def did(what: int, name: str, conn: int) -> bytes:
    """A STATE of a connection, as it is told again."""
    fixed = struct.pack("=16sQQHHIQQ", ALICE, 1, 4, what | records.STATES_TOLD, 0, conn, 0, 0)
    return record(records.STATE, len(name), fixed, name.encode())


def counts(*said: bytes) -> list[tuple[int, int, str]]:
    """(fence, time, channel) of what counts, in order."""
    return [(one.fence, one.time_us, one.name) for one in taken(b"".join(said))]


def taken(batch: bytes) -> list[Said]:
    async def body() -> list[Said]:
        return [one async for one in in_order(batch)]

    return asyncio.run(body())


def test_a_record_is_read_with_the_word_before_it_and_another_without() -> None:
    batch = told((7, 9), opened(5), B, 8) + state(BOB, records.ACKED, "group:a", 2, 3)
    assert list(walk(batch)) == [
        Said(records.OPEN, records.OPENS_TOLD, ALICE, 5, body=b"{}", time_us=9, fence=7, worker=B, claim=8),
        Said(records.STATE, records.ACKED, BOB, 0, "group:a", (2, 3)),  # type: ignore[arg-type]
    ]


def heard(channels: dict[str, tuple[int, int]], flags: int = 0, what: int = records.HEARS) -> bytes:
    """HEARS: the global channels in which a session began; or LISTS: all in which it was."""
    names = msgpack.packb(channels)
    return record(
        records.STATE,
        len(names),
        struct.pack("=16sQQHHIQQ", ALICE, 0, 0, what | flags, 0, 0, 0, 0),
        names,
    )


def test_a_session_begins_in_global_channels_where_it_says_and_told_again_sets_nothing_back() -> None:
    async def body(desk: Desk) -> None:
        desk.sessions.on_open(1, 0, 5, ALICE, body_of("alice"))
        desk.sessions.on_state(state(ALICE, records.ACKED, "global:a", 9, 9))
        desk.sessions.on_state(heard({"global:a": (2, 1), "global:b": (2, 2)}))
        desk.sessions.on_state(state(ALICE, records.ACKED, "global:b", 2, 5))
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels == {"global:a": (2, 1), "global:b": (2, 5)}
        again = heard({"global:a": (2, 1), "global:b": (2, 2), "global:c": (2, 0)}, records.STATES_TOLD)
        desk.sessions.on_state(told((1, 2_000), again))
        await desk.sessions._take_told()
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels == {"global:a": (2, 1), "global:b": (2, 5), "global:c": (2, 0)}

    run(body)


def test_a_channel_that_was_left_on_another_worker_stays_left() -> None:
    """Whichever of their machines was started first."""
    for at, then in ((LONG, 0), (0, LONG)):
        joined = told((1, 0), opened(5), A) + told((1, at + 2), did(records.JOINED, "group:a", 5), A)
        joined += told((1, at + 3), closed(5), A)
        left = told((2, 0), opened(6), B) + told((2, then + 1), did(records.LEFT, "group:a", 6), B)
        left += told((2, then + 2), closed(6), B)
        wanted = [(1, 0, ""), (1, at + 2, "group:a"), (2, 0, ""), (2, then + 1, "group:a"), (2, then + 2, "")]
        assert counts(joined, left) == counts(left, joined) == wanted


def lists(channels: dict[str, tuple[int, int]]) -> bytes:
    return heard(channels, records.STATES_TOLD, records.LISTS)


def test_joins_and_leaves_of_before_a_claim_that_lists_its_channels_do_not_count() -> None:
    """Of whatever the connection of before said in the meantime, WELCOME of the later one knew what counts."""
    old = told((1, 0), opened(5), A) + told((1, LONG), did(records.LEFT, "group:a", 5), A)
    new = told((2, 0), opened(6), B) + told((2, 1), lists({"group:a": (1, 4)}), B)
    new += told((2, 2), did(records.JOINED, "group:b", 6), B)
    assert counts(old, new) == counts(new, old) == [(1, 0, ""), (2, 0, ""), (2, 1, ""), (2, 2, "group:b")]


def test_a_session_is_in_the_channels_that_are_listed_whatever_was_stored_by_then() -> None:
    """The router that listed them did so before it had stored all that it had heard."""

    async def body(desk: Desk) -> None:
        desk.sessions.on_open(1, 0, 5, ALICE, body_of("alice"))
        for name in ("group:left", "group:acked"):
            desk.sessions.on_state(state(ALICE, records.JOINED, name, 1, 9))
        assert await desk.sessions.flush(DEADLINE_S)
        claim, listed = told((2, 0), opened(6)), lists({"group:acked": (1, 4), "group:joined": (1, 7)})
        desk.sessions.on_state(claim + told((2, 1), listed) + told((2, 2), did(records.JOINED, "group:late", 6)))
        await desk.sessions._take_told()
        assert await desk.sessions.flush(DEADLINE_S)
        wanted = {"group:acked": (1, 9), "group:joined": (1, 7), "group:late": (1, 4)}
        assert desk.store.stored[ALICE].channels == wanted

    run(body)


def live(one: bytes, fence: int, time_us: int) -> bytes:
    """What a worker tells of now, by its claim and its clock."""
    raw = bytearray(one)
    struct.pack_into("=QQ", raw, 48 if one[4] == records.STATE else 40, time_us, fence)
    return bytes(raw)


async def begin(desk: Desk, fence: int = 1, name: str = "group:kept") -> None:
    """A session that is in one channel."""
    desk.sessions.on_open(1, 0, 5, ALICE, body_of("alice"), fence)
    desk.sessions.on_state(live(state(ALICE, records.JOINED, name, 1, 4), fence, 5))
    assert await desk.sessions.flush(DEADLINE_S)


@pytest.mark.parametrize(
    "late",
    [
        state(ALICE, records.LEFT, "group:kept", 1, 4),
        state(ALICE, records.JOINED, "group:never", 1, 4),
        state(ALICE, records.JOINED, "group:left", 1, 4),
        ended(ALICE, records.OVER),
    ],
    ids=["leave", "join", "join of what was left", "bye"],
)
@pytest.mark.parametrize("lists_are_told", [True, False])
def test_what_an_old_connection_says_while_the_router_gathers_does_not_count(late: bytes, lists_are_told: bool) -> None:
    """Its worker stood still, and linked before that of the later claim."""
    newer = told((2, 0), opened(6)) + told((2, 2), did(records.LEFT, "group:left", 6))
    if lists_are_told:
        newer += told((2, 1), lists({"group:kept": (1, 4)}))

    async def body(desk: Desk) -> None:
        await begin(desk)
        desk.sessions.gather()
        desk.sessions.on_state(live(late, 1, 6))
        desk.sessions.on_told(newer)
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels.keys() == {"group:kept"}

    run(body)


def test_what_an_old_connection_says_does_not_count_where_the_later_claim_is_stored_and_told_no_more() -> None:
    async def body(desk: Desk) -> None:
        await begin(desk, 2)
        desk.sessions.gather()
        desk.sessions.on_state(live(state(ALICE, records.LEFT, "group:kept", 1, 4), 1, 900))
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels.keys() == {"group:kept"}

    run(body)


def test_what_is_stored_while_a_list_is_read_counts() -> None:
    async def body(desk: Desk) -> None:
        await begin(desk)
        read = desk.store.sessions

        async def slow(ids: list[bytes]) -> list[Session | None]:
            found: list[Session | None] = await read(ids)
            await desk.sessions._saved.wait()
            return found

        desk.store.sessions = slow
        desk.sessions.on_state(live(state(ALICE, records.JOINED, "group:never", 1, 9), 1, 6))
        desk.sessions.on_state(told((2, 0), opened(6)) + told((2, 1), lists({"group:kept": (1, 4)})))
        await desk.sessions._take_told()
        desk.store.sessions = read
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels.keys() == {"group:kept"}

    run(body)


def test_a_list_sets_no_acknowledged_position_back() -> None:
    """An old connection's LEAVE waits for the store when the list comes."""

    async def body(desk: Desk) -> None:
        await begin(desk)
        desk.sessions.on_state(state(ALICE, records.ACKED, "group:kept", 1, 50))
        assert await desk.sessions.flush(DEADLINE_S)
        desk.sessions.on_state(live(state(ALICE, records.LEFT, "group:kept", 1, 9), 1, 6))
        desk.sessions.on_state(told((2, 0), opened(6)) + told((2, 1), lists({"group:kept": (1, 4)})))
        await desk.sessions._take_told()
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels == {"group:kept": (1, 50)}

    run(body)


def test_a_listed_session_that_cannot_be_read_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def body(desk: Desk) -> None:
        await begin(desk)
        read = desk.store.sessions

        async def broken(ids: list[bytes]) -> list[Session | None]:
            raise LogBroken("`x` in Redis is no position: remove what does not belong")

        desk.store.sessions = broken
        desk.sessions.on_state(told((2, 0), opened(6)) + told((2, 1), lists({})))
        await desk.sessions._take_told()
        desk.store.sessions = read
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels.keys() == {"group:kept"}

    run(body)
    assert "of 1 sessions what is stored counts as it stands" in caplog.text


def test_a_list_says_nothing_of_global_channels() -> None:
    async def body(desk: Desk) -> None:
        await begin(desk, name="global:news")
        desk.sessions.on_state(told((2, 0), opened(6)) + told((2, 1), lists({})))
        await desk.sessions._take_told()
        assert await desk.sessions.flush(DEADLINE_S)
        assert desk.store.stored[ALICE].channels.keys() == {"global:news"}

    run(body)


@pytest.mark.parametrize("then", [0, LONG])
def test_a_session_to_which_its_client_came_back_did_not_end(then: int) -> None:
    old = told((1, 0), opened(5), A) + told((1, LONG), closed(5, records.OVER), A)
    assert counts(old, told((2, then), opened(6), B)) == [(1, 0, ""), (2, then, "")]


def test_who_claimed_the_session_too_long_ago_to_be_told_tells_what_was_done_since() -> None:
    left, ends = told((3, 4), did(records.LEFT, "group:a", 9), B), told((3, 5), closed(9), B)
    assert counts(ends, left) == [(3, 4, "group:a"), (3, 5, "")]
    # It went there from another worker.
    assert counts(told((2, LONG), did(records.JOINED, "group:a", 5), A), ends, left)[0] == (2, LONG, "group:a")


def test_nothing_of_before_counts_where_a_connection_has_had_the_session_for_long() -> None:
    other = told((1, 3), did(records.JOINED, "group:a", 5), A, 2) + told((1, 4), closed(5), A, 2)
    assert counts(other) == []
    assert counts(other, told((2, 5), did(records.LEFT, "group:b", 6), B, 2)) == [(2, 5, "group:b")]
    # But it had it only since it claimed it.
    assert counts(other, told((2, 0), opened(6), B, 2)) == [(1, 3, "group:a"), (2, 0, "")]


def test_a_connection_that_has_the_session_by_an_earlier_claim_takes_nothing_from_later_ones() -> None:
    """Its client went elsewhere, and is gone there as well."""
    later = told((2, 0), opened(6), B, 1) + told((2, 5), did(records.LEFT, "group:b", 6), B, 1)
    later += told((2, 6), closed(6), B, 1)
    assert counts(told((1, 3), did(records.JOINED, "group:a", 5), A, 1), later) == [
        (1, 3, "group:a"),
        (2, 0, ""),
        (2, 5, "group:b"),
        (2, 6, ""),
    ]


def test_what_no_claim_was_answered_for_does_not_count() -> None:
    assert counts(told((0, 4), closed(5, records.OVER))) == []


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_links_changes_nothing(chance: random.Random) -> None:
    """One session that goes from worker to worker, each of which tells its own part in order, by its own clock."""
    told_by: dict[int, list[bytes]] = {A: [], B: []}
    clocks = {A: chance.randrange(LONG), B: chance.randrange(LONG)}
    wanted = []
    for fence in range(1, 6):
        worker = chance.choice((A, B))
        told_by[worker].append(told((fence, 0), opened(fence), worker))
        clocks[worker] += chance.randrange(1, 1000)
        joined = did(records.JOINED, f"group:{fence}", fence)
        told_by[worker].append(told((fence, clocks[worker]), joined, worker))
        clocks[worker] += 1
        told_by[worker].append(told((fence, clocks[worker]), closed(fence), worker))
        wanted += [(fence, 0, ""), (fence, clocks[worker] - 1, f"group:{fence}")]
    wanted.append((5, clocks[worker], ""))
    for first, second in ((A, B), (B, A)):
        assert counts(*told_by[first], *told_by[second]) == wanted


@pytest.mark.parametrize("count", [0, 3])
def test_each_session_is_by_itself(count: int) -> None:
    batch = b"".join(told((number, 0), opened(number, bytes([number]) * 16)) for number in range(1, count + 1))
    assert [one.conn for one in taken(batch)] == list(range(1, count + 1))


def test_others_have_their_turns_while_much_is_put_in_order() -> None:
    """A rush of one session: as many records again take as many turns again, not one long one."""
    batch = b"".join(
        told((1, number), did(records.JOINED, f"group:{number}", 5)) for number in range(1, 3 * TURN_RECORDS + 1)
    )

    async def body() -> int:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        beside = asyncio.create_task(other())
        assert len([one async for one in in_order(batch)]) == 3 * TURN_RECORDS
        beside.cancel()
        return turns

    assert asyncio.run(body()) >= 5


# ------------------------------------------------------------------------------------ until what is told is stored


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not wanted():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.01)


def test_it_is_said_when_the_store_has_it_and_not_before() -> None:
    async def body(desk: Desk) -> None:
        desk.store.gate.clear()
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.now_us = 70_000
        await desk.store.asked.wait()
        desk.now_us = 90_000
        assert max(desk.stored_ms, default=0) <= 1
        desk.store.gate.set()
        await until(lambda: max(desk.stored_ms, default=0) == 70)
        assert set(desk.store.stored) == {ALICE}
        await until(lambda: max(desk.stored_ms) == 90)  # and then whatever was before now, since nothing waits

    run(body)


def test_it_is_not_said_while_the_store_is_away() -> None:
    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.now_us = 70_000
        for _ in range(2):
            desk.store.asked.clear()
            await desk.store.asked.wait()
        assert max(desk.stored_ms, default=0) <= 1
        desk.store.fails = None
        await until(lambda: max(desk.stored_ms, default=0) == 70)

    run(body)


def test_it_is_not_said_before_what_workers_told_an_earlier_router_is_taken() -> None:
    async def body(desk: Desk) -> None:
        desk.sessions.gather()
        desk.sessions.on_open(1, 0, 2, ALICE, body_of("alice"))
        desk.now_us = 70_000
        await asyncio.wait(desk.tasks, timeout=0.6)  # longer than it takes to say it without a change
        assert desk.stored_ms == []
        desk.sessions.on_told(told((1, 5), state(ALICE, records.JOINED, "group:a", 1, 2, "alice")))
        await until(lambda: max(desk.stored_ms, default=0) == 70)
        assert desk.store.stored[ALICE].channels == {"group:a": (1, 2)}

    run(body)


# --------------------------------------------------------------------------------- what is stored may be the newer


def test_later_claims_have_later_dates_and_so_have_later_times_of_one() -> None:
    dates = [date_of(*one) for one in ((1, 0), (1, 9_999), (1, 10_000), (2, 0), (10, 5), (2**64 - 1, 2**64 - 1))]
    assert dates == sorted(dates)
    assert known_date(dates[0]) == dates[0]
    assert date_of(0, 77) == known_date(b"") == known_date(b"0a1b2c3d0000000000000077") == b""


CLAIMS = 1 << records.CLAIM_BITS


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(1, 7), (CLAIMS // 2 - 1, 7), (CLAIMS // 2, 8), (CLAIMS, 8), (3 * CLAIMS // 2, 9), (5 * CLAIMS, 12)],
)
def test_claims_take_epochs_from_later_routers_before_they_have_their_numbers(count: int, wanted: int) -> None:
    assert claims_of(7 * CLAIMS + count) == wanted


def test_the_store_is_told_with_the_claims_that_it_was_away_for_which_epochs_they_take() -> None:
    async def body(desk: Desk) -> None:
        desk.store.fails = LogUnavailable("away")
        desk.sessions.on_open(1, 0, 5, ALICE, body_of("alice"), 8 * CLAIMS + 1)
        await desk.store.asked.wait()
        desk.sessions.on_open(2, 0, 6, BOB, body_of("bob"), 7 * CLAIMS)
        desk.store.fails = None
        await desk.stored()
        assert [(set(one.sessions), one.claims) for one in desk.store.saves] == [({ALICE, BOB}, 8)]
        desk.sessions.on_told(told((9 * CLAIMS, 5), did(records.JOINED, "group:a", 5)))
        desk.sessions.on_state(told((9 * CLAIMS, 6), did(records.JOINED, "group:b", 5)))
        await desk.stored()
        assert desk.store.saves[-1].claims == 9

    run(body)


def test_of_what_is_no_newer_than_what_is_stored_nothing_counts() -> None:
    batch = b"".join(
        told(at, did(records.JOINED, f"group:{at}", 5)) for at in ((1, LONG), (2, 3), (2, 4), (2, 5), (3, 1))
    )

    async def body() -> list[str]:
        return [one.name async for one in in_order(batch, {ALICE: date_of(2, 4), BOB: date_of(9, 0)})]

    assert asyncio.run(body()) == ["group:(2, 5)", "group:(3, 1)"]


def does(session: Desk, fence: int, *steps: tuple[int, int, str]) -> list[bytes]:
    """What Alice does by one worker, (time, what, channel) each; as it is told again."""
    again = []
    for time_us, what, name in steps:
        if what == OPENS:
            session.sessions.on_open(1, 0, 5, ALICE, body_of("alice"), fence)
            again.append(told((fence, 0), opened(5)))
        elif what == ENDS:
            session.sessions.on_state(ended(ALICE, records.OVER, (fence, time_us)))
            again.append(told((fence, time_us), closed(5, records.OVER)))
        else:
            session.sessions.on_state(state(ALICE, what, name, 1, 4, date=(fence, time_us)))
            again.append(told((fence, time_us), did(what, name, 5)))
    return again


OPENS, ENDS = -1, -2
OLD = (
    (LONG, OPENS, ""),
    (LONG + 2, records.JOINED, "group:old"),
    (LONG + 3, records.JOINED, "group:back"),
    (LONG + 4, records.LEFT, "group:back"),
)
MOVED = (
    (6, OPENS, ""),
    (7, records.LEFT, "group:old"),
    (8, records.JOINED, "group:new"),
    (9, records.JOINED, "group:back"),
)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("lives", "dies", "wanted"),
    [
        pytest.param(OLD, MOVED, {"group:new", "group:back"}, id="moved"),
        pytest.param(OLD, ((6, OPENS, ""), (7, ENDS, "")), None, id="over where it moved to"),
        pytest.param(
            (*OLD, (LONG + 5, ENDS, "")),
            ((6, OPENS, ""), (7, records.JOINED, "group:new")),
            {"group:new"},
            id="begun again",
        ),
        pytest.param((*OLD, (LONG + 5, ENDS, "")), (), None, id="over"),
    ],
)
def test_a_worker_that_lives_undoes_nothing_that_one_that_died_had_stored(
    lives: tuple[tuple[int, int, str], ...],
    dies: tuple[tuple[int, int, str], ...],
    wanted: set[str] | None,
    late: bool,
) -> None:
    """The router and the worker to which a session went are killed; the one that it came from tells its part again."""

    async def body(desk: Desk) -> None:
        again = does(desk, 1, *lives)
        does(desk, 2, *dies)
        await desk.stored()
        following = Desk(desk.store)
        try:
            if late:
                following.sessions.on_state(b"".join(again))
            else:
                following.sessions.gather()
                following.sessions.on_told(b"".join(again))
            following.sessions.on_open(1, 0, 2, BOB, body_of("bob"), 10)
            await following.stored()
            found = following.store.stored.get(ALICE)
            assert (set(found.channels) if found else None) == wanted
            assert BOB in following.store.stored
        finally:
            await following.close()

    run(body)


def test_what_nobody_stored_counts_of_a_worker_that_tells_late_before_what_it_does_since() -> None:
    async def body(desk: Desk) -> None:
        does(desk, 1, (1, OPENS, ""), (2, records.JOINED, "group:a"), (3, records.JOINED, "group:b"))
        await desk.stored()
        following = Desk(desk.store)
        try:
            left = told((1, 5), did(records.LEFT, "group:a", 5))
            following.sessions.on_state(left + state(ALICE, records.LEFT, "group:b", date=(1, 7)))
            assert await following.resumed(ALICE, "alice") == {}
            await following.stored()
            assert following.store.stored[ALICE].channels == {}
        finally:
            await following.close()

    run(body)


def test_who_claims_a_session_has_it_from_when_that_is_heard() -> None:
    """Whoever had it before may not have heard of that yet, and goes on for a moment."""

    async def body(desk: Desk) -> None:
        does(desk, 1, (1, OPENS, ""), (2, records.JOINED, "group:a"))
        desk.sessions.on_open(1, records.RESUMES, 6, ALICE, body_of("alice"), 2)
        await desk.stored()
        desk.sessions.on_state(told((1, LONG), did(records.LEFT, "group:a", 5)))
        await desk.stored()
        assert set(desk.store.stored[ALICE].channels) == {"group:a"}

    run(body)


def test_what_an_earlier_version_stored_says_nothing_about_the_order() -> None:
    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {})
        desk.store.dated[ALICE] = b"0a1b2c3d%016d" % 10**15
        desk.sessions.on_state(told((1, 5), did(records.JOINED, "group:a", 5)))
        await desk.stored()
        assert set(desk.store.stored[ALICE].channels) == {"group:a"}

    run(body)


def test_a_store_that_is_away_is_waited_for_before_what_is_told_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.SAVE_RETRY_S", 0.01)

    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": (1, 4)})
        desk.store.dated[ALICE] = date_of(1, 5)
        desk.store.fails = LogUnavailable("away")
        desk.sessions.gather()
        left, joined = did(records.LEFT, "group:a", 5), did(records.JOINED, "group:b", 5)
        desk.sessions.on_told(told((1, 5), left) + told((1, 6), joined))
        assert (await desk.asked(ALICE, "alice"))[0] == Code.UNAVAILABLE
        assert not await desk.sessions.flush(0.05)
        desk.store.fails = None
        await desk.stored()
        assert set(desk.store.stored[ALICE].channels) == {"group:a", "group:b"}

    run(body)


def test_much_that_is_told_late_is_taken_some_at_a_time_and_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sessions", "told"):
        monkeypatch.setattr(f"router.{module}.TURN_RECORDS", 100)
    many = b"".join(
        told((1, 1_001), state(number.to_bytes(16, "big"), records.JOINED, "group:a", 1, 2, "u"))
        for number in range(1, 4_000)
    )

    async def body(desk: Desk) -> None:
        desk.store.stored[ALICE] = Session(body_of("alice"), 1, {"group:a": Position(1, 5)})
        desk.sessions.on_state(many + state(ALICE, records.LEFT, "group:a"))
        assert len(desk.sessions._changes.sessions) < 100, "the rest waits for its turn"
        desk.sessions.on_state(state(ALICE, records.JOINED, "group:b", 1, 7) + ended(BOB, records.OVER))
        desk.sessions.on_open(1, 0, 2, BOB, body_of("bob"))
        most = 0
        resumed = asyncio.ensure_future(desk.resumed(ALICE, "alice"))
        while not resumed.done():
            before = len(desk.sessions._changes.sessions)
            await asyncio.sleep(0)
            most = max(most, len(desk.sessions._changes.sessions) - before)
        assert await resumed == {"group:b": [1, 7]}
        assert most <= 300, "of what two tasks take in one turn of the loop"
        await desk.stored()
        assert BOB in desk.store.stored
        assert desk.store.stored[ALICE].channels == {"group:b": (1, 7)}

    run(body)
