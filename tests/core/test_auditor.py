"""The audit of one process, its data plane in a thread of the test and its descriptors those of the test."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest

from core import auditor, notes
from core.auditor import Auditor
from core.owned import Account
from tests.core.edge_harness import Edge

DEADLINE_S = 30.0


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work

    asyncio.run(limited())


async def _audited(edge: Edge, account: Account) -> dict[str, Any]:
    def ask(request: int) -> None:
        edge.put(notes.AUDIT, request=request)

    def take() -> None:
        for note in edge.loop.take():
            if note[0] == notes.AUDITED:
                one.on_note(note[3], note[7], note[8])

    one = Auditor(account, ask)
    loop = asyncio.get_running_loop()
    loop.add_reader(edge.loop.control_fd, take)
    try:
        return await one.audit()
    finally:
        loop.remove_reader(edge.loop.control_fd)


def test_a_process_closes_and_a_stray_descriptor_does_not(edge: Edge) -> None:
    edge.open("u")
    account = Account()

    async def scenario() -> None:
        account.own_loop()
        await account.settle()
        report = await _audited(edge, account)
        assert report["findings"] == []
        assert report["kinds"]["connection"]["found"] == 1
        assert report["kinds"]["task"]["found"] == 1
        stray = os.open("/dev/zero", os.O_RDONLY)
        report = await _audited(edge, account)
        os.close(stray)
        assert [(one["kind"], one["key"], one["place"]) for one in report["findings"]] == [
            ("control_fd", stray, "/dev/zero")
        ]
        assert report["finding_count"] == 1

    run(scenario())


def test_a_new_connection_is_no_stranger(edge: Edge) -> None:
    account = Account()

    async def scenario() -> None:
        await account.settle()
        client = await asyncio.to_thread(edge.open, "late")
        account.explain(lambda fd: fd == client.socket.fileno())
        report = await _audited(edge, account)
        assert [one for one in report["findings"] if one["kind"] != "task"] == []

    run(scenario())


def test_a_data_plane_that_is_stuck_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor, "WALK_DEADLINE_S", 0.05)

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await Auditor(Account(), lambda request: None).audit()

    run(scenario())
