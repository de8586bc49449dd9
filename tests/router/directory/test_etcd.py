"""The directory in etcd: prefixes keep clusters apart, and readings are whole although history is forgotten."""

import asyncio
from dataclasses import replace

import pytest

from router.directory import etcd
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_client import RANGE, Compacted, Message, Method
from router.directory.etcd_config import EtcdConfig
from router.directory.port import Claim, Unavailable, Won
from tests.router.directory.conftest import run
from tests.servers.etcd import Member


def test_two_prefixes_in_one_etcd_see_nothing_of_one_another(config: EtcdConfig) -> None:
    async def body() -> None:
        one = EtcdDirectory(config)
        other = EtcdDirectory(replace(config, prefix=f"{config.prefix[:-1]}0/"))
        registration = await one.register("a", b"", 10)
        assert isinstance((await one.transact([Claim("k", 0, b"1")]))[0], Won)
        assert isinstance((await other.transact([Claim("k", 0, b"2")]))[0], Won)
        assert (await other.read("nodes/")).items == {}
        assert (await one.read("k")).items["k"].value == b"1"
        await registration.close()
        for directory in (one, other):
            await directory.close()

    run(body())


def test_a_reading_whose_revision_is_forgotten_between_two_pages_begins_again(
    member: Member, config: EtcdConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "PAGE_KEYS", 10)

    async def body() -> None:
        directory = EtcdDirectory(config)
        await directory.transact([Claim(f"k/{number:02}", 0, b"") for number in range(30)])
        call, pages = directory._client.call, 0

        async def disturbed(method: Method, request: Message, ends: float | None = None) -> object:
            nonlocal pages
            answer = await call(method, request, ends)
            if method is RANGE:
                pages += 1
                if pages == 1:
                    directory._client.call = call  # type: ignore[method-assign]
                    await directory.transact([Claim("k/10", answer.kvs[0].mod_revision, None)])
                    await asyncio.to_thread(member.compact)
                    directory._client.call = disturbed  # type: ignore[method-assign]
            return answer

        directory._client.call = disturbed  # type: ignore[method-assign]
        snapshot = await directory.read("k/")
        assert len(snapshot.items) == 29
        assert pages > 3
        await directory.close()

    run(body())


def test_a_reading_that_is_forgotten_each_time_is_given_up(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)

        async def forgetful(*_: object) -> object:
            raise Compacted

        directory._client.call = forgetful  # type: ignore[assignment, method-assign]
        with pytest.raises(Unavailable, match="compacted each time"):
            await directory.read("k")
        await directory.close()

    run(body())
