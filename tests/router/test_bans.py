"""The router's bans: told when they are stored and not before, one after the other, bounded, and there at a restart."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core.ban_list import BANS_MAX, FOREVER_MS, RESUME_AGE_MAX_MS, Standing, Told, Wish, told_unpacked, wish_packed
from core.owned import ACCOUNT
from router import bans as bans_module
from router.bans import WISHES_MAX, BanKeeper, MemoryStore
from router.log.port import Ban, LogUnavailable

NOW_MS = 1_793_491_200_000
DEADLINE_S = 30.0
Run = Callable[[Any], Any]


class Setup:
    """A keeper over a store, and what it has told."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.now_ms = NOW_MS
        self.changes: list[Told] = []
        self.all: list[Standing] | None = None
        self.keeper = BanKeeper(self.store, self.say, clock=lambda: self.now_ms / 1000)
        self.told = asyncio.Event()
        self.full = False
        """The mailbox to the data plane has no room."""
        self.refused = 0
        self._asks = 0

    def say(self, change: bytes, all_: bytes) -> None:
        if self.full:
            self.refused += 1
            self.told.set()
            raise BufferError
        self.all = told_unpacked(all_).standings
        if change:
            self.changes.append(told_unpacked(change))
            self.told.set()

    async def wish(self, user: str, until_ms: int = FOREVER_MS, reason: str = "") -> Told:
        """The answer to one wish."""
        self._asks += 1
        self.told.clear()
        self.keeper.on_wish(wish_packed(Wish(self._asks, user, until_ms, reason)))
        async with asyncio.timeout(DEADLINE_S):
            await self.told.wait()
        assert self.changes[-1].ask == self._asks
        return self.changes[-1]


class Failing(MemoryStore):
    """A log that is away."""

    async def ban(self, ban: Ban) -> None:
        raise LogUnavailable


@pytest.fixture
def run() -> Run:
    def inside(body: Any) -> Any:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await body

        asyncio.run(limited())

    return inside


async def started(store: MemoryStore | None = None) -> Setup:
    setup = Setup(store)
    await setup.keeper.load()
    setup.keeper.start()
    return setup


def test_a_ban_is_stored_and_then_told(run: Run) -> None:
    async def body() -> None:
        setup = await started()
        assert setup.all == []
        told = await setup.wish("eve", NOW_MS + 5, "spam")
        eve = Standing("eve", NOW_MS, NOW_MS + 5, "spam")
        assert (told.refusal, told.standings, setup.all) == ("", [eve], [eve])
        assert await setup.store.bans() == [Ban("eve", NOW_MS + 5, "spam", NOW_MS)]
        await setup.keeper.close()

    run(body())


def test_what_is_not_stored_is_told_to_nobody(run: Run) -> None:
    async def body() -> None:
        setup = await started(Failing())
        told = await setup.wish("eve")
        assert (told.refusal, told.standings, setup.all) == ("unavailable", [], [])
        await setup.keeper.close()

    run(body())


def test_an_ended_ban_is_remembered_with_its_beginning(run: Run) -> None:
    async def body() -> None:
        setup = await started()
        await setup.wish("eve", NOW_MS + 50_000)
        setup.now_ms += 1_000
        told = await setup.wish("eve", 0)
        assert told.standings == [Standing("eve", NOW_MS, NOW_MS + 1_000, "")]
        assert (await setup.wish("eve", 0)).refusal == "not_banned"
        assert (await setup.wish("bob", 0)).refusal == "not_banned"
        setup.now_ms += 1_000
        assert (await setup.wish("eve")).standings == [Standing("eve", NOW_MS + 2_000, FOREVER_MS, "")]
        await setup.keeper.close()

    run(body())


def test_the_next_router_knows_them_before_anybody_links(run: Run) -> None:
    async def body() -> None:
        first = await started()
        await first.wish("eve")
        await first.keeper.close()
        second = Setup(first.store)
        await second.keeper.load()
        assert second.all == [Standing("eve", NOW_MS, FOREVER_MS, "")]
        assert second.changes == []

    run(body())


def test_nothing_is_kept_for_longer_than_a_token_may_be_good(run: Run) -> None:
    async def body() -> None:
        setup = await started()
        await setup.wish("eve", NOW_MS + 1)
        setup.now_ms += RESUME_AGE_MAX_MS
        await setup.wish("bob")
        assert setup.all is not None
        assert [one.user for one in setup.all] == ["bob"]
        await setup.keeper.close()

    run(body())


def test_they_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bans_module, "BANS_MAX", 2)
    assert BANS_MAX > 1_000

    async def body() -> None:
        setup = await started()
        assert [(await setup.wish(user)).refusal for user in ("a", "b", "c", "a")] == ["", "", "too_many_bans", ""]
        await setup.keeper.close()

    run(body())


def test_more_wishes_at_once_than_it_keeps_are_refused(run: Run) -> None:
    async def body() -> None:
        setup = await started()
        for ask in range(WISHES_MAX + 1):
            setup.keeper.on_wish(wish_packed(Wish(ask, f"u{ask}", FOREVER_MS, "")))
        assert [(told.ask, told.refusal) for told in setup.changes] == [(WISHES_MAX, "overloaded")]
        while len(setup.changes) < WISHES_MAX + 1:
            setup.told.clear()
            await setup.told.wait()
        assert [told.ask for told in setup.changes[1:]] == list(range(WISHES_MAX))
        await setup.keeper.close()

    run(body())


