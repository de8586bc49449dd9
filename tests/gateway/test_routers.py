"""The admin API's links to several routers: real sequencers, and a real directory that says who leads what."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from core import records, shards
from core.ban_list import FOREVER_MS
from core.namespace_spec import BUILT_IN
from gateway import routers
from gateway.cluster_config import RouterLink
from gateway.routers import RouterClients
from router.bans import MemoryStore
from router.client import RouterClient, Unavailable
from router.config import DirectoryConfig
from router.directory.etcd import EtcdDirectory
from router.directory.port import Claim, Registration, Won
from router.shards.records import NodeRecord, ShardRecord, encode
from tests.gateway.test_cluster_view import lead, viewed
from tests.gateway.test_supervisor import until
from tests.router.test_client import DATA, DEADLINE_S, keeping, router

CHANNELS = {shards.byte_of(name.encode()) & 3: name for name in (f"group:{number}" for number in range(40))}
"""One channel of each shard."""


async def publish(clients: RouterClients, shard: int, deadline_s: float = DEADLINE_S) -> tuple[int, int]:
    return await clients.publish(CHANNELS[shard], DATA, sender="admin", deadline_s=deadline_s)


async def registered(directory: EtcdDirectory, name: str, endpoint: str) -> Registration:
    return await directory.register(name, encode(NodeRecord(1, json.dumps({"bus": endpoint}))), 5)


@asynccontextmanager
async def linked(config: DirectoryConfig) -> AsyncIterator[tuple[RouterClients, EtcdDirectory]]:
    async with viewed(config) as (view, others):

        def make(link: RouterLink) -> RouterClient:
            return RouterClient(link.bus, "test", shards=config.shards)

        clients = RouterClients(view, make, BUILT_IN)
        await clients.start()
        try:
            yield clients, others
        finally:
            await clients.close()


@pytest.fixture
def endpoints(tmp_path: Path) -> Any:
    """Two routers, told apart by the epochs of their channels: 1 and 2."""
    with ExitStack() as stack:
        found = [f"ipc://{tmp_path / name}" for name in ("one", "other")]
        for epoch, endpoint in enumerate(found, 1):
            stack.enter_context(router(endpoint, epoch, shards=4))
        yield found


def test_each_channel_is_published_to_its_leader(
    endpoints: list[str], in_etcd: DirectoryConfig, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        async with linked(in_etcd) as (clients, others):
            one = await registered(others, "a", endpoints[0])
            other = await registered(others, "b", endpoints[1])
            for shard in range(4):
                await lead(others, shard, one if shard < 2 else other)
            found = [await publish(clients, shard) for shard in range(4)]
            assert [epoch for epoch, _ in found] == [1, 1, 2, 2]
            epoch, _ = await clients.publish("global:all", DATA, sender="admin", deadline_s=DEADLINE_S)
            assert epoch == 1
            names = [CHANNELS[shard] for shard in (3, 0, 2, 1)]
            surveys = await clients.survey(names, records.AS_IS, deadline_s=DEADLINE_S)
            assert [survey.position for survey in surveys] == [found[3], found[0], found[2], found[1]]
            states = await clients.channels(names, deadline_s=DEADLINE_S)
            assert [state.position for state in states] == [found[3], found[0], found[2], found[1]]
            assert await clients.sessions([bytes([0]) * 16, bytes([3]) * 16], deadline_s=DEADLINE_S) is None
            await one.close()
            await other.close()

    run_in_loop(scenario())


def test_who_publishes_while_nobody_leads_waits_for_the_next_leader(
    endpoints: list[str], in_etcd: DirectoryConfig, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        async with linked(in_etcd) as (clients, others):
            waiting = asyncio.ensure_future(publish(clients, 1))
            one = await registered(others, "a", endpoints[0])
            await until(lambda: bool(clients.links), "linked")
            assert not waiting.done()
            await lead(others, 1, one)
            assert (await waiting)[0] == 1
            with pytest.raises(Unavailable, match="no router leads shard 2"):
                await publish(clients, 2, deadline_s=0.05)
            await one.close()
            await until(lambda: not clients.links, "unlinked")
            with pytest.raises(Unavailable, match="no link to a router"):
                clients.bans()

    run_in_loop(scenario())


def test_a_router_that_is_not_where_it_says_is_told_of_once_and_when_it_is_there(
    endpoints: list[str],
    tmp_path: Path,
    in_etcd: DirectoryConfig,
    run_in_loop: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routers, "LOOK_S", 0.01)
    monkeypatch.setattr(routers, "UNHEARD_S", 0.05)
    late = f"ipc://{tmp_path / 'late'}"

    async def scenario() -> None:
        async with linked(in_etcd) as (clients, others):
            one = await registered(others, "a", endpoints[0])
            lost = await registered(others, "lost", late)
            await until(lambda: any(line["event"] == "router_out_of_reach" for line in said), "told")
            await until(lambda: len(clients.links) == 2 and sum(clients.links.values()) == 1, "the other one is heard")
            with router(late, 3, shards=4):
                await until(lambda: any(line["event"] == "router_in_reach" for line in said), "there")
            told = [line for line in said if line["event"] == "router_out_of_reach" and line["router"] == "lost"]
            assert told[0]["bus"] == late
            assert "bus.advertise" in told[0]["why"]
            await one.close()
            await lost.close()

    with structlog.testing.capture_logs() as said:
        run_in_loop(scenario())


def test_what_waits_at_a_leader_that_lost_the_shard_is_said_to_the_next_one(
    endpoints: list[str], in_etcd: DirectoryConfig, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        async with linked(in_etcd) as (clients, others):
            silent = await registered(others, "silent", "tcp://127.0.0.1:1")
            await lead(others, 1, silent)
            await until(lambda: bool(clients.links), "linked")
            waiting = asyncio.ensure_future(publish(clients, 1))
            other = await registered(others, "b", endpoints[1])
            item = (await others.read("shards/")).items["shards/1"]
            record = ShardRecord("b", other.identity.epoch, 2, "taken")
            (result,) = await others.transact([Claim("shards/1", item.revision, encode(record))])
            assert isinstance(result, Won)
            assert (await waiting)[0] == 2
            await silent.close()
            await other.close()

    run_in_loop(scenario())


def test_a_ban_goes_to_any_router_also_to_one_that_comes_later(
    in_etcd: DirectoryConfig, run_in_loop: Any, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path / 'bans'}"

    async def scenario() -> None:
        async with linked(in_etcd) as (clients, others):
            with pytest.raises(Unavailable, match="there is no router"):
                await clients.ban("mallory", FOREVER_MS, "spam", deadline_s=0.05)
            waiting = asyncio.ensure_future(clients.ban("mallory", FOREVER_MS, "spam", deadline_s=DEADLINE_S))
            one = await registered(others, "a", endpoint)
            assert (await waiting).user == "mallory"
            assert clients.bans()["mallory"].reason == "spam"
            await one.close()

    with keeping(endpoint, 1, MemoryStore()):
        run_in_loop(scenario())
