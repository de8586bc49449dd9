"""The commands that ask a running node: what they send, what they print, and what they say when they cannot."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from click.testing import CliRunner, Result

from gateway import cli
from gateway.cli_admin import COLUMNS
from tests.gateway.fake_admin import FakeAdmin

ONE: dict[str, Any] = {
    "id": "0-17-1-0",
    "worker": "worker-0",
    "user": "alice",
    "device": "phone",
    "session": "ab" * 16,
    "state": "open",
    "reason": None,
    "address": "2001:db8::7",
    "port": 4711,
    "transport": "websocket",
    "encoding": "json",
    "tls": True,
    "created": "2020-01-01T00:00:00.000Z",
    "last_heard": "2999-01-01T00:00:00.000Z",
    "last_sent": "2020-01-01T00:00:00.000Z",
    "rtt_ms": 12,
    "lost_heartbeats": 1,
    "queued_bytes": 3,
    "memberships": 4,
    "requests": 0,
}
TWO = {**ONE, "id": "1-17-2-9", "user": None, "address": None, "port": None, "encoding": None, "rtt_ms": None}
TWO |= {"device": None, "transport": "tcp", "tls": False, "memberships": 0, "state": "closing", "reason": "kicked"}


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    yield server
    server.close()


Call = Callable[..., Result]


@pytest.fixture
def call(admin: FakeAdmin) -> Call:
    def run(*arguments: str, env: dict[str, str | None] | None = None) -> Result:
        environment: dict[str, str | None] = {"HOLDFAST_ADMIN_TOKEN": None, **(env or {})}
        return CliRunner().invoke(cli.cli, [*arguments, "--url", admin.url], env=environment, prog_name="holdfast")

    return run


def page(*found: dict[str, Any], next_: str | None = None, missing: tuple[str, ...] = ()) -> tuple[int, bytes]:
    return 200, json.dumps({"connections": found, "next": next_, "missing": missing}).encode()


def query(path: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(path).query)


def test_connections_prints_a_table(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [page(ONE, TWO)]
    done = call("connections")
    assert done.exit_code == 0, done.output
    head, one, two = done.stdout.splitlines()
    assert head.split() == list(COLUMNS)
    assert one.split()[:6] == ["0-17-1-0", "alice", "phone", "open", "websocket/json+tls", "[2001:db8::7]:4711"]
    age, idle, *rest = one.split()[6:]
    assert age.endswith("d")
    assert int(age[:-1]) > 365
    assert [idle, *rest] == ["0s", "12ms", "1", "3", "3"]
    assert two.split()[:7] == ["1-17-2-9", "-", "-", "closing", "(kicked)", "tcp", "-"]
    assert head.index("ADDRESS") == one.index("[2001")
    assert admin.requests == [("GET", "/api/connections?limit=100", None, None)]


def test_connections_passes_its_filters_on(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [page()]
    flags = "--user a&b --session ab --device phone --channel group:a --address ::1"
    flags += " --state open --state closing --older 5m --idle 2h --queued 7"
    done = call("connections", *flags.split(), "--limit", "5000", env={"HOLDFAST_ADMIN_TOKEN": "tok"})
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("ID ")
    method, path, body, authorization = admin.requests[0]
    assert (method, body, authorization) == ("GET", None, "Bearer tok")
    assert query(path) == [
        ("user", "a&b"),
        ("session", "ab"),
        ("device", "phone"),
        ("channel", "group:a"),
        ("address", "::1"),
        ("state", "open"),
        ("state", "closing"),
        ("older", "5m"),
        ("idle", "2h"),
        ("queued", "7"),
        ("limit", "1000"),
    ]


def test_connections_follows_the_pages_up_to_its_limit(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [page(ONE, next_="0-17-1-0", missing=("worker-3",)), page(TWO, missing=("worker-3",))]
    done = call("connections", "--json", "--limit", "9")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [ONE, TWO]
    assert query(admin.requests[1][1]) == [("limit", "8"), ("after", "0-17-1-0")]
    assert done.stderr.splitlines() == ["worker-3 did not answer: its connections are not among these"]


def test_connections_asks_for_no_more_than_its_limit(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [page(ONE, next_="0-17-1-0")]
    assert call("connections", "--limit", "1").exit_code == 0
    assert len(admin.requests) == 1


def test_kick_ends_those_with_these_ids(admin: FakeAdmin, call: Call) -> None:
    kicked = {**ONE, "was": "open", "state": "closing", "reason": "kicked"}
    admin.answers = [(202, json.dumps(kicked).encode()), (202, json.dumps({**TWO, "was": "closing"}).encode())]
    done = call("kick", "0-17-1-0", "1-17-2-9", "--reason", "so long", "--after", "30s")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "0-17-1-0 of alice: open -> closing (kicked)",
        "1-17-2-9: ends already (kicked)",
    ]
    said = "code=kicked&reason=so+long&after=30s"
    assert [request[:2] for request in admin.requests] == [
        ("DELETE", f"/api/connections/0-17-1-0?{said}"),
        ("DELETE", f"/api/connections/1-17-2-9?{said}"),
    ]


def test_kick_ends_all_of_a_user_asking_until_no_more_are_left(admin: FakeAdmin, call: Call) -> None:
    kicked = {**ONE, "was": "open", "state": "closing", "reason": "banned"}
    answer = {"reclaimed": 1, "more": True, "connections": [kicked], "missing": []}
    last = {**answer, "more": False, "missing": ["worker-1"]}
    admin.answers = [(200, json.dumps(answer).encode()), (200, json.dumps(last).encode())]
    done = call("kick", "--user", "alice", "--code", "banned")
    assert done.exit_code == 1, "not all of them were ended"
    assert len(done.stdout.splitlines()) == 2
    assert "worker-1 did not answer" in done.stderr
    assert [request[1] for request in admin.requests] == ["/api/connections?user=alice&code=banned"] * 2


def test_kick_goes_on_behind_one_that_is_gone(admin: FakeAdmin, call: Call) -> None:
    kicked = {**ONE, "was": "open", "state": "closing", "reason": "kicked"}
    gone = b'{"code": "no_such_connection", "message": "there is none"}'
    admin.answers = [(404, gone), (202, json.dumps(kicked).encode())]
    done = call("kick", "no one/..", "0-17-1-0")
    assert done.exit_code == 1
    assert done.stderr.splitlines() == ["no one/..: refused (no_such_connection): there is none"]
    assert done.stdout.splitlines() == ["0-17-1-0 of alice: open -> closing (kicked)"]
    assert admin.requests[0][1] == "/api/connections/no%20one%2F..?code=kicked"


def test_names_that_clients_chose_do_not_steer_the_terminal(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [page({**ONE, "user": "\x1b[2Jal\nice\u202eé"})]
    assert "  \\x1b[2Jal\\nice\\u202eé  " in call("connections").stdout


def test_what_is_no_text_is_sent_as_it_is(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [page()]
    assert call("connections", "--user", b"\xff".decode(errors="surrogateescape")).exit_code == 0
    assert "user=%FF" in admin.requests[0][1]


@pytest.mark.parametrize("arguments", [["kick"], ["kick", "0-17-1-0", "--user", "alice"]])
def test_kick_has_to_be_told_which(admin: FakeAdmin, call: Call, arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert "say which" in done.stderr
    assert admin.requests == []


@pytest.mark.parametrize("arguments", [["connections"], ["kick", "0-17-1-0"]])
def test_a_refusal_is_said(admin: FakeAdmin, call: Call, arguments: list[str]) -> None:
    admin.answers = [(404, b'{"code": "no_such_connection", "message": "there is none"}')]
    done = call(*arguments)
    assert done.exit_code == 1
    assert "refused (no_such_connection): there is none" in done.stderr
    assert "Traceback" not in done.output


def test_without_a_node_it_says_so(admin: FakeAdmin, call: Call) -> None:
    admin.close()
    done = call("connections")
    assert done.exit_code == 1
    assert "cannot ask the node through" in done.stderr
    assert "is a node running there?" in done.stderr
