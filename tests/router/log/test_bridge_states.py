"""What became of sessions goes with their shard, when another region leads it."""

import pytest

from router.log.bridge_source import Page
from router.log.bridge_states import PAGE
from router.log.bridge_store import Followed
from router.log.port import Changes, LogUnavailable, Position, SessionChange
from tests.router.log.conftest import run, until
from tests.router.log.redis_records import NOW_MS
from tests.router.log.regions import SHARD, Region, close, is_of, regions
from tests.servers.redis import Server

SESSION = bytes([SHARD]) + b"x" * 15
USER = next(f"user:u{n}" for n in range(999) if is_of(f"user:u{n}", SHARD))


async def has_session(one: Region, channels: dict[str, tuple[int, int]]) -> None:
    """Wait until a region has the session in these channels."""

    async def is_so() -> bool:
        [found] = await one.log.sessions([SESSION])
        return found is not None and found.channels == channels

    await until(is_so)


async def session_that_is_ahead(here: Region, there: Region) -> dict[str, tuple[int, int]]:
    """A session led here of which the last changes are stored here alone; its channels."""
    await here.lead(1)
    there.follow(here, 1)
    await here.log.save(Changes({SESSION: SessionChange(b"o", NOW_MS + 9_999, {"group:a": (1, 1)})}))
    await has_session(there, {"group:a": (1, 1)})
    there.bridge.follow({})  # as it does before it opens it itself
    last = SessionChange(None, None, {"group:b": (1, 3), "group:a": (1, 7)}, {"group:b"})
    await here.log.save(Changes({SESSION: last}, {USER: Position(1, 5)}))
    return {"group:a": (1, 7), "group:b": (1, 3)}


def test_what_a_session_did_at_the_former_leader_is_there_when_the_next_one_begins(
    servers: list[Server], prefix: str
) -> None:
    async def work() -> None:
        here, there, far = some = await regions(servers, prefix)
        channels = await session_that_is_ahead(here, there)
        for offset in range(4, 2 * PAGE):
            channels["group:b"] = (1, offset)
            await here.log.save(Changes({SESSION: SessionChange(None, None, {"group:b": (1, offset)})}))
        await there.lead(2)
        [found] = await there.log.sessions([SESSION])
        assert found is not None
        assert found.channels == channels
        assert await there.log.cursors([USER]) == [Position(1, 5)]
        # The former leader's region takes nothing of its own any more, and a third one hears it from the next.
        far.follow(there, 2)
        await has_session(far, channels)
        await here.log.save(Changes({SESSION: SessionChange(None, None, {"group:late": (1, 1)})}))
        await there.log.save(Changes({SESSION: SessionChange(None, None, {"group:a": None})}))
        here.follow(there, 2)
        for one in (here, far):
            await has_session(one, {"group:b": channels["group:b"]})
        await close(some)

    run(work())


def test_an_opening_that_failed_behind_its_fences_takes_the_states_the_next_time(
    servers: list[Server], prefix: str
) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        channels = await session_that_is_ahead(here, there)
        source = there.bridge._sources[here.name]
        pages = source.pages

        async def away(*_: object) -> dict[int, Page]:
            raise LogUnavailable("cut")

        source.pages = away  # type: ignore[assignment,method-assign]
        with pytest.raises(LogUnavailable, match="cut"):
            await there.lead(2)
        source.pages = pages  # type: ignore[method-assign]
        assert await there.lead(2) == {SHARD: None}
        await has_session(there, channels)
        await close(some)

    run(work())


def test_states_are_taken_only_from_where_the_shard_was_led_last(servers: list[Server], prefix: str) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        await session_that_is_ahead(here, there)
        await there.lead(3)  # somebody had it under 2, and may have led it elsewhere
        await has_session(there, {"group:a": (1, 1)})
        await close(some)

    run(work())


def test_a_shard_is_left_where_more_became_of_its_sessions_than_is_here(
    servers: list[Server], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.log.bridge_states.ABLE_MAX", 2)

    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        await session_that_is_ahead(here, there)  # by two changes
        assert await there.bridge.able(SHARD) == ""
        await here.log.save(Changes({SESSION: SessionChange(None, None, {"group:b": (1, 4)})}))
        why = f"more than 2 changes of its sessions in region `{here.name}` are not here yet"
        assert await there.bridge.able(SHARD) == why
        there.follow(here, 1)
        await has_session(there, {"group:a": (1, 7), "group:b": (1, 4)})
        assert await there.bridge.able(SHARD) == ""
        await close(some)

    run(work())


def test_states_that_may_not_be_kept_any_more_are_told_of(
    servers: list[Server], prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        await session_that_is_ahead(here, there)
        servers[0].do("XTRIM", f"{prefix}{{h{SHARD}}}:states", "MAXLEN", 1)
        await there.lead(2)
        await has_session(there, {"group:a": (1, 1)})
        assert await there.log.cursors([USER]) == [Position(1, 5)]
        await close(some)

    run(work())
    assert f"shards [{SHARD}]: what became of sessions in region `asia` may not be kept there" in caplog.text


@pytest.mark.parametrize("then", ["follows", "leads"])
def test_a_region_that_lost_the_last_states_is_read_anew(
    servers: list[Server], prefix: str, caplog: pytest.LogCaptureFixture, then: str
) -> None:
    """A replica whose clock is behind took over, say: what comes has ids below what is known here."""

    async def work() -> None:
        here, there = some = await regions(servers[:2], prefix)
        await here.lead(1)
        await here.log.save(Changes({SESSION: SessionChange(b"o", NOW_MS + 99_999_999, {"group:a": (1, 1)})}))
        one = Followed(SHARD, 1)
        await there.bridge.store.begin_copy([one], b"a copy")
        assert await there.bridge.store.place(one, b"a copy", here.name, Position(0, 0), b"9999999999999-0")
        there.before[SHARD] = (here.name, 1)
        assert await there.bridge.able(SHARD) == (
            f"what became of its sessions in region `{here.name}` is to be read anew"
        )
        if then == "follows":
            there.follow(here, 1)
        else:
            await there.lead(2)
        await has_session(there, {"group:a": (1, 1)})
        assert caplog.text.count(f"region `{here.name}` lost what became of sessions last, and is read anew") == 1
        if then == "follows":
            await here.log.save(Changes({SESSION: SessionChange(None, None, {"group:a": (1, 7)})}))
            await has_session(there, {"group:a": (1, 7)})
            assert await there.bridge.able(SHARD) == ""
        await close(some)

    run(work())
