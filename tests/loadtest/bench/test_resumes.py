"""A run of resumes as the bench's own: its cost, who was the bottleneck, and no fault under another name."""

import pytest

from loadtest.bench.resumes import run_of
from loadtest.bench.runs import wrong_with

from .runs import a_resume_told


def test_cpu_is_given_for_each_session_that_resumed() -> None:
    run = run_of(a_resume_told())
    assert run["cpu_us_per_connection"] == 200_000
    assert run["cpu_us_by_process"] == {"router": 50_000, "worker-0": 150_000}
    assert (run["server_cores"], run["busiest_process"], run["client_cores"], run["other_cores"]) == (
        1.0,
        0.5,
        0.5,
        0.0,
    )
    assert wrong_with(run["client"]) == []


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"lost": 3}, "3 lost"),
        ({"told_gaps": 2}, "2 lost"),
        ({"repeated": 1}, "1 repeated"),
        ({"back": 19, "replayed": 38.0}, "1 disconnected"),
        ({"resumed": 18}, "2 failed"),
        ({"delivered": 79}, "not drained"),
        ({"replayed": 39.0}, "not drained"),
    ],
)
def test_every_fault_is_one_of_the_run(told: dict[str, float], wrong: str) -> None:
    assert wrong in wrong_with(run_of(a_resume_told(**told))["client"])
