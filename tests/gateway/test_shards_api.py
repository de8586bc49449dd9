"""Shards over HTTP, over a real directory: what is shown, what is written down, and what is refused."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import msgpack
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.cluster_view import ClusterView
from gateway.errors import RequestError
from gateway.shards_api import alone, routes
from router.config import DirectoryConfig
from router.directory.etcd import EtcdDirectory
from router.directory.opening import make_directory
from router.directory.port import Claim
from router.loads import Other, pack
from router.shards.records import CordonRecord, NodeRecord, PinRecord, decode, encode
from tests.gateway.test_cluster_view import lead, node_of, shown, viewed
from tests.router.directory.conftest import in_a_hurry
from tests.servers import etcd

TOKEN = "t" * 16
URL = "http://127.0.0.1"


@asynccontextmanager
async def asking(cluster: ClusterView | None) -> AsyncIterator[httpx.AsyncClient]:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse({"code": error.code, "message": error.message}, error.status)

    app = Starlette(routes=routes(TOKEN, "a", cluster), exception_handlers={RequestError: refuse})
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=URL, headers=headers) as client:
        yield client


@asynccontextmanager
async def two_routers(config: DirectoryConfig) -> AsyncIterator[tuple[ClusterView, EtcdDirectory, httpx.AsyncClient]]:
    """Routers a and b, of which a leads shards 0 to 2 of four, and workers at a."""
    async with viewed(config) as (view, others):
        one, other = [await others.register(name, node_of(name), 5) for name in ("a", "b")]
        workers = await others.register("a.gw", encode(NodeRecord(0, "{}")), 5)
        for shard in range(3):
            await lead(others, shard, one)
        await shown(view, lambda: view.leaders() == ["a", "a", "a", None] and len(view.routers()) == 2)
        await shown(view, lambda: view.view.nodes.get("a.gw").revision > 0)
        async with asking(view) as client:
            yield view, others, client
        for registration in (one, other, workers):
            await registration.close()


def test_the_answer_says_who_leads_what_and_what_is_to_come(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, _, client):
            answer = await client.get("/api/shards")
            assert answer.status_code == 200
            told = answer.json()
            assert (told["node"], told["reachable"], told["unled"]) == ("a", True, 1)
            assert [(one["name"], one["leads"], one["wanted"], one["cordoned"]) for one in told["routers"]] == [
                ("a", 3, 2, False),
                ("b", 0, 2, False),
            ]
            assert [one["name"] for one in told["gateways"]] == ["a"]
            assert [one["leader"] for one in told["shards"]] == view.leaders()
            assert [one["wanted"] for one in told["shards"]] == view.wanted()
            assert told["shards"][0] | {"wanted": "?"} == {
                "shard": 0,
                "leader": "a",
                "wanted": "?",
                "pinned": None,
                "epoch": 1,
                "how": "claimed",
                "load": 0.0,
                "followers": {},
            }
            assert set(told) == set(alone("a"))
            for part in ("routers", "gateways", "shards"):
                assert set(told[part][0]) == set(alone("a")[part][0])  # type: ignore[index]

    run_in_loop(scenario())


def test_loads_are_those_that_living_routers_wrote(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            epoch = view.view.nodes.get("a").revision
            for name, whose, rates in (("a", epoch, {0: 3.04, 2: 4.0}), ("gone", 1, {1: 9.0})):
                value = msgpack.packb([1, whose, rates])
                await others.transact([Claim(f"loads/{name}", 0, value)])
            told = (await client.get("/api/shards")).json()
            assert [shard["load"] for shard in told["shards"]] == [3.0, 0.0, 4.0, 0.0]
            assert [router["load"] for router in told["routers"]] == [7.0, 0.0]

    run_in_loop(scenario())


def test_who_follows_a_shard_and_how_far_that_is_stands_beside_it(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            there = await others.register("u", node_of("u", 1, "us"), 5)
            await shown(view, lambda: len(view.routers()) == 3)
            us = Other(False, {1: (3, 0.5), 2: (0, 0.0)}, 7, 0)
            epoch = view.view.nodes.get("a").revision
            await others.transact([Claim("loads/a", 0, pack(epoch, {}, {"us": us}))])
            told = (await client.get("/api/shards")).json()
            followed = [
                {"us": {"router": "u", "lag_entries": entries, "lag_seconds": seconds}}
                for entries, seconds in ((0, 0.0), (3, 0.5), (0, 0.0))
            ]
            assert [shard["followers"] for shard in told["shards"]] == [*followed, {}]
            assert [router["follows"] for router in told["routers"]] == [7, 0, 0]
            await there.close()

    run_in_loop(scenario())


def test_who_leaves_is_told_from_who_is_cordoned(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            epoch = view.view.nodes.get("a").revision
            await others.transact([Claim("cordons/a", 0, encode(CordonRecord(epoch)))])
            await shown(view, lambda: view.view.cordons.get("a").revision > 0)
            told = (await client.get("/api/shards")).json()["routers"]
            assert [(router["cordoned"], router["leaving"]) for router in told] == [(True, True), (False, False)]

    run_in_loop(scenario())


def test_a_move_is_a_pin_until_it_is_lifted(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            answer = await client.post("/api/shards/move", json={"shard": 1, "to": "b"})
            assert (answer.status_code, answer.json()) == (202, {"shard": 1, "to": "b", "leader": "a"})
            pin = (await others.read("pins/")).items["pins/1"]
            assert decode(PinRecord, pin.value) == PinRecord("b")
            await shown(view, lambda: view.wanted()[1] == "b")
            assert (await client.get("/api/shards")).json()["shards"][1]["pinned"] == "b"
            for _ in range(2):  # lifted once, and not there any more
                assert (await client.post("/api/shards/move", json={"shard": 1, "to": None})).status_code == 202
            assert (await others.read("pins/")).items == {}

    run_in_loop(scenario())


def test_a_change_by_somebody_else_is_written_over(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    """What this node knows of a key may be late; an operator's last word counts."""

    async def scenario() -> None:
        async with two_routers(in_etcd) as (_, others, client):
            await others.transact([Claim("pins/2", 0, encode(PinRecord("a")))])
            assert (await client.post("/api/shards/move", json={"shard": 2, "to": "b"})).status_code == 202
            pin = (await others.read("pins/")).items["pins/2"]
            assert decode(PinRecord, pin.value) == PinRecord("b")

    run_in_loop(scenario())


