"""Canned runs: what the benchmark would have measured."""

from typing import Any

COUNTS = ("lost", "repeated", "out_of_order", "corrupt", "refused", "disconnected", "failed", "exit_code", "slow_ended")
Run = dict[str, Any]


def a_client(**other: Any) -> Run:
    """The load client's result, with nothing wrong."""
    percentiles = {"p50": 500.0, "p90": 900.0, "p95": 950.0, "p99": 2000.0}
    return {
        **dict.fromkeys(COUNTS, 0),
        "drained": True,
        "deliveries_per_s": 1000.0,
        "latency_us": percentiles,
        "connect_us": percentiles,
        **other,
    }


def a_run(server: str, us: float = 1.0, number: int = 1, counters: Run | None = None, **client: Any) -> Run:
    """A window of messages."""
    return {
        "server": server,
        "round": number,
        "cpu_us_per_delivery": us,
        "server_cores": 0.5,
        "client_cores": 0.25,
        "busiest_process": 0.4,
        "cpu_us_by_process": {"worker-0": us * 0.75, "router": us * 0.25},
        "other_cores": 0.0,
        "bottleneck": "nobody",
        "counters": counters or {},
        "client_command": "loadtest/bin/swarm fan --port 1 --members 2",
        "client": a_client(**client),
    }


def an_idle_run(server: str, rss: float = 400.0, pulse: float = 0.5, **other: Any) -> Run:
    return {
        "server": server,
        "round": 1,
        "connections": 15_000,
        "bytes_per_connection": {"rss": rss, "pss": rss, "uss": rss},
        "cpu_us_per_connection": 80.0,
        "hold": {"cpu_us_per_connection_s": pulse, "heartbeats": 15_000},
        "after_to_before": 1.05,
        "ledger_before": {"ring": 0.0},
        "ledger_joined": {"ring": 9.0},
        "ledger_after": {"ring": 0.0},
        "client_command": "loadtest/bin/swarm idle --port 1",
        "client": a_client(),
        **other,
    }


def a_storm_run(server: str, us: float = 100.0, p95_ms: float = 20.0, failed: int = 0) -> Run:
    latency = {"p50": 1000.0, "p95": p95_ms * 1000, "p99": p95_ms * 1000}
    return {
        "server": server,
        "round": 1,
        "cpu_us_per_connection": us,
        "server_cores": 0.3,
        "cpu_us_by_process": {"worker-0": us},
        "client_cores": 0.2,
        "bottleneck": "nobody",
        "client_command": "loadtest/bin/swarm storm --port 1",
        "client": a_client(connect_us=latency, failed=failed),
    }


def a_resume_told(**other: Any) -> Run:
    """What a run of resumes tells, with nothing wrong."""
    return {
        "channels": 2,
        "away_s": 2.0,
        "welcomed_s": 3.0,
        "caught_up_s": 4.0,
        "expected": 80,
        "replayed": 40.0,
        "live_p99_ms_before": 5.0,
        "live_p99_ms_away": 60.0,
        "live_p50_ms": 6.0,
        "live_p99_ms": 70.0,
        "live_max_ms": 80.0,
        "connect_p95_ms": 90.0,
        "seconds": 4.0,
        "server_cpu_s": 4.0,
        "server_cpu_s_by_process": {"router": 1.0, "worker-0": 3.0},
        "busiest_thread_s": 2.0,
        "client_cpu_s": 2.0,
        "busiest_client_thread_s": 1.0,
        "machine_cpu_s": 6.0,
        "cut": 20,
        "back": 20,
        "resumed": 20,
        "delivered": 80,
        **dict.fromkeys(("lost", "repeated", "out_of_order", "told_gaps", "corrupt", "refused"), 0),
        **other,
    }
