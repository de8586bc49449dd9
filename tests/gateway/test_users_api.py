"""/api/users: who may, what the router and the workers are asked, and what is told of their answers."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from core import records
from gateway.connections_api import WALKS_MAX, Walks
from gateway.errors import RequestError
from gateway.users_api import Users, routes
from router.client import ChannelState, StoredSession, Survey

TOKEN = "t" * 16
ADDRESS = {"address": "127.0.0.1", "port": 5000, "transport": "tcp"}
TIMES = {"created": "2026-11-01T00:00:00.000Z", "last_heard": "2026-11-01T00:00:00.000Z"}
SESSION = {"session": "0f" * 16, "device": "phone", "id": "0-1-2", "worker": "worker-0", **ADDRESS, **TIMES}

UNKNOWN = {"channel_count": None, "channels": None}
"""Of a session of which nothing is stored."""


class Link:
    """Stands for the link to the router."""

    def __init__(self) -> None:
        self.states: dict[str, ChannelState] = {}
        self.failure: RequestError | None = None
        self.asked: list[str] = []
        self.stored: list[StoredSession | None] | None = [None]
        self.ends: dict[str, tuple[int, int]] = {}
        self.ids: list[bytes] = []

    async def sessions(self, ids: Sequence[bytes]) -> list[StoredSession | None] | None:
        self.ids += ids
        return self.stored

    async def survey(self, names: Sequence[str], depth: int) -> list[Survey]:
        assert depth == records.POSITION
        return [Survey(True, False, self.ends[name], 0, 0, 0, None, 0, None) for name in names]

    async def channels(self, names: Sequence[str]) -> list[ChannelState]:
        self.asked += names
        if self.failure is not None:
            raise self.failure
        return [self.states.get(name, ChannelState((7, 0), (7, 0))) for name in names]


class Worker:
    """Has one connection of each user."""

    name = "worker-0"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        assert method == "connections"
        assert deadline_s > 0
        if self.failure is not None:
            raise self.failure
        self.asked.append(arguments)
        return {"connections": [{**SESSION, "was": "open", "state": "open"}], "more": 0}


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def workers() -> list[Worker]:
    return [Worker()]


@pytest.fixture
def walks() -> Walks:
    return Walks()


Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(link: Link, workers: list[Worker], walks: Walks, run_in_loop: Any) -> Ask:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse({"code": error.code, "message": error.message}, error.status)

    async def once(path: str, token: str) -> httpx.Response:
        users = Users(link, ["user", "inbox", "n" * 31], lambda: [workers], walks, ["user", "group"])
        app = Starlette(routes=routes(TOKEN, users), exception_handlers={RequestError: refuse})
        transport, headers = httpx.ASGITransport(app=app), {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            return await client.get(path)

    return lambda path, token=TOKEN: run_in_loop(once(path, token))


def test_each_channel_of_the_user_and_each_session_is_told(link: Link, workers: list[Worker], ask: Ask) -> None:
    link.states = {
        "user:bob": ChannelState((7, 5), (6, 2)),
        "inbox:bob": ChannelState((7, 1), (0, 0)),
    }
    assert ask("/api/users/bob").json() == {
        "user": "bob",
        "unread": 4,
        "channels": {
            "user:bob": {"position": [7, 5], "cursor": [6, 2], "unread": 3},
            "inbox:bob": {"position": [7, 1], "cursor": [0, 0], "unread": 1},
            f"{'n' * 31}:bob": {"position": [7, 0], "cursor": [7, 0], "unread": 0},
        },
        "sessions": [{**SESSION, **UNKNOWN}],
        "more": False,
        "missing": [],
    }
    assert workers[0].asked == [{"user": "bob", "states": ["open"], "limit": 100}]


def test_the_stored_positions_of_a_session_are_told_and_how_far_behind_they_are(link: Link, ask: Ask) -> None:
    channels = {"group:a": (6, 2), "group:b": (7, 9), "gone:c": (1, 1)}
    link.stored = [StoredSession(5, channels)]
    link.ends = {"group:a": (7, 12), "group:b": (8, 3)}
    (one,) = ask("/api/users/bob").json()["sessions"]
    assert one == {
        **SESSION,
        "channel_count": 5,
        "channels": {
            "group:a": {"position": [6, 2], "behind": 10},
            "group:b": {"position": [7, 9], "behind": 0},  # another history: the session will hear `reset`
            "gone:c": {"position": [1, 1], "behind": None},  # a namespace that is not known any more
        },
    }
    assert link.ids == [b"\x0f" * 16]


def test_a_router_that_stores_no_sessions_is_no_fault(link: Link, ask: Ask) -> None:
    link.stored = None
    assert ask("/api/users/bob").json()["sessions"] == [{**SESSION, **UNKNOWN}]


def test_without_cursors_nothing_is_said_of_what_is_unread(link: Link, ask: Ask) -> None:
    link.states = {"user:bob": ChannelState((7, 5), None)}
    told = ask("/api/users/bob").json()
    assert told["channels"]["user:bob"] == {"position": [7, 5], "cursor": None, "unread": None}
    assert told["unread"] is None


@pytest.mark.parametrize("user", ["a/b", "ü?#%2F", "."])
def test_a_user_is_asked_for_whatever_is_in_the_name(link: Link, ask: Ask, user: str) -> None:
    assert ask(f"/api/users/{quote(user, safe='').replace('.', '%2E')}").json()["user"] == user
    assert link.asked[0] == f"user:{user}"


def test_a_channel_whose_name_would_be_too_long_is_none(link: Link, ask: Ask) -> None:
    assert ask(f"/api/users/{'x' * 249}").status_code == 200
    assert link.asked == [f"user:{'x' * 249}", f"inbox:{'x' * 249}"]


@pytest.mark.parametrize("path", ["", "x" * 251, "bob?limit=5"])
def test_what_is_malformed_is_not_asked(link: Link, ask: Ask, path: str) -> None:
    answer = ask(f"/api/users/{path}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["message"]
    assert link.asked == []


def test_only_whoever_has_the_token_may(link: Link, ask: Ask) -> None:
    assert ask("/api/users/bob", token="no").status_code == 401
    assert link.asked == []


def test_what_the_router_refuses_is_passed_on(link: Link, ask: Ask) -> None:
    link.failure = RequestError(503, "unavailable", "the router cannot read the cursors now", 1)
    answer = ask("/api/users/bob")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_a_worker_that_does_not_answer_is_named(workers: list[Worker], ask: Ask) -> None:
    workers.append(Worker())
    workers[1].failure = TimeoutError()
    workers[1].name = "worker-1"
    told = ask("/api/users/bob").json()
    assert (told["sessions"], told["missing"]) == ([{**SESSION, **UNKNOWN}], ["worker-1"])
    workers[0].failure = ConnectionError()
    assert ask("/api/users/bob").status_code == 503


def test_too_many_at_once_are_refused(walks: Walks, link: Link, ask: Ask) -> None:
    under_way = [walks.one() for _ in range(WALKS_MAX)]
    for one in under_way:
        one.__enter__()
    assert ask("/api/users/bob").status_code == 503
    for one in under_way:
        one.__exit__(None, None, None)
    assert ask("/api/users/bob").status_code == 200
    assert len(link.asked) == 3
