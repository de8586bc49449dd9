"""Figures from runs: medians over the rounds, and ratios taken within a round, since a machine's speed changes."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Run = dict[str, Any]
Pick = Callable[[Run], float]


def servers_in(runs: Iterable[Run]) -> list[str]:
    """The servers in the order of their first run."""
    return list(dict.fromkeys(run["server"] for run in runs))


def of(runs: Iterable[Run], server: str, variant: str | None = None) -> list[Run]:
    """The runs of one server, in order; with a variant, of that only."""
    return [run for run in runs if run["server"] == server and (variant is None or run.get("variant") == variant)]


def cost(run: Run) -> float:
    value: float = run["cpu_us_per_delivery"]
    return value


def rate(run: Run) -> float:
    value: float = run["client"]["deliveries_per_s"]
    return value


def latency_ms(percentile: str) -> Pick:
    """A percentile of the time from when a message should have been sent."""

    def pick(run: Run) -> float:
        value: float = run["client"]["latency_us"][percentile]
        return value / 1000

    return pick


def median(runs: Iterable[Run], pick: Pick) -> float | None:
    values = [pick(run) for run in runs]
    return statistics.median(values) if values else None


def ratio(above: list[Run], below: list[Run], pick: Pick) -> float | None:
    """The median over the rounds of the quotient of two runs of the same round."""
    rounds = {run["round"]: run for run in below}
    found = [pick(run) / pick(rounds[run["round"]]) for run in above if run["round"] in rounds]
    return statistics.median(found) if found else None
