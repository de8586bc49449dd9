"""The page, from canned results: every figure's place, and what is not kept is not hidden."""

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import report
from loadtest.bench.resumes import run_of
from loadtest.bench.runs import ALL_READ, COUNTERS, SOME_SLOW

from .runs import Run, a_resume_told, a_run, a_storm_run, an_idle_run

AROUND = {
    "at": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "build_mode": "release",
    "kernel": "6.1",
    "cpu": "a processor",
    "cpus": 2,
    "memory_bytes": 2**34,
    "python": "3.11",
    "go": "",
    "node": "v20",
    "command": "python -m loadtest.bench",
    "versions": {"holdfast": "holdfast 1.2", "ws": "ws 8"},
    "failures": [],
}


A_RESUME = {"server": "holdfast-2", "round": 1, **run_of(a_resume_told())}


def content(name: str, runs: list[Run], **other: Any) -> dict[str, Any]:
    return {"name": name, "about": f"the load of {name}", **AROUND, "runs": runs, **other}


def test_the_page_has_a_row_a_server_with_its_ratio_range_and_faults() -> None:
    runs = [a_run("floor-coalesce", 2.0), a_run("ws", 4.0), a_run("ws", 6.0, 2, lost=7), a_run("holdfast", 3.0)]
    page = report.page([content("max", runs)], plots=set())
    assert "| ws | 5.000 (4.000 - 6.000) | 2.00 | 1,000 | 0.50 | 2.00 (2.00 - 2.00) | 0.50 + 0.25 | nobody |" in page
    assert "round 2: 7 lost" in page
    assert "svg" not in page
    assert "16 GiB" in page
    rest = "fan, rooms, pairs, one, big, history, history-rooms, publish, publish-half, slow, idle, storm, resume"
    assert f"Not measured: {rest}.\n" in page


def test_what_is_not_kept_is_counted_and_shown_with_by_how_much() -> None:
    page = report.page([content("fan", [a_run("floor-per-delivery", 1.0), a_run("holdfast", 2.3)])], plots={"fan"})
    assert "1 kept, 1 not kept" in page
    assert "| 2.30 | at most 1.15 | **NOT KEPT** | 100.0% above the limit |" in page
    assert "![fan](performance/fan.svg)" in page


def test_a_server_without_a_figure_and_a_disturbed_window_are_told() -> None:
    runs = [{**a_run("ws"), "other_cores": 0.5}]
    page = report.page([content("rooms", runs, failures=["nats: there is no program go here\nmore"])], plots=set())
    assert "No figure: nats: there is no program go here\n" in page
    assert "Other programs used the machine meanwhile (cores): ws 0.50." in page


def test_every_kind_of_workload_has_its_table() -> None:
    slow = [{**a_run("holdfast"), "variant": ALL_READ}]
    slow += [{**a_run("holdfast", latency_us={"p99": 3000.0}, slow_ended=5), "variant": SOME_SLOW}]
    contents = [
        content("slow", slow),
        content("idle", [an_idle_run("holdfast")]),
        content("storm", [a_storm_run("holdfast", failed=3)]),
        content("resume", [A_RESUME]),
    ]
    page = report.page(contents, plots=set())
    assert "| holdfast | 2.00 | 3.00 | 1.50 | 5 | - |" in page
    assert "| holdfast | 400 | 400 | 400 | 80 | 0.50 | 1.05 | - |" in page
    assert "| holdfast | 100 | 1.0 | 20.0 | 20.0 | 0.30 + 0.20 | nobody | 3 |" in page
    assert "| holdfast-2 | 2.00 | 3.00 | 4.00 | 40 | 6.0 | 70.0 | 60.0 | 5.0 | 200000 | 1.00 + 0.50 |" in page


def test_counters_are_given_for_each_delivery() -> None:
    counters = {name: {"worker": 5} for name in COUNTERS}
    runs = [a_run("holdfast", counters={**counters, "messages_delivered": {"worker": 10}})]
    assert "| holdfast | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 |" in report.page([content("max", runs)], plots=set())


def test_the_cpu_of_holdfast_is_given_by_process() -> None:
    page = report.page([content("one", [a_run("holdfast", 4.0), a_run("holdfast", 8.0, 2), a_run("ws")])], plots=set())
    assert "CPU µs of holdfast by process: worker-0 4.500, router 1.500.\n" in page
    assert "CPU µs of ws" not in page


def test_results_are_read_in_the_order_of_the_workloads(tmp_path: Path) -> None:
    for name in ("storm", "fan"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content(name, [])))
    assert [one["name"] for one in report.read_results(tmp_path)] == ["fan", "storm"]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (a_run("ws", 1.5, lost=2), ("1.500 µs", "cores 0.50 + 0.25", "WRONG: 2 lost")),
        (an_idle_run("holdfast"), ("400 bytes", "0.50 µs/s")),
        (A_RESUME, ("welcomed 3.00 s", "caught up 4.00 s", "live p99 60.0 and 70.0 ms")),
        (a_storm_run("nbio", 150), ("150.0 µs/connection", "p95 20.0 ms")),
    ],
)
def test_a_run_is_told_on_one_line(run: Run, said: tuple[str, ...]) -> None:
    assert [part for part in said if part not in report.line(run)] == []
