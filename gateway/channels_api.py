"""One channel over HTTP: `GET /api/channels/{channel}` tells where it stands, what is kept of it, and who is in it.

Position, history and presence are the router's; members are those of this node's workers. A channel is whatever has a
name in a namespace that is known: nobody has to have been there.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core import records
from core.namespace_spec import NamespaceSpec
from gateway.access import check_access
from gateway.connections_api import Places, Walks, open_ones
from gateway.errors import RequestError
from router.client import Survey

CHANNEL_BYTES_MAX = 255
SESSIONS_MAX = 100
_OF_SESSION = ("session", "user", "device", "id", "worker", "transport", "address", "port", "created", "last_heard")


class Surveys(Protocol):
    """What is needed of the link to the router."""

    async def survey(self, names: Sequence[str], depth: int) -> list[Survey]:
        """How channels stand, see `RouterClient`. Raises RequestError when that cannot be told within a deadline."""
        ...


@dataclass(frozen=True)
class Channels:
    """What is asked about channels."""

    surveys: Surveys
    namespaces: Collection[NamespaceSpec]
    workers: Callable[[], Places]
    walks: Walks


def routes(token: str, channels: Channels) -> list[Route]:
    """The route; `token` as in `gateway.access.check_access`."""
    known = {spec.name: spec for spec in channels.namespaces}

    async def shown(request: Request) -> Response:
        check_access(token, request)
        name = request.path_params["channel"]
        spec = _namespace(known, name)
        for parameter in request.query_params:
            raise RequestError(400, "bad_request", f"there is no parameter {parameter}; this takes none")
        with channels.walks.one():
            return JSONResponse(await _told(channels, name, spec))

    return [Route("/api/channels/{channel:path}", shown, methods=["GET"])]


def _namespace(known: dict[str, NamespaceSpec], channel: str) -> NamespaceSpec:
    """The namespace of a channel's name, which is checked."""
    namespace, _, rest = channel.partition(":")
    if len(channel.encode()) > CHANNEL_BYTES_MAX:
        raise RequestError(400, "bad_request", f"the name of a channel has at most {CHANNEL_BYTES_MAX} bytes")
    if namespace not in known or not rest:
        spaces = ", ".join(known)
        raise RequestError(404, "no_such_channel", f"a channel is <namespace>:<id>, of the namespaces {spaces}")
    return known[namespace]


async def _told(channels: Channels, name: str, spec: NamespaceSpec) -> dict[str, Any]:
    # What the router holds is told as it was before it is asked to read what it does not hold.
    (before,) = await channels.surveys.survey([name], records.AS_IS)
    (now,) = (before,) if before.loaded else await channels.surveys.survey([name], records.MESSAGES)
    found = await open_ones(channels.workers(), SESSIONS_MAX, channel=name)
    return {
        "channel": name,
        "namespace": spec.name,
        "domain": spec.domain,
        "position": now.position,
        "waiting": now.waiting,
        "history": {"messages": now.kept, "bytes": now.kept_bytes, "oldest": _oldest(now)},
        "in_memory": "all" if before.loaded else "position" if before.known else "nothing",
        "presence": None if now.presence is None else now.presence._asdict(),
        "members": found.members,
        "workers": now.workers,
        "sessions": [{one_name: one[one_name] for one_name in _OF_SESSION} for one in found.found],
        "next": found.next_,
        "missing": found.missing,
    }


def _oldest(survey: Survey) -> dict[str, Any] | None:
    if survey.oldest is None:
        return None
    at = datetime.fromtimestamp(survey.oldest.time_ms / 1000, UTC)
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"position": survey.oldest.position, "time": time}
