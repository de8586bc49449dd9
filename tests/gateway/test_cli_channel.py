"""`holdfast channel`: what it asks and what it says."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway import cli
from gateway.cli_channel import FACTS, SESSIONS
from tests.gateway.fake_admin import FakeAdmin

BEARER = f"Bearer {'t' * 16}"
Call = Callable[..., Result]
SESSION = {
    "session": "0f" * 16,
    "user": "alice",
    "device": None,
    "id": "0-1-2",
    "worker": "worker-0",
    "transport": "tcp",
    "address": "::1",
    "port": 5000,
    "created": "2020-01-01T00:00:00.000Z",
    "last_heard": "2999-01-01T00:00:00.000Z",
}
GROUP: dict[str, Any] = {
    "channel": "group:a",
    "namespace": "group",
    "domain": "group",
    "position": [7, 5],
    "waiting": 2,
    "history": {"messages": 3, "bytes": 99, "oldest": {"position": [6, 3], "time": "2999-01-01T00:00:00.000Z"}},
    "in_memory": "all",
    "presence": {"users": 2, "sessions": 4},
    "members": 1,
    "workers": 1,
    "sessions": [SESSION],
    "next": None,
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
        return CliRunner().invoke(cli.cli, ["channel", *arguments, "--url", admin.url], env=environment)

    return run


def test_a_channel_is_shown(admin: FakeAdmin, call: Call) -> None:
    done = call(GROUP, "group:a/b")
    assert (done.exit_code, admin.requests) == (0, [("GET", "/api/channels/group%3Aa%2Fb", None, BEARER)])
    lines = done.stdout.splitlines()
    assert lines[0] == "group:a: 2 users in 4 sessions"
    assert lines[2].split() == " ".join(FACTS).split()
    assert lines[3].split() == ["group", "7", "5", "2", "3", "99", "3", "(0s)", "all", "1", "1"]
    assert lines[5].split() == list(SESSIONS)
    assert lines[6].split()[:7] == ["0f" * 16, "alice", "-", "0-1-2", "worker-0", "tcp", "[::1]:5000"]


def test_a_channel_without_members_history_and_presence_is_shown(call: Call) -> None:
    history = {"messages": 0, "bytes": 0, "oldest": None}
    done = call({**GROUP, "history": history, "presence": None, "sessions": [], "in_memory": "nothing"}, "group:a")
    assert done.stdout.startswith("group:a: presence is not kept\n")
    assert done.stdout.splitlines()[3].split() == ["group", "7", "5", "2", "0", "0", "-", "nothing", "1", "1"]
    assert done.stdout.endswith("\nno members here\n")


def test_what_is_not_told_is_said(call: Call) -> None:
    done = call({**GROUP, "next": "0-1-2", "missing": ["worker-1"]}, "group:a")
    assert done.stdout.endswith("and more: holdfast connections --channel group:a\n")
    assert "worker-1 did not answer" in done.stderr


def test_for_machines_it_is_the_answer_itself(call: Call) -> None:
    assert json.loads(call(GROUP, "group:a", "--json").stdout) == GROUP


def test_what_a_channel_is_called_does_not_write_to_the_terminal(call: Call) -> None:
    session = {**SESSION, "user": "e\x1bve", "device": "\x1b"}
    assert "\x1b" not in call({**GROUP, "channel": "group:\x1b", "sessions": [session], "next": "x"}, "a").stdout


def test_what_is_refused_is_said(admin: FakeAdmin) -> None:
    admin.answers = [(404, b'{"code": "no_such_channel", "message": "a channel is <namespace>:<id>"}')]
    done = CliRunner().invoke(cli.cli, ["channel", "nonsense", "--url", admin.url])
    assert done.exit_code == 1
    assert "refused (no_such_channel): a channel is <namespace>:<id>" in done.output
