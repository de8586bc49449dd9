"""The command line: what it takes, what it refuses with which exit code, and what it prints."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway import __version__, cli, machine, node
from gateway.config import Config
from gateway.errors import PortTakenError
from tests.gateway.fake_admin import FakeAdmin

SECRET = "s" * 32


def call(*arguments: str, env: dict[str, str] | None = None) -> Result:
    hidden: dict[str, str | None] = {name: None for name in os.environ if name.startswith("HOLDFAST_")}
    return CliRunner().invoke(cli.cli, arguments, env={**hidden, **(env or {})}, prog_name="holdfast")


class Runs:
    """Stands for `gateway.node.run`: notes what it is asked to run, and gets ready at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[Config, node.Parts]] = []
        self.failure: Exception | None = None

    def __call__(self, config: Config, parts: node.Parts, announce: Any, again: Any) -> int:
        assert again() == config, "the same sources, read again"
        self.calls.append((config, parts))
        if self.failure is not None:
            raise self.failure
        announce()
        return 0


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(node, "run", made)
    return made


def test_version() -> None:
    assert call("version").output == f"holdfast {__version__}\n"


def test_help_of_run_names_every_flag_its_default_and_the_other_sources() -> None:
    said = " ".join(call("run", "--help").output.split())
    for flag in ("--config", "--workers", "--host", "--port", "--ws-port", "--admin-port", "--log-level"):
        assert flag in said
    for word in ("default: 7400", "default: 7401", "default: 7402", "HOLDFAST_CONFIG", "DEVELOPMENT MODE"):
        assert word in said


def test_run_says_what_to_open_and_warns_of_development_mode(runs: Runs) -> None:
    done = call(
        "run", "--workers", "3", "--port", "1400", "--ws-port", "1401", "--admin-port", "1402", "--node-name", "n1"
    )
    assert done.exit_code == 0
    config, parts = runs.calls[0]
    assert (config.gateway.workers, config.gateway.port, config.node.name) == (3, 1400, "n1")
    assert parts == node.Parts(router=True, workers=True, admin=True)
    assert config.router.endpoint == ""
    assert "http://127.0.0.1:1402/\n" in done.stdout
    assert "ws://127.0.0.1:1401/ws\n" in done.stdout
    assert "127.0.0.1:1400\n" in done.stdout
    assert "development (anybody may be any user)" in done.stdout
    assert "DEVELOPMENT MODE" in done.stderr


def test_with_a_secret_there_is_no_warning_and_the_secret_is_not_printed(runs: Runs) -> None:
    done = call("run", env={"HOLDFAST_AUTH_SECRET": SECRET})
    assert done.exit_code == 0
    assert runs.calls[0][0].gateway.host == "0.0.0.0"
    assert "tokens are checked" in done.stdout
    assert "DEVELOPMENT" not in done.output
    assert SECRET not in done.output


def test_gateway_and_router_meet_at_one_endpoint(runs: Runs) -> None:
    assert call("gateway").exit_code == 0
    assert call("router").exit_code == 0
    assert call("router", "--endpoint", "tcp://127.0.0.1:9", "--admin-port", "8").exit_code == 0
    assert call("gateway", env={"HOLDFAST_ROUTER_ENDPOINT": "tcp://127.0.0.1:9"}).exit_code == 0
    endpoints = [config.router.endpoint for config, _ in runs.calls]
    assert endpoints == [cli.ENDPOINT, cli.ENDPOINT, "tcp://127.0.0.1:9", "tcp://127.0.0.1:9"]
    assert [parts for _, parts in runs.calls] == [
        node.Parts(router=False, workers=True, admin=True),
        node.Parts(router=True, workers=False, admin=False),
        node.Parts(router=True, workers=False, admin=True),
        node.Parts(router=False, workers=True, admin=True),
    ]


