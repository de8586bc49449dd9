"""`holdfast reload` and `holdfast drain`: what they ask, what they say, and how they end."""

import json
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from gateway import cli, cli_supervision
from tests.gateway.fake_admin import FakeAdmin


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    yield server
    server.close()


Call = Callable[..., Result]


@pytest.fixture
def call(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(cli_supervision, "POLL_S", 0.001)

    def run(*arguments: str) -> Result:
        environment = {"HOLDFAST_ADMIN_TOKEN": "t" * 16}
        return CliRunner().invoke(cli.cli, [*arguments, "--url", admin.url], env=environment, prog_name="holdfast")

    return run


def stands(state: str, replaced: int = 0, cut: int = 0, why: str = "") -> tuple[int, bytes]:
    found = {"number": 1, "state": state, "replaced": replaced, "places": 2, "cut": cut, "why": why}
    return 200, json.dumps(found).encode()


def test_a_reload_is_followed_to_its_end(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [stands("running"), stands("running"), stands("running", 1), stands("done", 2)]
    done = call("reload", "--router")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "0 of 2 workers replaced",
        "1 of 2 workers replaced",
        "done: 2 of 2 workers replaced",
    ]
    assert admin.requests[0] == ("POST", "/api/reload", {"router": True}, f"Bearer {'t' * 16}")
    assert {(request[0], request[1]) for request in admin.requests[1:]} == {("GET", "/api/reload")}


def test_what_was_killed_is_said(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [stands("done", 2, cut=1)]
    assert "1 did not leave in time and were killed" in call("reload").stdout


def test_nobody_waits_who_does_not_want_to(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [stands("running")]
    done = call("reload", "--no-wait")
    assert (done.exit_code, len(admin.requests)) == (0, 1)
    assert admin.requests[0][2] == {"router": False}


def test_a_reload_that_was_called_off_says_why_and_fails(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [stands("running"), stands("called_off", 1, why="the new process of worker-1 was not ready")]
    done = call("reload")
    assert done.exit_code == 1
    assert "called off after 1 of 2: the new process of worker-1 was not ready" in done.stderr


def test_a_refusal_is_said(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(400, json.dumps({"code": "bad_request", "message": "gateway.port cannot change"}).encode())]
    done = call("reload")
    assert done.exit_code == 1
    assert "gateway.port cannot change" in done.stderr


def test_a_drain_is_asked_for(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b'{"state": "draining"}')]
    done = call("drain")
    assert (done.exit_code, admin.requests[0][:3]) == (0, ("POST", "/api/drain", {}))
    assert done.stdout.startswith("draining")
