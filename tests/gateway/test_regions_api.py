"""Regions over HTTP, over a real directory: what is shown, what is written down, and what is refused."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.cluster_view import ClusterView
from gateway.errors import RequestError
from gateway.regions_api import BY_CHARACTERS_MAX, routes
from router.config import DirectoryConfig
from router.directory.etcd import EtcdDirectory
from router.directory.port import Claim
from router.loads import LOADS, Other, pack
from router.shards.records import NodeRecord, RegionRecord, decode, encode
from tests.gateway.test_cluster_view import lead, shown, viewed

TOKEN = "t" * 16
ORDER = {"region": "eu", "on": True, "pace": 7, "by": "op@host"}
PATH = "/api/regions/evacuate"


@asynccontextmanager
async def asking(cluster: ClusterView | None) -> AsyncIterator[httpx.AsyncClient]:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse({"code": error.code, "message": error.message}, error.status)

    app = Starlette(routes=routes(TOKEN, cluster, lambda: 5.5), exception_handlers={RequestError: refuse})
    headers = {"Authorization": f"Bearer {TOKEN}"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        yield client


@asynccontextmanager
async def regions(
    config: DirectoryConfig, *names: str
) -> AsyncIterator[tuple[ClusterView, EtcdDirectory, httpx.AsyncClient]]:
    """A router in each region, of which the first leads shard 0, and a gateway in the first."""
    async with viewed(config) as (view, others), AsyncExitStack() as stack:
        for name in names:
            router = await others.register(f"r-{name}", encode(NodeRecord(1, "{}", name)), 5)
            stack.push_async_callback(router.close)
            if name == names[0]:
                await lead(others, 0, router)
                gateway = await others.register(f"r-{name}.gw", encode(NodeRecord(0, "{}", name)), 5)
                stack.push_async_callback(gateway.close)
        await shown(
            view, lambda: len(list(view.view.nodes.items())) == len(names) + 1 and view.leaders()[0] is not None
        )
        yield view, others, await stack.enter_async_context(asking(view))


def test_a_region_is_evacuated_until_it_is_restored(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with regions(in_etcd, "eu", "us") as (view, others, client):
            told = (await client.get("/api/regions")).json()["regions"]
            assert [(one["name"], one["routers"], one["gateways"], one["leads"]) for one in told] == [
                ("eu", 1, 1, 1),
                ("us", 1, 0, 0),
            ]
            assert not any(one["evacuated"] for one in told)
            answer = await client.post(PATH, json=ORDER)
            assert (answer.status_code, answer.json()) == (202, {"region": "eu", "evacuated": True, "leads": 1})
            items = (await others.read("regions/")).items
            assert decode(RegionRecord, items["regions/eu"].value) == RegionRecord("op@host", 5500, 7)
            await shown(view, lambda: view.view.evacuated("eu"))
            assert set(view.wanted()) == {"r-us"}
            told = (await client.get("/api/regions")).json()["regions"][0]
            assert {key: told[key] for key in ("evacuated", "by", "since_ms", "pace", "wanted")} == {
                "evacuated": True,
                "by": "op@host",
                "since_ms": 5500,
                "pace": 7,
                "wanted": 0,
            }
            assert (await client.post(PATH, json=ORDER | {"on": False})).json()["evacuated"] is False
            assert (await others.read("regions/")).items == {}

    run_in_loop(scenario())


def test_how_far_a_region_is_is_what_the_routers_of_others_told(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with regions(in_etcd, "eu", "us", "ap") as (view, others, client):
            told = {
                "eu": {"us": Other(False, {0: (3, 0.5), 1: (2, 1.5)}, 8, 1), "ap": Other(True, {}, 4, 0)},
                "ap": {"us": Other(True, {2: (1, 0.25)}, 0, 0)},
            }
            for name, seen in told.items():
                epoch = view.view.nodes.get(f"r-{name}").revision
                await others.transact([Claim(f"{LOADS}r-{name}", 0, pack(epoch, {}, seen))])
            keys = ("follows", "behind", "lag_entries", "lag_seconds", "breakers_open", "breakers")
            shown = {one["name"]: tuple(one[key] for key in keys) for one in await listed(client)}
            assert shown == {
                "eu": (12, 1, None, None, 0, 0),
                "us": (0, 0, 6, 1.5, 1, 2),
                "ap": (0, 0, 0, 0.0, 1, 1),
            }

    run_in_loop(scenario())


async def listed(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await client.get("/api/regions")
    found: list[dict[str, Any]] = answer.json()["regions"]
    return found


@pytest.mark.parametrize(
    ("names", "body", "status", "said"),
    [
        (("eu", "us"), ORDER | {"region": "ap"}, 404, "'ap' is no region with nodes: these are eu, us"),
        (("eu",), ORDER, 409, "no router outside eu takes shards"),
        (("eu", "us"), ORDER | {"pace": -1}, 400, "pace is a number from 0"),
        (("eu", "us"), ORDER | {"by": "x" * (BY_CHARACTERS_MAX + 1)}, 400, "characters"),
        (("eu", "us"), {"region": "eu"}, 400, 'expected {"region": name'),
        (("eu", "us"), ORDER | {"x": 1}, 400, 'expected {"region": name'),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    in_etcd: DirectoryConfig, run_in_loop: Any, names: tuple[str, ...], body: dict[str, object], status: int, said: str
) -> None:
    async def scenario() -> None:
        async with regions(in_etcd, *names) as (_, others, client):
            answer = await client.post(PATH, json=body)
            assert answer.status_code == status
            assert said in answer.json()["message"]
            assert (await others.read("regions/")).items == {}

    run_in_loop(scenario())


def test_restoring_what_is_not_evacuated_changes_nothing(in_etcd: DirectoryConfig, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with regions(in_etcd, "eu") as (_, _, client):
            assert (await client.post(PATH, json={"region": "eu", "on": False})).status_code == 202

    run_in_loop(scenario())


def test_a_region_without_nodes_is_restored_if_it_is_evacuated_and_no_other_name_is(
    in_etcd: DirectoryConfig, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        async with regions(in_etcd, "eu") as (view, others, client):
            await others.transact([Claim("regions/us", 0, encode(RegionRecord("op", 7)))])
            await shown(view, lambda: view.view.evacuated("us"))
            answer = await client.post(PATH, json={"region": "su", "on": False})
            assert (answer.status_code, answer.json()["code"]) == (404, "no_such_region")
            assert "these are eu, us" in answer.json()["message"]
            assert (await client.post(PATH, json={"region": "us", "on": False})).status_code == 202
            assert (await others.read("regions/")).items == {}

    run_in_loop(scenario())


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/regions"), ("POST", PATH)])
def test_nobody_without_the_token_may(run_in_loop: Any, method: str, path: str) -> None:
    async def scenario() -> None:
        async with asking(None) as client:
            assert (await client.request(method, path, headers={"Authorization": "Bearer x"})).status_code == 401

    run_in_loop(scenario())


def test_a_node_without_a_directory_says_so(run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with asking(None) as client:
            assert (await client.get("/api/regions")).json()["code"] == "no_directory"

    run_in_loop(scenario())
