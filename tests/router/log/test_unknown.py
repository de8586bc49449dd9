"""What is said of messages whose namespace is not configured."""

from pathlib import Path

import pytest

from core import log_records
from core.namespace_spec import BUILT_IN, DAY_S, NamespaceSpec
from router.log.embedded import EmbeddedLog
from router.log.unknown import NAMED_MAX, say_unknown
from tests.contract.running import message, recovered, run
from tests.contract.stores import EmbeddedStore


async def offsets(log: EmbeddedLog, channel: bytes = b"deal:a") -> list[int]:
    return [entry.offset for entry in await recovered(log) if entry.channel == channel]


def test_it_names_them_and_says_what_becomes_of_them(caplog: pytest.LogCaptureFixture) -> None:
    say_unknown("the log in /log", [("old", None), ("deal", 100)], "until then")
    [record] = caplog.records
    said = record.getMessage()
    assert said.startswith(
        "the log in /log has messages of namespaces that are not configured: deal (100 messages), old."
    )
    assert "they stay until then" in said
    assert "as it was, and they are there again" in said
    assert "with history_messages = 0 they go for good" in said


def test_many_are_not_all_named(caplog: pytest.LogCaptureFixture) -> None:
    say_unknown("the log", [(f"n{number:03}", 1) for number in range(NAMED_MAX + 5)], "for a while")
    assert f"n{NAMED_MAX - 1:03} (1 messages) and 5 more. Nobody" in caplog.text
    assert f"n{NAMED_MAX:03}" not in caplog.text


def test_a_start_says_which_namespaces_are_missing_and_keeps_what_is_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deal = NamespaceSpec(name="deal", domain="group", history_messages=50_000, history_age_s=300 * DAY_S)
    asked = []

    async def keep(records: bytes) -> bytes:
        asked.extend(log_records.entries(records))
        return records

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()  # which knows the built-in ones alone
        await log.open(1)
        assert await offsets(log) == []
        assert caplog.text == ""
        for offset in range(1, 101):
            await log.append(message(b"deal:a", 1, offset, body=b"x" * 100) + message(b"gone:a", 1, offset))
        await log.sift(keep)
        assert {one.channel for one in asked} == {b"deal:a", b"gone:a"}
        assert all(one.kind == log_records.MESSAGE for one in asked)
        await log.close()
        log = await store.log()
        await log.open(1)
        assert await offsets(log) == list(range(1, 101))
        assert "that are not configured: deal (100 messages), gone (100 messages). Nobody" in caplog.text
        assert "they stay until they are 366 days old: configure" in caplog.text
        await log.close()
        caplog.clear()
        log = EmbeddedLog(tmp_path, namespaces=[*BUILT_IN, deal], bytes_max=1 << 30)
        await log.open(1)
        assert await offsets(log) == list(range(1, 101))
        assert "not configured: gone (100 messages)." in caplog.text
        assert "they stay until they are 366 days old, or until log.bytes_max wants their room" in caplog.text
        await log.close()

    store = EmbeddedStore(tmp_path)
    run(store, lambda: body(store))
