"""The ledger over HTTP: who may ask, and what is answered."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from gateway.admin import _refuse
from gateway.errors import RequestError
from gateway.ledger_api import routes

TOKEN = "t" * 16
JSON = {"Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Audit:
    """Stands for the node's audit."""

    def ledger(self) -> dict[str, Any]:
        return {"processes": []}

    async def audit(self) -> dict[str, Any]:
        return {"processes": [], "closes": True}


@pytest.mark.parametrize(
    ("method", "path", "headers", "token", "status", "answer"),
    [
        ("GET", "/api/ledger", {}, "", 200, {"processes": []}),
        ("POST", "/api/ledger/audit", JSON, "", 200, {"processes": [], "closes": True}),
        ("POST", "/api/ledger/audit", {}, "", 415, None),
        ("GET", "/api/ledger", {}, TOKEN, 401, None),
        ("GET", "/api/ledger", BEARER, TOKEN, 200, {"processes": []}),
        ("POST", "/api/ledger/audit", JSON, TOKEN, 401, None),
        ("GET", "/api/ledger", {"Host": "evil.example"}, "", 403, None),
    ],
)
def test_answers(
    method: str, path: str, headers: dict[str, str], token: str, status: int, answer: dict[str, Any] | None
) -> None:
    app = Starlette(routes=routes(token, Audit()), exception_handlers={RequestError: _refuse})  # type: ignore[arg-type]

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)

    answered = asyncio.run(ask())
    assert answered.status_code == status
    if answer is not None:
        assert answered.json() == answer
