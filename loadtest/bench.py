"""Measures Holdfast against the floor program, in rounds that take turns, and writes every repetition down.

    bench.py fan    2,000 members of one group, 15 messages a second: server CPU per delivery
    bench.py max    500 members, 4 publishers with 8 messages under way each: deliveries a second
    bench.py idle   15,000 idle joined connections: user memory for each, and what is left when they have gone
    bench.py gil    how often the GIL is taken for 1,000 delivered messages

Figures are of the server's processes alone, read from /proc; the load client's own CPU stands beside, to show who was
the bottleneck. The exit code is 1 when a limit is not kept. Each writes loadtest/results/<name>.json.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.measure import (
    HOLDFAST,
    ROOT,
    BenchError,
    Memory,
    Server,
    Swarm,
    floor,
    holdfast,
    ledger_live,
    metric_sum,
    read_cpu,
    read_memory,
    shown,
)

RESULTS = ROOT / "loadtest" / "results"
FAN_RATIO_MAX = 1.6
MAX_DELIVERIES_PER_S_MIN = 400_000
IDLE_BYTES_MAX = 1_536
IDLE_GROWTH_MAX = 0.10
GIL_TAKES_MAX = 1.0
PER_PROCESS_MAX = 10_000
JOIN_DEADLINE_S = 120.0
SLACK_S = 40.0
Run = dict[str, Any]


# ---- one run ----


def load_run(
    server: Server, workload: str, options: list[str], duration_s: float, at_edge: Callable[[], None] = lambda: None
) -> Run:
    """One window of load on a ready server: the client's result, the server's CPU, and the two divided.

    `at_edge` is called when the window opens and when all is drained, outside the time for which CPU is counted.
    """
    with Swarm(server, workload, *options) as swarm:
        swarm.expect("joined", JOIN_DEADLINE_S)
        swarm.expect("start", duration_s + SLACK_S)
        at_edge()
        before = read_cpu(server.pids())
        swarm.expect("drained", duration_s + SLACK_S)
        used = read_cpu(server.pids()).since(before)
        memory = read_memory(server.pids())
        at_edge()
        client = swarm.result(SLACK_S)
        command = shown(swarm.command)
    if client["window_delivered"] == 0:
        raise BenchError(f"{server.name} delivered nothing: {client}")
    return {
        "server": server.name,
        "server_command": shown(server.command),
        "client_command": command,
        "processes": len(used.pids),
        "cpu_user_s": round(used.user_s, 3),
        "cpu_system_s": round(used.system_s, 3),
        "cpu_us_per_delivery": used.total_s * 1e6 / client["window_delivered"],
        "memory": memory.as_dict(),
        "client": client,
    }


def wrong_with(client: Run) -> list[str]:
    """What a run must not show, in words."""
    names = ("lost", "repeated", "out_of_order", "corrupt", "refused", "disconnected")
    wrong = [f"{client[name]:,} {name}" for name in names if client[name]]
    if not client["drained"]:
        wrong.append("not drained")
    if client["exit_code"] and not wrong:
        wrong.append(f"exit code {client['exit_code']}")
    return wrong


# ---- tables and verdicts ----


def figures(runs: list[Run]) -> dict[str, dict[str, float]]:
    """The median of each figure over the rounds, by server."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(run["server"] for run in runs):
        own = [run for run in runs if run["server"] == name]
        found[name] = {
            "us_per_delivery": statistics.median(run["cpu_us_per_delivery"] for run in own),
            "deliveries_per_s": statistics.median(run["client"]["deliveries_per_s"] for run in own),
        }
    return found


def ratio_of_rounds(runs: list[Run], below: str, above: str = "holdfast") -> float | None:
    """The median over the rounds of the two servers' CPU per delivery, each pair from the same round."""
    pairs = [[run for run in runs if run["server"] == name] for name in (above, below)]
    ratios = [a["cpu_us_per_delivery"] / b["cpu_us_per_delivery"] for a, b in zip(*pairs, strict=False)]
    return statistics.median(ratios) if ratios else None