def test_a_cordon_stays_until_it_is_lifted(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            answer = await client.post("/api/shards/cordon", json={"node": "a", "on": True})
            assert (answer.status_code, answer.json()) == (202, {"node": "a", "cordoned": True, "leads": 3})
            cordon = (await others.read("cordons/")).items["cordons/a"]
            assert decode(CordonRecord, cordon.value) == CordonRecord(0)
            await shown(view, lambda: view.wanted() == ["b"] * 4)
            assert [one["cordoned"] for one in (await client.get("/api/shards")).json()["routers"]] == [True, False]
            assert (await client.post("/api/shards/cordon", json={"node": "a", "on": False})).status_code == 202
            assert (await others.read("cordons/")).items == {}
            answer = await client.post("/api/shards/cordon", json={"node": "gone", "on": False})
            assert (answer.status_code, answer.json()["code"]) == (404, "no_such_node")

    run_in_loop(scenario())


def test_what_was_written_through_another_node_is_taken_away_and_known_at_once(
    in_etcd: DirectoryConfig, run_in_loop: Any
) -> None:
    """No watch has told this node of it yet, nor of its own word when it is asked what stands."""

    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            await view.close()  # it hears of nothing any more
            cordon = encode(CordonRecord(0))
            written = {"cordons/a": cordon, "cordons/gone": cordon, "pins/1": encode(PinRecord("b"))}
            await others.transact([Claim(key, 0, value) for key, value in written.items()])
            for node in ("a", "gone"):
                assert (await client.post("/api/shards/cordon", json={"node": node, "on": False})).status_code == 202
            assert (await client.post("/api/shards/move", json={"shard": 1, "to": None})).status_code == 202
            assert (await others.read("pins/")).items == (await others.read("cordons/")).items == {}
            assert (await client.post("/api/shards/move", json={"shard": 2, "to": "b"})).status_code == 202
            assert (await client.post("/api/shards/cordon", json={"node": "a", "on": True})).status_code == 202
            told = (await client.get("/api/shards")).json()
            assert [shard["pinned"] for shard in told["shards"]] == [None, None, "b", None]
            assert [router["cordoned"] for router in told["routers"]] == [True, False]

    run_in_loop(scenario())


@pytest.mark.parametrize(("leaves", "said"), [(False, "a is cordoned (`holdfast uncordon a`"), (True, "since it ends")])
def test_nothing_is_moved_to_a_router_that_takes_nothing(
    in_etcd: DirectoryConfig, run_in_loop: Any, leaves: bool, said: str
) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            epoch = view.view.nodes.get("a").revision
            await others.transact([Claim("cordons/a", 0, encode(CordonRecord(epoch if leaves else 0)))])
            await shown(view, lambda: view.view.cordoned("a"))
            answer = await client.post("/api/shards/move", json={"shard": 0, "to": "a"})
            assert answer.status_code == 400
            assert said in answer.json()["message"]
            assert "those that take shards are b" in answer.json()["message"]

    run_in_loop(scenario())


def test_a_router_on_its_way_out_gets_nothing_back(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            epoch = view.view.nodes.get("a").revision
            await others.transact([Claim("cordons/a", 0, encode(CordonRecord(epoch)))])
            await shown(view, lambda: view.view.cordoned("a"))
            answer = await client.post("/api/shards/cordon", json={"node": "a", "on": False})
            assert (answer.status_code, answer.json()["code"]) == (409, "leaving")
            assert list((await others.read("cordons/")).items) == ["cordons/a"]

    run_in_loop(scenario())


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("move", {"shard": 4, "to": "b"}, 400, "there is no shard 4: they are 0 to 3"),
        ("move", {"shard": 0, "to": "c"}, 400, "'c' is no router that takes shards: those that take shards are a, b"),
        ("move", {"shard": 0, "to": "g"}, 400, "g has workers, but no router: those that take shards are a, b"),
        ("move", {"shard": 0}, 400, "expected"),
        ("cordon", {"node": "c", "on": True}, 404, "'c' is no router that is there: these are a, b"),
        ("cordon", {"node": "a.gw", "on": True}, 404, "'a.gw' is no router"),
        ("cordon", {"node": "a"}, 400, "expected"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    in_etcd: DirectoryConfig, run_in_loop: Any, path: str, body: dict[str, object], status: int, said: str
) -> None:
    async def scenario() -> None:
        async with two_routers(in_etcd) as (view, others, client):
            workers = await others.register("g.gw", encode(NodeRecord(0, "{}")), 5)
            await shown(view, lambda: view.view.nodes.get("g.gw").revision > 0)
            answer = await client.post(f"/api/shards/{path}", json=body)
            await workers.close()
            assert answer.status_code == status
            assert said in answer.json()["message"]
            assert (await others.read("pins/")).items == (await others.read("cordons/")).items == {}

    run_in_loop(scenario())


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/move"), ("POST", "/cordon")])
def test_nobody_without_the_token_may(run_in_loop: Any, method: str, path: str) -> None:
    async def scenario() -> None:
        async with asking(None) as client:
            answer = await client.request(method, f"/api/shards{path}", json={}, headers={"Authorization": "Bearer x"})
            assert answer.status_code == 401

    run_in_loop(scenario())


def test_a_node_without_a_directory_says_so(run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with asking(None) as client:
            told = (await client.get("/api/shards")).json()
            assert [router["name"] for router in told["routers"]] == ["a"]
            assert {shard["leader"] for shard in told["shards"]} == {"a"}
            answer = await client.post("/api/shards/move", json={"shard": 0, "to": None})
            assert (answer.status_code, answer.json()["code"]) == (404, "no_directory")

    run_in_loop(scenario())


def test_while_the_directory_is_away_what_was_known_is_shown_and_nothing_is_written(run_in_loop: Any) -> None:
    with etcd.running() as member:
        config = DirectoryConfig(endpoints=(member.endpoint,), prefix="away/", ttl_s=5, shards=4)

        async def scenario() -> None:
            directory = make_directory(config)
            unread = ClusterView(directory, 4)
            async with asking(unread) as client:
                assert (await client.get("/api/shards")).status_code == 503
            await directory.close()
            async with AsyncExitStack() as stack:
                view, others = await stack.enter_async_context(viewed(config))
                assert isinstance(view.directory, EtcdDirectory)
                one = await others.register("a", node_of("a"), 5)
                await shown(view, lambda: bool(view.routers()))
                member.kill()
                async with asking(view) as client:
                    stack.enter_context(in_a_hurry(view.directory))
                    stack.enter_context(in_a_hurry(others))
                    assert [router["name"] for router in (await client.get("/api/shards")).json()["routers"]] == ["a"]
                    answer = await client.post("/api/shards/cordon", json={"node": "a", "on": True})
                    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                    # What is known here is from before, so whether there is nothing to lift is not known either.
                    for path, body in (("cordon", {"node": "a", "on": False}), ("move", {"shard": 0, "to": None})):
                        answer = await client.post(f"/api/shards/{path}", json=body)
                        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                await one.close()

        run_in_loop(scenario())
