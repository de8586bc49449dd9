"""The commands about regions, against a scripted admin server."""

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway import cli, cli_regions
from tests.gateway.fake_admin import FakeAdmin

Call = Callable[..., Result]
HOUR_MS = 3_600_000


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def call(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(cli_regions, "POLL_S", 0.0)

    def run(*arguments: str) -> Result:
        hidden: dict[str, str | None] = {name: None for name in os.environ if name.startswith("HOLDFAST_")}
        address = ["--url", admin.url, "--token", "t" * 16]
        return CliRunner().invoke(cli.cli, [*arguments, *address], env=hidden, prog_name="holdfast")

    return run


def answer(leads: int = 3, **eu: Any) -> bytes:
    """Of /api/regions."""
    one: dict[str, Any] = {"name": "eu", "routers": 2, "gateways": 1, "leads": leads, "wanted": 3, "evacuated": False}
    one |= {"by": None, "since_ms": None, "pace": None, "follows": 5, "behind": 0, "lag_entries": 0, "lag_seconds": 0.0}
    one |= {"breakers_open": 0, "breakers": 2, **eu}
    return json.dumps({"regions": [one, one | {"name": "us", "evacuated": False, "leads": 0}]}).encode()


def test_regions_are_shown_with_what_they_lead(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, answer(evacuated=True, by="op@host", since_ms=HOUR_MS))]
    said = call("region").output.splitlines()
    assert said[0].split() == list(cli_regions.HEAD)
    assert said[1].split()[:8] == ["eu", "2", "1", "3", "3", "5", "0", "closed"]
    assert said[1].endswith("evacuated since 1970-01-01 01:00:00 UTC by op@host")
    assert said[2].endswith("serves")
    assert admin.requests[0][1] == "/api/regions"


@pytest.mark.parametrize(
    ("eu", "shown"),
    [
        ({"follows": 7, "behind": 2}, "7 (2 behind)  0  closed"),
        ({"lag_entries": 12, "lag_seconds": 0.449, "breakers_open": 1}, "5  12 (0.4 s)  open at 1 of 2"),
        ({"breakers_open": 2}, "5  0  open"),
        ({"lag_entries": None, "lag_seconds": None, "breakers": 0}, "5  -  -"),
    ],
)
def test_how_far_a_region_is_is_shown(admin: FakeAdmin, call: Call, eu: dict[str, Any], shown: str) -> None:
    admin.answers = [(200, answer(**eu))]
    line = call("region").output.splitlines()[1]
    assert re.split(" {2,}", line)[5:8] == shown.split("  ")


def test_an_order_of_which_nothing_can_be_read_is_shown_as_one(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, answer(evacuated=True)), (200, b'{"regions": []}'), (200, answer())]
    assert call("region").output.splitlines()[1].endswith("  evacuated")
    assert call("region").output == "no regions: directory.region is not set\n"
    assert json.loads(call("region", "--json").output) == json.loads(answer())


def test_an_evacuation_is_followed_until_nothing_is_led(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}"), *((200, answer(leads, evacuated=True)) for leads in (3, 1, 0))]
    result = call("region", "evacuate", "eu", "--pace", "50")
    assert result.output == "eu: evacuated, leads 0; its clients go at their pace\n"
    method, path, body = admin.requests[0][:3]
    assert (method, path) == ("POST", "/api/regions/evacuate")
    assert {**body, "by": ""} == {"region": "eu", "on": True, "pace": 50, "by": ""}
    assert "@" in body["by"]
    assert len(admin.requests) == 4


def test_who_waits_hears_that_it_was_restored_meanwhile(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}"), (200, answer(3)), (200, answer(2, evacuated=True)), (200, answer(2))]
    result = call("region", "evacuate", "eu")
    assert result.exit_code == 1
    assert result.output == "Error: eu was restored meanwhile: it leads 2 shards, and takes others\n"


def test_it_need_not_be_waited_for(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}"), (200, answer(3))]
    assert call("region", "evacuate", "eu", "--no-wait").output.startswith("eu: evacuated, leads 3;")


def test_what_takes_too_long_is_said(admin: FakeAdmin, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_regions, "FOLLOW_DEADLINE_S", 0.0)
    admin.answers = [(202, b"{}"), (200, answer(3))]
    result = call("region", "evacuate", "eu")
    assert result.exit_code == 1
    assert "eu still leads 3 shards after 0 s" in result.output


def test_a_region_is_restored(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}")]
    assert call("region", "restore", "eu").output == "eu: takes clients and shards\n"
    assert {**admin.requests[0][2], "by": ""} == {"region": "eu", "on": False, "by": ""}


def test_an_error_of_the_node_is_one_sentence(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(409, b'{"code": "last_region", "message": "no router outside eu takes shards"}')]
    result = call("region", "evacuate", "eu")
    assert result.exit_code == 1
    assert "no router outside eu takes shards" in result.output
