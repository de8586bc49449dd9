"""The ledger over HTTP: `GET /api/ledger` reads the counters, `POST /api/ledger/audit` lets each process prove them."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.access import check_access, check_is_json
from gateway.node_audit import NodeAudit


def routes(token: str, audit: NodeAudit) -> list[Route]:
    """The routes; `token` as in `gateway.access.check_access`."""

    async def read(request: Request) -> Response:
        check_access(token, request)
        return JSONResponse(audit.ledger())

    async def prove(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        return JSONResponse(await audit.audit())

    return [Route("/api/ledger", read), Route("/api/ledger/audit", prove, methods=["POST"])]
