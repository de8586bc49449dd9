"""Bans over HTTP: who may, what is asked of the router, and what is answered."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from core.ban_list import FOREVER_MS, REASON_BYTES_MAX, Standing
from gateway.bans_api import routes
from gateway.errors import RequestError

TOKEN = "t" * 16
NOW = 1_793_491_200.0
NOW_MS = int(NOW * 1000)
SINCE = "2026-11-01T00:00:00.000Z"


class Book:
    """Stands for the link to the router."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []
        self.kept: dict[str, Standing] = {}
        self.failure: RequestError | None = None

    async def ban(self, user: str, until_ms: int, reason: str) -> Standing:
        if self.failure is not None:
            raise self.failure
        self.asked.append((user, until_ms, reason))
        return Standing(user, NOW_MS, until_ms or NOW_MS, reason)

    def bans(self) -> Mapping[str, Standing]:
        if self.failure is not None:
            raise self.failure
        return self.kept


@pytest.fixture
def book() -> Book:
    return Book()


Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(book: Book, run_in_loop: Any) -> Ask:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse({"code": error.code, "message": error.message}, error.status)

    async def once(method: str, path: str, **options: Any) -> httpx.Response:
        app = Starlette(routes=routes(TOKEN, book, lambda: NOW), exception_handlers={RequestError: refuse})
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            return await client.request(method, path, **options)

    return lambda method, path, **options: run_in_loop(once(method, path, **options))


def test_a_ban_for_a_while(book: Book, ask: Ask) -> None:
    answer = ask("POST", "/api/bans", json={"user": "eve", "for": "1h", "reason": "spam"})
    until = "2026-11-01T01:00:00.000Z"
    assert answer.json() == {"user": "eve", "since": SINCE, "until": until, "reason": "spam"}
    assert book.asked == [("eve", NOW_MS + 3_600_000, "spam")]


def test_a_ban_without_a_time_lasts(book: Book, ask: Ask) -> None:
    assert ask("POST", "/api/bans", json={"user": "eve"}).json()["until"] is None
    assert book.asked == [("eve", FOREVER_MS, "")]


@pytest.mark.parametrize("user", ["eve", "a/b", "ü?#%2F", "."])
def test_a_ban_is_ended_by_the_users_name_whatever_is_in_it(book: Book, ask: Ask, user: str) -> None:
    assert ask("DELETE", f"/api/bans/{quote(user, safe='').replace('.', '%2E')}").status_code == 200
    assert book.asked == [(user, 0, "")]


def test_those_that_hold_are_listed_the_latest_first(book: Book, ask: Ask) -> None:
    for user, since_ms, until_ms in (("a", 1, NOW_MS + 1), ("b", 2, FOREVER_MS), ("c", 3, NOW_MS)):
        book.kept[user] = Standing(user, since_ms, until_ms, "")
    found = ask("GET", "/api/bans").json()["bans"]
    assert [(one["user"], one["until"]) for one in found] == [("b", None), ("a", "2026-11-01T00:00:00.001Z")]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user": ""},
        {"user": "x" * 251},
        {"user": 5},
        {"user": "eve", "for": "1"},
        {"user": "eve", "for": 5},
        {"user": "eve", "for": "forever"},
        {"user": "eve", "reason": "x" * (REASON_BYTES_MAX + 1)},
        {"user": "eve", "until": "1h"},
        [],
    ],
    ids=repr,
)
def test_what_is_malformed_bans_nobody(book: Book, ask: Ask, body: Any) -> None:
    answer = ask("POST", "/api/bans", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["message"]
    assert book.asked == []


def test_only_whoever_has_the_token_may(book: Book, ask: Ask) -> None:
    for method, path in (("POST", "/api/bans"), ("GET", "/api/bans"), ("DELETE", "/api/bans/eve")):
        assert ask(method, path, headers={"Authorization": "Bearer no"}).status_code == 401
    assert ask("POST", "/api/bans", content=b"{}").status_code == 415
    assert book.asked == []


def test_what_the_router_refuses_is_passed_on(book: Book, ask: Ask) -> None:
    book.failure = RequestError(503, "unavailable", "the log is away", 1)
    for method, path in (("POST", "/api/bans"), ("GET", "/api/bans"), ("DELETE", "/api/bans/eve")):
        answer = ask(method, path, **({"json": {"user": "eve"}} if method == "POST" else {}))
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
