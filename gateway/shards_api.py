"""Shards over HTTP: who leads which, and what an operator wants of that.

`GET /api/shards` answers how it stands. `POST /api/shards/move` (`{"shard": 7, "to": "node-b"}`; `to` null: wherever it
belongs) and `POST /api/shards/cordon` (`{"node": "node-b", "on": true}`) write down what is wanted, which routers then
do, one shard after another. Any node of the cluster answers and takes all of it: it comes from the directory.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.shards import COUNT_MAX
from gateway import logs, regions
from gateway.access import body_of, check_access, check_is_json
from gateway.cluster_config import GATEWAY_UNIT, RouterLink
from gateway.cluster_view import ClusterView
from gateway.errors import RequestError
from router.directory.port import Claim, DirectoryError, Lost
from router.loads import NEVER, Load
from router.shards.records import CORDONS, PINS, CordonRecord, PinRecord, encode

_T = TypeVar("_T")

BODY_BYTES_MAX = 1_024
ATTEMPTS = 3
LOADS_DEADLINE_S = 1.0
_RETRY_AFTER_S = 1
_NOTHING = Load(NEVER, {}, {})

_log = logs.get("supervisor")


class _MoveRequest(msgspec.Struct, forbid_unknown_fields=True):
    shard: int
    to: str | None


class _CordonRequest(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    on: bool


def routes(token: str, node: str, cluster: ClusterView | None) -> list[Route]:
    """The routes.

    Args:
        token: as in `gateway.access.check_access`.
        node: name of this one.
        cluster: what is known of it; None: this node is alone.

    """

    async def shown(request: Request) -> Response:
        check_access(token, request)
        if cluster is None:
            return JSONResponse(alone(node))
        view = ready(cluster)
        loads = await view.loads(LOADS_DEADLINE_S)  # deadline: its argument
        return JSONResponse({"node": node, **as_json(view, loads)})

    async def move(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        asked = parsed(await body_of(request, BODY_BYTES_MAX), _MoveRequest, '{"shard": 0, "to": node or null}')
        view = ready(cluster)
        if not 0 <= asked.shard < view.shards:
            raise RequestError(400, "bad_request", f"there is no shard {asked.shard}: they are 0 to {view.shards - 1}")
        takers = {name for name, weight in view.view.weights().items() if weight}
        if asked.to is not None and asked.to not in takers:
            known = ", ".join(sorted(takers)) or "none now"
            raise RequestError(400, "bad_request", f"{asked.to!r} is no router that takes shards: these are {known}")
        value = None if asked.to is None else encode(PinRecord(asked.to))
        await write(view, PINS, str(asked.shard), value)
        _log.info("shard_pinned", shard=asked.shard, to=asked.to)
        return JSONResponse({"shard": asked.shard, "to": asked.to, "leader": view.leaders()[asked.shard]}, 202)

    async def cordon(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        asked = parsed(await body_of(request, BODY_BYTES_MAX), _CordonRequest, '{"node": name, "on": true or false}')
        view = ready(cluster)
        is_cordoned = view.view.cordons.get(asked.node).revision > 0
        if asked.node not in view.view.weights() and (asked.on or not is_cordoned):
            known = ", ".join(sorted(view.view.weights())) or "none now"
            raise RequestError(404, "no_such_node", f"{asked.node!r} is no router that is there: these are {known}")
        await write(view, CORDONS, asked.node, encode(CordonRecord(0)) if asked.on else None)
        _log.info("node_cordoned" if asked.on else "node_uncordoned", node=asked.node)
        leads = view.leaders().count(asked.node)
        return JSONResponse({"node": asked.node, "cordoned": asked.on, "leads": leads}, 202)

    return [
        Route("/api/shards", shown, methods=["GET"]),
        Route("/api/shards/move", move, methods=["POST"]),
        Route("/api/shards/cordon", cordon, methods=["POST"]),
    ]


def as_json(cluster: ClusterView, loads: Mapping[str, Load]) -> dict[str, object]:
    """How it stands; `loads`: what routers told, by name."""
    leaders, wanted, pins = cluster.leaders(), cluster.wanted(), cluster.view.pinned()
    followers = cluster.followers(loads)
    shards = []
    for shard, leader in enumerate(leaders):
        record = cluster.record(shard)
        told = loads.get(leader or "", _NOTHING)
        shards.append(
            {
                "shard": shard,
                "leader": leader,
                "wanted": wanted[shard],
                "pinned": pins.get(shard),
                "epoch": record.epoch if record is not None else 0,
                "how": record.how if record is not None else None,
                "load": round(told.rates.get(shard, 0.0), 1),
                "followers": {name: _follower(one, told, name, shard) for name, one in followers[shard].items()},
            }
        )
    gateways = [
        {
            "name": name.removesuffix(GATEWAY_UNIT),
            "epoch": seen.revision,
            "region": seen.record.region if seen.record is not None else "",
        }
        for name, seen in sorted(cluster.view.nodes.items())
        if name.endswith(GATEWAY_UNIT)
    ]
    return {
        "reachable": cluster.reachable().answers,
        "unled": leaders.count(None),
        "routers": [_router(cluster, link, leaders, wanted, loads) for link in cluster.routers()],
        "gateways": gateways,
        "shards": shards,
        "regions": regions.as_json(cluster, loads),
    }


def _follower(router: str | None, told: Load, region: str, shard: int) -> dict[str, object]:
    """Who follows a shard in a region, and what that has not confirmed, as its leader told."""
    entries, seconds = told.others[region].lags.get(shard, (0, 0.0))
    return {"router": router, "lag_entries": entries, "lag_seconds": seconds}


def _router(
    cluster: ClusterView,
    link: RouterLink,
    leaders: Sequence[str | None],
    wanted: Sequence[str | None],
    loads: Mapping[str, Load],
) -> dict[str, object]:
    node, cordon = cluster.view.nodes.get(link.name).record, cluster.view.cordons.get(link.name).record
    told = loads.get(link.name, _NOTHING)
    load = sum(told.rates.get(shard, 0.0) for shard, leader in enumerate(leaders) if leader == link.name)
    return {
        "name": link.name,
        "epoch": link.epoch,
        "weight": node.weight if node is not None else 0,
        "cordoned": cluster.view.cordoned(link.name),
        "leaving": cordon is not None and cordon.epoch == link.epoch,
        "leads": leaders.count(link.name),
        "wanted": wanted.count(link.name),
        "load": round(load, 1),
        "follows": sum(one.follows for one in told.others.values()),
        "bus": link.bus,
        "encrypted": bool(link.key),
        "admin": link.admin or None,
        "region": link.region,
    }


def alone(node: str) -> dict[str, object]:
    """The same of a node without a directory, whose router leads everything."""
    router: dict[str, object] = {"name": node, "epoch": 0, "weight": 1, "cordoned": False, "leaving": False}
    router |= {"leads": COUNT_MAX, "wanted": COUNT_MAX, "load": None, "follows": 0, "bus": None, "encrypted": False}
    shard: dict[str, object] = {
        "leader": node,
        "wanted": node,
        "pinned": None,
        "epoch": 0,
        "how": "alone",
        "load": None,
        "followers": {},
    }
    return {
        "node": node,
        "reachable": None,
        "unled": 0,
        "routers": [{**router, "admin": None, "region": ""}],
        "gateways": [{"name": node, "epoch": 0, "region": ""}],
        "regions": [],
        "shards": [{"shard": number, **shard} for number in range(COUNT_MAX)],
    }


def ready(cluster: ClusterView | None) -> ClusterView:
    """The cluster, if there is one and it is known."""
    if cluster is None:
        raise RequestError(
            404, "no_directory", "this node is alone: directory.endpoints is not set, its router leads all"
        )
    if not cluster.view.ready():
        raise RequestError(503, "unavailable", "the directory has not been read yet", _RETRY_AFTER_S)
    return cluster


async def write(cluster: ClusterView, prefix: str, name: str, value: bytes | None) -> None:
    """Put a value at a key, whatever is there; None: nothing is to be there."""
    revision = cluster.view.tables[prefix].get(name).revision
    try:
        for _ in range(ATTEMPTS):
            if value is None and not revision:
                return
            (result,) = await cluster.directory.transact([Claim(prefix + name, revision, value)])
            if not isinstance(result, Lost):
                return
            revision = result.revision
    except DirectoryError as error:
        message = f"{error}: it may be written down all the same, so look before you ask again"
        raise RequestError(503, "unavailable", message, _RETRY_AFTER_S) from error
    raise RequestError(409, "busy", f"{prefix}{name} is changed by others again and again", _RETRY_AFTER_S)


def parsed(body: bytes, kind: type[_T], form: str) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, "bad_request", f"{error}; expected {form}") from error
