"""The admin application over real HTTP: what it answers, and what it refuses to whom."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from core.transcode import json_from_mpack, mpack_from_json
from gateway.admin import BODY_BYTES_MAX, AdminContext, create_app
from gateway.admin_server import AdminServer
from gateway.errors import RequestError
from gateway.metrics import NodeCollector, ProcessView

TOKEN = "t" * 16
JSON = {"Content-Type": "application/json"}
LOBBY = {"channel": "group:lobby", "data": "hi"}


@dataclass
class Router:
    """Stands for the router: keeps what it is asked to publish, or raises."""

    published: list[tuple[str, Any, str | None, str]] = field(default_factory=list)
    failure: Exception | None = None

    async def publish(
        self, channel: str, data: bytes, *, key: str | None, sender: str, deadline_s: float
    ) -> tuple[int, int]:
        assert deadline_s == 5
        if self.failure is not None:
            raise self.failure
        self.published.append((channel, json.loads(json_from_mpack(data)), key, sender))
        return 17, len(self.published)


@dataclass
class Setup:
    """A server with its page, and what stands behind it."""

    folder: Path
    router: Router = field(default_factory=Router)
    missing: list[str] = field(default_factory=list)
    token: str = ""
    tls: bool = False

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the running server."""
        (self.folder / "index.html").write_text("<!doctype html><title>page</title>")
        (self.folder / "chat.js").write_text("export {};")
        registry = CollectorRegistry(auto_describe=False)
        views = [ProcessView("supervisor", None, True, 0, None)]
        registry.register(NodeCollector(lambda: views, node="host-1", version="1"))
        context = AdminContext(
            info={"node": "host-1", "ws_port": 7401, "tls": self.tls},
            missing=lambda: self.missing,
            registry=registry,
            publisher=self.router,
            to_mpack=mpack_from_json,
            token=self.token,
            deadline_s=5,
        )
        server = AdminServer("127.0.0.1", 0, create_app(context, self.folder))
        server.start()
        try:
            url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
                yield client
        finally:
            await server.close()


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.fixture
def ask(setup: Setup, run_in_loop: Any) -> Callable[..., httpx.Response]:
    """One request to a server of its own."""

    async def once(method: str, path: str, **options: Any) -> httpx.Response:
        async with setup.client() as client:
            return await client.request(method, path, **options)

    return lambda method, path, **options: run_in_loop(once(method, path, **options))


Ask = Callable[..., httpx.Response]


def test_health_does_not_depend_on_the_children(setup: Setup, ask: Ask) -> None:
    setup.missing = ["router"]
    assert ask("GET", "/healthz").status_code == 200


