"""What the supervisor knows of the cluster, from a real directory."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.cluster_view import ClusterView
from router.config import DirectoryConfig
from router.directory.etcd import EtcdDirectory
from router.directory.opening import make_directory
from router.directory.port import Claim, Registration, Won
from router.loads import LOADS, Load, Other, pack
from router.shards.placement import follower
from router.shards.records import CordonRecord, NodeRecord, PinRecord, ShardRecord, encode
from tests.servers import etcd

DEADLINE_S = 30.0


@asynccontextmanager
async def viewed(config: DirectoryConfig) -> AsyncIterator[tuple[ClusterView, EtcdDirectory]]:
    """A view, and the directory that others write to."""
    directory, others = make_directory(config), make_directory(config)
    view = ClusterView(directory, config.shards, probe_s=0.1)
    view.start()
    try:
        assert await view.until_ready(DEADLINE_S)
        yield view, others
    finally:
        await view.close()
        await others.close()
        await directory.close()


async def shown(view: ClusterView, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; each change asks for it."""
    news = asyncio.Event()
    view.on_change.append(news.set)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await news.wait()
                news.clear()
    finally:
        view.on_change.remove(news.set)


def node_of(name: str, weight: int = 1, region: str = "") -> bytes:
    return encode(NodeRecord(weight, json.dumps({"bus": f"tcp://{name}:7410"}), region))


async def lead(directory: EtcdDirectory, shard: int, registration: Registration, epoch: int = 1) -> None:
    identity = registration.identity
    record = ShardRecord(identity.node, identity.epoch, epoch, "claimed")
    (result,) = await directory.transact([Claim(f"shards/{shard}", 0, encode(record), identity)])
    assert isinstance(result, Won)


def test_routers_come_and_go_and_gateways_are_none(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, others):
            assert view.routers() == ()
            one = await others.register("a", node_of("a"), 5)
            workers = await others.register("a.gw", encode(NodeRecord(0, "{}")), 5)
            await shown(view, lambda: len(list(view.view.nodes.items())) == 2)
            (link,) = view.routers()
            assert (link.name, link.epoch, link.bus) == ("a", one.identity.epoch, "tcp://a:7410")
            await one.close()
            await shown(view, lambda: not view.routers())
            await workers.close()

    run_in_loop(scenario())


def test_who_leads_what_and_where_it_is_to_be(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, others):
            one = await others.register("a", node_of("a"), 5)
            for shard in range(4):
                await lead(others, shard, one)
            await shown(view, lambda: view.leaders() == ["a"] * 4)
            assert view.wanted() == ["a"] * 4
            other = await others.register("b", node_of("b"), 5)
            await shown(view, lambda: view.wanted().count("b") == 2)
            kept = view.wanted().index("a")
            await others.transact([Claim(f"pins/{kept}", 0, encode(PinRecord("b")))])
            await shown(view, lambda: view.wanted()[kept] == "b")
            await others.transact([Claim("cordons/a", 0, encode(CordonRecord(0)))])
            await shown(view, lambda: view.wanted() == ["b"] * 4)
            await one.close()
            await shown(view, lambda: view.leaders() == [None] * 4)
            record = view.record(0)
            assert record is not None
            assert record.node == "a"
            assert view.leader(0) is None
            await other.close()

    run_in_loop(scenario())


def test_who_follows_what_is_led_elsewhere_goes_by_the_regions_of_which_its_leader_tells(
    in_etcd: DirectoryConfig, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, others):
            regions = {"a": "eu", "u": "us", "v": "us"}
            nodes = {name: await others.register(name, node_of(name, 1, region), 5) for name, region in regions.items()}
            for shard in range(3):
                await lead(others, shard, nodes["a" if shard else "u"])
            await shown(view, lambda: view.leaders() == ["u", "a", "a", None] and len(view.routers()) == 3)
            epoch = view.view.nodes.get("a").revision
            load = Load(epoch, {1: 2.0}, {"us": Other(False, {1: (3, 0.5)}, 1, 0), "ap": Other(True, {}, 0, 0)})
            await others.transact([Claim(LOADS + "a", 0, pack(*load)), Claim(LOADS + "gone", 0, pack(1, {}, {}))])
            assert await view.loads(DEADLINE_S) == {"a": load}
            assert view.followers({"a": load}) == [
                {},
                *({"us": follower(shard, {"u": 1, "v": 1}), "ap": None} for shard in (1, 2)),
                {},
            ]
            for node in nodes.values():
                await node.close()

    run_in_loop(scenario())


def test_a_directory_that_comes_later_is_read_then(run_in_loop: Any) -> None:
    """Nothing is known while it is away, and that it is away is known."""
    with etcd.running() as member:
        config = DirectoryConfig(endpoints=(member.endpoint,), prefix="late/", shards=4)
        member.kill()

        async def scenario() -> None:
            directory = make_directory(config)
            view = ClusterView(directory, config.shards, probe_s=0.1)
            view.start()
            assert not view.view.ready()
            await asyncio.to_thread(member.start)
            assert await view.until_ready(DEADLINE_S)
            assert view.reachable().answers
            await view.close()
            await directory.close()

        run_in_loop(scenario())


def test_a_directory_that_comes_back_from_an_earlier_time_is_read_anew(run_in_loop: Any) -> None:
    """As after its data were lost: its revisions begin again."""
    with etcd.running() as member:
        config = DirectoryConfig(endpoints=(member.endpoint,), prefix="back/", shards=4)

        def empty() -> None:
            member.kill()
            shutil.rmtree(member.folder / "data")
            member.start()

        async def scenario() -> None:
            async with viewed(config) as (view, others):
                for _ in range(20):  # revisions that the emptied one is long without
                    await (await others.register("a", node_of("a"), 5)).close()
                before = await others.register("a", node_of("a"), 5)
                await shown(view, lambda: [link.name for link in view.routers()] == ["a"])
                await asyncio.to_thread(empty)
                other = make_directory(config)
                there = await other.register("b", node_of("b"), 5)
                await shown(view, lambda: [link.name for link in view.routers()] == ["b"])
                await there.close()
                await before.close()
                await other.close()

        run_in_loop(scenario())


def test_what_cannot_be_read_is_said_and_left_alone(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with viewed(in_etcd) as (view, others):
            await others.transact([Claim("shards/1", 0, b"?")])
            await shown(view, lambda: view.view.shards.get("1").revision > 0)
            assert view.leaders() == [None] * 4

    run_in_loop(scenario())
