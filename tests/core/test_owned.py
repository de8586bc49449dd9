"""What the control thread holds: counted, named, and found when it leaks. A leak of each of its kinds."""

import asyncio
import gc
import logging
import os
from collections.abc import Coroutine
from typing import Any

import pytest

from core import ledger
from core.ledger import CONTROL_KINDS, Stats
from core.owned import Account, end_tasks

DEADLINE_S = 30.0


class Handle:
    """Stands for something that has to be closed."""


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work

    asyncio.run(limited())


def counts(stats: Stats, kind: str) -> tuple[int, int]:
    read = stats.read()["ledger"]
    return read[f"{kind}_opened"], read[f"{kind}_closed"]


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_what_is_held_is_counted_and_named(kind: str) -> None:
    stats = Stats()
    account = Account(stats)
    held = account.hold(kind, "the thing")
    assert counts(stats, kind) == (1, 0)
    assert held.place.startswith("core/test_owned.py:")
    assert held.place.endswith("in test_what_is_held_is_counted_and_named")
    held.close()
    held.close()
    assert counts(stats, kind) == (1, 1)
    assert account.audit()[1] == []


def test_kinds_of_the_data_plane_are_not_the_control_threads() -> None:
    with pytest.raises(ValueError, match="tuple"):
        Account().hold("ring", "")


def test_an_account_moves_with_all_that_is_held() -> None:
    account, stats = Account(), Stats()
    held = account.hold("handle", "early")
    account.count_in(stats)
    assert counts(stats, "handle") == (1, 0)
    held.close()
    assert counts(stats, "handle") == (1, 1)


