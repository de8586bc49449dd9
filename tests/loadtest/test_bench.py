"""The arithmetic of the benchmarks; the benchmarks themselves are never collected here."""

from typing import Any

import pytest

from loadtest.bench import figures, parse, ratio_of_rounds, wrong_with

COUNTS = ("lost", "repeated", "out_of_order", "corrupt", "refused", "disconnected", "exit_code")
GOOD: dict[str, Any] = {**dict.fromkeys(COUNTS, 0), "drained": True}


def a_run(server: str, us: float, rate: float = 1.0) -> dict[str, Any]:
    return {"server": server, "cpu_us_per_delivery": us, "client": {**GOOD, "deliveries_per_s": rate}}


def test_ratios_are_taken_within_a_round() -> None:
    # The second round ran while the machine was busy: both cost more, and the ratio is the same.
    runs = [a_run("floor", 4), a_run("holdfast", 6), a_run("floor", 40), a_run("holdfast", 60)]
    assert ratio_of_rounds(runs, "floor") == 1.5
    assert ratio_of_rounds(runs[:1], "floor") is None


def test_figures_are_medians_by_server() -> None:
    runs = [a_run("floor", us, us * 10) for us in (1, 9, 2)]
    assert figures(runs) == {"floor": {"us_per_delivery": 2, "deliveries_per_s": 20}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"lost": 1200}, ["1,200 lost"]),
        ({"drained": False, "exit_code": 3}, ["not drained"]),
        ({"exit_code": 1}, ["exit code 1"]),
    ],
)
def test_a_run_that_went_wrong_says_so(change: dict[str, Any], said: list[str]) -> None:
    assert wrong_with({**GOOD, **change}) == said


def test_the_defaults_are_those_of_the_promises() -> None:
    fan, maximum, idle = (parse([name]) for name in ("fan", "max", "idle"))
    assert (fan.members, fan.rate, fan.payload, fan.seconds, fan.workers) == (2000, 15, 100, 30, 2)
    assert (maximum.members, maximum.publishers, maximum.under_way, maximum.workers) == (500, 4, 8, 1)
    assert idle.connections == 15_000
