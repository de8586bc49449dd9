"""`holdfast ban`, `unban` and `bans`: what they ask and what they say."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway import cli
from tests.gateway.fake_admin import FakeAdmin

BEARER = f"Bearer {'t' * 16}"
Call = Callable[..., Result]


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    yield server
    server.close()


@pytest.fixture
def call(admin: FakeAdmin) -> Call:
    def run(*arguments: str) -> Result:
        environment = {"HOLDFAST_ADMIN_TOKEN": "t" * 16}
        return CliRunner().invoke(cli.cli, [*arguments, "--url", admin.url], env=environment, prog_name="holdfast")

    return run


def one(user: str = "eve", until: str | None = None, reason: str = "") -> dict[str, Any]:
    return {"user": user, "since": "2026-11-01T00:00:00.000Z", "until": until, "reason": reason}


def test_ban(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, json.dumps(one(until="2026-11-01T01:00:00.000Z", reason="spam")).encode())]
    done = call("ban", "eve", "--for", "1h", "--reason", "spam")
    assert (done.exit_code, done.stdout) == (0, "eve: banned until 2026-11-01T01:00:00.000Z (spam)\n")
    assert admin.requests == [("POST", "/api/bans", {"user": "eve", "for": "1h", "reason": "spam"}, BEARER)]


def test_ban_for_good(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, json.dumps(one("e\x1bve")).encode())]
    assert call("ban", "e\x1bve").stdout == "e\\x1bve: banned for good\n"
    assert admin.requests[0][2] == {"user": "e\x1bve", "reason": ""}


def test_unban(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, json.dumps(one()).encode())]
    assert call("unban", "a/b").stdout == "a/b: the ban is over\n"
    assert admin.requests == [("DELETE", "/api/bans/a%2Fb", None, BEARER)]


def test_bans(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, json.dumps({"bans": [one(), one("bob", reason="x")]}).encode())]
    assert call("bans").stdout.splitlines() == ["eve: banned for good", "bob: banned for good (x)"]
    assert [json.loads(line) for line in call("bans", "--json").stdout.splitlines()] == [one(), one("bob", reason="x")]


def test_a_refusal_is_said(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(404, b'{"code": "not_banned", "message": "this user is not banned"}')]
    done = call("unban", "eve")
    assert done.exit_code == 1
    assert "this user is not banned" in done.stderr
