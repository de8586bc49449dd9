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
    "processes_new": [],
    "found_wrong": {},
    "errors": [],
}


def series(
    leak_bytes_a_s: float = 0.0, *, files_a_s: float = 0.0, connections: int = 15_600, noise: int = 40_000
) -> list[Sample]:
    """20 minutes of a node whose memory is as restless as it is."""
    rng = random.Random(4)
    samples = []
    for at_s in range(0, 1_201, 5):
        memory = int(60 * MIB + leak_bytes_a_s * at_s + rng.gauss(0, noise))
        fds = connections + 60 + int(files_a_s * at_s) + rng.randrange(3)
        live = {"connection": connections}
        samples.append(
            Sample(at_s, connections, 350 * at_s, {"worker-0": 1}, {"worker-0": memory}, {}, {"worker-0": fds}, live)
        )
    return samples


def of_load(**changes: Any) -> list[bool | None]:
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
        ({"audit": ["the node has no audit"]}, "the node has no audit"),
        ({"processes_new": ["zygote 77"]}, "zygote 77"),
        ({"found_wrong": {"holdfast_handles_leaked_total of router": 3}}, "3 holdfast_handles_leaked_total of router"),
        ({"errors": ['{"event": "hook_gave_up", "level": "error"}'] * 12}, "hook_gave_up"),
    ],
)
def test_whatever_is_left_breaks_its_promise_and_is_named(changes: dict[str, Any], named: str) -> None:
    broken = [found for found in end_verdicts({**END, **changes}) if not found.kept]
    assert len(broken) == 1
    assert named in str(broken[0])
    assert str(broken[0]).startswith("NOT KEPT")


def test_of_many_findings_the_first_are_named_and_all_counted() -> None:
    (broken,) = (found for found in end_verdicts({**END, "errors": ["e"] * 12}) if not found.kept)
    assert broken.text.endswith("; e" * 10 + "; 2 more")


def memory_of(samples: list[Sample]) -> GrowthFigure:
    (found,) = (figure for figure in growth_figures(samples, PLAN) if figure.name == "memory")
    return found


def test_sixteen_bytes_lost_with_every_connection_are_found() -> None:
    figure = memory_of(series(16 * 350))
    assert figure.growth.growing
    assert figure.is_kept is False
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
    assert replace(found, growth=replace(slow, relative_high=0.0006)).is_kept is False


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(series()[:130], id="too few samples"),
        pytest.param(series()[:140], id="too short"),
        pytest.param(series(noise=1_000_000), id="too restless"),
    ],
)
def test_a_run_that_could_not_have_seen_much_keeps_nothing_and_breaks_nothing(samples: list[Sample]) -> None:
    figure = memory_of(samples)
    assert figure.is_kept is None
    (verdict,) = (found for found in growth_verdicts([figure]))
    assert str(verdict).startswith("cannot tell at this length  memory: ")


def test_files_that_may_be_lost_with_many_connections_cannot_be_told() -> None:
    (figure,) = (figure for figure in growth_figures(series(), PLAN) if figure.name == "files")
    assert figure.is_kept is True
    assert "files at most for each connection that came" in str(figure)
    assert replace(figure, per_connection=0.002).is_kept is None


def test_a_file_left_open_every_few_seconds_is_found() -> None:
    figures = {figure.name: figure for figure in growth_figures(series(files_a_s=0.1), PLAN)}
    assert figures["files"].is_kept is False
    assert figures["memory"].is_kept


def test_only_the_second_half_is_fitted() -> None:
    assert second_half(series(), PLAN)[0].at_s == 600
    warming = [
        replace(sample, private={"worker-0": sample.private["worker-0"] + int(min(sample.at_s, 590) * 50_000)})
        for sample in series()
    ]
    assert memory_of(warming).is_kept
