"""`holdfast config`: what is wrong comes with exit code 2, and what is shown says where it came from."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import cli
from gateway.options import as_markdown

SECRET = "s" * 32


def asked(*arguments: object, **environ: str) -> Any:
    return CliRunner().invoke(cli, ["config", *map(str, arguments)], env=environ)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "holdfast.toml"
    path.write_text("[gateway]\nworkers = 3\nport = 7001\n[namespaces.chat]\ndomain = 'group'\nhistory_age_s = 60\n")
    return path


def test_a_file_that_can_be_used_is_said_so(file: Path) -> None:
    result = asked("check", file)
    assert result.exit_code == 0
    assert f"{file} can be used: node" in result.stdout
    assert "1 namespaces beside the built-in" in result.stdout
    assert asked("check", HOLDFAST_CONFIG=str(file)).stdout == result.stdout
    assert "the configuration without a file can be used" in asked("check").stdout


def test_everything_that_is_wrong_is_said_at_once(file: Path) -> None:
    file.write_text("[gateway]\nport = 0\nprot = 1\n[namespaces.group]\nack = 'x'\n[namespaces.chat]\nevents = true\n")
    result = asked("check", file, HOLDFAST_LOG_LEVEL="loud")
    assert result.exit_code == 2
    assert result.stdout == ""
    for key in ("gateway.port", "gateway.prot", "namespaces.group.ack", "namespaces.chat.domain", "log.level"):
        assert key in result.stderr
    file.write_text("[namespaces.user]\njoin = 'token'\n[gateway]\nws_port = 7400\n")
    result = asked("check", file)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 2)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = asked("check", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "none.toml: No such file" in result.stderr


def test_each_value_is_shown_with_where_it_came_from(file: Path) -> None:
    result = asked("show", file, "--origin", HOLDFAST_GATEWAY_PORT="7002", HOLDFAST_NAMESPACES_USER_ACK="sequenced")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "port = 7002 # in the environment (HOLDFAST_GATEWAY_PORT)" in lines
    assert f"workers = 3 # in {file}" in lines
    assert "ping_ms = 30000 # default" in lines
    assert 'host = "127.0.0.1" # chosen for this machine' in lines
    chat = lines[lines.index("[namespaces.chat]") :]
    assert chat[1] == f'domain = "group" # in {file}'
    assert 'ack = "logged" # default of group' in chat
    none = asked("show", "--origin", HOLDFAST_LOG_BACKEND="none").stdout.splitlines()
    assert ["ack", "=", '"sequenced"', "#", "chosen", "to", "fit", "the", "rest"] in [line.split() for line in none]
    user = lines[lines.index("[namespaces.user]") : lines.index("[namespaces.group]")]
    assert 'ack = "sequenced" # in the environment (HOLDFAST_NAMESPACES_USER_ACK)' in user


def test_what_is_shown_is_a_file_that_says_the_same(file: Path, tmp_path: Path) -> None:
    shown = asked("show", file).stdout
    again = tmp_path / "again.toml"
    again.write_text(shown)
    assert asked("show", again).stdout == shown


@pytest.mark.parametrize("command", ["check", "show"])
def test_the_file_may_be_named_as_for_a_node(command: str, file: Path) -> None:
    assert asked(command, "--config", file).stdout == asked(command, file).stdout
    assert str(file) in asked("check", "--config", file).stdout
    both = asked(command, file, "--config", file)
    assert (both.exit_code, "name one file" in both.stderr) == (2, True)


def test_machines_get_json(file: Path) -> None:
    told = json.loads(asked("show", file, "--json").stdout)
    assert (told["gateway.port"], told["namespaces.chat.history_age_s"]) == (7001, 60)
    told = json.loads(asked("show", file, "--json", "--origin").stdout)
    assert told["gateway.port"] == {"value": 7001, "origin": f"in {file}"}


def test_secrets_are_hidden() -> None:
    for more in ((), ("--json",), ("--origin",)):
        url = {"HOLDFAST_LOG_REDIS_URL": f"redis://:{SECRET}@127.0.0.1/0"}
        result = asked("show", *more, HOLDFAST_AUTH_SECRET=SECRET, **url)
        assert SECRET not in result.stdout
        assert "(hidden)" in result.stdout


def test_what_cannot_be_used_cannot_be_shown(file: Path) -> None:
    file.write_text("[gateway]\nport = 0")
    assert asked("show", file).exit_code == 2


def test_the_page_is_printed() -> None:
    assert asked("doc").stdout == as_markdown()
