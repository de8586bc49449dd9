"""Reload and drain over HTTP: who may, what is answered, and what is refused."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.errors import RequestError
from gateway.reload import Progress
from gateway.supervision_api import Supervision, routes

TOKEN = "t" * 16
URL = "http://127.0.0.1"


class Reload:
    """Stands for the rolling restart: notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.progress = Progress()
        self.failure: RequestError | None = None

    def begin(self, *, router: bool = False) -> Progress:
        if self.failure is not None:
            raise self.failure
        self.asked.append(router)
        self.progress = Progress(len(self.asked), "running", places=4)
        return self.progress


class Setup:
    """What stands behind the routes."""

    def __init__(self) -> None:
        self.reload = Reload()
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def setup() -> Setup:
    return Setup()


@pytest.fixture
def ask(setup: Setup, run_in_loop: Any) -> Callable[..., httpx.Response]:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse({"code": error.code}, error.status)

    async def once(method: str, path: str, **options: Any) -> httpx.Response:
        found = routes(TOKEN, Supervision(setup.reload, setup.stop))  # type: ignore[arg-type]
        app = Starlette(routes=found, exception_handlers={RequestError: refuse})
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        async with httpx.AsyncClient(transport=transport, base_url=URL, headers=headers) as client:
            return await client.request(method, path, **options)

    return lambda method, path, **options: run_in_loop(once(method, path, **options))


def test_a_reload_is_begun_and_can_be_followed(setup: Setup, ask: Any) -> None:
    assert ask("GET", "/api/reload").json()["state"] == "none"
    answer = ask("POST", "/api/reload", json={})
    assert (answer.status_code, answer.json()["state"], answer.json()["places"]) == (202, "running", 4)
    assert ask("GET", "/api/reload").json()["number"] == 1
    ask("POST", "/api/reload", json={"router": True})
    assert setup.reload.asked == [False, True]


def test_a_reload_that_cannot_be_is_refused(setup: Setup, ask: Any) -> None:
    assert ask("POST", "/api/reload", json={"routers": True}).status_code == 400
    assert ask("POST", "/api/reload", content=b"[", headers={"Content-Type": "application/json"}).status_code == 400
    setup.reload.failure = RequestError(409, "busy", "one is under way", 5)
    assert ask("POST", "/api/reload", json={}).status_code == 409
    assert setup.reload.asked == []


def test_a_long_body_is_not_kept(setup: Setup, ask: Any) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    answer = ask("POST", "/api/reload", headers=headers, content=b" " * 1025)
    assert (answer.status_code, setup.reload.asked) == (413, [])


def test_a_drain_is_the_nodes_end(setup: Setup, ask: Any) -> None:
    assert ask("POST", "/api/drain", json={}).status_code == 202
    assert setup.stopped == 1


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/reload"), ("GET", "/api/reload"), ("POST", "/api/drain")])
def test_nobody_without_the_token(setup: Setup, ask: Any, method: str, path: str) -> None:
    assert ask(method, path, json={}, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert (setup.stopped, setup.reload.asked) == (0, [])


def test_no_page_of_another_origin_can_send_it(setup: Setup, ask: Any) -> None:
    for path in ("/api/reload", "/api/drain"):
        assert ask("POST", path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        assert ask("POST", path, json={}, headers={"Origin": "http://elsewhere"}).status_code == 403
    assert (setup.stopped, setup.reload.asked) == (0, [])