def test_a_handle_collected_while_open_says_where_it_was_made(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    account, handle = Account(stats), Handle()
    account.hold("handle", "a link", object_=handle)
    with caplog.at_level(logging.ERROR):
        del handle
        gc.collect()
    assert "a link was collected while open" in caplog.text
    assert "test_a_handle_collected_while_open" in caplog.text
    assert stats.read()["counters"]["handles_leaked"] == 1
    kinds, findings = account.audit()
    assert kinds["handle"] == {"opened": 1, "closed": 0, "found": 0}
    assert findings[0]["what"] == "a link was collected while open"
    assert findings[0]["place"].startswith("core/test_owned.py:")


def test_a_closed_handle_is_collected_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    account, handle = Account(), Handle()
    account.hold("handle", "a link", object_=handle).close()
    del handle
    gc.collect()
    assert caplog.text == ""


def test_tasks_are_kept_counted_and_their_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    account = Account(stats)

    async def scenario() -> None:
        async def fail() -> None:
            raise OSError("no such luck")

        account.own_loop()
        good = account.task(asyncio.sleep(0, 5), "good")
        bad = account.task(fail(), "bad")
        assert (await good, counts(stats, "task")) == (5, (3, 2))
        await asyncio.wait({bad})
        await asyncio.sleep(0)
        assert account.audit() == (account.audit()[0], [])
        assert account.audit()[0]["task"] == {"opened": 3, "closed": 2, "found": 1}

    run(scenario())
    assert "task bad ended with OSError('no such luck')" in caplog.text
    assert stats.read()["counters"]["tasks_failed"] == 1


def test_every_task_of_the_loop_is_owned_whoever_makes_it() -> None:
    stats = Stats()
    account = Account(stats)

    async def scenario() -> None:
        account.own_loop()
        waiting = [asyncio.Event().wait() for _ in range(3)]
        asyncio.create_task(waiting[0], name="stray")  # noqa: RUF006 - kept by the account
        gathered = asyncio.gather(*waiting[1:])
        kinds, findings = account.audit()
        assert (kinds["task"]["found"], findings) == (4, [])
        stray = next(one for one in account.held if one.name == "stray")
        assert stray.place.startswith("core/test_owned.py:")
        assert stray.place.endswith("in scenario")
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered

    run(scenario())
    opened, closed = counts(stats, "task")
    assert opened == closed >= 4


def test_a_task_from_elsewhere_is_found_and_named() -> None:
    account = Account()

    async def forgotten() -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        task = asyncio.create_task(forgotten(), name="stray")
        (finding,) = [one for one in account.audit()[1] if "stray" in one["what"]]
        assert (finding["kind"], finding["what"]) == ("task", "stray is nobody's")
        assert finding["place"].startswith("core/test_owned.py:")
        assert finding["place"].endswith("in forgotten")
        task.cancel()

    run(scenario())


def test_a_task_that_outlives_its_owner_is_found() -> None:
    account = Account()

    async def scenario() -> None:
        owner = account.hold("handle", "the server")
        task = account.task(asyncio.Event().wait(), "held", owner=owner)
        assert not [one for one in account.audit()[1] if "held" in one["what"]]
        owner.close()
        (finding,) = [one for one in account.audit()[1] if "held" in one["what"]]
        assert finding["what"] == "held outlives its owner, the server"
        assert "test_owned.py" in finding["place"]
        task.cancel()

    run(scenario())


def test_a_table_that_disagrees_is_found() -> None:
    account = Account()
    there = [1]
    account.table("http_client", lambda: len(there))
    held = account.hold("http_client", "127.0.0.1:5")
    assert account.audit()[1] == []
    there.clear()
    kinds, findings = account.audit()
    assert kinds["http_client"]["found"] == 0
    assert findings[0]["what"] == "127.0.0.1:5 is one of 1 held, but there are 0"
    account.table("http_client", None)
    held.close()
    assert account.audit()[1] == []


def test_a_descriptor_of_nobody_is_a_stranger() -> None:
    account = Account()
    run(account.settle())
    assert account.strangers(set()) == {}
    reading, writing = os.pipe()
    assert set(account.strangers(set())) == {reading, writing}
    assert set(account.strangers({writing})) == {reading}
    with account.hold("control_fd", "a pipe", fd=reading):
        assert set(account.strangers(set())) == {writing}
    account.explain(lambda fd: fd == writing)
    assert set(account.strangers(set())) == {reading}
    for fd in (reading, writing):
        os.close(fd)


def test_a_descriptor_closed_behind_its_owners_back_is_found() -> None:
    account = Account()
    reading, writing = os.pipe()
    held = account.hold("control_fd", "a pipe", fd=reading)
    os.close(reading)
    assert account.audit()[1][0]["what"] == f"a pipe has no descriptor any more: {reading} was closed behind its back"
    held.close()
    os.close(writing)


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_a_leak_of_each_kind_is_found_and_named(kind: str) -> None:
    stats = Stats()
    account, handles = Account(stats), [Handle()]
    account.table("http_client", lambda: 0)
    if not ledger.CHECKED:
        with pytest.raises(RuntimeError, match="checked"):
            stats.leak(kind)
        return
    stats.leak(kind)

    async def task() -> None:
        await account.task(asyncio.sleep(0), "a task")
        await asyncio.sleep(0)

    def other() -> None:
        reading, writing = os.pipe()
        fd = reading if kind in ("lease", "control_fd") else -1
        account.hold(kind, f"a {kind}", object_=handles[0], fd=fd).close()
        os.close(reading)
        os.close(writing)

    if kind == "task":
        run(task())
    else:
        other()
    handles.clear()
    gc.collect()
    kinds, findings = account.audit()
    assert kinds[kind] == {"opened": 1, "closed": 0, "found": 0}
    assert [one["kind"] for one in findings] == [kind]
    assert findings[0]["place"].startswith("core/test_owned.py:")


def test_a_task_that_has_ended_this_instant_is_no_leak() -> None:
    account = Account()
    seen: list[tuple[bool, list[dict[str, Any]]]] = []

    async def scenario() -> None:
        account.own_loop()

        async def brief() -> None:
            # Called before what is called at this task's end.
            asyncio.get_running_loop().call_soon(lambda: seen.append((task.done(), account.audit()[1])))

        task = account.task(brief(), "brief")
        await task
        await asyncio.sleep(0)

    run(scenario())
    assert seen == [(True, [])]


def test_tasks_are_ended_within_a_time() -> None:
    account = Account()

    async def scenario() -> None:
        let_go = asyncio.Event()

        async def stubborn() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await let_go.wait()
                raise

        quick = account.task(asyncio.Event().wait(), "quick")
        slow = account.task(stubborn(), "slow")
        await asyncio.sleep(0)
        await end_tasks([])
        await end_tasks([quick, slow], 0.01)
        assert (quick.cancelled(), slow.done()) == (True, False)
        let_go.set()
        await end_tasks([slow])
        assert slow.cancelled()

    asyncio.run(scenario())
