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
from router.directory.port import Claim, DirectoryError, Lost, Unavailable
from router.loads import NEVER, Load
from router.shards.records import CORDONS, PINS, CordonRecord, PinRecord, encode

_T = TypeVar("_T")

BODY_BYTES_MAX = 1_024
ATTEMPTS = 3
LOADS_DEADLINE_S = 1.0
UNKNOWN = "it may be written down all the same, so look before you ask again"
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
        if asked.to is not None:
            _check_taker(view, asked.to)
        value = None if asked.to is None else encode(PinRecord(asked.to))
        await write(view, PINS, str(asked.shard), value)
        _log.info("shard_pinned", shard=asked.shard, to=asked.to)
        return JSONResponse({"shard": asked.shard, "to": asked.to, "leader": view.leaders()[asked.shard]}, 202)

    async def cordon(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        asked = parsed(await body_of(request, BODY_BYTES_MAX), _CordonRequest, '{"node": name, "on": true or false}')
        view = ready(cluster)
        is_there = asked.node in view.view.weights()
        if asked.on and not is_there:
            raise _no_such_node(view, asked.node)
        if not asked.on and _leaves(view, asked.node):
            message = (
                f"{asked.node} is on its way out and gives its shards away: it takes some when it is started again"
            )
            raise RequestError(409, "leaving", message)
        changed = await write(view, CORDONS, asked.node, encode(CordonRecord(0)) if asked.on else None)
        if not changed and not is_there:  # of one that is gone its cordon may be lifted
            raise _no_such_node(view, asked.node)
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


def _leaves(cluster: ClusterView, name: str) -> bool:
    """Whether a router gives its shards away because it ends."""
    cordon, node = cluster.view.cordons.get(name).record, cluster.view.nodes.get(name)
    return cordon is not None and node.revision > 0 and cordon.epoch == node.revision


def _check_taker(cluster: ClusterView, name: str) -> None:
    """Whether a shard can be moved to a node.

    Raises:
        RequestError: 400 bad_request, with why not.
    """
    weights = cluster.view.weights()
    if weights.get(name):
        return
    why = f"{name!r} is no router that takes shards"
    if name in weights and _leaves(cluster, name):
        why = f"{name} gives its shards away, since it ends"
    elif name in weights and cluster.view.cordoned(name):
        why = f"{name} is cordoned (`holdfast uncordon {name}` ends that)"
    elif name in weights:
        why = f"{name} is in the region {cluster.view.region_of(name)}, which is evacuated"
    elif cluster.view.nodes.get(name + GATEWAY_UNIT).revision:
        why = f"{name} has workers, but no router"
    known = ", ".join(sorted(one for one, weight in weights.items() if weight)) or "none now"
    raise RequestError(400, "bad_request", f"{why}: those that take shards are {known}")


def _no_such_node(cluster: ClusterView, name: str) -> RequestError:
    known = ", ".join(sorted(cluster.view.weights())) or "none now"
    return RequestError(404, "no_such_node", f"{name!r} is no router that is there: these are {known}")


async def write(cluster: ClusterView, prefix: str, name: str, value: bytes | None) -> bool:
    """Put a value at a key, whatever is there; None: nothing is to be there. Whether that changed anything.

    What is known here may be late: by what another node has just written, or by all since the directory went away. So
    the directory is asked even where nothing seems to be there, and who asks this node next is told what was written.
    """
    table, key = cluster.view.tables[prefix], prefix + name
    revision = table.get(name).revision
    try:
        if value is None and not revision:
            found = (await cluster.directory.read(key)).items.get(key)
            revision = found.revision if found is not None else 0
        for _ in range(ATTEMPTS):
            if value is None and not revision:
                return False
            (result,) = await cluster.directory.transact([Claim(key, revision, value)])
            if not isinstance(result, Lost):
                table.learn(name, value, result.revision)
                return True
            revision = result.revision
    except DirectoryError as error:
        known = not isinstance(error, Unavailable) or error.nothing_done
        message = f"{error}: " + ("nothing is written down" if known else UNKNOWN)
        raise RequestError(503, "unavailable", message, _RETRY_AFTER_S) from error
    raise RequestError(409, "busy", f"{prefix}{name} is changed by others again and again", _RETRY_AFTER_S)


def parsed(body: bytes, kind: type[_T], form: str) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, "bad_request", f"{error}; expected {form}") from error
