"""`holdfast growth` as people see it: what grows, what is suspected and where, and what is not known yet."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from gateway import cli_growth
from gateway.cli import cli

FIT = {
    "verdict": "growing", "level": 1_234.0, "per_day": 61.7, "low": 50.0, "high": 70.0, "relative_per_day": 0.05,
    "relative_low": 0.0405, "relative_high": 0.0567, "samples": 100, "span_s": 86_400.0,
}  # fmt: skip
STILL = {**FIT, "verdict": "not distinguishable from 0", "per_day": 0.0, "relative_per_day": 0.0}
FEW = {**FIT, "verdict": "too few samples"}
SITE = {"group": "ledger", "name": "ring", "grown": 1_200, "before": 34, "now": 1_234}
EVENT = {"process": "worker-0", "resource": "ring", "sites": [SITE], "report": "/var/growth-1.txt"}
FOUND = {
    "settings": {},
    "processes": [
        {"process": "worker-0", "pid": 17, "resources": {"ring": FIT, "fds": STILL, "objects": FIT, "tasks": FEW}},
        {"process": "router", "pid": 18, "resources": {"fds": FEW}},
    ],
    "suspected": [EVENT],
}


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the node answers; change it before asking."""
    answer: dict[str, Any] = dict(FOUND)

    def ask(method: str, url: str, *, token: str | None) -> dict[str, Any]:
        assert (method, url, token) == ("GET", "http://127.0.0.1:7402/api/growth", "secret")
        return answer

    monkeypatch.setattr(cli_growth, "ask", ask)
    return answer


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["growth", "--token", "secret", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("answered")
def test_what_grows_is_shown_and_what_is_suspected_is_named() -> None:
    head, *lines = shown().splitlines()
    assert head.split()[:3] == ["PROCESS", "RESOURCE", "LEVEL"]
    assert lines[0].split() == [
        "worker-0",
        "ring",
        "1,234",
        "+61.7",
        "(+5.00%)",
        "+4.05%",
        "+5.67%",
        "LEAK",
        "SUSPECTED",
    ]
    assert lines[1].split() == ["worker-0", "objects", "1,234", "+61.7", "(+5.00%)", "+4.05%", "+5.67%", "growing"]
    assert lines[2:] == [
        "router: too few samples yet",
        "worker-0 ring: ledger ring +1,200",
        "  report: /var/growth-1.txt",
    ]


@pytest.mark.usefixtures("answered")
def test_all_is_shown_when_asked_for() -> None:
    assert "fds" not in shown()
    assert "not distinguishable from 0" in shown("--all")


@pytest.mark.usefixtures("answered")
def test_machines_get_it_as_it_is() -> None:
    assert json.loads(shown("--json")) == FOUND


def test_nothing_is_said_to_be_nothing(answered: dict[str, Any]) -> None:
    answered.update(processes=[{"process": "router", "pid": 18, "resources": {"fds": STILL}}], suspected=[])
    assert shown() == "nothing grows\n"
    answered.update(processes=[])
    assert shown() == "no process has been sampled yet\n"
