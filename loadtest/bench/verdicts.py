"""What must hold, each with its figure and by how much it is kept or missed."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.bench.figures import Pick, cost, latency_ms, median, of, rate, ratio, servers_in
from loadtest.bench.runs import ALL_READ, DELIVERED, SOME_SLOW, Run, wrong_with
from loadtest.bench.workloads import PEERS

MAX_DELIVERIES_PER_S_MIN = 2_000_000
MAX_RATIO_MAX = 1.25
FAN_RATIO_MAX = 1.15
FAN_P99_PEERS = ("picows", "ws")
ONE_RATIO_MAX = 0.5
ONE_P50_OVER_PICOWS_MS_MAX = 0.3
IDLE_BYTES_MAX = 512
IDLE_HEARTBEAT_US_MAX = 1.0
IDLE_HEARTBEATS_MIN = 0.9  # one a period, of which the window is one
IDLE_GROWTH_MAX = 0.10
STORM_US_MAX = 150.0
STORM_P95_MS_MAX = 1_000.0
SLOW_P99_RATIO_MAX = 1.10
GIL_TAKES_PER_1000_MAX = 1.0
HISTORY_RATIO_MAX = 1.3
LOGGED_PER_S_MIN = 40_000
LOGGED_P99_MS_MAX = 100.0
RESUME_S_MAX = 10.0
RESUME_LIVE_P99_MS_MAX = 250.0


@dataclass(frozen=True)
class Verdict:
    """A promise, its figure and its limit as they go onto the page, and how far the one is from the other."""

    workload: str
    what: str
    figure: str
    limit: str
    kept: bool
    by: str

    def __str__(self) -> str:
        word = "kept    " if self.kept else "NOT KEPT"
        return f"{word}  {self.workload}: {self.what}: {self.figure} ({self.limit}; {self.by})"


def _by(value: float, limit: float) -> str:
    """How far a figure is from its limit, in percent of the limit."""
    share = value / limit - 1 if limit else 0.0
    return f"{abs(share):.1%} {'above' if share > 0 else 'below'} the limit"


def at_most(workload: str, what: str, value: float, limit: float, form: str, unit: str = "") -> Verdict:
    limit_text = f"at most {form.format(limit)}{unit}"
    return Verdict(workload, what, f"{form.format(value)}{unit}", limit_text, value <= limit, _by(value, limit))


def at_least(workload: str, what: str, value: float, limit: float, form: str, unit: str = "") -> Verdict:
    limit_text = f"at least {form.format(limit)}{unit}"
    return Verdict(workload, what, f"{form.format(value)}{unit}", limit_text, value >= limit, _by(value, limit))


def nothing_wrong(workload: str, runs: list[Run]) -> list[Verdict]:
    """Nothing lost, repeated, reordered or corrupt in any run of Holdfast."""
    own = [run for run in runs if run["server"].startswith("holdfast")]
    wrong = [
        f"{run['server']}, round {run['round']}: {', '.join(bad)}" for run in own if (bad := wrong_with(run["client"]))
    ]
    if not own:
        return []
    figure = "; ".join(wrong) or f"{len(own)} runs without a fault"
    what = "nothing lost, repeated, reordered, corrupt or refused"
    return [Verdict(workload, what, figure, "no fault", not wrong, f"{len(wrong)} runs with faults")]


def below_every_peer(workload: str, runs: list[Run]) -> list[Verdict]:
    """CPU per delivery of Holdfast against each peer that ran."""
    own = median(of(runs, "holdfast"), cost)
    peers = {name: value for name in PEERS if (value := median(of(runs, name), cost)) is not None}
    if own is None or not peers:
        return []
    best = min(peers, key=lambda name: peers[name])
    without = [name for name in PEERS if name not in peers]
    limit = f"below every peer's, the best being {best} with {peers[best]:.3f} µs"
    limit += f"; not measured: {', '.join(without)}" if without else ""
    by = _by(own, peers[best]).replace("the limit", best)
    return [Verdict(workload, "CPU per delivery", f"{own:.3f} µs", limit, own < peers[best], by)]


def ratio_to(workload: str, runs: list[Run], other: str, most: float, own: str = "holdfast") -> list[Verdict]:
    found = ratio(of(runs, own), of(runs, other), cost)
    if found is None:
        return []
    return [at_most(workload, f"CPU per delivery as a multiple of {other}'s in the same round", found, most, "{:.2f}")]


def history(workload: str, runs: list[Run]) -> list[Verdict]:
    return ratio_to(workload, runs, "holdfast-no-history", HISTORY_RATIO_MAX, "holdfast-logged")


def compared(
    workload: str, runs: list[Run], what: str, pick: Pick, peers: tuple[str, ...], more: float = 0.0
) -> list[Verdict]:
    """A figure of Holdfast in ms is no higher than that of each named peer, `more` allowed."""
    own = median(of(runs, "holdfast"), pick)
    found = []
    for peer in peers:
        other = median(of(runs, peer), pick)
        if own is not None and other is not None:
            found.append(
                at_most(workload, f"{what} against {peer}'s {other:.2f} ms", own, other + more, "{:.2f}", " ms")
            )
    return found


def judge_max(runs: list[Run]) -> list[Verdict]:
    own = of(runs, "holdfast")
    found = []
    if own:
        reached = statistics.median(rate(run) for run in own)
        what = "deliveries a second with one worker and one router"
        found.append(at_least("max", what, reached, MAX_DELIVERIES_PER_S_MIN, "{:,.0f}"))
    found += ratio_to("max", runs, "floor-coalesce", MAX_RATIO_MAX) + below_every_peer("max", runs)
    return found + gil_takes(own)


def gil_takes(runs: list[Run]) -> list[Verdict]:
    """How often the data plane took the GIL for a thousand deliveries."""
    counted = [run["counters"] for run in runs if run["counters"]]
    delivered = sum(sum(one[DELIVERED].values()) for one in counted)
    if not delivered:
        return []
    takes = sum(sum(one["gil_takes"].values()) for one in counted) * 1000 / delivered
    return [at_most("max", "takes of the GIL for 1,000 deliveries", takes, GIL_TAKES_PER_1000_MAX, "{:.4f}")]


def judge_fan(runs: list[Run]) -> list[Verdict]:
    found = ratio_to("fan", runs, "floor-per-delivery", FAN_RATIO_MAX)
    return found + compared("fan", runs, "p99", latency_ms("p99"), FAN_P99_PEERS)


def judge_one(runs: list[Run]) -> list[Verdict]:
    found = ratio_to("one", runs, "nats", ONE_RATIO_MAX)
    return found + compared("one", runs, "p50", latency_ms("p50"), ("picows",), ONE_P50_OVER_PICOWS_MS_MAX)


def judge_slow(runs: list[Run]) -> list[Verdict]:
    with_slow, without = of(runs, "holdfast", SOME_SLOW), of(runs, "holdfast", ALL_READ)
    found = ratio(with_slow, without, latency_ms("p99"))
    if found is None:
        return []
    what = "p99 of those who read, as a multiple of the run in which all read"
    return [at_most("slow", what, found, SLOW_P99_RATIO_MAX, "{:.2f}")]


def judge_publish(runs: list[Run]) -> list[Verdict]:
    """A message is delivered, to its publisher as well, when it is in the log, and answered right before."""
    found = []
    for name in servers_in(runs):
        reached = statistics.median(rate(run) for run in of(runs, name))
        found.append(at_least("publish", f"{name}: logged messages a second", reached, LOGGED_PER_S_MIN, "{:,.0f}"))
    return found


def judge_publish_half(runs: list[Run]) -> list[Verdict]:
    found = []
    for name in servers_in(runs):
        late = statistics.median(latency_ms("p99")(run) for run in of(runs, name))
        what = f"{name}: p99 from the intended time to the logged message"
        found.append(at_most("publish-half", what, late, LOGGED_P99_MS_MAX, "{:.1f}", " ms"))
    return found


def judge_idle(runs: list[Run]) -> list[Verdict]:
    own = of(runs, "holdfast")
    if not own:
        return []
    most = statistics.median(run["bytes_per_connection"]["rss"] for run in own)
    pulse = statistics.median(run["hold"]["cpu_us_per_connection_s"] for run in own)
    growth = max(run["after_to_before"] for run in own) - 1
    beats = min(run["hold"]["heartbeats"] / run["connections"] for run in own)
    empty = all(run["ledger_joined"] and run["ledger_after"] == run["ledger_before"] for run in own)
    what = "the ledger's live values, once all had gone"
    figure = "as before" if empty else "not as before"
    return [
        at_most("idle", "user memory for a joined connection", most, IDLE_BYTES_MAX, "{:,.0f}", " bytes"),
        at_most("idle", "CPU of heartbeats for a connection and second", pulse, IDLE_HEARTBEAT_US_MAX, "{:.2f}", " µs"),
        at_least("idle", "heartbeats heard from a connection meanwhile", beats, IDLE_HEARTBEATS_MIN, "{:.2f}"),
        at_most("idle", "growth of memory once all had gone", growth, IDLE_GROWTH_MAX, "{:.1%}"),
        Verdict("idle", what, figure, "as before", empty, "exact"),
    ]


def judge_storm(runs: list[Run]) -> list[Verdict]:
    found = []
    for name in ("holdfast", "holdfast-logged", "holdfast-tcp"):
        own = of(runs, name)
        if not own:
            continue
        each = statistics.median(run["cpu_us_per_connection"] for run in own)
        late = statistics.median(run["client"]["connect_us"]["p95"] / 1000 for run in own)
        failed = sum(run["client"]["failed"] for run in own)
        what = f"{name}: CPU for a connection with HELLO, token and JOIN"
        found += [
            at_most("storm", what, each, STORM_US_MAX, "{:.0f}", " µs"),
            at_most("storm", f"{name}: p95 from the intended time to joined", late, STORM_P95_MS_MAX, "{:,.0f}", " ms"),
            Verdict("storm", f"{name}: failed connections", f"{failed:,}", "none", failed == 0, f"{failed:,} of all"),
        ]
    return found


def judge_resume(runs: list[Run]) -> list[Verdict]:
    found = []
    for name in servers_in(runs):
        own = [run["resume"] for run in of(runs, name)]
        took = statistics.median(one["caught_up_s"] for one in own)
        what = f"{name}: from the kill until every session has everything"
        found.append(at_most("resume", what, took, RESUME_S_MAX, "{:.1f}", " s"))
        for key, when in (("live_p99_ms_away", "while they are away"), ("live_p99_ms", "while they resume")):
            late = statistics.median(one[key] for one in own)
            what = f"{name}: p99 of live traffic {when}"
            found.append(at_most("resume", what, late, RESUME_LIVE_P99_MS_MAX, "{:.0f}", " ms"))
    return found


JUDGES: dict[str, Callable[[list[Run]], list[Verdict]]] = {
    "fan": judge_fan,
    "max": judge_max,
    "rooms": lambda runs: below_every_peer("rooms", runs),
    "pairs": lambda runs: below_every_peer("pairs", runs),
    "one": judge_one,
    "big": lambda runs: [],
    "history": lambda runs: history("history", runs),
    "history-rooms": lambda runs: history("history-rooms", runs),
    "publish": judge_publish,
    "publish-half": judge_publish_half,
    "slow": judge_slow,
    "idle": judge_idle,
    "storm": judge_storm,
    "resume": judge_resume,
}


def judge(name: str, runs: list[Run]) -> list[Verdict]:
    """All verdicts on a workload for which the runs have the figures."""
    return JUDGES[name](runs) + nothing_wrong(name, runs)


def summary(name: str, runs: list[Run]) -> dict[str, Any]:
    """What stands at the head of a result file: medians by server."""
    found: dict[str, Any] = {}
    for server in servers_in(runs):
        own = of(runs, server)
        if "cpu_us_per_delivery" in own[0]:
            found[server] = {
                "us_per_delivery": median(own, cost),
                "deliveries_per_s": median(own, rate),
                "p50_ms": median(own, latency_ms("p50")),
                "p99_ms": median(own, latency_ms("p99")),
            }
        else:
            found[server] = {"us_per_connection": median(own, lambda run: run["cpu_us_per_connection"])}
    return found