def print_runs(runs: list[Run]) -> None:
    head = ("server", "deliveries/s", "µs/delivery", "user s", "system s", "p50 ms", "p99 ms", "client s", "wrong")
    print("{:<22}{:>14}{:>13}{:>9}{:>10}{:>9}{:>9}{:>10}  {}".format(*head))
    for run in runs:
        client = run["client"]
        print(
            f"{run['server']:<22}{client['deliveries_per_s']:>14,.0f}{run['cpu_us_per_delivery']:>13.3f}"
            f"{run['cpu_user_s']:>9.2f}{run['cpu_system_s']:>10.2f}{client['latency_us']['p50'] / 1000:>9.2f}"
            f"{client['latency_us']['p99'] / 1000:>9.2f}{client['cpu_user_s'] + client['cpu_system_s']:>10.2f}"
            f"  {', '.join(wrong_with(client)) or '-'}"
        )


def verdict(text: str, kept: bool) -> bool:
    print(f"{'kept    ' if kept else 'NOT KEPT'}  {text}")
    return kept


# ---- the result file ----


def one_line(command: list[str]) -> str:
    """What a command prints, or an empty string: a missing tool must not cost a measurement."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def circumstances() -> Run:
    """All that a figure depends on besides the code of the benchmark."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": one_line(["git", "rev-parse", "HEAD"]),
        "uncommitted_changes": bool(one_line(["git", "status", "--porcelain", "--untracked-files=no"])),
        "build_mode": os.environ.get("HOLDFAST_BUILD", "release"),
        "version": one_line([str(HOLDFAST), "version"]) if HOLDFAST.exists() else "",
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "command": shown([Path(sys.executable).name, *sys.argv]),
    }


def write_result(name: str, around: Run, runs: list[Run], summary: Run) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"name": name, **around, "summary": summary, "runs": runs}, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


# ---- fan and max ----


def rounds(
    options: argparse.Namespace, makers: list[Callable[[], Server]], workload: str, load: list[str]
) -> list[Run]:
    """All servers in turn, as often as asked: what else the machine does hits them alike."""
    runs = []
    for number in range(options.rounds):
        for make in makers:
            with make() as server:
                print(f"round {number + 1} of {options.rounds}: {server.name}", flush=True)
                runs.append(load_run(server, workload, load, options.seconds + options.warmup))
    return runs


def makers_for(options: argparse.Namespace, floors: list[str]) -> list[Callable[[], Server]]:
    makers: list[Callable[[], Server]] = []
    if options.only != "holdfast":
        makers += [lambda mode=mode: floor(mode) for mode in floors]  # type: ignore[misc]
    if options.only != "floor":
        makers.append(lambda: holdfast(options.workers))
    return makers


def load_options(options: argparse.Namespace) -> list[str]:
    names = ("members", "publishers", "payload", "seconds", "warmup")
    return [word for name in names for word in (f"--{name}", f"{getattr(options, name):g}")]


def all_right(runs: list[Run]) -> bool:
    wrong = [f"{run['server']}: {', '.join(wrong_with(run['client']))}" for run in runs if wrong_with(run["client"])]
    return verdict("nothing lost, repeated, reordered or corrupt" + "".join(f"; {text}" for text in wrong), not wrong)


def fan(options: argparse.Namespace) -> bool:
    around = circumstances()
    load = [*load_options(options), "--rate", f"{options.rate:g}"]
    runs = rounds(options, makers_for(options, ["per-delivery"]), "fan", load)
    ratio = ratio_of_rounds(runs, "floor, per-delivery")
    print_runs(runs)
    write_result(options.name, around, runs, {"medians": figures(runs), "ratio": ratio, "ratio_max": FAN_RATIO_MAX})
    kept = [all_right(runs)]
    if ratio is not None:
        text = f"CPU per delivery is {ratio:.2f} times the floor's with one send per delivery (at most {FAN_RATIO_MAX})"
        kept.append(verdict(text, ratio <= FAN_RATIO_MAX))
    return all(kept)


