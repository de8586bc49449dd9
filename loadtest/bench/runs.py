"""One window of messages on a ready server: what it cost, what came of it, and who was the bottleneck."""

import os
from collections.abc import Callable
from typing import Any

from loadtest.bench.workloads import SLOW_SHARE, Workload
from loadtest.measure import BenchError, Server, Swarm, cpu_by_process, machine_busy_s, read_cpu, read_memory, shown

JOIN_DEADLINE_S = 120.0
SLACK_S = 60.0
# One thread does all that a load client does, and all of a worker's data plane: at this share of a core it has no more.
BUSY = 0.9
# Counters of /metrics that explain what a delivery cost.
COUNTERS = ("sends", "wakeups", "batches_in", "batches_out", "bytes_out", "gil_takes", "publishes", "slow_consumers")
DELIVERED = "messages_delivered"
ALL_READ, SOME_SLOW = "all read", "1 % read nothing"
Run = dict[str, Any]


def counters_between(before: dict[str, float], after: dict[str, float]) -> dict[str, dict[str, float]]:
    """What each process of Holdfast counted between two scrapes, by counter and process."""
    found: dict[str, dict[str, float]] = {}
    for key, value in after.items():
        name, _, labels = key.partition("{")
        short = name.removeprefix("holdfast_").removesuffix("_total")
        if short in (*COUNTERS, DELIVERED) and 'process="' in labels:
            process = labels.split('process="')[1].partition('"')[0]
            found.setdefault(short, {})[process] = value - before.get(key, 0)
    return found


def bottleneck(server_cores: float, busiest_process: float, client_cores: float, cpus: int) -> str:
    """Who could do no more, from the cores that each used over the window."""
    if server_cores + client_cores >= BUSY * cpus:
        return "the machine"
    if busiest_process >= BUSY:
        return "the server"
    if client_cores >= BUSY:
        return "the load client"
    return "nobody"


def loaded(server: Server, workload: Workload, options: list[str], duration_s: float) -> Run:
    """The load client's run. Counters are read at the window's edges, outside the time for which CPU is counted."""
    scrapes: list[dict[str, float]] = []

    def scrape() -> None:
        if server.admin_port is not None:
            scrapes.append(server.metrics())

    with Swarm(server, workload.client, *options) as swarm:
        swarm.expect("joined", JOIN_DEADLINE_S)
        swarm.expect("start", duration_s + SLACK_S)
        scrape()
        pids = server.pids()
        busy_before, each_before, before = machine_busy_s(), cpu_by_process(pids), read_cpu(pids)
        swarm.expect("drained", duration_s + SLACK_S)
        used, each_after = read_cpu(server.pids()).since(before), cpu_by_process(pids)
        busy_s = machine_busy_s() - busy_before
        memory = read_memory(pids)
        scrape()
        client = swarm.result(SLACK_S)
        command = shown(swarm.command)
    if client["window_delivered"] == 0:
        raise BenchError(f"{server.name} delivered nothing: {client}")
    seconds = client["seconds"]
    shares = {
        "server_cores": used.total_s / seconds,
        "busiest_process": max(each_after[pid] - each_before[pid] for pid in pids) / seconds,
        "client_cores": (client["cpu_user_s"] + client["cpu_system_s"]) / seconds,
    }
    return {
        "server": server.name,
        "server_command": shown(server.command),
        "client_command": command,
        "processes": len(pids),
        "cpu_user_s": round(used.user_s, 3),
        "cpu_system_s": round(used.system_s, 3),
        "cpu_us_per_delivery": used.total_s * 1e6 / client["window_delivered"],
        **{name: round(share, 3) for name, share in shares.items()},
        "other_cores": round(max(0.0, busy_s / seconds - shares["server_cores"] - shares["client_cores"]), 3),
        "bottleneck": bottleneck(cpus=os.cpu_count() or 1, **shares),
        "memory": memory.as_dict(),
        "counters": counters_between(*scrapes) if scrapes else {},
        "client": client,
    }


def load_options(workload: Workload, server: Server, seconds: float, warmup: float) -> list[str]:
    words = [*workload.options, "--payload", str(workload.payload_bytes)]
    words += ["--seconds", f"{seconds:g}", "--warmup", f"{warmup:g}"]
    return [*words, "--text"] if server.protocol == "socketio" else words


def load(server: Server, workload: Workload, seconds: float, warmup: float) -> list[Run]:
    """One run."""
    options = load_options(workload, server, seconds, warmup)
    return [loaded(server, workload, options, seconds + warmup)]


def slow(server: Server, workload: Workload, seconds: float, warmup: float) -> list[Run]:
    """The same load twice on one server: all members read, then one in a hundred reads nothing."""
    options = load_options(workload, server, seconds, warmup)
    members = int(workload.options[workload.options.index("--members") + 1])
    hanging = ["--slow", str(max(1, round(members * SLOW_SHARE)))]
    runs = []
    for variant, more in ((ALL_READ, []), (SOME_SLOW, hanging)):
        # A name of its own: what the hanging members have queued must not be of the next run's group.
        run = loaded(server, workload, [*options, *more, "--group", f"slow{len(more)}"], seconds + warmup)
        runs.append({**run, "variant": variant})
    return runs


def wrong_with(client: Run) -> list[str]:
    """What a run must not show, in words."""
    names = ("lost", "repeated", "out_of_order", "corrupt", "refused", "disconnected", "failed")
    wrong = [f"{client[name]:,} {name}" for name in names if client[name]]
    if not client["drained"]:
        wrong.append("not drained")
    if client["exit_code"] and not wrong:
        wrong.append(f"exit code {client['exit_code']}")
    return wrong


RUN: dict[str, Callable[[Server, Workload, float, float], list[Run]]] = {"load": load, "slow": slow}
