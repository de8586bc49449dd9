"""Bans over HTTP: `POST /api/bans` (`{"user", "for", "reason"}`), `GET /api/bans`, `DELETE /api/bans/{user}`.

A ban is answered when the router has stored it; from then on all workers know it, those that link later too.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.ban_list import FOREVER_MS, REASON_BYTES_MAX, USER_BYTES_MAX, Standing
from gateway import logs
from gateway.access import body_of, check_access, check_is_json
from gateway.connections_api import duration_s
from gateway.errors import RequestError

BODY_BYTES_MAX = 4_096

_log = logs.get("supervisor")


class BanBook(Protocol):
    """What is needed of the link to the router. Both raise RequestError when they cannot."""

    async def ban(self, user: str, until_ms: int, reason: str) -> Standing:
        """Bans a user, or with a time that is over ends the ban."""
        ...

    def bans(self) -> Mapping[str, Standing]:
        """All bans as the router told them, with those that are over."""
        ...


class _BanRequest(msgspec.Struct, forbid_unknown_fields=True):
    user: str
    for_: str | None = msgspec.field(name="for", default=None)
    reason: str = ""


def routes(token: str, book: BanBook, clock: Callable[[], float]) -> list[Route]:
    """The routes; `token` as in `gateway.access.check_access`, `clock` the wall clock in seconds."""

    async def banned(request: Request) -> Response:
        check_access(token, request)
        check_is_json(request)
        asked = _parse(await body_of(request, BODY_BYTES_MAX))
        until_ms = FOREVER_MS
        if asked.for_ is not None:
            until_ms = int((clock() + duration_s("for", asked.for_)) * 1000)
        standing = await book.ban(asked.user, until_ms, asked.reason)
        _log.info("user_banned", user=asked.user, until=_time(standing.until_ms), reason=asked.reason)
        return JSONResponse(_shown(standing))

    async def listed(request: Request) -> Response:
        check_access(token, request)
        now_ms = clock() * 1000
        holding = sorted((one for one in book.bans().values() if one.until_ms > now_ms), key=lambda one: -one.since_ms)
        return JSONResponse({"bans": [_shown(one) for one in holding]})

    async def ended(request: Request) -> Response:
        check_access(token, request)
        user = request.path_params["user"]
        standing = await book.ban(user, 0, "")
        _log.info("ban_ended", user=user)
        return JSONResponse(_shown(standing))

    return [
        Route("/api/bans", banned, methods=["POST"]),
        Route("/api/bans", listed, methods=["GET"]),
        Route("/api/bans/{user:path}", ended, methods=["DELETE"]),
    ]


def _parse(body: bytes) -> _BanRequest:
    try:
        asked = msgspec.json.decode(body, type=_BanRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            400, "bad_request", f'{error}; expected {{"user", "for", "reason"}}, for being a duration such as 1h'
        ) from error
    if not 0 < len(asked.user.encode()) <= USER_BYTES_MAX:
        raise RequestError(400, "bad_request", f"user has 1 to {USER_BYTES_MAX} bytes")
    if len(asked.reason.encode()) > REASON_BYTES_MAX:
        raise RequestError(400, "bad_request", f"reason, for the client, has at most {REASON_BYTES_MAX} bytes")
    return asked


def _shown(one: Standing) -> dict[str, object]:
    return {"user": one.user, "since": _time(one.since_ms), "until": _time(one.until_ms), "reason": one.reason}


def _time(ms: int) -> str | None:
    """A time as the API tells it; None: it never comes."""
    if ms >= FOREVER_MS:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
