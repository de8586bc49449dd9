"""The directory in one process: leases end by its clock, changes are forgotten, and it can be away.

What it has in common with etcd is in tests/contract/test_directory.py.
"""

import asyncio
from contextlib import aclosing

import pytest

from router.directory.embedded import EmbeddedDirectory, Store
from router.directory.port import CLOCK_ALLOWANCE, Change, Changes, Claim, Item, Lost, Snapshot, Unavailable, Won
from tests.router.directory.conftest import run


class Clock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


def test_a_process_that_stood_still_finds_its_lease_gone() -> None:
    async def body() -> None:
        clock = Clock()
        store = Store(clock)
        directory, other = EmbeddedDirectory(store), EmbeddedDirectory(store)
        registration = await directory.register("a", b"", 10)
        bound = registration.held_until()
        assert bound == pytest.approx(1_000 + 10 * (1 - CLOCK_ALLOWANCE))
        clock.time = bound + 0.001
        assert (await other.read("nodes/")).items, "it may live longer than is certain"
        clock.time = 1_010.0
        assert (await other.read("nodes/")).items == {}
        await registration.lost.wait()
        assert registration.held_until() == 0.0
        [result] = await directory.transact([Claim("k", 0, b"", registration.identity)])
        assert result == Lost(0, None, alive=False)
        await registration.close()

    run(body())


def test_a_kept_lease_moves_its_bound_and_lives_on() -> None:
    async def body() -> None:
        clock = Clock()
        store = Store(clock)
        directory = EmbeddedDirectory(store)
        registration = await directory.register("a", b"", 10)
        for _ in range(5):
            clock.time += 5.0
            await directory.transact([Claim(f"k{clock.time}", 0, b"")])  # which wakes whoever waits for a change
            for _ in range(10):
                await asyncio.sleep(0)  # the keeper's turn
            assert registration.held_until() == pytest.approx(clock.time + 9.9)
        assert not registration.lost.is_set()
        await registration.close()
        assert (await directory.read("nodes/")).items == {}

    run(body())


def test_a_watch_that_is_further_behind_than_is_kept_gets_a_snapshot() -> None:
    async def body() -> None:
        directory = EmbeddedDirectory(Store(history_max=3))
        results = await directory.transact([Claim(f"k/{number}", 0, b"") for number in range(5)])
        revisions = [result.revision for result in results]
        async with aclosing(directory.watch("k/", revisions[1])) as watch:
            changes = tuple(Change(f"k/{number}", b"", revisions[number]) for number in (2, 3, 4))
            assert await anext(watch) == Changes(revisions[4], changes)
        async with aclosing(directory.watch("k/", revisions[0])) as watch:
            items = {f"k/{number}": Item(b"", revision) for number, revision in enumerate(revisions)}
            assert await anext(watch) == Snapshot(revisions[4], items)

    run(body())


def test_while_it_is_away_calls_end_within_their_deadline_and_watches_go_on_afterwards() -> None:
    async def body() -> None:
        store = Store()
        directory = EmbeddedDirectory(store, deadline_s=0.05)
        registration = await directory.register("a", b"", 10)
        before = directory.reachable()
        assert before.answers
        store.here.clear()
        reach = directory.reachable()
        assert not reach.answers
        assert reach.since >= before.since
        with pytest.raises(Unavailable) as raised:
            await directory.transact([Claim("k", 0, b"")])
        assert raised.value.nothing_done
        async with aclosing(directory.watch("k", store.revision)) as watch:
            waiting = asyncio.create_task(anext(watch))
            await asyncio.sleep(0)
            store.here.set()
            [result] = await directory.transact([Claim("k", 0, b"")])
            assert isinstance(result, Won)
            assert (await waiting).revision == result.revision
        assert directory.reachable().answers
        assert not registration.lost.is_set()
        await registration.close()

    run(body())


def test_two_directories_without_a_store_share_nothing() -> None:
    async def body() -> None:
        one, other = EmbeddedDirectory(), EmbeddedDirectory()
        await one.transact([Claim("k", 0, b"")])
        assert (await other.read("")).items == {}

    run(body())
