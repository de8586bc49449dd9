"""One user over HTTP: `GET /api/users/{user}` tells what waits for the user, and which sessions are here.

A user is whoever has that name: nobody has to have come in yet, so there is none that is not found. Positions and
cursors are the router's, and so is what is stored of the sessions, which are those of this node's workers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core import records
from core.ban_list import USER_BYTES_MAX
from gateway.access import check_access
from gateway.channels_api import Surveys
from gateway.connections_api import Places, Walks, open_ones
from gateway.errors import RequestError
from router.client import ChannelState, StoredSession

CHANNEL_BYTES_MAX = 255
SESSIONS_MAX = 100
_OF_SESSION = ("session", "device", "id", "worker", "transport", "address", "port", "created", "last_heard")


class Standings(Surveys, Protocol):
    """What is needed of the link to the router."""

    async def channels(self, names: Sequence[str]) -> list[ChannelState]:
        """Where channels of a user stand. Raises RequestError when that cannot be told within a deadline."""
        ...

    async def sessions(self, ids: Sequence[bytes]) -> list[StoredSession | None] | None:
        """What is stored of sessions, see `RouterClient`. Raises RequestError likewise."""
        ...


@dataclass(frozen=True)
class Users:
    """What is asked about users."""

    standings: Standings
    own: Sequence[str]
    """The namespaces of domain session: each user has one channel in each of them."""
    workers: Callable[[], Places]
    walks: Walks
    namespaces: Collection[str] = ()
    """All that are known: of other channels the router tells nothing."""


def routes(token: str, users: Users) -> list[Route]:
    """The route; `token` as in `gateway.access.check_access`."""

    async def shown(request: Request) -> Response:
        check_access(token, request)
        user = request.path_params["user"]
        if not 0 < len(user.encode()) <= USER_BYTES_MAX:
            raise RequestError(400, "bad_request", f"the name of a user has 1 to {USER_BYTES_MAX} bytes")
        for name in request.query_params:
            raise RequestError(400, "bad_request", f"there is no parameter {name}; this takes none")
        with users.walks.one():
            return JSONResponse(await _told(users, user))

    return [Route("/api/users/{user:path}", shown, methods=["GET"])]


async def _told(users: Users, user: str) -> dict[str, Any]:
    names = [name for name in (f"{namespace}:{user}" for namespace in users.own) if _is_channel(name)]
    states = await users.standings.channels(names)
    found = await open_ones(users.workers(), SESSIONS_MAX, user=user)
    sessions = [{name: one[name] for name in _OF_SESSION} for one in found.found]
    for one, stored in zip(sessions, await _stored(users, sessions), strict=True):
        one.update(stored)
    channels = {name: _shown(state) for name, state in zip(names, states, strict=True)}
    counts = [one["unread"] for one in channels.values()]
    return {
        "user": user,
        "unread": None if None in counts else sum(counts),
        "channels": channels,
        "sessions": sessions,
        "more": found.next_ is not None,
        "missing": found.missing,
    }


async def _stored(users: Users, sessions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each session the channels that are stored of it, and how far behind it is in each."""
    nothing: dict[str, Any] = {"channel_count": None, "channels": None}
    if not sessions:
        return []
    stored = await users.standings.sessions([bytes.fromhex(one["session"]) for one in sessions])
    if stored is None:
        return [nothing for _ in sessions]
    names = sorted({name for one in stored if one is not None for name in one.channels})
    names = [name for name in names if name.partition(":")[0] in users.namespaces]
    surveys = await users.standings.survey(names, records.POSITION)
    ends = {name: survey.position for name, survey in zip(names, surveys, strict=True)}

    def told(name: str, position: tuple[int, int]) -> dict[str, Any]:
        behind = max(0, ends[name][1] - position[1]) if name in ends else None
        return {"position": position, "behind": behind}

    return [
        nothing
        if one is None
        else {
            "channel_count": one.channel_count,
            "channels": {name: told(name, at) for name, at in one.channels.items()},
        }
        for one in stored
    ]


def _is_channel(name: str) -> bool:
    """A long name of a user has no channel in a namespace with a long one."""
    return len(name.encode()) <= CHANNEL_BYTES_MAX


def _shown(state: ChannelState) -> dict[str, Any]:
    """Positions as [epoch, offset]; nothing acknowledged is [0, 0]."""
    if state.cursor is None:
        return {"position": state.position, "cursor": None, "unread": None}
    unread = max(0, state.position[1] - state.cursor[1])
    return {"position": state.position, "cursor": state.cursor, "unread": unread}
