"""Reading a run: what went wrong, and what Holdfast counted meanwhile."""

from typing import Any

import pytest

from loadtest.bench.runs import counters_between, wrong_with

from .runs import a_client


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"lost": 1200}, ["1,200 lost"]),
        ({"failed": 3}, ["3 failed"]),
        ({"drained": False, "exit_code": 3}, ["not drained"]),
        ({"exit_code": 1}, ["exit code 1"]),
    ],
)
def test_a_run_that_went_wrong_says_so(change: dict[str, Any], said: list[str]) -> None:
    assert wrong_with(a_client(**change)) == said


def test_counters_are_differences_by_process() -> None:
    before = {'holdfast_sends_total{process="worker-0"}': 5.0}
    after = {'holdfast_sends_total{process="worker-0"}': 8.0, 'holdfast_wakeups_total{process="router"}': 2.0}
    assert counters_between(before, after) == {"sends": {"worker-0": 3}, "wakeups": {"router": 2}}
    assert counters_between({}, {"python_info": 1.0, 'holdfast_sends_created{process="x"}': 1.0}) == {}
