"""Who may ask for what under /api of the admin server.

With `admin.token`, whoever gives it. Without, whoever is on this machine, and no web page of another origin: an own
`Origin` if there is one, and a loopback `Host` (a name that was re-bound to 127.0.0.1 is none). POST needs
`Content-Type: application/json` as well; for it, and for DELETE, a browser asks permission first, and never gets it.
"""

import asyncio
import hmac
import re

from starlette.requests import ClientDisconnect, Request

from gateway.cluster_config import is_loopback
from gateway.errors import RequestError

BODY_TIMEOUT_S = 10.0
_HOST = re.compile(r"(?P<name>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def check_access(token: str, request: Request) -> None:
    """Refuses who has no right to the API, and what a foreign page makes a browser send.

    Raises:
        RequestError: 401 without the token, 403 from elsewhere.

    """
    headers = request.headers
    if token:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise RequestError(401, "bad_token", "give the admin token: Authorization: Bearer <admin.token>")
    elif not is_loopback(host_name(request)):
        raise RequestError(403, "not_allowed", "without admin.token, ask for this by a loopback name such as localhost")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        raise RequestError(403, "not_allowed", f"a page of {origin} may not ask for this")


def check_is_json(request: Request) -> None:
    """Refuses a body of another type, with 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "bad_request", "send JSON, with Content-Type: application/json")


def host_name(request: Request) -> str:
    """The name or address that the request asked for, without its port; empty when there is none that could be."""
    match = _HOST.fullmatch(request.headers.get("host", ""))
    return match["name"] if match else ""


async def body_of(request: Request, bytes_max: int) -> bytes:
    """The request's body, within BODY_TIMEOUT_S.

    Raises:
        RequestError: 413 when it is longer, 408 when it is late, 400 when it ends early.

    """
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > bytes_max:
                    raise RequestError(413, "too_large", f"the body must have at most {bytes_max} bytes")
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestError(408, "bad_request", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from error
    except ClientDisconnect as error:
        raise RequestError(400, "bad_request", "the body ended early") from error
    return b"".join(chunks)
