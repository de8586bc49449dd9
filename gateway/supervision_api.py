"""Admin requests about the node's own processes: the rolling restart, and the end.

`POST /api/reload` (body `{"router": false}`) begins a rolling restart and answers 202 with how it stands; `GET
/api/reload` answers how it stands now. `POST /api/drain` ends the node as SIGTERM does: at once not ready, clients sent
away paced, then stopped.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.access import body_of, check_access, check_is_json
from gateway.errors import RequestError
from gateway.reload import Reload

BODY_BYTES_MAX = 1_024


@dataclass(frozen=True)
class Supervision:
    """What these requests act upon."""

    reload: Reload
    stop: Callable[[], None]


class _ReloadRequest(msgspec.Struct, forbid_unknown_fields=True):
    router: bool = False


def routes(token: str, supervision: Supervision) -> list[Route]:
    """The routes; `token` as in `gateway.access.check_access`."""

    async def begin(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        body = await body_of(request, BODY_BYTES_MAX)
        try:
            asked = msgspec.json.decode(body or b"{}", type=_ReloadRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError(400, "bad_request", f"{error}; expected {{router: true or false}}") from error
        progress = supervision.reload.begin(router=asked.router)
        return JSONResponse(dataclasses.asdict(progress), 202)

    async def progress(request: Request) -> Response:
        check_access(token, request)
        return JSONResponse(dataclasses.asdict(supervision.reload.progress))

    async def drain(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        supervision.stop()
        return JSONResponse({"state": "draining"}, 202)

    return [
        Route("/api/reload", begin, methods=["POST"]),
        Route("/api/reload", progress),
        Route("/api/drain", drain, methods=["POST"]),
    ]
