"""Loads of the embedded log: each message is read from where it is, and never what is damaged."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from core import log_records
from core.namespace_spec import NamespaceSpec
from router.log.embedded import EmbeddedLog
from tests.contract.running import message, run
from tests.contract.stores import EmbeddedStore, Keep


def on(directory: Path, body: Callable[[EmbeddedStore], Awaitable[None]]) -> None:
    store = EmbeddedStore(directory)
    run(store, lambda: body(store))


def remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink()


async def loaded(log: EmbeddedLog, channel: bytes = b"group:a") -> list[int]:
    (found,) = await log.load([channel], messages=True)
    return [entry.offset for entry in log_records.entries(found.records)]


def test_messages_are_loaded_from_wherever_they_are(tmp_path: Path) -> None:
    """In sifted segments and others, before and after a restart, also where the log goes on in a sifted one."""

    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        for offset in range(1, 101):
            await log.append(message(b"group:a", 1, offset))
            await log.append(message(b"group:b", 1, offset))
        assert await loaded(log) == list(range(1, 101))
        await log.sift(Keep({b"group:a": (1, 100), b"group:b": (1, 100)}, {b"group:a": (1, 11)}))
        assert await loaded(log) == list(range(11, 101))
        assert len(await loaded(log, b"group:b")) < 20  # those in the last segment, which is not sifted
        await log.close()
        log = await store.log()
        await log.open(1)
        assert await loaded(log) == list(range(11, 101))
        await asyncio.to_thread(lambda: remove(sorted(tmp_path.glob("segment-*"))[1:]))
        await log.close()
        log = await store.log()
        await log.open(1)
        left = await loaded(log)
        assert left == list(range(11, left[-1] + 1))
        await log.append(message(b"group:a", 2, 101))
        assert await loaded(log) == [*left, 101]

    on(tmp_path, body)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"body-2", b"b0dy-2"))


def test_a_message_that_is_damaged_on_disk_is_not_loaded_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(store: EmbeddedStore) -> None:
        log = await store.log()
        await log.open(1)
        for offset in range(1, 4):
            await log.append(message(b"group:a", 1, offset, body=b"body-%d" % offset))
        path = tmp_path / "segment-000000000001.log"
        await asyncio.to_thread(damage, path)
        assert await loaded(log) == [1, 3]
        assert "1 messages are damaged or gone" in caplog.text
        await asyncio.to_thread(path.unlink)
        assert await loaded(log) == []
        assert "3 messages are damaged or gone" in caplog.text

    on(tmp_path, body)


def test_a_sift_takes_away_what_the_namespaces_size_does_not_keep_whatever_the_router_says(tmp_path: Path) -> None:
    async def everything(records: bytes) -> bytes:
        return records

    async def body(store: EmbeddedStore) -> None:
        group = NamespaceSpec(name="group", domain="group", history_messages=5)
        log = EmbeddedLog(tmp_path, segment_bytes=4000, namespaces=[group])
        await log.open(1)
        for offset in range(1, 200):
            await log.append(message(b"group:a", 1, offset))
        await log.sift(everything)
        assert await loaded(log) == list(range(195, 200))
        await log.close()

    on(tmp_path, body)
    assert sum(path.stat().st_size for path in tmp_path.glob("segment-*")) < 10_000
