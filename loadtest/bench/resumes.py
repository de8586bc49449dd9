"""The workload of sessions that resume: `loadtest.resume` on a server of the bench, as a run of the bench."""

import os
from typing import Any

from loadtest import resume
from loadtest.bench.runs import Run
from loadtest.bench.window import bottleneck
from loadtest.bench.workloads import Workload
from loadtest.measure import Server, shown

PROCESSES = 2


def resumed(server: Server, workload: Workload, seconds: float, warmup: float) -> list[Run]:
    """One run. `seconds` and `warmup` are not of this workload: it ends when all have everything."""
    sessions, channels = (int(workload.options[place]) for place in (1, 3))
    told = resume.measure(server, 2 * sessions, channels, PROCESSES)
    return [{"server": server.name, "server_command": shown(server.command), **run_of(told)}]


def run_of(told: dict[str, Any]) -> Run:
    """What the page and the verdicts want to know of it."""
    cores = {
        "server_cores": told["server_cpu_s"] / told["seconds"],
        "busiest_process": told["busiest_thread_s"] / told["seconds"],
        "client_cores": told["client_cpu_s"] / told["seconds"],
    }
    others = told["machine_cpu_s"] / told["seconds"] - cores["server_cores"] - cores["client_cores"]
    processes = told["server_cpu_s_by_process"]
    return {
        "client_command": "python -m loadtest.resume",  # the page says its options
        "cpu_us_per_connection": told["server_cpu_s"] * 1e6 / max(1, told["resumed"]),
        "cpu_us_by_process": {name: used * 1e6 / max(1, told["resumed"]) for name, used in processes.items()},
        **{name: round(used, 3) for name, used in cores.items()},
        "other_cores": round(max(0.0, others), 3),
        "bottleneck": bottleneck(cpus=os.cpu_count() or 1, **cores),
        "client": client_of(told),
        "resume": told,
    }


def client_of(told: dict[str, Any]) -> dict[str, Any]:
    """The faults under the names that they have in every run."""
    return {
        "lost": told["lost"] + told["told_gaps"],
        **{name: told[name] for name in ("repeated", "out_of_order", "corrupt", "refused")},
        "disconnected": told["cut"] - told["back"],
        "failed": told["back"] - told["resumed"],
        "drained": told["delivered"] == told["expected"] and told["replayed"] == told["back"] * told["channels"],
        "exit_code": 0,
        "connect_us": {"p95": told["connect_p95_ms"] * 1000},
    }
