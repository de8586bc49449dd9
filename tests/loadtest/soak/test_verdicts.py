"""A soak's promises: each can be broken, and growth is found where there is some and nowhere else."""

import random
from dataclasses import replace
from typing import Any

import pytest

from loadtest.soak.plan import Plan
from loadtest.soak.samples import Sample
from loadtest.soak.verdicts import (
    MUST_BE_ZERO,
    GrowthFigure,
    end_verdicts,
    growth_figures,
    growth_verdicts,
    load_verdicts,
    second_half,
)

PLAN = Plan(seconds=1_200)
MIB = 1 << 20
REGULARS: dict[str, Any] = {
    "counts": {**dict.fromkeys(MUST_BE_ZERO, 0), "delivered": 9, "caught_up": 1},
    "settled": True,
    "faults": {},
    "without_end": 0,
}
ROGUES: dict[str, Any] = {"done": {"resets": 3}, "unexpected": {}}
END: dict[str, Any] = {
    "unbalanced": {},
    "audit": [],
    "files_left": {},
    "processes_ended": [],
    "processes_more": 0,
    "handles_leaked": 0,
}


def series(leak_bytes_a_s: float = 0.0, *, files_a_s: float = 0.0, connections: int = 15_600) -> list[Sample]:
    """20 minutes of a node whose memory is as restless as it is."""
    rng = random.Random(4)
    samples = []
    for at_s in range(0, 1_201, 5):
        memory = int(60 * MIB + leak_bytes_a_s * at_s + rng.gauss(0, 40_000))
        fds = connections + 60 + int(files_a_s * at_s) + rng.randrange(3)
        live = {"connection": connections}
        samples.append(
            Sample(at_s, connections, 350 * at_s, {"worker-0": 1}, {"worker-0": memory}, {}, {"worker-0": fds}, live)
        )
    return samples


def of_load(**changes: Any) -> list[bool]:
    regulars, rogues = {**REGULARS, **changes.get("regulars", {})}, {**ROGUES, **changes.get("rogues", {})}
    return [found.kept for found in load_verdicts(PLAN, changes.get("samples", series()), regulars, rogues)]


def test_a_good_run_keeps_everything() -> None:
    assert all(of_load())
    assert all(found.kept for found in end_verdicts(END))
    assert all(found.kept for found in growth_verdicts(growth_figures(series(), PLAN)))


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        (0, {"samples": series(connections=14_999)}),
        (1, {"samples": [replace(sample, opened=299 * int(sample.at_s)) for sample in series()]}),
        *[(2, {"regulars": {"counts": {**REGULARS["counts"], name: 1}}}) for name in MUST_BE_ZERO],
        (2, {"regulars": {"settled": False}}),
        (3, {"regulars": {"faults": {"closed by the server": 1}}}),
        (3, {"regulars": {"without_end": 1}}),
        (4, {"rogues": {"unexpected": {"a zombie is held": 1}}}),
        (4, {"rogues": {"done": {}}}),
    ],
)
def test_each_fault_of_the_load_breaks_its_promise_alone(place: int, changes: dict[str, Any]) -> None:
    assert of_load(**changes) == [number != place for number in range(5)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unbalanced": {"ring": 2}}, "ring +2"),
        ({"audit": ['{"kind": "buffer"}']}, "buffer"),
        ({"files_left": {"worker-0": 1}}, "worker-0 +1"),
        ({"processes_ended": ["router"]}, "router"),
        ({"processes_more": 1}, "1 processes more"),
        ({"handles_leaked": 2}, "2 Python handles"),
    ],
)
def test_whatever_is_left_breaks_its_promise_and_is_named(changes: dict[str, Any], named: str) -> None:
    broken = [found for found in end_verdicts({**END, **changes}) if not found.kept]
    assert len(broken) == 1
    assert named in str(broken[0])
    assert str(broken[0]).startswith("NOT KEPT")


def test_no_promise_is_passed_over_when_nobody_looked() -> None:
    for name in END:
        with pytest.raises(KeyError):
            list(end_verdicts({key: value for key, value in END.items() if key != name}))


def memory_of(samples: list[Sample]) -> GrowthFigure:
    (found,) = (figure for figure in growth_figures(samples, PLAN) if figure.name == "memory")
    return found


def test_sixteen_bytes_lost_with_every_connection_are_found() -> None:
    figure = memory_of(series(16 * 350))
    assert figure.growth.growing
    assert not figure.is_kept
    assert figure.per_connection >= 16
    assert "growing" in str(figure)


def test_no_growth_is_told_with_how_fine_that_could_be_seen() -> None:
    figure = memory_of(series())
    assert figure.is_kept
    assert figure.growth.low < 0 < figure.growth.high
    # 40,000 bytes of noise over 600 s and 210,000 connections.
    assert figure.per_connection < 1
    assert "not distinguishable from 0; resolution ±" in str(figure)


def test_growth_that_is_surely_below_the_promise_is_kept() -> None:
    found = memory_of(series(16 * 350))
    slow = replace(found.growth, relative_low=0.0001, relative_high=0.0004)
    assert slow.growing
    assert replace(found, growth=slow).is_kept
    assert not replace(found, growth=replace(slow, relative_high=0.0006)).is_kept


def test_a_run_too_short_to_tell_keeps_nothing() -> None:
    assert not memory_of(series()[:130]).is_kept


def test_a_file_left_open_every_few_seconds_is_found() -> None:
    figures = {figure.name: figure for figure in growth_figures(series(files_a_s=0.1), PLAN)}
    assert not figures["files"].is_kept
    assert figures["memory"].is_kept


def test_only_the_second_half_is_fitted() -> None:
    assert second_half(series(), PLAN)[0].at_s == 600
    warming = [
        replace(sample, private={"worker-0": sample.private["worker-0"] + int(min(sample.at_s, 590) * 50_000)})
        for sample in series()
    ]
    assert memory_of(warming).is_kept
