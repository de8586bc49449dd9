"""The workloads about connections themselves: what an idle one costs, and what it costs to accept one."""

import contextlib
import time
from typing import Any

from loadtest.bench.runs import JOIN_DEADLINE_S, SLACK_S, Run
from loadtest.bench.tokens import SECRET, token_file
from loadtest.bench.window import Window, account
from loadtest.bench.workloads import STORM_CONNECTIONS, Workload
from loadtest.measure import (
    BenchError,
    Memory,
    Server,
    Swarm,
    ledger_live,
    metric_sum,
    read_cpu,
    read_memory,
    shown,
)

# One heartbeat of every connection, so that the window's share of them is exact.
HOLD_S = 30.0
SETTLE_DEADLINE_S = 20.0
STORM_DEADLINE_S = 60.0


def settled_memory(server: Server, deadline_s: float = SETTLE_DEADLINE_S) -> Memory:
    """Memory once it has not changed for a second."""
    deadline = time.monotonic() + deadline_s
    last, since = read_memory(server.pids()), time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < 1.0:
        time.sleep(0.1)
        now = read_memory(server.pids())
        if now.rss != last.rss:
            last, since = now, time.monotonic()
    return last


def of_clients(server: Server) -> dict[str, float]:
    """The ledger's live values, without the streams between the node's own processes: the admin's comes up later."""
    return {kind: live for kind, live in ledger_live(server.metrics()).items() if kind != "peer"}


def ledger_when_empty(server: Server, before: dict[str, float], deadline_s: float) -> dict[str, float]:
    """The ledger's live values once they are back to those of `before`, or at the deadline."""
    deadline = time.monotonic() + deadline_s
    live = of_clients(server)
    while live != before and time.monotonic() < deadline:
        time.sleep(0.2)
        live = of_clients(server)
    return live


def held(server: Server, connections: int, seconds: float) -> dict[str, Any]:
    """What the connections cost while nothing is said: heartbeats, and whatever the server does of itself."""
    heard = frames_in(server)
    before = read_cpu(server.pids())
    started = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - started
    used = read_cpu(server.pids()).since(before)
    return {
        "seconds": took,
        "cpu_s": used.total_s,
        "cpu_us_per_connection_s": used.total_s * 1e6 / connections / took,
        "heartbeats": frames_in(server) - heard,
    }


def frames_in(server: Server) -> float:
    """Frames that Holdfast has heard from clients; 0 for who does not count them."""
    return metric_sum(server.metrics(), "holdfast_frames_in_total") if server.admin_port is not None else 0.0


def idle(server: Server, workload: Workload, seconds: float, warmup: float) -> list[Run]:
    """Connects and joins all, reads the memory, holds them, says FIN to all, reads it again.

    `seconds` and `warmup` are not of this workload: its window is one period of the heartbeat.
    """
    connections = int(workload.options[workload.options.index("--members") + 1])
    has_ledger = server.admin_port is not None
    ledger_before = of_clients(server) if has_ledger else {}
    before = settled_memory(server)
    cpu_before = read_cpu(server.pids())
    text = ["--text"] if server.protocol == "socketio" else []
    with Swarm(server, workload.client, *workload.options, *text) as swarm:
        swarm.expect("joined", JOIN_DEADLINE_S)
        swarm.expect("start", SLACK_S)
        cpu = read_cpu(server.pids()).since(cpu_before)
        joined = settled_memory(server)
        ledger_joined = of_clients(server) if has_ledger else {}
        hold = held(server, connections, HOLD_S)
        swarm.stop()
        swarm.expect("drained", SLACK_S)
        client = swarm.result(SLACK_S)
    ledger_after = ledger_when_empty(server, ledger_before, SETTLE_DEADLINE_S) if has_ledger else {}
    after = settled_memory(server)
    each = {name: value / connections for name, value in joined.since(before).as_dict().items()}
    return [
        {
            "server": server.name,
            "server_command": shown(server.command),
            "client_command": shown(swarm.command),
            "connections": connections,
            "before": before.as_dict(),
            "joined": joined.as_dict(),
            "after": after.as_dict(),
            "bytes_per_connection": each,
            "after_to_before": after.rss / before.rss,
            "cpu_us_per_connection": cpu.total_s * 1e6 / connections,
            "hold": hold,
            "ledger_before": ledger_before,
            "ledger_joined": ledger_joined,
            "ledger_after": ledger_after,
            "client": client,
        }
    ]


def storm(server: Server, workload: Workload, seconds: float, warmup: float) -> list[Run]:
    """Connections come at their intended times, whether the ones before have been served or not.

    `seconds` and `warmup` are not of this workload: it ends when all have joined or failed.
    """
    options = [*workload.options]
    if server.protocol == "socketio":
        options.append("--text")
    with contextlib.ExitStack() as stack:
        if server.name.startswith("holdfast"):
            options += ["--token-file", stack.enter_context(token_file(STORM_CONNECTIONS, SECRET))]
        if server.name.endswith("-tcp"):
            options.append("--tcp")
        window = Window(server)
        swarm = stack.enter_context(Swarm(server, workload.client, *options))
        swarm.expect("joined", STORM_DEADLINE_S)
        used = window.close()
        client = swarm.result(SLACK_S)
    if client["joined"] == 0:
        raise BenchError(f"{server.name} served no connection: {client['errors']}")
    return [
        {
            "server": server.name,
            "server_command": shown(server.command),
            "client_command": shown(swarm.command),
            "cpu_us_per_connection": used.server.total_s * 1e6 / client["joined"],
            **account(used, client, client["connect_seconds"], client["joined"]),
            "client": client,
        }
    ]
