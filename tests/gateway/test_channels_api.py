"""/api/channels: who may, what the router and the workers are asked, and what is told of their answers."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from core import records
from core.namespace_spec import BUILT_IN
from gateway.channels_api import Channels, routes
from gateway.connections_api import WALKS_MAX, Walks
from gateway.errors import RequestError
from router.client import Oldest, Presence, Survey

TOKEN = "t" * 16
SESSION = {
    "session": "0f" * 16,
    "user": "bob",
    "device": "phone",
    "id": "0-1-2",
    "worker": "worker-0",
    "transport": "tcp",
    "address": "127.0.0.1",
    "port": 5000,
    "created": "2026-11-01T00:00:00.000Z",
    "last_heard": "2026-11-01T00:00:00.000Z",
}
NOTHING = Survey(
    known=False,
    loaded=False,
    position=(0, 0),
    waiting=0,
    kept=0,
    kept_bytes=0,
    oldest=None,
    workers=0,
    presence=Presence(0, 0),
)
WHOLE = Survey(
    known=True,
    loaded=True,
    position=(7, 5),
    waiting=2,
    kept=3,
    kept_bytes=99,
    oldest=Oldest((6, 3), 1_793_491_200_000),
    workers=1,
    presence=Presence(2, 4),
)


class Link:
    """Stands for the link to the router."""

    def __init__(self) -> None:
        self.before = WHOLE
        self.failure: RequestError | None = None
        self.asked: list[tuple[str, int]] = []

    async def survey(self, names: Sequence[str], depth: int) -> list[Survey]:
        self.asked += [(name, depth) for name in names]
        if self.failure is not None:
            raise self.failure
        return [self.before if depth == records.AS_IS else WHOLE for _ in names]


class Worker:
    """Has some members of each channel."""

    name = "worker-0"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.members = 1

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        assert method == "connections"
        assert deadline_s > 0
        if self.failure is not None:
            raise self.failure
        self.asked.append(arguments)
        shown = min(self.members, arguments["limit"])
        found = [{**SESSION, "was": "open", "state": "open"}] * shown
        return {"connections": found, "more": shown < self.members, "members": self.members}


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
        channels = Channels(link, BUILT_IN, lambda: [workers], walks)
        app = Starlette(routes=routes(TOKEN, channels), exception_handlers={RequestError: refuse})
        transport, headers = httpx.ASGITransport(app=app), {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            return await client.get(path)

    return lambda path, token=TOKEN: run_in_loop(once(path, token))


def test_all_that_is_known_of_a_channel_is_told(link: Link, workers: list[Worker], ask: Ask) -> None:
    assert ask("/api/channels/group:a").json() == {
        "channel": "group:a",
        "namespace": "group",
        "domain": "group",
        "position": [7, 5],
        "waiting": 2,
        "history": {"messages": 3, "bytes": 99, "oldest": {"position": [6, 3], "time": "2026-11-01T00:00:00.000Z"}},
        "in_memory": "all",
        "presence": {"users": 2, "sessions": 4},
        "members": 1,
        "workers": 1,
        "sessions": [SESSION],
        "next": None,
        "missing": [],
    }
    assert link.asked == [("group:a", records.AS_IS)]
    assert workers[0].asked == [{"channel": "group:a", "states": ["open"], "limit": 100}]


@pytest.mark.parametrize(("before", "said"), [(NOTHING, "nothing"), (WHOLE._replace(loaded=False), "position")])
def test_what_is_not_in_memory_is_read_and_said_to_have_been(link: Link, ask: Ask, before: Survey, said: str) -> None:
    link.before = before
    told = ask("/api/channels/group:a").json()
    assert (told["in_memory"], told["position"], told["history"]["messages"]) == (said, [7, 5], 3)
    assert link.asked == [("group:a", records.AS_IS), ("group:a", records.MESSAGES)]


def test_nothing_kept_and_no_presence_are_null(link: Link, ask: Ask) -> None:
    link.before = WHOLE._replace(kept=0, oldest=None, presence=None)
    told = ask("/api/channels/group:a").json()
    assert (told["history"]["oldest"], told["presence"]) == (None, None)


def test_members_beyond_the_bound_are_counted_and_the_next_page_is_named(workers: list[Worker], ask: Ask) -> None:
    workers.append(Worker())
    workers[0].members, workers[1].members = 70, 50
    told = ask("/api/channels/group:a").json()
    assert (told["members"], len(told["sessions"]), told["next"]) == (120, 100, SESSION["id"])


@pytest.mark.parametrize("name", ["a/b", "ü?#%2F", "x" * 249])
def test_a_channel_is_asked_for_whatever_is_in_its_name(link: Link, ask: Ask, name: str) -> None:
    assert ask(f"/api/channels/group:{quote(name, safe='')}").json()["channel"] == f"group:{name}"
    assert link.asked[0][0] == f"group:{name}"


@pytest.mark.parametrize("path", ["nothing:a", "group", "group:", ":a", ""])
def test_a_namespace_that_is_not_known_is_not_asked_for(link: Link, ask: Ask, path: str) -> None:
    answer = ask(f"/api/channels/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_channel")
    assert "user, group, global" in answer.json()["message"]
    assert link.asked == []


@pytest.mark.parametrize("path", [f"group:{'x' * 250}", "group:a?limit=5"])
def test_what_is_malformed_is_not_asked_for(link: Link, ask: Ask, path: str) -> None:
    answer = ask(f"/api/channels/{path}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert link.asked == []


def test_only_whoever_has_the_token_may(link: Link, ask: Ask) -> None:
    assert ask("/api/channels/group:a", token="no").status_code == 401
    assert link.asked == []


def test_what_the_router_refuses_is_passed_on(link: Link, ask: Ask) -> None:
    link.failure = RequestError(503, "unavailable", "the router cannot read its log now", 1)
    answer = ask("/api/channels/group:a")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_a_worker_that_does_not_answer_is_named(workers: list[Worker], ask: Ask) -> None:
    workers.append(Worker())
    workers[1].failure = TimeoutError()
    workers[1].name = "worker-1"
    told = ask("/api/channels/group:a").json()
    assert (told["members"], told["missing"]) == (1, ["worker-1"])
    workers[0].failure = ConnectionError()
    assert ask("/api/channels/group:a").status_code == 503


def test_too_many_at_once_are_refused(walks: Walks, link: Link, ask: Ask) -> None:
    under_way = [walks.one() for _ in range(WALKS_MAX)]
    for one in under_way:
        one.__enter__()
    assert ask("/api/channels/group:a").status_code == 503
    assert link.asked == []
    for one in under_way:
        one.__exit__(None, None, None)
    assert ask("/api/channels/group:a").status_code == 200
