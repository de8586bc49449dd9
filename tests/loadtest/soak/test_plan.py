"""How long a soak is, and what follows from it."""

import pytest

from loadtest.soak.plan import FULL_LENGTH_S, Plan, plan_for, seconds_of
from loadtest.soak.regulars import AWAY_S


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("3m", 180), ("24h", 86_400), (" 1.5m ", 90)])
def test_a_length_of_time_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "3 m", "-1", "3d", "m"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a length of time is written"):
        seconds_of(text)


def test_the_default_is_what_the_promise_asks_for() -> None:
    plan = plan_for(FULL_LENGTH_S)
    assert plan == Plan()
    assert plan.connections > 15_000
    assert plan.churn + plan.rogues > 300
    assert (plan.ping_s, plan.misses) == (30, 3)
    assert plan.warmup_s == 600
    assert plan.environment()["HOLDFAST_ROUTER_KEY_WINDOW_S"] == "300"


def test_a_short_run_has_quicker_heartbeats_and_forgets_sooner() -> None:
    plan = plan_for(60, seed=7)
    assert (plan.ping_s, plan.seed) == (2, 7)
    # The node refuses a silence that is shorter than the time for HELLO.
    assert plan.silence_s >= plan.hello_timeout_s
    assert int(plan.environment()["HOLDFAST_ROUTER_KEY_WINDOW_S"]) <= plan.warmup_s / 2
    assert int(plan.environment()["HOLDFAST_NAMESPACES_GROUP_HISTORY_AGE_S"]) <= plan.warmup_s / 2


def test_history_is_kept_for_longer_than_anybody_is_away() -> None:
    for seconds in (1.0, 45.0, 180.0, FULL_LENGTH_S, 86_400.0):
        assert int(plan_for(seconds).environment()["HOLDFAST_NAMESPACES_GROUP_HISTORY_AGE_S"]) >= 2 * max(AWAY_S)


def test_it_goes_to_the_load_processes_as_text() -> None:
    plan = plan_for(77.5, seed=3)
    assert Plan.from_json(plan.to_json()) == plan


def test_a_long_run_is_looked_at_as_often_as_a_short_one() -> None:
    for seconds in (FULL_LENGTH_S, 86_400.0):
        assert 400 <= seconds / Plan(seconds=seconds).sample_every_s <= 500
    assert Plan(seconds=10).sample_every_s == 1
