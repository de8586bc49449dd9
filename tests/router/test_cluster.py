"""Routers over one directory share its shards, take over from each other, hand over, and tidy up."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from core.owned import ACCOUNT
from core.shards import COUNT_MAX
from router import cluster as cluster_module
from router.agreement import start_here
from router.cluster import Cluster, LeaseOver, view_alone
from router.directory.embedded import EmbeddedDirectory, Store
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_config import EtcdConfig
from router.directory.port import Claim, NotAllowed
from router.loads import LOADS, Load, Other, read
from router.shards.owners import Owner, prefix_of
from router.shards.records import (
    REGIONS,
    CordonRecord,
    MoveRecord,
    NodeRecord,
    PublishersRecord,
    RegionRecord,
    encode,
)
from tests.router.units import DEADLINE_S, QUICK, SHARDS, Logs, MemoryLog, Unit, know_each_other, share, until
from tests.servers import etcd

Make = Callable[..., Awaitable[Unit]]
Body = Callable[[Make, Store], Awaitable[None]]


@contextlib.asynccontextmanager
async def units(store: Store, logs: Logs) -> AsyncIterator[Make]:
    """Makes routers that end with the test."""
    made: list[Unit] = []

    async def make(node: str, **settings: Any) -> Unit:
        unit = Unit(node, EmbeddedDirectory(store), MemoryLog(logs), **settings)
        made.append(unit)
        know_each_other(*made)
        return await unit.start()

    try:
        yield make
    finally:
        for one in made:
            await one.end()


def run(body: Body) -> None:
    async def limited() -> None:
        store = Store()
        async with asyncio.timeout(DEADLINE_S), units(store, Logs()) as make:
            await body(make, store)

    before = set(ACCOUNT.held)
    asyncio.run(limited())
    assert not {one.name for one in ACCOUNT.held - before}


def test_routers_share_all_shards_by_weight_and_each_is_led_once() -> None:
    async def body(make: Make, store: Store) -> None:
        one = await make("a")
        await until(lambda: share([one]) == [SHARDS], "the first has all")
        other = await make("b", weight=3)
        await until(lambda: share([one, other]) == [SHARDS // 4, SHARDS * 3 // 4], "they share by weight")
        third = await make("c", weight=4)
        await until(lambda: share([one, other, third]) == [1, 3, 4], "three share")
        assert all(one.keeper.machine.held for one in (one, other, third))

    run(body)


def test_a_router_of_a_name_that_lives_elsewhere_waits_and_takes_nothing_from_it() -> None:
    async def body(make: Make, store: Store) -> None:
        one = await make("a")
        directory, waits = EmbeddedDirectory(store), asyncio.Queue[str]()
        config = one.cluster._config  # the same but for its address
        other = Cluster("a", replace(config, address="elsewhere"), directory, one.keeper, lambda: one.plane.counts)
        opening = asyncio.create_task(other.open(waits.put_nowait))
        async with asyncio.timeout(DEADLINE_S):
            assert "another node named a is registered" in await waits.get()
        assert one.running is not None
        assert not one.running.done()
        opening.cancel()
        await asyncio.wait([opening], timeout=DEADLINE_S)
        await other.close()

    run(body)


def test_a_router_that_is_started_twice_waits_until_the_first_has_ended() -> None:
    async def body(make: Make, store: Store) -> None:
        one = await make("b")
        config = one.cluster._config
        directory, waits = EmbeddedDirectory(store), asyncio.Queue[str]()
        told = {"bus": "tcp://10.0.0.5:7410", "start": start_here()}
        first = await directory.register("a", encode(NodeRecord(1, json.dumps(told))), 60)
        again = replace(config, address=json.dumps(told | {"start": "another/pid:[1]/1/1"}))
        other = Cluster("a", again, directory, one.keeper, lambda: one.plane.counts)
        opening = asyncio.create_task(other.open(waits.put_nowait))
        async with asyncio.timeout(DEADLINE_S):
            assert "another start of this node is registered" in await waits.get()
        assert not first.lost.is_set()
        opening.cancel()
        await asyncio.wait([opening], timeout=DEADLINE_S)
        await first.close()
        await other.close()

    run(body)


def test_what_a_router_led_whose_lease_ends_is_led_by_the_others_and_it_has_to_end() -> None:
    async def body(make: Make, store: Store) -> None:
        one, other, third = await make("a"), await make("b"), await make("c")
        await until(lambda: min(share([one, other, third]) or [0]) >= SHARDS // 3, "all lead")
        store.remove("nodes/b")
        assert other.running is not None
        with pytest.raises(LeaseOver, match=r"the lease of b, epoch \d+, has ended"):
            await other.running
        assert other.plane.hold == 0.0
        assert other.plane.led == {}
        await until(lambda: share([one, third]), "the others lead all")
        again = await make("b")
        await until(lambda: min(share([one, again, third]) or [0]) >= SHARDS // 3, "it has its share again")

    run(body)


def test_a_router_that_is_killed_is_followed_when_its_lease_ends() -> None:
    async def body(make: Make, store: Store) -> None:
        one, other = await make("a"), await make("b")
        await until(lambda: share([one, other]) == [4, 4], "both lead")
        assert other.running is not None
        other.running.cancel()
        registration = other.cluster._registration
        registration._keeper.cancel()  # type: ignore[union-attr]
        await until(lambda: one.keeper.held() == list(range(SHARDS)), "the other leads all")
        await until(lambda: share([one]) == [SHARDS], "and sequences for them")
        assert other.plane.leads_now() == [], "the killed one's bound was over before"

    run(body)


def test_a_router_that_leaves_hands_over_all_it_has() -> None:
    async def body(make: Make, store: Store) -> None:
        one, other, third = await make("a"), await make("b"), await make("c")
        await until(lambda: min(share([one, other, third]) or [0]) >= SHARDS // 3, "all lead")
        assert await other.cluster.leave(DEADLINE_S)
        assert other.plane.led == {}
        await until(lambda: share([one, third]) == [4, 4], "the others have them")
        hows = {one["how"] for one in (await one.cluster.view())["shards"]}
        assert "taken" not in hows
        [leaving] = [one for one in (await one.cluster.view())["routers"] if one["name"] == "b"]
        assert (leaving["leaving"], leaving["cordoned"], leaving["shards"]) == (True, True, 0)

    run(body)


def test_the_last_router_has_nobody_to_wait_for() -> None:
    async def body(make: Make, store: Store) -> None:
        one, other = await make("a"), await make("b")
        await until(lambda: share([one, other]) == [4, 4], "both lead")
        assert await other.cluster.leave(DEADLINE_S)
        await until(lambda: share([one]) == [SHARDS], "the other has all")
        assert not await one.cluster.leave(DEADLINE_S)
        assert share([one]) == [SHARDS]

    run(body)


def test_leaving_ends_with_its_deadline() -> None:
    async def body(make: Make, store: Store) -> None:
        one, other = await make("a"), await make("b")
        await until(lambda: share([one, other]) == [4, 4], "both lead")
        other.flushes = False
        assert not await other.cluster.leave(0.05)
        assert other.keeper.machine.held

    run(body)


def test_a_cordon_of_an_operator_outlives_a_leave() -> None:
    async def body(make: Make, store: Store) -> None:
        one, other = await make("a"), await make("b")
        await until(lambda: share([one, other]) == [4, 4], "both lead")
        assert await one.keeper.cordon("b", on=True) == ""
        await until(lambda: share([one, other]) == [SHARDS, 0], "it has none")
        assert await other.cluster.leave(DEADLINE_S)
        stands = (await one.directory.read("cordons/")).items["cordons/b"]
        assert stands.value == encode(CordonRecord(0))
        assert await one.keeper.cordon("b", on=False) == ""
        await until(lambda: share([one, other]) == [4, 4], "it has its share again")

    run(body)


def test_operators_see_who_leads_what_and_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "LOADS_S", 0.1)

    async def body(make: Make, store: Store) -> None:
        one, other = await make("a"), await make("b")
        await until(lambda: share([one, other]) == [4, 4], "both lead")
        shard = other.plane.leads_now()[0]
        assert await one.keeper.move(shard, "a") == ""
        await until(lambda: shard in one.plane.leads_now(), "it is moved")
        rest = iter(range(10, 10_000, 10))
        loads: dict[int, float] = {}
        while shard not in loads or not loads[shard]:
            one.plane.counts = [next(rest)] * SHARDS
            await asyncio.sleep(0.05)
            loads = await other.cluster.loads()
        view = await other.cluster.view()
        assert view["node"] == "b"
        assert view["pins"] == {str(shard): "a"}
        assert view["moves"] == []
        assert view["directory"] == {"answers": True}
        assert [entry["shard"] for entry in view["shards"]] == list(range(SHARDS))
        entry = view["shards"][shard]
        assert (entry["leader"], entry["wanted"], entry["how"]) == ("a", "a", "handed")
        assert entry["epoch"] > 1
        first, second = view["routers"]
        assert (first["name"], first["address"], first["weight"], first["cordoned"]) == ("a", "at a", 1, False)
        assert first["shards"] + second["shards"] == SHARDS
        assert first["load"] > 0

    run(body)


def test_how_far_other_regions_are_stands_beside_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "LOADS_S", 0.05)
    us = Other(True, {3: (2, 1.5)}, 0, 0)

    async def body(make: Make, store: Store) -> None:
        one, other = await make("a", others=lambda: {"us": us}), await make("b")
        found: dict[str, Load] = {}
        while found.keys() != {"a", "b"}:
            await asyncio.sleep(0.01)
            found = await read(other.directory, other.keeper.machine.view.alive)
        assert found["a"].epoch == one.keeper.machine.epoch
        assert found["a"].others == {"us": us}
        assert found["b"].others == {}

    run(body)


def test_routers_that_go_by_another_placement_are_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster_module, "LOADS_S", 0.01)

    def at(placement: str) -> str:
        return json.dumps({"bus": "tcp://10.0.0.5:7410", "placement": placement})

    async def body(make: Make, store: Store) -> None:
        one, _, other = [
            await make(name, address=at(text)) for name, text in zip("abc", ("eu", "eu", "us"), strict=True)
        ]
        said = "directory.placement is eu here, and us at c: a shard on which routers do not agree stays"
        await until(lambda: said in caplog.text, "it is said")
        revision = (await one.directory.read(LOADS)).revision
        while (await one.directory.read(LOADS)).revision < revision + 9:  # noqa: ASYNC110  three rounds of all three
            await asyncio.sleep(0.01)
        assert caplog.text.count(said) == 2, "by a and by b"
        assert caplog.text.count("is us here, and eu at a, eu at b:") == 1
        await other.end()
        await until(lambda: not one.cluster._placements, "they agree")

    run(body)


def test_what_nodes_that_are_over_left_is_removed_and_nothing_else() -> None:
    async def body(make: Make, store: Store) -> None:
        one, other = await make("a"), await make("b")
        await until(lambda: share([one, other]) == [4, 4], "both lead")
        over, lives = other.keeper.machine.epoch, one.keeper.machine.epoch
        loads = b"\x93\x01" + b"\xcd" + over.to_bytes(2, "big") + b"\x80"
        await one.directory.transact(
            [
                Claim(f"{LOADS}gone", 0, loads),
                Claim(f"{LOADS}later", 0, b"what a later version writes"),
                Claim("moves/gone", 0, encode(MoveRecord(over, 1, 1))),
                Claim("moves/there", 0, encode(MoveRecord(lives, 1, 1))),
                Claim("cordons/gone", 0, encode(CordonRecord(over))),
                Claim("cordons/for-ever", 0, encode(CordonRecord(0))),
            ]
        )
        assert await one.cluster.tidy() == 0, "its node lives"
        store.remove("nodes/b")
        view = one.keeper.machine.view
        await until(lambda: view.over(over) and view.cordons.get("gone").revision, "the end is known")
        assert await one.cluster.tidy() >= 3
        left = {*store.select(LOADS).items, *store.select("moves/").items, *store.select("cordons/").items}
        assert {f"{LOADS}later", "moves/there", "cordons/for-ever"} <= left
        assert not any("gone" in key for key in left)

    run(body)


def test_sessions_of_nodes_that_are_over_are_swept_by_whoever_leads_their_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "SWEEP_S", 0.001)

    async def body(make: Make, store: Store) -> None:
        one = await make("a")
        await until(lambda: share([one]), "all are led")
        over = Owner("s", "u", "", "gone", 1, 0, 0)
        lives = over._replace(node="a", node_epoch=one.keeper.machine.epoch)
        claims = [Claim(f"{prefix_of(shard)}{name}", 0, encode(who)) for shard in range(SHARDS)
                  for name, who in (("over", over), ("lives", lives))]  # fmt: skip
        claims.append(Claim(f"{prefix_of(1)}later", 0, b"what a later version writes"))
        await one.directory.transact(claims)
        await until(lambda: len(store.select("sessions/").items) == SHARDS + 1, "they are swept")
        assert f"{prefix_of(1)}later" in store.select("sessions/").items

    run(body)


def test_a_directory_that_is_away_at_the_start_is_waited_for() -> None:
    async def body(make: Make, store: Store) -> None:
        waits: list[str] = []
        store.here.clear()
        unit = Unit("x", EmbeddedDirectory(store, deadline_s=0.01))
        opening = asyncio.create_task(unit.cluster.open(waits.append))
        await until(lambda: waits, "it says so")
        store.here.set()
        await opening
        assert waits == ["its directory is away: the directory is away"]
        await unit.end()

    run(body)


def test_a_watch_that_breaks_off_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "RETRY_S", 0.01)

    class Breaks(EmbeddedDirectory):
        broken = 0

        async def watch(self, prefix: str, revision: int):  # type: ignore[no-untyped-def]
            async for one in super().watch(prefix, revision):
                if not self.broken:
                    self.broken += 1
                    raise NotAllowed("not now")
                yield one

    async def body(make: Make, store: Store) -> None:
        directory = Breaks(store)
        unit = await Unit("a", directory).start()
        await until(lambda: share([unit]), "all are led")
        assert directory.broken == 1
        await unit.end()

    run(body)


def test_alone_it_is_said_in_the_same_words() -> None:
    async def body(make: Make, store: Store) -> None:
        one = await make("a")
        await until(lambda: share([one]), "all are led")
        among, alone = await one.cluster.view(), view_alone("n", 7)
        assert among.keys() == alone.keys()
        assert among["shards"][0].keys() == alone["shards"][0].keys()
        assert among["routers"][0].keys() == alone["routers"][0].keys()
        assert len(alone["shards"]) == COUNT_MAX

    run(body)


_prefixes = itertools.count(1)


def test_over_etcd_routers_share_hand_over_and_take_over() -> None:
    async def body(member: etcd.Member) -> None:
        config = EtcdConfig(endpoints=(member.endpoint,), prefix=f"cluster{next(_prefixes)}/")
        logs = Logs()
        made = [Unit(name, EtcdDirectory(config), MemoryLog(logs), settings=QUICK, ttl_s=2) for name in "abc"]
        know_each_other(*made)
        for one in made:
            await one.start()
        await until(lambda: min(share(made) or [0]) >= SHARDS // 3, "three share")
        assert await made[1].cluster.leave(DEADLINE_S)
        await made[1].end()
        rest = [made[0], made[2]]
        await until(lambda: share(rest) == [4, 4], "two share")
        assert rest[1].running is not None
        rest[1].running.cancel()
        rest[1].cluster._registration._keeper.cancel()  # type: ignore[union-attr]
        await until(lambda: share(rest[:1]) == [SHARDS], "one has all")
        for one in rest:
            await one.end()

    async def limited(member: etcd.Member) -> None:
        async with asyncio.timeout(2 * DEADLINE_S):
            await body(member)

    with etcd.running() as member:
        asyncio.run(limited(member))


def test_the_leader_writes_down_where_a_shards_publishers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.cluster.LOADS_S", 0.02)

    async def body(make: Make, store: Store) -> None:
        counts = {"us": [0] * SHARDS}
        unit = await make("a", publishers=lambda: counts)
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        counts["us"][2] = 1_000
        view = unit.keeper.machine.view
        await until(lambda: view.publishers.get("2").record == PublishersRecord("us"), "it is written")
        assert [name for name, _ in view.publishers.items()] == ["2"]

    run(body)


def test_operators_see_which_regions_are_evacuated() -> None:
    async def body(make: Make, store: Store) -> None:
        unit = await make("a", region="eu")
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        assert (await unit.cluster.view())["regions"] == {}
        directory = EmbeddedDirectory(store)
        await directory.transact([Claim(f"{REGIONS}eu", 0, encode(RegionRecord("somebody", 5, 9)))])
        await directory.close()
        await until(lambda: unit.keeper.machine.view.evacuated("eu"), "it is seen")
        told = await unit.cluster.view()
        assert told["regions"] == {"eu": {"by": "somebody", "since_ms": 5, "pace": 9}}
        assert told["routers"][0]["region"] == "eu"

    run(body)
