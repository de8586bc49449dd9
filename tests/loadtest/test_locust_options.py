"""Options are checked before anything starts, and each refusal names the option and what it may be."""

import argparse
from pathlib import Path

import pytest

from loadtest.locust_users import options

HOST = "ws://127.0.0.1:7401/ws"


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_to(parser)
    return parser.parse_args(arguments)


def test_the_defaults_are_a_load() -> None:
    load = options.load_of(parsed(), HOST)
    assert (load.host, load.port, load.path, load.tokens, load.admin) == ("127.0.0.1", 7401, "/ws", (), "")


@pytest.mark.parametrize("host", [None, "", "127.0.0.1:7401", "http://127.0.0.1", "ws://"])
def test_a_host_that_is_no_websocket_is_refused(host: str | None) -> None:
    with pytest.raises(ValueError, match=r"--host .*ws://127\.0\.0\.1:7401/ws"):
        options.load_of(parsed(), host)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--connections-per-user", "0"), "--connections-per-user is at least 1"),
        (("--groups", "0"), "--groups is at least 1"),
        (("--connect-rate", "-1"), "--connect-rate is at least 0"),
        (("--publish-rate", "0"), "--publish-rate is more than 0"),
        (("--flaps", "nan"), "--flaps is more than 0"),
        (("--payload", "23"), "--payload is 24 to 60000 bytes, not 23"),
        (("--payload", "60001"), "--payload is 24 to 60000 bytes, not 60001"),
    ],
)
def test_a_number_out_of_its_range_is_refused(arguments: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        options.load_of(parsed(*arguments), HOST)


def test_tokens_come_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("a\n\nb\n")
    assert options.load_of(parsed("--token-file", str(file)), HOST).tokens == ("a", "b")
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no token"):
        options.load_of(parsed("--token-file", str(file)), HOST)
