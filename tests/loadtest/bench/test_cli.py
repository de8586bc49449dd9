"""The command line: what it takes, and that a figure that is missing is not a promise that is kept."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import cli, provide
from loadtest.bench.servers import MAKE
from loadtest.bench.workloads import WORKLOADS, expand
from loadtest.measure import BenchError

from .runs import a_run


def test_the_defaults_are_those_of_the_promises() -> None:
    options = {name: " ".join(workload.options) for name, workload in WORKLOADS.items()}
    assert options["fan"] == "--members 2000 --rate 15"
    assert options["max"] == "--members 500 --publishers 4 --under-way 8"
    assert "--groups 400 --members 25" in options["rooms"]
    assert "--rate 2000" in options["rooms"]
    assert options["pairs"].startswith("--groups 5000 --rate 10000 ")
    assert options["one"] == "--members 10 --rate 200"
    assert options["idle"].startswith("--members 15000")
    assert options["storm"] == "--members 15000 --connect-rate 3000"
    assert WORKLOADS["big"].payload_bytes == 16 * 1024
    assert cli.parse([]).rounds == 3


def test_names_of_servers_stand_for_all_of_a_kind() -> None:
    assert expand(["floor", "ws"]) == ["floor-per-delivery", "floor-coalesce", "ws"]
    ours = ["holdfast", "holdfast-2", "holdfast-logged", "holdfast-tcp", "holdfast-no-history", "holdfast-redis"]
    assert expand(["holdfast", "holdfast-2"]) == ours
    with pytest.raises(ValueError, match="no server 'uws'"):
        expand(["uws"])


@pytest.mark.parametrize("words", [["fanout"], ["--servers", "uws"], ["--rounds", "0"]])
def test_what_is_not_known_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(words)
    assert "error" in capsys.readouterr().err


def test_a_server_that_a_workload_does_not_have_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["history", "max", "--servers", "holdfast-no-history"])
    assert "error: max has no server 'holdfast-no-history'; it has floor-per-delivery," in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.parse(["--servers", "uws"])
    assert "error: there is no server 'uws'; there are" in capsys.readouterr().err
    assert cli.parse(["max", "--servers", "holdfast,floor"]).servers is not None
    assert cli.parse(["--servers", "holdfast-no-history"]).servers == ["holdfast-no-history"]
    assert cli.parse(["max"]).servers is None


@pytest.mark.parametrize(
    ("holdfast_us", "code"),
    [(1.0, 0), (2.0, 1), (None, 2)],
)
def test_the_exit_code_tells_missed_promises_from_missing_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, holdfast_us: float | None, code: int
) -> None:
    def run(server: str, *_: Any) -> list[dict[str, Any]]:
        if server == "holdfast" and holdfast_us is None:
            raise BenchError("it does not start")
        return [a_run(server, holdfast_us or 1.0 if server == "holdfast" else 1.0)]

    monkeypatch.setitem(cli.RUN, "load", run)
    monkeypatch.setattr(provide, "provide", lambda wanted: {"ws": "there is no npm"})
    for name in ("holdfast", "floor-per-delivery"):
        monkeypatch.setitem(MAKE, name, partial(nullcontext, name))
    words = ["fan", "--servers", "holdfast,floor-per-delivery,ws", "--no-page", "--results", str(tmp_path)]
    monkeypatch.setattr(cli, "expand", lambda wanted: wanted)
    assert cli.main([*words, "--rounds", "1"]) == code
    if holdfast_us is not None:
        assert json.loads((tmp_path / "fan.json").read_text())["failures"] == ["ws: there is no npm"]