def test_flags_override_the_environment_and_that_the_file(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text("[gateway]\nport = 1001\nws_port = 1002\nworkers = 5\n")
    environment = {"HOLDFAST_CONFIG": str(path), "HOLDFAST_GATEWAY_WS_PORT": "2002", "HOLDFAST_GATEWAY_WORKERS": "6"}
    assert call("run", "--workers", "7", env=environment).exit_code == 0
    gateway = runs.calls[0][0].gateway
    assert (gateway.port, gateway.ws_port, gateway.workers) == (1001, 2002, 7)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["run", "--port", "0"],
            "holdfast: gateway.port = 0 on the command line: must be a whole number between 1 and",
        ),
        (["run", "--port", "x"], "Invalid value for '--port'"),
        (["run", "--prot", "1"], "No such option '--prot'"),
        (["run", "--host", "0.0.0.0"], "in development mode anybody who reaches the port may be any user"),
        (["run", "--config", "/none.toml"], "cannot read the configuration file /none.toml"),
        (["publish", "group:a", "{", "--json"], "DATA is not valid JSON"),
    ],
)
def test_what_cannot_be_used_ends_with_2_and_a_message_only(runs: Runs, arguments: list[str], said: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert runs.calls == []


def test_a_node_that_cannot_start_ends_with_its_code_and_message(runs: Runs) -> None:
    runs.failure = PortTakenError("worker-0 cannot listen")
    done = call("run")
    assert done.exit_code == 78
    assert done.stderr.splitlines()[-1] == "holdfast: worker-0 cannot listen"
    assert done.stdout == ""


def test_options_lists_every_setting() -> None:
    listed = call("options").output
    assert "#ping_ms = 30000" in listed
    assert "[admin]" in listed


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    server.answers = [(200, b'{"epoch": 3, "offset": 14}')]
    yield server
    server.close()


def test_publish_sends_text_or_json(admin: FakeAdmin) -> None:
    done = call("publish", "group:lobby", "17", "--url", admin.url)
    assert (done.exit_code, done.output) == (0, "group:lobby: epoch 3, offset 14\n")
    options = ["--json", "--key", "k", "--from", "bot", "--url", f"{admin.url}/"]
    assert call("publish", "group:lobby", '{"a": 17}', *options, env={"HOLDFAST_ADMIN_TOKEN": "tok"}).exit_code == 0
    assert admin.requests == [
        ("POST", "/api/publish", {"channel": "group:lobby", "data": "17"}, None),
        (
            "POST",
            "/api/publish",
            {"channel": "group:lobby", "data": {"a": 17}, "key": "k", "from": "bot"},
            "Bearer tok",
        ),
    ]


def test_publish_of_json_null_is_a_message_as_well(admin: FakeAdmin) -> None:
    assert call("publish", "group:lobby", "null", "--json", "--url", admin.url).exit_code == 0
    assert admin.requests[0][2] == {"channel": "group:lobby", "data": None}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, b'{"code": "no_such_channel", "message": "no such thing"}'), "refused (no_such_channel): no such thing"),
        ((502, b"<html>"), "refused with HTTP status 502"),
        ((200, b"<html>"), "cannot publish through"),
    ],
)
def test_publish_says_why_it_was_refused(admin: FakeAdmin, answer: tuple[int, bytes], said: str) -> None:
    admin.answers = [answer]
    done = call("publish", "group:lobby", "x", "--url", admin.url)
    assert done.exit_code == 1
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_publish_without_a_node_says_so(admin: FakeAdmin) -> None:
    admin.close()
    done = call("publish", "group:lobby", "x", "--url", admin.url)
    assert done.exit_code == 1
    assert "is a node running there?" in done.stderr


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1:7400"), ("::", "[::1]:7400"), ("10.0.0.7", "10.0.0.7:7400")]
)
def test_the_banner_shows_addresses_that_can_be_opened(runs: Runs, host: str, shown: str) -> None:
    done = call("run", "--host", host, env={"HOLDFAST_AUTH_SECRET": SECRET})
    assert shown in done.stdout


def test_the_doctor_says_what_this_machine_holds() -> None:
    done = call("doctor", "--workers", "1", "--connections", "10", "--grace", "60")
    assert done.exit_code == 0
    assert done.output.startswith("10 connections on 1 workers\n")
    assert done.output.endswith("10 connections can be held\n")


def test_the_doctor_fails_when_the_number_cannot_be_held_and_says_so_in_json() -> None:
    environment = {"HOLDFAST_GATEWAY_CONNECTIONS_MAX": "100"}
    done = call("doctor", "--workers", "2", "--connections", "201", "--json", env=environment)
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["wanted"], report["holds"], report["reachable"]) == (201, False, 200)
    assert report["findings"][0]["name"] == "gateway.connections_max"
    assert call("doctor", "--workers", "2", "--json", env=environment).exit_code == 0


def test_the_doctor_judges_the_limit_of_open_files_rather_than_adapting_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(machine.here(), files_hard=1_024)
    monkeypatch.setattr(machine, "here", lambda: few)
    done = call("doctor", "--workers", "1", "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["wanted"], report["reachable"]) == (1, 100_000, 768)
    assert call("doctor", env={"HOLDFAST_GATEWAY_PORT": "x"}).exit_code == 2


CLUSTER = {
    "HOLDFAST_DIRECTORY_ENDPOINTS": "127.0.0.1:2379",
    "HOLDFAST_BUS_ADVERTISE": "127.0.0.1:7410",
    "HOLDFAST_LOG_BACKEND": "none",
}


@pytest.mark.parametrize(
    ("command", "env", "parts"),
    [
        ("run", {}, node.Parts(router=True, workers=True, admin=True)),
        ("run", {"HOLDFAST_NODE_ROLE": "gateway"}, node.Parts(router=False, workers=True, admin=True)),
        ("run", {"HOLDFAST_NODE_ROLE": "router"}, node.Parts(router=True, workers=False, admin=True)),
        ("gateway", {"HOLDFAST_BUS_ADVERTISE": ""}, node.Parts(router=False, workers=True, admin=True)),
        ("router", {}, node.Parts(router=True, workers=False, admin=True)),
    ],
)
def test_with_a_directory_a_node_has_a_role(runs: Runs, command: str, env: dict[str, str], parts: node.Parts) -> None:
    result = call(command, env={**CLUSTER, **env})
    assert result.exit_code == 0, result.output
    (found,) = runs.calls
    assert found[1] == parts
    assert found[0].router.endpoint == "", "it is not the place where those meet that have no directory"
    assert "directory  127.0.0.1:2379" in result.output


def test_what_does_not_fit_a_role_is_said(runs: Runs) -> None:
    result = call("router", env={**CLUSTER, "HOLDFAST_BUS_ADVERTISE": ""})
    assert result.exit_code == 2
    assert "directory.endpoints without bus.advertise" in result.output
