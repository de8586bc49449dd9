"""`holdfast user`: what it asks and what it says."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway import cli
from tests.gateway.fake_admin import FakeAdmin

BEARER = f"Bearer {'t' * 16}"
Call = Callable[..., Result]
SESSION = {
    "session": "0f" * 16,
    "device": "phone",
    "id": "0-1-2",
    "worker": "worker-0",
    "transport": "tcp",
    "address": "::1",
    "port": 5000,
    "channel_count": None,
    "channels": None,
    "created": "2026-11-01T00:00:00.000Z",
    "last_heard": "2026-11-01T00:00:00.000Z",
}
ALICE = {
    "user": "alice",
    "unread": 3,
    "channels": {"user:alice": {"position": [7, 5], "cursor": [6, 2], "unread": 3}},
    "sessions": [SESSION],
    "more": False,
    "missing": [],
}


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    yield server
    server.close()


@pytest.fixture
def call(admin: FakeAdmin) -> Call:
    def run(answer: dict[str, Any], *arguments: str) -> Result:
        admin.answers = [(200, json.dumps(answer).encode())]
        environment = {"HOLDFAST_ADMIN_TOKEN": "t" * 16}
        return CliRunner().invoke(cli.cli, ["user", *arguments, "--url", admin.url], env=environment)

    return run


def test_a_user_is_shown(admin: FakeAdmin, call: Call) -> None:
    done = call(ALICE, "a/b")
    assert (done.exit_code, admin.requests) == (0, [("GET", "/api/users/a%2Fb", None, BEARER)])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["alice:", "3", "unread"]
    assert lines[3] == ["user:alice", "7", "5", "2", "3"]
    assert lines[6][:-2] == ["0f" * 16, "phone", "0-1-2", "worker-0", "tcp", "[::1]:5000"]


def test_a_user_without_sessions_and_cursors_is_shown(call: Call) -> None:
    channels = {"user:alice": {"position": [7, 5], "cursor": None, "unread": None}}
    done = call({**ALICE, "unread": None, "sessions": [], "channels": channels}, "alice")
    assert done.stdout.startswith("alice: no cursors are kept\n")
    assert done.stdout.splitlines()[3].split() == ["user:alice", "7", "5", "-", "-"]
    assert done.stdout.endswith("\nno sessions here\n")


def test_what_is_stored_of_sessions_is_shown(call: Call) -> None:
    stored = {"group:a": {"position": [7, 5], "behind": 3}, "gone:b": {"position": [7, 1], "behind": None}}
    done = call({**ALICE, "sessions": [{**SESSION, "channel_count": 5, "channels": stored}]}, "alice")
    rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    id_ = "0f" * 16
    assert rows[0] == ["SESSION", "CHANNEL", "EPOCH", "OFFSET", "BEHIND"]
    assert rows[1:] == [[id_, "group:a", "7", "5", "3"], [id_, "gone:b", "7", "1", "-"], [id_, "and", "3", "more"]]


def test_what_is_not_told_is_said(call: Call) -> None:
    done = call({**ALICE, "more": True, "missing": ["worker-1"]}, "alice")
    assert done.stdout.endswith("holdfast connections --user alice\n")
    assert "worker-1 did not answer" in done.stderr


def test_for_machines_it_is_the_answer_itself(call: Call) -> None:
    assert json.loads(call(ALICE, "alice", "--json").stdout) == ALICE


def test_what_a_user_is_called_does_not_write_to_the_terminal(call: Call) -> None:
    assert "\x1b" not in call({**ALICE, "user": "e\x1bve", "channels": {}}, "e\x1bve").stdout