def maximum(options: argparse.Namespace) -> bool:
    around = circumstances()
    load = [*load_options(options), "--under-way", str(options.under_way)]
    runs = rounds(options, makers_for(options, ["coalesce"]), "max", load)
    medians, ratio = figures(runs), ratio_of_rounds(runs, "floor, coalesce")
    print_runs(runs)
    summary = {"medians": medians, "ratio": ratio, "deliveries_per_s_min": MAX_DELIVERIES_PER_S_MIN}
    write_result(options.name, around, runs, summary)
    kept = [all_right(runs)]
    if ratio is not None:
        print(f"CPU per delivery is {ratio:.2f} times the coalescing floor's")
    if "holdfast" in medians:
        reached = medians["holdfast"]["deliveries_per_s"]
        text = f"{reached:,.0f} deliveries a second (at least {MAX_DELIVERIES_PER_S_MIN:,})"
        kept.append(verdict(text, reached >= MAX_DELIVERIES_PER_S_MIN))
    return all(kept)


# ---- idle ----


def settled_memory(server: Server, deadline_s: float = 20.0) -> Memory:
    """Memory once it has not changed for a second."""
    deadline = time.monotonic() + deadline_s
    last, since = read_memory(server.pids()), time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < 1.0:
        time.sleep(0.1)
        now = read_memory(server.pids())
        if now.rss != last.rss:
            last, since = now, time.monotonic()
    return last


def ledger_when_empty(server: Server, before: dict[str, float], deadline_s: float = 20.0) -> dict[str, float]:
    """The ledger's live values once they are back to those of `before`, or at the deadline."""
    deadline = time.monotonic() + deadline_s
    live = ledger_live(server.metrics())
    while live != before and time.monotonic() < deadline:
        time.sleep(0.2)
        live = ledger_live(server.metrics())
    return live


def idle_cycle(server: Server, connections: int, options: argparse.Namespace) -> Run:
    """Connects and joins all, reads the memory, says FIN to all, reads it again."""
    has_ledger = server.admin_port is not None
    ledger_before = ledger_live(server.metrics()) if has_ledger else {}
    before = settled_memory(server)
    cpu_before = read_cpu(server.pids())
    with contextlib.ExitStack() as stack:
        swarms = []
        for first in range(0, connections, PER_PROCESS_MAX):
            members = min(PER_PROCESS_MAX, connections - first)
            words = ["--members", str(members), "--first", str(first), "--connect-rate", str(options.connect_rate)]
            swarms.append(stack.enter_context(Swarm(server, "idle", *words)))
        for swarm in swarms:
            swarm.expect("joined", JOIN_DEADLINE_S)
            swarm.expect("start", SLACK_S)
        cpu = read_cpu(server.pids()).since(cpu_before)
        joined = settled_memory(server)
        ledger_joined = ledger_live(server.metrics()) if has_ledger else {}
        for swarm in swarms:
            swarm.stop()
        for swarm in swarms:
            swarm.expect("drained", SLACK_S)
        clients = [swarm.result(SLACK_S) for swarm in swarms]
    ledger_after = ledger_when_empty(server, ledger_before) if has_ledger else {}
    after = settled_memory(server)
    each = {name: value / connections for name, value in joined.since(before).as_dict().items()}
    return {
        "server": server.name,
        "server_command": shown(server.command),
        "client_command": shown(swarms[0].command),
        "connections": connections,
        "before": before.as_dict(),
        "joined": joined.as_dict(),
        "after": after.as_dict(),
        "bytes_per_connection": each,
        "after_to_before": after.rss / before.rss,
        "cpu_us_per_connection": cpu.total_s * 1e6 / connections,
        "ledger_before": ledger_before,
        "ledger_joined": ledger_joined,
        "ledger_after": ledger_after,
        "clients": clients,
    }


def print_idle(runs: list[Run]) -> None:
    head = ("server", "RSS before", "joined", "after", "RSS/conn", "PSS/conn", "USS/conn", "CPU µs/conn")
    print("{:<22}{:>12}{:>12}{:>12}{:>10}{:>10}{:>10}{:>13}".format(*head))
    for run in runs:
        each = run["bytes_per_connection"]
        print(
            f"{run['server']:<22}{run['before']['rss']:>12,}{run['joined']['rss']:>12,}{run['after']['rss']:>12,}"
            f"{each['rss']:>10,.0f}{each['pss']:>10,.0f}{each['uss']:>10,.0f}{run['cpu_us_per_connection']:>13.1f}"
        )
        for name, value in run["ledger_after"].items():
            if value != run["ledger_before"].get(name, 0):
                print(f"    {name}: {run['ledger_before'].get(name, 0):g} before, {value:g} after")


