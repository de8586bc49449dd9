"""A node's workers in a real directory: registered while they live, and told of routers."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.child import Child, ChildSpec
from gateway.cluster_view import ClusterView
from gateway.membership import Membership
from gateway.spawner import Spawner
from router.agreement import agree
from router.config import DirectoryConfig
from router.directory.etcd import EtcdDirectory
from router.directory.opening import make_directory
from router.directory.port import Claim, Won
from router.shards.records import NodeRecord, RegionRecord, decode, encode
from tests.gateway.test_cluster_view import DEADLINE_S, node_of, shown, viewed
from tests.gateway.test_supervisor import until

# Answers `routers` and `away`, and notes what it was told.
PROGRAM = """
import asyncio, json, signal, sys
from core.commands import CommandServer
config = json.load(sys.stdin)

async def serve():
    async def routers(routers):
        with open(config["notes"], "a") as file:
            file.write(json.dumps([one["name"] for one in routers]) + "\\n")
    async def away(order):
        with open(config["notes"] + ".away", "a") as file:
            file.write(json.dumps(order) + "\\n")
    commands = CommandServer(config["commands_fd"], {"routers": routers, "away": away})
    await commands.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    commands.tell("ready")
    await ended.wait()
    await commands.close()

asyncio.run(serve())
"""


def spec(notes: Path) -> ChildSpec:
    def config(epoch: int, stats_fd: int, commands_fd: int) -> bytes:
        return json.dumps({"notes": str(notes), "commands_fd": commands_fd}).encode()

    return ChildSpec("worker-0", (sys.executable, "-c", PROGRAM), config)


@contextlib.contextmanager
def worker(notes: Path) -> Iterator[Child]:
    """The place of a worker whose process is started again by whoever runs it."""
    spawner = Spawner(())
    try:
        yield Child(spec(notes), spawner)
    finally:
        spawner.close()


@contextlib.asynccontextmanager
async def member(
    config: DirectoryConfig, workers: list[Child], region: str = ""
) -> AsyncIterator[tuple[Membership, ClusterView, EtcdDirectory]]:
    async with viewed(config) as (view, others):
        membership = Membership(view, "a", '{"admin":"http://a:7402"}', 2, lambda: workers, region=region)
        membership.start()
        try:
            yield membership, view, others
        finally:
            await membership.close()


def told(notes: Path) -> list[Any]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def test_the_workers_of_a_node_are_registered_until_it_is_closed(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, _):
            membership = Membership(view, "a", "{}", 2, list)
            assert (membership.epoch, membership.lease_s()) == (0, 0.0)
            membership.start()
            await shown(view, lambda: view.view.nodes.get("a.gw").revision > 0)
            await until(lambda: membership.epoch > 0, "registered")
            seen = view.view.nodes.get("a.gw")
            assert seen.revision == membership.epoch
            assert seen.record == NodeRecord(0, "{}")
            assert 0 < membership.lease_s() <= 2
            assert view.routers() == ()
            await membership.close()
            await shown(view, lambda: view.view.nodes.get("a.gw").revision == 0)
            assert membership.epoch == 0

    run_in_loop(scenario())


def test_who_lost_its_lease_registers_anew(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with member(in_etcd, []) as (membership, view, _):
            await until(lambda: membership.epoch > 0, "registered")
            first = membership.epoch
            # Another node of the same name: what stands there of an earlier life goes.
            other = make_directory(in_etcd)
            usurper = await other.register("a.gw", b"", 2)
            await until(lambda: membership.epoch > usurper.identity.epoch, "registered anew")
            assert membership.epoch > first
            await shown(view, lambda: view.view.nodes.get("a.gw").revision == membership.epoch)
            read = await other.read("nodes/a.gw")
            assert decode(NodeRecord, read.items["nodes/a.gw"].value).weight == 0
            await usurper.close()
            await other.close()

    run_in_loop(scenario())


def test_a_worker_is_told_of_routers_at_its_start_and_when_they_change(
    in_etcd: DirectoryConfig, run_in_loop: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        with worker(tmp_path / "notes") as child:
            async with member(in_etcd, [child]) as (membership, _, others):
                one = await others.register("r1", node_of("r1"), 5)
                running = asyncio.create_task(child.run_once(1))
                await until(lambda: told(tmp_path / "notes")[-1:] == [["r1"]], "told at its start")
                other = await others.register("r2", node_of("r2"), 5)
                await until(lambda: told(tmp_path / "notes")[-1:] == [["r1", "r2"]], "told of a change")
                process = child.current
                assert process is not None
                await until(lambda: membership.linked(process) == 2, "that it was told is known")
                await one.close()
                await until(lambda: told(tmp_path / "notes")[-1:] == [["r2"]], "told of an end")
                child.send(signal.SIGTERM)
                async with asyncio.timeout(DEADLINE_S):
                    assert await running == 0
                await other.close()

    run_in_loop(scenario())


def test_a_worker_that_is_started_again_is_told_again(
    in_etcd: DirectoryConfig, run_in_loop: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        with worker(tmp_path / "notes") as child:
            async with member(in_etcd, [child]) as (_, _, others):
                one = await others.register("r1", node_of("r1"), 5)
                for times in (1, 2):
                    running = asyncio.create_task(child.run_once(times))
                    await until(lambda many=times: told(tmp_path / "notes").count(["r1"]) == many, "told")  # type: ignore[misc]
                    assert child.current is not None
                    child.current.kill()
                    async with asyncio.timeout(DEADLINE_S):
                        assert await running == -signal.SIGKILL
                await one.close()

    run_in_loop(scenario())


def test_workers_of_an_evacuated_region_send_their_clients_away_until_it_is_restored(
    in_etcd: DirectoryConfig, run_in_loop: Any, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    orders = tmp_path / "notes.away"

    async def scenario() -> None:
        with worker(notes) as child:
            async with member(in_etcd, [child], "eu") as (_, view, others):
                await shown(view, lambda: view.view.nodes.get("a.gw").revision > 0)
                assert view.view.region_of("a.gw") == "eu"
                address = json.dumps({"clients": "wss://us/ws"})
                other = await others.register("u.gw", encode(NodeRecord(0, address, "us")), 5)
                running = asyncio.create_task(child.run_once(1))
                await until(lambda: told(notes) != [], "it is told of routers")
                assert told(orders) == [], "nothing is said while nothing is wanted"
                order = Claim("regions/eu", 0, encode(RegionRecord("op", 1, 8)))
                (won,) = await others.transact([order])
                assert isinstance(won, Won)
                await until(lambda: told(orders) != [], "it is told to send its clients away")
                assert told(orders)[-1:] == [{"targets": [["wss://us/ws", ""]], "pace": 8.0}]
                await others.transact([Claim("regions/eu", won.revision, None)])
                await until(lambda: told(orders)[-1] is None, "it is told to keep them")
                await other.close()
                child.send(signal.SIGTERM)
                async with asyncio.timeout(DEADLINE_S):
                    assert await running == 0

    run_in_loop(scenario())


def test_a_node_of_another_number_of_shards_is_not_registered_and_its_workers_are_told_of_nobody(
    in_etcd: DirectoryConfig, run_in_loop: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        others = make_directory(in_etcd)
        await agree(others, in_etcd.shards * 2)
        with worker(tmp_path / "notes") as child:
            async with member(in_etcd, [child]) as (membership, _, _):
                one = await others.register("r1", node_of("r1"), 5)
                running = asyncio.create_task(child.run_once(1))
                await until(lambda: child.current is not None and child.current.is_ready, "the worker is there")
                await until(lambda: "directory.shards" in str(logged), "said")
                (missing,) = membership.missing()
                assert missing.startswith("directory: a.gw is not registered: this cluster has")
                assert told(tmp_path / "notes") == []
                child.send(signal.SIGTERM)
                async with asyncio.timeout(DEADLINE_S):
                    assert await running == 0
                await one.close()
        await others.close()

    with capture_logs() as logged:
        run_in_loop(scenario())


def test_workers_are_not_told_of_routers_whose_bus_has_other_keys(
    in_etcd: DirectoryConfig, run_in_loop: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        with worker(tmp_path / "notes") as child:
            async with member(in_etcd, [child]) as (membership, _, others):
                address = json.dumps({"bus": "tcp://r1:7410", "key": "k" * 40})
                stranger = await others.register("r1", encode(NodeRecord(1, address)), 5)
                await until(lambda: bool(membership.missing()), "it is not ready")
                await until(lambda: "bus.public_key" in "".join(membership.missing()), "why is said")
                other = await others.register("r2", node_of("r2"), 5)
                running = asyncio.create_task(child.run_once(1))
                await until(lambda: told(tmp_path / "notes")[-1:] == [["r2"]], "told of the other")
                assert not membership.missing()
                child.send(signal.SIGTERM)
                async with asyncio.timeout(DEADLINE_S):
                    assert await running == 0
                await stranger.close()
                await other.close()

    run_in_loop(scenario())


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ('{"at":"elsewhere:7402"}', "another node named a.gw"),
        ('{"admin":"http://a:7402","start":"elsewhere/pid:[1]/1/1"}', "another start of this node"),
    ],
)
def test_the_second_node_of_a_name_waits_until_the_first_has_ended(
    in_etcd: DirectoryConfig, run_in_loop: Any, address: str, why: str
) -> None:
    async def scenario() -> None:
        first = make_directory(in_etcd)
        there = await first.register("a.gw", encode(NodeRecord(0, address)), 2)
        async with member(in_etcd, []) as (membership, _, _):
            await until(lambda: why in "".join(membership.missing()), "why is said")
            assert not there.lost.is_set()
            await there.close()
            await until(lambda: membership.epoch > 0, "registered")
            assert membership.missing() == []
        await first.close()

    run_in_loop(scenario())
