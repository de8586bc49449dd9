"""Every alert fires when it should, not a step earlier, and not just below its threshold: told by promtool.

A case gives series that make its alert fire, the time from which it does, and variations that must stay quiet. `for`
is checked with it: one step before its time the alert may be pending, and no more. A time of 285 + 120 means: a rate
that starts from nothing passes its threshold when its window is nearly full, and then come two minutes of `for`.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.monitoring.places import RULES, alerts, call, rules

STEP_S = 15
SAMPLE_S_MAX = 300
Series = dict[str, str]
NODE = {"job": "holdfast", "instance": "n1"}
WORKER = {**NODE, "process": "worker-0"}
ROUTER = {**NODE, "process": "router"}
LOG_BEHIND_BYTES = 16 << 20


@dataclass(frozen=True)
class Case:
    """One alert: `fires` makes it fire at `at` seconds, and not a step before; none of `quiet` does so then."""

    alert: str
    at: int
    fires: Series
    quiet: tuple[Series, ...]
    labels: dict[str, str] = field(default_factory=lambda: WORKER)
    step_s: int = STEP_S


def of(name: str, **labels: str) -> str:
    """A series of a worker on one node; other labels instead of these or besides."""
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in {**WORKER, **labels}.items()) + "}"


def node(name: str) -> str:
    """A series of the node as a whole."""
    return f'{name}{{job="holdfast",instance="n1"}}'


def steps(*per_step: float, steps: int = 100) -> str:
    """A counter that grows by so much a step; several: each for as many steps, one after the other."""
    last, parts = 0.0, []
    for each in per_step:
        parts.append(f"{last:g}+{each:g}x{steps}")
        last += each * (steps + 1)
    return " ".join(parts)


def rate(per_second: float) -> str:
    return steps(per_second * STEP_S)


def requests(replies: float, *, errors: float, code: str) -> Series:
    """Answers a second."""
    return {
        of("holdfast_replies_sent_total"): rate(replies),
        of("holdfast_errors_sent_total"): rate(errors),
        of("holdfast_request_errors_total", code=code): rate(errors),
    }


def took(name: str, seconds: float, per_second: float = 10) -> Series:
    """So many of something a second, each of which takes so long."""
    return {
        of(f"holdfast_{name}_seconds_sum"): rate(seconds * per_second),
        of(f"holdfast_{name}_seconds_count"): rate(per_second),
    }


def losses(per_second: float, connections: int) -> Series:
    return {
        of("holdfast_heartbeats_lost_total"): rate(per_second),
        of("holdfast_open_connections"): f"{connections}x100",
    }


def held(rings: int, connections: int, kind: str = "ring", process: str = "worker-0") -> Series:
    return {
        of("holdfast_ledger_live", kind=kind, process=process): f"{rings}x100",
        of("holdfast_open_connections", process=process): f"{connections}x100",
    }


def sessions(count: int, connections: int) -> Series:
    return {
        of("holdfast_ledger_live", process="router", kind="session"): f"{count}x100",
        of("holdfast_ledger_live", kind="connection"): f"{connections}x100",
    }


UP = {node("up"): "1x100"}
RESTARTS = of("holdfast_process_restarts_total")
STARTED = of("holdfast_process_start_time_seconds", process="supervisor")
BUSY = of("holdfast_process_cpu_seconds_total")
SUPERVISOR = {**NODE, "process": "supervisor"}
JOB = {"job": "holdfast"}
EVACUATED = 'holdfast_region_evacuated{job="holdfast",instance="n1"'


def files(opened: int) -> Series:
    return {of("holdfast_process_open_fds"): f"{opened}x100", of("holdfast_process_max_fds"): "1000x100"}


def one(name: str, values: str, **labels: str) -> Series:
    return {of(name, **labels): values}


def behind(waiting: str, of: int = 4 * LOG_BEHIND_BYTES) -> Series:
    """What waits for a log, of so much that may."""
    return {
        **one("holdfast_log_bytes", waiting, process="router"),
        **one("holdfast_log_bytes_max", f"{of}x100", process="router"),
    }


def lease(unit: str, left: str, ttl_s: int = 10) -> Series:
    """What is left of a lease of so many seconds."""
    return {
        f'holdfast_lease_remaining_seconds{{job="holdfast",instance="n1",unit="{unit}"}}': left,
        node("holdfast_lease_ttl_seconds"): f"{ttl_s}x100",
    }


def lag(*shards: str) -> Series:
    """For how long a region has not confirmed each of these shards."""
    name = "holdfast_region_lag_seconds"
    return {
        f'{name}{{job="holdfast",instance="n1",region="us",shard="{shard}"}}': values
        for shard, values in enumerate(shards)
    }


def breakers(**regions: str) -> Series:
    """Whether each of these regions counts as away."""
    name = "holdfast_region_breaker_open"
    return {f'{name}{{job="holdfast",instance="n1",region="{region}"}}': values for region, values in regions.items()}


CASES = (
    Case("HoldfastNodeDown", 60, {node("up"): "0x100"}, (UP, {'up{job="other",instance="n1"}': "0x100"}), NODE),
    Case("HoldfastAbsent", 300, {'up{job="other",instance="n1"}': "1x100"}, (UP, {node("up"): "0x100"}), JOB),
    Case(
        "HoldfastProcessNotReady",
        120,
        one("holdfast_process_ready", "0x100"),
        (one("holdfast_process_ready", "1x100"), one("holdfast_process_ready", "0x4 1 0x100")),
    ),
    Case(
        "HoldfastProcessDied",
        75,
        {RESTARTS: "3x4 4x95"},
        ({RESTARTS: "3x100"}, {RESTARTS: "4 0x100"}),
    ),
    Case(
        "HoldfastRestartLoop",
        75,
        {RESTARTS: "3x4 6x95"},
        ({RESTARTS: "3x4 5x95"}, {RESTARTS: "3x100"}),
    ),
    Case(
        "HoldfastNodeRestartLoop",
        105,
        {STARTED: "100x2 200 300x2 400x94"},
        ({STARTED: "100x2 200 300x95"}, one("holdfast_process_start_time_seconds", "100x2 200 300x2 400x94")),
        SUPERVISOR,
    ),
    Case(
        "HoldfastProcessStuck",
        75,
        one("holdfast_process_stuck_total", "0x4 1x95"),
        (one("holdfast_process_stuck_total", "1x100"),),
    ),
    Case(
        "HoldfastDrainCut",
        75,
        one("holdfast_drain_cut_total", "0x4 7x95"),
        (one("holdfast_drain_cut_total", "7x100"),),
    ),
    Case(
        "HoldfastProcessBusy", 120 + 300, {BUSY: rate(0.92)}, ({BUSY: rate(0.88)}, {BUSY: steps(13.8, 0.1, steps=19)})
    ),
    Case("HoldfastFilesRunningOut", 60, files(801), (files(800),)),
    Case("HoldfastFilesAlmostOut", 60, files(951), (files(950),)),
    Case(
        "HoldfastConnectionsRefused",
        285 + 120,
        one("holdfast_connections_refused_total", rate(1.1)),
        (one("holdfast_connections_refused_total", rate(0.9)),),
        NODE,
    ),
    Case(
        "HoldfastErrorRateHigh",
        300 + 120,
        requests(96, errors=6, code="rate_limited"),
        (
            requests(97, errors=4, code="rate_limited"),  # many requests, 4 %
            requests(90, errors=9, code="rate_limited"),  # 9 %, but fewer than 100 a second
            requests(0, errors=0, code="rate_limited"),
        ),
        NODE,
    ),
    Case(
        "HoldfastFailureRateHigh",
        300 + 120,
        requests(96, errors=6, code="unavailable"),
        (
            requests(97, errors=4, code="overloaded"),
            requests(90, errors=9, code="internal"),
            requests(96, errors=6, code="bad_request"),  # the client's own fault
        ),
        NODE,
    ),
    Case(
        "HoldfastPublishSlow",
        15 + 120,
        took("publish", 0.51),
        (took("publish", 0.49), took("publish", 5, per_second=0), took("welcome", 1)),
        NODE,
    ),
    Case("HoldfastWelcomeSlow", 15 + 300, took("welcome", 2.1), (took("welcome", 1.9), took("publish", 9)), NODE),
    Case(
        "HoldfastRouterAway",
        60,
        one("holdfast_linked", "0x100"),
        (one("holdfast_linked", "1x100"), one("holdfast_linked", "0x100", process="router")),
    ),
    *(
        Case(
            "HoldfastGaps",
            75,
            one("holdfast_gaps_total", "2x4 3x95", reason=reason),
            (
                one("holdfast_gaps_total", "2x100", reason=reason),
                one("holdfast_gaps_total", "2x4 3x95", reason="trimmed"),
                one("holdfast_gaps_total", "2x4 99x95", reason="slow_consumer"),
            ),
            {**NODE, "reason": reason},
        )
        for reason in ("router_lost", "lost", "reset")
    ),
    *(
        Case(
            alert,
            at,
            {node(name): f"{burning}x100"},
            ({node(name): f"{calm}x100"}, {node(name): f"{burning}x3 {calm}x96"}),
            NODE,
        )
        for alert, name, burning, calm, at in (
            ("HoldfastShardsUnled", "holdfast_shards_unled", 1, 0, 60),
            ("HoldfastDirectoryAway", "holdfast_directory_reachable", 0, 1, 60),
        )
    ),
    Case(
        "HoldfastNotRegistered",
        120,
        lease("router", "0x100"),
        (lease("router", "7x100"), lease("router", "0x7 9x92")),
        {**NODE, "unit": "router"},
    ),
    *(
        Case(
            "HoldfastLeaseNearEnd",
            75,
            lease(unit, "9x4 3.3x95"),
            (
                lease(unit, "9x4 3.4x95"),
                lease(unit, "9x4 0x95"),  # it has none: that has an alert of its own
                lease(unit, "9x4 3.3x95", ttl_s=9),
            ),
            {**NODE, "unit": unit},
        )
        for unit in ("gateway", "router")
    ),
    Case(
        "HoldfastRouterOutOfReach",
        120,
        {node("holdfast_admin_links"): "2x100", node("holdfast_routers"): "3x100"},
        (
            {node("holdfast_admin_links"): "3x100", node("holdfast_routers"): "3x100"},
            {node("holdfast_admin_links"): "2x7 3x92", node("holdfast_routers"): "3x100"},
            {node("holdfast_routers"): "3x100"},
        ),
        NODE,
    ),
    Case(
        "HoldfastRegionBehind",
        120,
        lag("31x100", "0x100"),
        (lag("30x100", "30x100"), lag("31x7 0x92", "0x100")),
        {**NODE, "region": "us"},
    ),
    Case(
        "HoldfastRegionAway",
        120,
        breakers(us="1x100", ap="0x100"),
        (breakers(us="0x100"), breakers(us="1x7 0x92")),
        {**NODE, "region": "us"},
    ),
    Case(
        "HoldfastNotReplicated",
        60,
        breakers(us="1x100", ap="1x100"),
        (breakers(us="1x100", ap="0x100"), breakers(us="1x3 0x96", ap="1x100")),
        NODE,
    ),
    Case(
        "HoldfastRecordsDropped",
        75,
        one("holdfast_log_records_dropped_total", "2x4 3x95", process="router"),
        (one("holdfast_log_records_dropped_total", "2x100", process="router"),),
        NODE,
    ),
    Case(
        "HoldfastRegionEvacuated",
        3_600,
        {f'{EVACUATED},region="us"}}': "1x600", f'{EVACUATED},region="eu"}}': "0x600"},
        ({f'{EVACUATED},region="us"}}': "0x600"}, {f'{EVACUATED},region="us"}}': "1x235 0x100"}),
        {**JOB, "region": "us"},
    ),
    Case(
        "HoldfastLogAway",
        60,
        one("holdfast_log_away", "1x100", process="router"),
        tuple(one("holdfast_log_away", values, process="router") for values in ("0x100", "1x3 0x96")),
        ROUTER,
    ),
    Case(
        "HoldfastLogBehind",
        120,
        behind(f"{LOG_BEHIND_BYTES + 1}x100"),
        (
            behind(f"{LOG_BEHIND_BYTES}x100"),
            behind(f"{4 * LOG_BEHIND_BYTES}x7 0x92"),
            behind(f"{4 * LOG_BEHIND_BYTES}x100", of=16 * LOG_BEHIND_BYTES),
            behind("0x100", of=0),  # there is no log
        ),
        ROUTER,
    ),
    Case(
        "HoldfastNotLogged",
        75,
        one("holdfast_messages_not_logged_total", "2x4 3x95", process="router"),
        (one("holdfast_messages_not_logged_total", "2x100", process="router"),),
        NODE,
    ),
    Case(
        "HoldfastLogOutgrown",
        75,
        one("holdfast_log_outgrown_total", "2x4 300x95", process="router"),
        (one("holdfast_log_outgrown_total", "2x100", process="router"),),
        NODE,
    ),
    Case(
        "HoldfastStatesLost",
        75,
        one("holdfast_states_lost_total", "2x4 3x95", process="router"),
        (one("holdfast_states_lost_total", "2x100", process="router"),),
        NODE,
    ),
    Case(
        "HoldfastHeartbeatLosses",
        255 + 120,
        losses(25 / 300, 1000),
        (losses(25 / 300, 1300), losses(19 / 300, 100), losses(0, 1000)),
        NODE,
    ),
    Case("HoldfastZombieSessions", 300, sessions(1021, 1000), (sessions(1020, 1000), sessions(10, 0)), JOB),
    Case(
        "HoldfastLeakSuspected",
        0,
        one("holdfast_leak_suspected", "1x100", resource="fds"),
        (one("holdfast_leak_suspected", "0x100", resource="fds"),),
        {**WORKER, "resource": "fds"},
    ),
    Case(
        "HoldfastLedgerDifference",
        120,
        one("holdfast_ledger_audit_differences", "1x100"),
        (one("holdfast_ledger_audit_differences", "0x100"), one("holdfast_ledger_audit_differences", "1x6 0x94")),
    ),
    Case(
        "HoldfastLedgerNotClosing",
        600,
        held(1, 0),
        (
            held(0, 0),
            held(1, 1),
            held(1, 0, kind="fd"),
            held(1, 0, kind="membership", process="router"),  # who is where, for presence
        ),
    ),
)


def per_day(*days: float, job: str = "holdfast") -> Series:
    """Deliveries a second on one day after the other, sampled once in five minutes."""
    return {of("holdfast_messages_delivered_total", job=job): steps(*(each * 300 for each in days), steps=287)}


EIGHTH_DAY_S = 7 * 86_400
TRAFFIC = Case(
    "HoldfastTrafficBelowBaseline",
    # By the second evaluation of the day the rate is the new one; then ten minutes.
    EIGHTH_DAY_S + 600 + 600,
    # Together, since each takes a while: jobs do not mix.
    per_day(*[100] * 7, 69)
    | per_day(*[100] * 7, 71, job="29 % below")
    | per_day(100, 100, 20, 100, 500, 100, 100, 71, job="an outage and a rush among the days move no median")
    | per_day(0, 0, 0, 0, 100, 100, 100, 10, job="on most days there is nothing")
    | per_day(*[9] * 7, 1, job="a quiet system")
    | per_day(*[100] * 7, job="gone as a whole: HoldfastAbsent and HoldfastNodeDown are for that"),
    (),
    JOB,
    step_s=600,
)


def promtool_tests(cases: tuple[Case, ...], *names: str) -> str:
    """The file that `promtool test rules` reads, in JSON, which is YAML too: a group of series a scenario."""
    found = alerts(*names)
    groups = []
    for case in cases:
        rule = found[case.alert]
        labels = {**case.labels, **rule["labels"], "alertname": case.alert, "alertstate": "firing"}
        fires = "ALERTS{" + ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
        expected = [{"labels": fires, "value": 1}]
        firing = [(case.at, expected)] + ([(case.at - case.step_s, [])] if case.at else [])
        for number, series in enumerate((case.fires, *case.quiet)):
            points = [(case.at, [])] if number else firing
            expression = f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}'
            groups.append(
                {
                    "name": f"{case.alert} {'quiet' if number else 'fires'} {number}",
                    "interval": f"{min(case.step_s, SAMPLE_S_MAX)}s",
                    "input_series": [{"series": key, "values": values} for key, values in series.items()],
                    "promql_expr_test": [
                        {"expr": expression, "eval_time": f"{at}s", "exp_samples": samples} for at, samples in points
                    ],
                }
            )
    paths = [RULES / f"{name}.yaml" for name in names]
    order = [group["name"] for path in paths for group in yaml.safe_load(path.read_text())["groups"]]
    return json.dumps(
        {
            "rule_files": list(map(str, paths)),
            "evaluation_interval": f"{cases[0].step_s}s",
            "group_eval_order": order,
            "tests": groups,
        }
    )


@pytest.mark.parametrize(
    ("cases", "names"), [(CASES, ("recording", "alerts")), ((TRAFFIC,), ("traffic",))], ids=["alerts", "traffic"]
)
def test_each_alert_fires_in_time_and_stays_quiet_below_its_threshold(
    tmp_path: Path, cases: tuple[Case, ...], names: tuple[str, ...]
) -> None:
    path = tmp_path / "tests.yaml"
    path.write_text(promtool_tests(cases, *names))
    done = call("promtool", "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_three_days_make_a_baseline(tmp_path: Path) -> None:
    """On the fourth day there are three days to compare with, on the third two."""
    four = Case(TRAFFIC.alert, 3 * 86_400 + 1200, per_day(100, 100, 100, 60), (), JOB, step_s=600)
    three = Case(TRAFFIC.alert, 2 * 86_400 + 1200, per_day(100, 100, 60), (), JOB, step_s=600)
    path = tmp_path / "tests.yaml"
    path.write_text(promtool_tests((four,), "traffic"))
    assert call("promtool", "test", "rules", path).returncode == 0
    path.write_text(promtool_tests((three,), "traffic"))
    assert re.search(
        r"exp: .*HoldfastTrafficBelowBaseline.*\n *got: nil", call("promtool", "test", "rules", path).stderr
    )


def test_a_node_that_loses_all_its_connections_is_said_to_lose_all(tmp_path: Path) -> None:
    rule = alerts()["HoldfastHeartbeatLosses"]
    said = rule["annotations"]["description"].replace("{{ $labels.instance }}", "n1")
    said = said.replace("{{ $value | humanizePercentage }}", "100%")
    series = {
        of("holdfast_heartbeats_lost_total"): "0x20 5000x30",
        of("holdfast_open_connections"): "5000x20 0x30",
    }
    found = {"exp_labels": {**NODE, **rule["labels"]}, "exp_annotations": {**rule["annotations"], "description": said}}
    test = {
        "interval": f"{STEP_S}s",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "alert_rule_test": [{"eval_time": "8m", "alertname": "HoldfastHeartbeatLosses", "exp_alerts": [found]}],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(
        json.dumps({"rule_files": [str(RULES / "alerts.yaml")], "evaluation_interval": f"{STEP_S}s", "tests": [test]})
    )
    done = call("promtool", "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    assert {case.alert for case in (*CASES, TRAFFIC)} == set(alerts())


@pytest.mark.parametrize("case", [*CASES, TRAFFIC], ids=lambda case: case.alert)
def test_every_alert_says_what_burns_how_badly_and_where_to_read_on(case: Case) -> None:
    rule = alerts()[case.alert]
    assert rule["labels"].keys() == {"severity", "area"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["description"]))
    assert used <= case.labels.keys(), "a label that the alert does not have would read as nothing"


def test_the_rules_are_valid_and_have_no_name_twice() -> None:
    done = call("promtool", "check", "rules", "--lint-fatal", *sorted(RULES.glob("*.yaml")))
    assert done.returncode == 0, done.stdout + done.stderr
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(names) == len(set(names))