def idle(options: argparse.Namespace) -> bool:
    around = circumstances()
    runs = []
    for make in makers_for(options, ["coalesce"]):
        with make() as server:
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}: {server.name}", flush=True)
                runs.append(idle_cycle(server, options.connections, options))
    print_idle(runs)
    write_result(options.name, around, runs, {"bytes_max": IDLE_BYTES_MAX, "growth_max": IDLE_GROWTH_MAX})
    own = [run for run in runs if run["server"] == "holdfast"]
    if not own:
        return True
    # The first round counts: in later ones memory given back by the one before is used again.
    most = own[0]["bytes_per_connection"]["rss"]
    growth = max(run["after"]["rss"] for run in own) / own[0]["before"]["rss"] - 1
    empty = bool(own[0]["ledger_joined"]) and all(run["ledger_after"] == run["ledger_before"] for run in own)
    return all(
        [
            verdict(
                f"{most:,.0f} bytes of user memory per connection (at most {IDLE_BYTES_MAX:,})", most <= IDLE_BYTES_MAX
            ),
            verdict(
                f"{growth:+.1%} of memory once all had gone (at most {IDLE_GROWTH_MAX:+.0%})", growth <= IDLE_GROWTH_MAX
            ),
            verdict("the ledger's live values are back to where they were", empty),
        ]
    )


# ---- gil ----


def gil(options: argparse.Namespace) -> bool:
    around = circumstances()
    load = [*load_options(options), "--under-way", str(options.under_way)]
    scrapes: list[dict[str, float]] = []
    with holdfast(options.workers) as server:
        # At the window's edges, since joining and leaving are Python's work and not on the path of a message.
        run = load_run(server, "max", load, options.seconds + options.warmup, lambda: scrapes.append(server.metrics()))
    names = ("holdfast_gil_takes_total", "holdfast_messages_delivered_total")
    takes, delivered = (metric_sum(scrapes[1], name) - metric_sum(scrapes[0], name) for name in names)
    if delivered <= 0:
        raise BenchError("holdfast_messages_delivered_total did not grow")
    per_1000 = takes * 1000 / delivered
    print_runs([run])
    print(f"the client counted {run['client']['window_delivered']:,} deliveries in the window")
    write_result(options.name, around, [run], {"takes": takes, "delivered": delivered, "takes_per_1000": per_1000})
    text = f"{takes:,.0f} takes for {delivered:,.0f} deliveries: {per_1000:.4f} per 1,000 (at most {GIL_TAKES_MAX:g})"
    return all([all_right([run]), verdict(text, per_1000 <= GIL_TAKES_MAX)])


# ---- the command line ----


def add_load(parser: argparse.ArgumentParser, members: int, publishers: int, seconds: float, workers: int) -> None:
    parser.add_argument("--members", type=int, default=members)
    parser.add_argument("--publishers", type=int, default=publishers)
    parser.add_argument("--payload", type=int, default=100, help="bytes")
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds")
    parser.add_argument("--workers", type=int, default=workers)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in ("fan", "max", "idle", "gil")}
    add_load(made["fan"], members=2000, publishers=1, seconds=30, workers=2)
    made["fan"].add_argument("--rate", type=float, default=15.0, help="messages a second")
    for name in ("max", "gil"):
        add_load(made[name], members=500, publishers=4, seconds=10, workers=1)
        made[name].add_argument("--under-way", type=int, default=8, help="unanswered messages per publisher")
    made["idle"].add_argument("--connections", type=int, default=15_000)
    made["idle"].add_argument("--connect-rate", type=int, default=5_000, help="a second and client process")
    made["idle"].add_argument("--workers", type=int, default=1)
    for name, one in made.items():
        one.add_argument("--rounds", type=int, default=2)
        one.add_argument("--only", choices=("floor", "holdfast"), help="leave the other one out")
        one.add_argument("--name", default=name, help="of the result file")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    subprocess.run(["make", "-s", "-C", str(ROOT / "loadtest")], check=True, timeout=120)
    run = {"fan": fan, "max": maximum, "idle": idle, "gil": gil}[options.command]
    try:
        return 0 if run(options) else 1
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
