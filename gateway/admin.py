"""What the admin HTTP server answers: health, metrics, publishing, and the page (see `gateway.admin_server`).

It listens on loopback unless `admin.token` is set. Who may ask for what under /api is said in `gateway.access`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import connections_api, growth_api, ledger_api, metrics
from gateway.access import body_of, check_access, check_is_json, host_name
from gateway.connections_api import Places, Walks
from gateway.errors import RequestError
from gateway.node_audit import NodeAudit
from gateway.watcher import Watcher

PAGE = Path(__file__).parent / "page"
BODY_BYTES_MAX = 1_048_576
CHANNEL_BYTES_MAX = 255
KEY_BYTES_MAX = 64
SENDER_BYTES_MAX = 255
_CHANNEL = re.compile(r"[^:]+:.+", re.DOTALL)  # whether there is such a namespace, the router knows


class Publisher(Protocol):
    """What publishing needs of the link to the router."""

    async def publish(
        self, channel: str, data: bytes, *, key: str | None, sender: str, deadline_s: float
    ) -> tuple[int, int]:
        """Publishes MessagePack; returns the position, (epoch, offset). Raises RequestError when it cannot."""
        ...


@dataclass(frozen=True)
class AdminContext:
    """What the requests are answered from."""

    info: dict[str, object]
    """The answer of /api/info; `ws_port` and `tls` in it also say where the page may connect to."""
    missing: Callable[[], list[str]]
    """What is not ready, by name; empty when the node is."""
    registry: CollectorRegistry
    publisher: Publisher
    to_mpack: Callable[[bytes], bytes]
    """JSON to MessagePack; ValueError when it is none."""
    token: str
    """What /api asks for, but for /api/info; empty: nothing, and then only loopback may ask."""
    deadline_s: float
    """How long a publish may take."""
    workers: Callable[[], Places] = tuple
    """Who is asked about connections."""
    walks: Walks = field(default_factory=Walks)
    """How many times they are being asked."""
    growth: Watcher | None = None
    """What is asked about growth."""
    routes: Sequence[Route] = ()
    """Further ones, which check by themselves who may ask."""
    audit: NodeAudit | None = None
    """The ledgers of the node's processes."""


class _PublishRequest(msgspec.Struct, forbid_unknown_fields=True):
    channel: str
    data: msgspec.Raw
    key: str | None = None
    sender: str = msgspec.field(name="from", default="admin")


def create_app(context: AdminContext, page: Path = PAGE) -> Starlette:
    """The ASGI application; `page` is the directory that holds index.html and what it loads."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        missing = context.missing()
        if not missing:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "missing": missing}, status_code=503)

    async def scrape(_: Request) -> Response:
        return Response(metrics.exposition(context.registry), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def info(_: Request) -> Response:
        return JSONResponse(context.info)

    async def index(_: Request) -> Response:
        return FileResponse(page / "index.html", media_type="text/html")

    async def publish(request: Request) -> Response:
        return await _publish(context, request)

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", scrape),
        Route("/api/info", info),
        Route("/api/publish", publish, methods=["POST"]),
        *connections_api.routes(context),
        *growth_api.routes(context),
        *context.routes,
        *(ledger_api.routes(context.token, context.audit) if context.audit is not None else ()),
        Route("/", index),
        Mount("/page", StaticFiles(directory=page, check_dir=False, follow_symlink=True)),
    ]
    app = Starlette(routes=routes, exception_handlers={RequestError: _refuse})
    app.add_middleware(_SecurityHeaders, context=context)
    return app


# --------------------------------------------------------------------------------------------------------- publishing


async def _publish(context: AdminContext, request: Request) -> Response:
    _check_access(context, request)
    asked = _parse(await body_of(request, BODY_BYTES_MAX))
    try:
        data = context.to_mpack(bytes(asked.data))
    except ValueError as error:
        raise RequestError(400, "bad_request", f"data: {error}") from error
    epoch, offset = await context.publisher.publish(
        asked.channel, data, key=asked.key, sender=asked.sender, deadline_s=context.deadline_s
    )
    return JSONResponse({"epoch": epoch, "offset": offset})


def _check_access(context: AdminContext, request: Request) -> None:
    """Refuses who has no right to publish, and what a foreign page makes a browser send."""
    check_access(context.token, request)
    check_is_json(request)


def _parse(body: bytes) -> _PublishRequest:
    try:
        asked = msgspec.json.decode(body, type=_PublishRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            400, "bad_request", f"{error}; expected {{channel, data}} and optionally key and from"
        ) from error
    if not _CHANNEL.fullmatch(asked.channel):
        raise RequestError(400, "no_such_channel", "channel must be <namespace>:<id>, such as group:lobby")
    for name, value, bytes_max in (
        ("channel", asked.channel, CHANNEL_BYTES_MAX),
        ("key", asked.key or "", KEY_BYTES_MAX),
        ("from", asked.sender, SENDER_BYTES_MAX),
    ):
        if len(value.encode()) > bytes_max:
            raise RequestError(400, "bad_request", f"{name} must have at most {bytes_max} bytes of UTF-8")
    return asked


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"code": error.code, "message": error.message}, error.status, headers)


# ----------------------------------------------------------------------------------------------------------- the page


class _SecurityHeaders:
    """Adds to every answer what keeps a browser from doing more with it than the page needs."""

    def __init__(self, app: ASGIApp, context: AdminContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # deadline: there are no such scopes; the server speaks HTTP alone
            return
        policy = self._policy(host_name(Request(scope)))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)  # deadline: REQUEST_TIMEOUT_S of the server

        await self._app(scope, receive, send_with_headers)  # deadline: REQUEST_TIMEOUT_S of the server

    def _policy(self, host: str) -> str:
        """The page may load what is here and connect to the gateway's WebSocket port on the host it came from."""
        info = self._context.info
        gateway = f" {'wss' if info['tls'] else 'ws'}://{host}:{info['ws_port']}" if host else ""
        return (
            f"default-src 'self'; connect-src 'self'{gateway}; img-src 'self' data:; object-src 'none';"
            " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