def test_what_finds_no_room_is_told_as_soon_as_there_is_some_in_its_order(run: Run) -> None:
    async def body() -> None:
        setup = await started()
        setup.full = True
        for ask, user in enumerate(("eve", "bob")):
            setup.keeper.on_wish(wish_packed(Wish(ask, user, FOREVER_MS, "")))
        setup.keeper.on_wish(wish_packed(Wish(2, "", FOREVER_MS, "")))
        while setup.refused < 3 or len(await setup.store.bans()) < 2:
            setup.told.clear()
            await setup.told.wait()  # it is tried again and again
        assert setup.changes == []
        setup.full = False
        while len(setup.changes) < 3:
            setup.told.clear()
            await setup.told.wait()
        assert [(told.ask, told.refusal) for told in setup.changes] == [(2, "bad_request"), (0, ""), (1, "")]
        assert setup.all is not None
        assert [one.user for one in setup.all] == ["eve", "bob"]
        assert (await setup.wish("mallory")).refusal == ""
        await setup.keeper.close()

    run(body())


def test_while_nothing_can_be_told_no_more_than_so_many_wishes_are_taken(run: Run) -> None:
    async def body() -> None:
        setup = await started()
        setup.full = True
        for ask in range(2 * WISHES_MAX):
            setup.keeper.on_wish(wish_packed(Wish(ask, "", FOREVER_MS, "")))
        setup.full = False
        while len(setup.changes) < WISHES_MAX:
            setup.told.clear()
            await setup.told.wait()
        assert [told.ask for told in setup.changes] == list(range(WISHES_MAX))
        assert (await setup.wish("eve")).refusal == ""
        await setup.keeper.close()

    run(body())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([1]),
        msgpack.packb([1, 5, 5, ""]),
        msgpack.packb([1, "a", 5, None]),
    ],
)
def test_what_is_no_wish_changes_nothing(body: bytes) -> None:
    setup = Setup()
    setup.keeper.on_wish(body)
    assert setup.changes == []


@pytest.mark.parametrize(
    "wish", [("", 5, ""), ("x" * 251, 5, ""), ("a", -1, ""), ("a", 5, "x" * 201), ("a", 2**63, "")]
)
def test_a_wish_out_of_bounds_is_refused(wish: tuple[str, int, str]) -> None:
    setup = Setup()
    setup.keeper.on_wish(wish_packed(Wish(1, *wish)))
    assert [told.refusal for told in setup.changes] == ["bad_request"]


def test_what_other_routers_stored_is_told_once(run: Run) -> None:
    async def body() -> None:
        setup = await started()
        await setup.wish("eve", NOW_MS + 1_000)
        await setup.store.ban(Ban("bob", FOREVER_MS, "", NOW_MS))
        await setup.store.ban(Ban("eve", FOREVER_MS, "again", NOW_MS + 1))
        await setup.keeper.reread()
        bob, eve = Standing("bob", NOW_MS, FOREVER_MS, ""), Standing("eve", NOW_MS + 1, FOREVER_MS, "again")
        assert sorted(setup.changes[-1].standings) == [bob, eve]
        assert sorted(setup.all or []) == [bob, eve]
        count = len(setup.changes)
        await setup.keeper.reread()
        assert len(setup.changes) == count
        await setup.keeper.close()

    run(body())


def test_a_wish_that_is_fulfilled_while_bans_are_read_again_counts(run: Run) -> None:
    class Slow(MemoryStore):
        gate = asyncio.Event()

        async def bans(self) -> list[Ban]:
            found = await super().bans()
            await self.gate.wait()
            return found

    async def body() -> None:
        store = Slow()
        await store.ban(Ban("eve", FOREVER_MS, "", NOW_MS - 5))
        store.gate.set()
        setup = await started(store)
        store.gate.clear()
        await store.ban(Ban("eve", FOREVER_MS, "by another", NOW_MS - 1))
        reading = asyncio.create_task(setup.keeper.reread())
        await asyncio.sleep(0)
        await setup.wish("eve", NOW_MS)
        store.gate.set()
        await reading
        assert setup.all is not None
        assert [one.until_ms for one in setup.all] == [NOW_MS]
        await setup.keeper.close()

    run(body())


def test_bans_are_read_again_now_and_then_also_after_the_log_was_away(run: Run) -> None:
    class Away(MemoryStore):
        reads = 0

        async def bans(self) -> list[Ban]:
            self.reads += 1
            if self.reads == 2:
                raise LogUnavailable
            return await super().bans()

    async def body() -> None:
        setup = Setup(Away())
        await setup.keeper.load()
        setup.keeper.start(reread_s=0.001)
        await setup.store.ban(Ban("bob", FOREVER_MS, "", NOW_MS))
        await setup.told.wait()
        assert setup.all == [Standing("bob", NOW_MS, FOREVER_MS, "")]
        await setup.keeper.close()

    run(body())


def test_what_others_stored_is_told_at_once_where_it_is_said(run: Run) -> None:
    async def body() -> None:
        setup = Setup()
        await setup.keeper.load()
        setup.keeper.start(reread_s=3600.0)
        await setup.store.ban(Ban("bob", FOREVER_MS, "", NOW_MS))
        setup.keeper.reread_soon()
        await setup.told.wait()
        assert setup.all == [Standing("bob", NOW_MS, FOREVER_MS, "")]
        await setup.keeper.close()

    run(body())


def test_it_leaves_nothing_behind(run: Run) -> None:
    async def body() -> None:
        before = ACCOUNT.read()["ledger"]
        setup = await started()
        await setup.wish("eve")
        await setup.keeper.close()
        after = ACCOUNT.read()["ledger"]
        for kind in ("task", "handle"):
            opened = after[f"{kind}_opened"] - before[f"{kind}_opened"]
            assert opened == after[f"{kind}_closed"] - before[f"{kind}_closed"] > 0

    run(body())
