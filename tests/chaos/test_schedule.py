"""A seed is a schedule: the same one gives the same faults at the same times, another one gives others."""

import re
from pathlib import Path

import pytest

from tests.chaos.schedule import ACTS, schedule


@pytest.mark.parametrize("fault", ACTS)
def test_the_same_seed_gives_the_same_schedule(fault: str) -> None:
    assert schedule(fault, 7) == schedule(fault, 7)
    assert len({schedule(fault, seed).steps for seed in range(100)}) == 100
    assert str(schedule(fault, 7)).startswith(f"{fault} with seed 7: ")


@pytest.mark.parametrize("fault", ACTS)
def test_every_step_stays_within_its_bounds(fault: str) -> None:
    for seed in range(100):
        for step, (act, least, most) in zip(schedule(fault, seed).steps, ACTS[fault], strict=True):
            assert step.act == act
            assert least <= step.after_s <= most


def test_whoever_strikes_knows_every_act() -> None:
    world = (Path(__file__).parent / "world.py").read_text()
    known = set(re.findall(r'^            "([a-z ]+)":', world, re.MULTILINE))
    assert known == {act for acts in ACTS.values() for act, _, _ in acts}