def test_readiness_names_what_is_missing(setup: Setup, ask: Ask) -> None:
    assert ask("GET", "/readyz").status_code == 200
    setup.missing = ["router", "worker-1"]
    answer = ask("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json()["missing"] == ["router", "worker-1"]


def test_metrics_and_info(ask: Ask) -> None:
    metrics = ask("GET", "/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'holdfast_build_info{node="host-1",version="1"} 1.0' in metrics.text
    assert ask("GET", "/api/info").json()["ws_port"] == 7401


def test_a_message_is_published_with_all_that_was_said(setup: Setup, ask: Ask) -> None:
    data = {"text": "hé 🙂", "n": [1, 2.5, None, True], "raw": {"$bin": "AAE="}}
    answer = ask("POST", "/api/publish", json={"channel": "group:lobby", "data": data, "key": "k1", "from": "bot"})
    assert (answer.status_code, answer.json()) == (200, {"epoch": 17, "offset": 1})
    assert setup.router.published == [("group:lobby", data, "k1", "bot")]


def test_key_and_sender_may_be_left_out(setup: Setup, ask: Ask) -> None:
    assert ask("POST", "/api/publish", json={"channel": "user:al:ice", "data": None}).status_code == 200
    assert setup.router.published == [("user:al:ice", None, None, "admin")]


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        (b"", 400, "bad_request", "expected {channel, data}"),
        (b"{", 400, "bad_request", "expected {channel, data}"),
        (b"[]", 400, "bad_request", "expected {channel, data}"),
        (b"\xff", 400, "bad_request", "expected {channel, data}"),
        (b'{"channel": "group:a"}', 400, "bad_request", "data"),
        (b'{"data": 1}', 400, "bad_request", "channel"),
        (b'{"channel": 1, "data": 1}', 400, "bad_request", "channel"),
        (b'{"channel": "group:a", "data": 1, "kye": "x"}', 400, "bad_request", "kye"),
        (b'{"channel": "group:a", "data": nope}', 400, "bad_request", "expected {channel, data}"),
        (b'{"channel": "lobby", "data": 1}', 400, "no_such_channel", "<namespace>:<id>"),
        (b'{"channel": "group:", "data": 1}', 400, "no_such_channel", "<namespace>:<id>"),
        (b'{"channel": ":a", "data": 1}', 400, "no_such_channel", "<namespace>:<id>"),
        (b'{"channel": "group:' + b"a" * 250 + b'", "data": 1}', 400, "bad_request", "at most 255 bytes"),
        (b'{"channel": "group:a", "data": 1, "key": "' + b"k" * 65 + b'"}', 400, "bad_request", "at most 64 bytes"),
        (b'{"channel": "group:a", "data": "' + b"x" * BODY_BYTES_MAX + b'"}', 413, "too_large", "at most 1048576"),
    ],
)
def test_a_request_that_is_wrong_says_how(
    ask: Ask, setup: Setup, body: bytes, status: int, code: str, said: str
) -> None:
    answer = ask("POST", "/api/publish", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert said in answer.json()["message"]
    assert setup.router.published == []


def test_the_longest_channel_and_key_are_taken(setup: Setup, ask: Ask) -> None:
    body = {"channel": "group:" + "a" * 249, "data": 1, "key": "k" * 64}
    assert ask("POST", "/api/publish", json=body).status_code == 200


def test_what_the_router_refuses_is_passed_on_with_when_to_come_back(setup: Setup, ask: Ask) -> None:
    setup.router.failure = RequestError(503, "unavailable", "the router does not answer", 1)
    answer = ask("POST", "/api/publish", json=LOBBY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"code": "unavailable", "message": "the router does not answer"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Host": "localhost:7402"}, 200),
        ({"Host": "localhost:7402", "Origin": "http://localhost:7402"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:7402", "Origin": "http://localhost:7403"}, 403),
        ({"Host": "rebound.example:7402", "Origin": "http://rebound.example:7402"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
    ],
)
def test_a_foreign_page_cannot_publish(setup: Setup, ask: Ask, headers: dict[str, str], status: int) -> None:
    answer = ask("POST", "/api/publish", content=json.dumps(LOBBY), headers={**JSON, **headers})
    assert answer.status_code == status
    assert len(setup.router.published) == (1 if status == 200 else 0)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(None, 401), ("Bearer wrong", 401), (f"Basic {TOKEN}", 401), (f"Bearer {TOKEN}", 200), (f"bearer {TOKEN}", 200)],
)
def test_a_token_is_asked_for_once_there_is_one(setup: Setup, ask: Ask, authorization: str | None, status: int) -> None:
    setup.token = TOKEN
    headers = {"Host": "holdfast.example", **({"Authorization": authorization} if authorization else {})}
    answer = ask("POST", "/api/publish", json=LOBBY, headers=headers)
    assert answer.status_code == status
    assert len(setup.router.published) == (1 if status == 200 else 0)
    assert ("www-authenticate" in answer.headers) is (status == 401)


def test_other_methods_and_paths_are_refused(ask: Ask) -> None:
    assert ask("GET", "/api/publish").status_code == 405
    assert ask("POST", "/healthz").status_code == 405
    assert ask("GET", "/nothing").status_code == 404


@pytest.mark.parametrize(("tls", "scheme"), [(False, "ws"), (True, "wss")])
def test_the_page_may_only_load_from_here_and_connect_to_the_gateway(
    setup: Setup, ask: Ask, tls: bool, scheme: str
) -> None:
    setup.tls = tls
    for path in ("/", "/page/chat.js", "/nothing"):
        policy = ask("GET", path, headers={"Host": "localhost:7402"}).headers["content-security-policy"]
        assert "default-src 'self'; " in policy
        assert f"connect-src 'self' {scheme}://localhost:7401; " in policy
        assert "frame-ancestors 'none'" in policy


def test_a_host_header_cannot_write_into_the_policy(ask: Ask) -> None:
    policy = ask("GET", "/", headers={"Host": "x; script-src *"}).headers["content-security-policy"]
    assert "script-src" not in policy
    assert "connect-src 'self';" in policy


def test_the_page_and_what_it_loads(ask: Ask) -> None:
    page = ask("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>page</title>" in page.text
    script = ask("GET", "/page/chat.js")
    assert "javascript" in script.headers["content-type"]
    assert script.headers["x-content-type-options"] == "nosniff"
    assert ask("GET", "/page/../../config.py").status_code == 404
    assert ask("GET", "/page/%2e%2e/%2e%2e/config.py").status_code == 404


def test_a_body_that_lies_about_nothing_but_its_end_is_cut_off_at_the_bound(setup: Setup, run_in_loop: Any) -> None:
    """Without a Content-Length, only counting what arrives keeps it within bounds."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"channel": "group:a", "data": "'
        for _ in range(40):
            yield b"x" * 65_536

    async def scenario() -> int:
        async with setup.client() as client:
            try:
                answer = await client.post("/api/publish", content=chunks(), headers=JSON)
            except httpx.WriteError:
                return 413  # it closed before all was written, which is an answer as well
            return answer.status_code

    assert run_in_loop(scenario()) == 413
    assert setup.router.published == []
