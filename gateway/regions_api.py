"""The admin API's part about regions: which there are, and sending everything away from one or back.

GET /api/regions; POST /api/regions/evacuate {"region": name, "on": true or false, "pace": clients a second, "by": who}.
That is written down in the directory; routers then move shards one by one, and gateways send their clients away.
"""

import time
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway import logs, regions
from gateway.access import body_of, check_access, check_is_json
from gateway.cluster_view import ClusterView
from gateway.errors import RequestError
from gateway.shards_api import BODY_BYTES_MAX, LOADS_DEADLINE_S, parsed, ready, write
from router.shards.records import REGIONS, RegionRecord, encode

PACE_MAX = 10_000_000
BY_CHARACTERS_MAX = 200
FORM = '{"region": name, "on": true or false, "pace": clients a second, "by": who}'

_log = logs.get("supervisor")


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    region: str
    on: bool
    pace: int = 0
    by: str = ""


def routes(token: str, cluster: ClusterView | None, clock: Callable[[], float] = time.time) -> list[Route]:
    """The routes.

    Args:
        token: as in `gateway.access.check_access`.
        cluster: what is known of it; None: this node is alone.
        clock: seconds of the wall clock.

    """

    async def shown(request: Request) -> Response:
        check_access(token, request)
        view = ready(cluster)
        loads = await view.loads(LOADS_DEADLINE_S)  # deadline: its argument
        return JSONResponse({"regions": regions.as_json(view, loads)})

    async def evacuate(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        asked = parsed(await body_of(request, BODY_BYTES_MAX), _Request, FORM)
        view = ready(cluster)
        _check(view, asked)
        value = encode(RegionRecord(asked.by, int(clock() * 1000), asked.pace)) if asked.on else None
        await write(view, REGIONS, asked.region, value)
        event = "region_evacuated" if asked.on else "region_restored"
        _log.info(event, region=asked.region, by=asked.by or None, pace=asked.pace or None)
        leads = next((one["leads"] for one in regions.as_json(view, {}) if one["name"] == asked.region), 0)
        return JSONResponse({"region": asked.region, "evacuated": asked.on, "leads": leads}, 202)

    return [
        Route("/api/regions", shown, methods=["GET"]),
        Route("/api/regions/evacuate", evacuate, methods=["POST"]),
    ]


def _check(cluster: ClusterView, asked: _Request) -> None:
    """Whether it can be done.

    Raises:
        RequestError: 404 no_such_region, 409 last_region, 400 bad_request.

    """
    if not 0 <= asked.pace <= PACE_MAX or len(asked.by) > BY_CHARACTERS_MAX:
        why = f"pace is a number from 0 to {PACE_MAX}, by up to {BY_CHARACTERS_MAX} characters"
        raise RequestError(400, "bad_request", f"{why}; expected {FORM}")
    known = regions.evacuated_of(cluster.view)
    if asked.region not in known:
        there = ", ".join(known) or "none: directory.region is not set"
        raise RequestError(404, "no_such_region", f"{asked.region!r} is no region with nodes: these are {there}")
    if not asked.on:
        return
    weights, view = cluster.view.weights(), cluster.view
    if not any(weight and view.region_of(name) != asked.region for name, weight in weights.items()):
        raise RequestError(
            409, "last_region", f"no router outside {asked.region} takes shards: nobody could take over what it leads"
        )
