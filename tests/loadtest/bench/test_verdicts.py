"""The promises: each can be kept and missed, says by how much, and is silent where there is no figure."""

import pytest

from loadtest.bench.resumes import run_of
from loadtest.bench.runs import ALL_READ, SOME_SLOW
from loadtest.bench.verdicts import Verdict, judge, summary

from .runs import Run, a_resume_told, a_run, a_storm_run, an_idle_run


def the(verdicts: list[Verdict], what: str) -> Verdict:
    (found,) = [verdict for verdict in verdicts if what in verdict.what]
    return found


@pytest.mark.parametrize(("us", "kept", "by"), [(1.15, True, "0.0% below"), (1.265, False, "10.0% above")])
def test_fan_is_held_against_the_floor_of_the_same_round(us: float, kept: bool, by: str) -> None:
    verdict = the(judge("fan", [a_run("floor-per-delivery", 1.0), a_run("holdfast", us)]), "multiple")
    assert (verdict.kept, by in verdict.by) == (kept, True)


def test_fan_is_held_against_the_p99_of_each_named_peer() -> None:
    runs = [a_run("holdfast"), a_run("ws", latency_us={"p99": 1000.0}), a_run("picows", latency_us={"p99": 3000.0})]
    verdicts = judge("fan", runs)
    assert not the(verdicts, "against ws").kept
    assert the(verdicts, "against picows").kept


def test_max_must_reach_its_rate_and_stay_below_every_peer() -> None:
    runs = [a_run("holdfast", 0.5, deliveries_per_s=1_999_999.0), a_run("nats", 0.6), a_run("nbio", 0.4)]
    verdicts = judge("max", runs)
    assert not the(verdicts, "deliveries a second").kept
    verdict = the(verdicts, "CPU per delivery")
    assert (verdict.kept, verdict.by) == (False, "25.0% above nbio")
    assert [v for v in verdicts if "multiple" in v.what] == []


@pytest.mark.parametrize(("takes", "kept"), [(2, True), (3, False)])
def test_takes_of_the_gil_are_summed_over_runs_and_processes(takes: int, kept: bool) -> None:
    counters = {"messages_delivered": {"worker-0": 1000}, "gil_takes": {"worker-0": 1, "router": takes - 1}}
    runs = [a_run("holdfast", counters=counters), a_run("holdfast", number=2, counters=counters | {"gil_takes": {}})]
    assert the(judge("max", runs), "GIL").kept is kept


def test_one_is_held_against_nats_and_picows() -> None:
    runs = [a_run("holdfast", 5), a_run("nats", 10), a_run("picows", latency_us={"p50": 100.0})]
    verdicts = judge("one", runs)
    assert the(verdicts, "multiple of nats").kept
    assert not the(verdicts, "p50").kept  # 0.5 ms are more than 0.1 + 0.3 ms


@pytest.mark.parametrize("workload", ["history", "history-rooms"])
@pytest.mark.parametrize(("us", "kept"), [(1.3, True), (1.31, False)])
def test_history_is_held_against_the_same_load_without_it(workload: str, us: float, kept: bool) -> None:
    runs = [a_run("holdfast-logged", us), a_run("holdfast-no-history", 1.0)]
    assert the(judge(workload, runs), "multiple").kept is kept


def test_logged_messages_must_reach_their_rate_in_each_log() -> None:
    runs = [a_run("holdfast", deliveries_per_s=40_000.0), a_run("holdfast-redis", deliveries_per_s=39_999.0)]
    assert the(judge("publish", runs), "holdfast: ").kept
    assert not the(judge("publish", runs), "holdfast-redis: ").kept


def test_logged_messages_must_be_quick_at_half_of_the_rate() -> None:
    runs = [a_run("holdfast", latency_us={"p99": 100_000.0}), a_run("holdfast-redis", latency_us={"p99": 100_001.0})]
    assert the(judge("publish-half", runs), "holdfast: ").kept
    assert not the(judge("publish-half", runs), "holdfast-redis: ").kept


@pytest.mark.parametrize(("p99", "kept"), [(2200.0, True), (2201.0, False)])
def test_slow_members_may_cost_the_others_a_tenth(p99: float, kept: bool) -> None:
    runs = [{**a_run("holdfast"), "variant": ALL_READ}]
    runs += [{**a_run("holdfast", latency_us={"p99": p99}), "variant": SOME_SLOW}]
    assert the(judge("slow", runs), "p99").kept is kept


@pytest.mark.parametrize(
    ("run", "missed"),
    [
        (an_idle_run("holdfast"), None),
        (an_idle_run("holdfast", rss=513.0), "user memory"),
        (an_idle_run("holdfast", pulse=1.01), "CPU of heartbeats"),
        (an_idle_run("holdfast", hold={"cpu_us_per_connection_s": 0.1, "heartbeats": 9_000}), "heartbeats heard"),
        (an_idle_run("holdfast", after_to_before=1.11), "growth"),
        (an_idle_run("holdfast", ledger_after={"ring": 1.0}), "ledger"),
    ],
)
def test_each_promise_about_idle_connections_can_be_missed(run: Run, missed: str | None) -> None:
    bad = [verdict.what for verdict in judge("idle", [run]) if not verdict.kept]
    assert len(bad) == (0 if missed is None else 1)
    assert missed is None or missed in bad[0]


def test_a_storm_is_judged_for_each_transport() -> None:
    verdicts = judge("storm", [a_storm_run("holdfast", us=151), a_storm_run("holdfast-tcp", p95_ms=1001, failed=2)])
    kept = {verdict.what: verdict.kept for verdict in verdicts}
    assert list(kept.values()) == [False, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("caught_up_s", "away_ms", "live_p99_ms", "kept"),
    [
        (10.0, 250.0, 250.0, [True, True, True]),
        (10.1, 250.0, 250.0, [False, True, True]),
        (10.0, 251.0, 250.0, [True, False, True]),
        (10.0, 250.0, 251.0, [True, True, False]),
    ],
)
def test_resumes_are_judged_by_their_time_and_by_live_traffic(
    caught_up_s: float, away_ms: float, live_p99_ms: float, kept: list[bool]
) -> None:
    told = a_resume_told(caught_up_s=caught_up_s, live_p99_ms_away=away_ms, live_p99_ms=live_p99_ms)
    verdicts = judge("resume", [{"server": "holdfast-2", "round": 1, **run_of(told)}])
    assert [verdict.kept for verdict in verdicts] == [*kept, True]


def test_a_fault_in_any_round_is_told_with_its_count() -> None:
    verdict = the(judge("rooms", [a_run("holdfast"), a_run("holdfast", number=2, lost=1200)]), "nothing lost")
    assert (verdict.kept, verdict.figure) == (False, "holdfast, round 2: 1,200 lost")
    assert "NOT KEPT" in str(verdict)


def test_faults_of_peers_are_not_ours_and_without_holdfast_there_is_no_verdict() -> None:
    assert judge("big", [a_run("ws", lost=5), a_run("nats")]) == []


def test_the_summary_has_medians_by_server() -> None:
    found = summary("fan", [a_run("ws", 1, 1), a_run("ws", 3, 2), a_run("holdfast", 2)])
    assert found["ws"] == {"us_per_delivery": 2, "deliveries_per_s": 1000, "p50_ms": 0.5, "p99_ms": 2}
