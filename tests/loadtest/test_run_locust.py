"""`make locust` fills in what was not given, and finds out what was."""

import socket
import subprocess

import pytest

from loadtest import run_locust


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], set()),
        (["-t", "5s", "-u", "3"], {"--run-time", "--users"}),
        (["--host=ws://x/ws", "Chatter"], {"--host"}),
        (["-H", "ws://x/ws", "--admin", "http://x"], {"--host", "--admin"}),
    ],
)
def test_options_count_as_given_in_each_of_their_spellings(arguments: list[str], names: set[str]) -> None:
    assert run_locust.given(arguments) == names


def test_what_was_not_given_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def call(command: list[str], **_: object) -> int:
        ran.append(command)
        return 7

    monkeypatch.setattr(subprocess, "call", call)
    assert run_locust.main(["-t", "5s", "--host", "ws://x/ws"]) == 7
    assert "--users" in ran[0]
    assert "--run-time" not in ran[0]
    assert ran[0][-4:] == ["-t", "5s", "--host", "ws://x/ws"]


def test_a_port_where_nobody_answers_is_no_gateway() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        assert not run_locust.ready(f"http://127.0.0.1:{held.getsockname()[1]}")


def test_free_ports_differ() -> None:
    assert len(set(run_locust.free_ports(5))) == 5
