"""One window of messages on a ready server: what it cost, what came of it, and who was the bottleneck."""

from collections.abc import Callable
from typing import Any

from loadtest.bench.window import Window, account
from loadtest.bench.workloads import SLOW_SHARE, Workload
from loadtest.measure import BenchError, Server, Swarm, read_memory, shown

JOIN_DEADLINE_S = 120.0
SLACK_S = 60.0
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


def loaded(server: Server, workload: Workload, options: list[str], duration_s: float) -> Run:
    """The load client's run. Counters are read around it, outside the time for which CPU is counted."""
    scrapes: list[dict[str, float]] = []

    def scrape() -> None:
        if server.admin_port is not None:
            scrapes.append(server.metrics())

    with Swarm(server, workload.client, *options) as swarm:
        swarm.expect("joined", JOIN_DEADLINE_S)
        scrape()  # before the window: what is delivered from "start" on has to cost CPU that is counted
        swarm.expect("start", duration_s + SLACK_S)
        window = Window(server)
        swarm.expect("drained", duration_s + SLACK_S)
        used = window.close()
        memory = read_memory(window.pids)
        scrape()
        client = swarm.result(SLACK_S)
        command = shown(swarm.command)
    if client["window_delivered"] == 0:
        raise BenchError(f"{server.name} delivered nothing: {client}")
    return {
        "server": server.name,
        "server_command": shown(server.command),
        "client_command": command,
        "cpu_us_per_delivery": used.server.total_s * 1e6 / client["window_delivered"],
        **account(used, client, client["seconds"], client["window_delivered"]),
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
