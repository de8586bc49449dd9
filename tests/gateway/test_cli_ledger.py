"""`holdfast ledger`: the table, what is complained of, and the exit code."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from gateway import cli_ledger
from gateway.cli_ledger import ledger

RING = {"opened": 5, "closed": 3, "lost": 1, "live": 1}
NONE = {"opened": 0, "closed": 0, "lost": 0, "live": 0}
LEAK = {"kind": "ring", "key": 77, "value": 0, "what": "was acquired and not released", "place": "core/ring.pxd:91"}


def told(*, audited: bool, findings: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"process": "worker-0", "pid": 5, "kinds": {"ring": dict(RING), "tls": dict(NONE)}}
    if not audited:
        return {"processes": [row]}
    row["kinds"]["ring"] |= {"found": 0, "difference": -1}
    row |= {"findings": findings, "finding_count": len(findings), "walked_us": 9}
    return {"processes": [row], "closes": not findings}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Answers by path; the requests come to no server."""
    found: dict[str, Any] = {}

    def ask(method: str, url: str, **_: Any) -> Any:
        return found[f"{method} {url.partition('7402')[2]}"]

    monkeypatch.setattr(cli_ledger, "ask", ask)
    return found


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(ledger, list(arguments))
    return result.exit_code, result.output


def test_the_table_shows_what_a_process_had(answers: dict[str, Any]) -> None:
    answers["GET /api/ledger"] = told(audited=False, findings=[])
    code, output = run()
    assert code == 0
    assert [line.split() for line in output.splitlines()] == [
        ["process", "kind", "opened", "closed", "lost", "live"],
        ["worker-0", "ring", "5", "3", "1", "1"],
    ]
    assert "tls" in run("--all")[1]


def test_an_audit_that_does_not_close_ends_with_1_and_names_the_place(answers: dict[str, Any]) -> None:
    answers["POST /api/ledger/audit"] = told(audited=True, findings=[LEAK])
    code, output = run("--audit")
    assert code == 1
    assert "worker-0  ring       5       3     1     1      0          -1" in output
    assert "worker-0: ring 77 (0) was acquired and not released; core/ring.pxd:91" in output
    assert run("--audit", "--json")[0] == 1


def test_an_audit_that_closes_says_so(answers: dict[str, Any]) -> None:
    answers["POST /api/ledger/audit"] = told(audited=True, findings=[])
    code, output = run("--audit")
    assert code == 0
    assert output.endswith("everything closes\n")
    assert json.loads(run("--audit", "--json")[1])["closes"] is True


def test_a_process_that_did_not_answer_is_named(answers: dict[str, Any]) -> None:
    answer = told(audited=True, findings=[LEAK] * 2)
    answer["processes"][0] |= {"error": "no answer in time", "finding_count": 5}
    answers["POST /api/ledger/audit"] = answer
    output = run("--audit")[1]
    assert "worker-0: could not be audited: no answer in time" in output
    assert "worker-0: and 3 more" in output
