"""Holds very many connections on one machine, speaks to all of them, and tells what that took.

    python -m loadtest.million          1,000,000 connections with heartbeats, held for ten minutes (make million)
    python -m loadtest.million --soak   120,000, with traffic in their groups all the time (make soak-120k)

Both ends run here: as many workers as the limit of open files asks for, and load processes likewise. The connections
come up at a bounded rate and are held; then one message goes to everybody and one to a group of each load process. The
exit code is 1 when a connection or a message was lost or a limit was not kept, and 2 when there is no figure. Writes
loadtest/results/million.json (soak-120k.json). All that was started is ended again, by its own handle, also at Ctrl-C.
"""

import argparse
import contextlib
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.bench.circumstances import circumstances
from loadtest.crowd import Crowd, Publisher, Share, shares_of, stamped, workers_for
from loadtest.measure import ROOT, BenchError, Server, holdfast, ledger_live, metric_sum, shown
from loadtest.resources import (
    Sample,
    check_machine,
    cpu_us_per_connection_second,
    growth_per_day,
    kernel_memory,
    look,
    since,
    user_memory,
)

RESULTS = ROOT / "loadtest" / "results"
GIB = 1 << 30
USER_BYTES_MAX = GIB
GLOBAL_DEADLINE_S = 180.0
# Both ends share the processors, and most of a ramp's connections send heartbeats already: a client here may take
# longer for its HELLO, and the router for its answer, than the five seconds that others get. Each user has a channel.
PATIENT = {
    "HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS": "20000",
    "HOLDFAST_GATEWAY_REQUEST_TIMEOUT_MS": "20000",
    "HOLDFAST_ROUTER_CHANNELS_MAX": "2000000",
}
LOST_DEADLINE_S = 5.0  # with connections lost it cannot come to all of them
GROUPS_DEADLINE_S = 60.0
SETTLE_DEADLINE_S = 20.0
SAMPLES_AT_LEAST = 5
SAMPLE_EVERY_S = 10.0
# What has to be back where it was once all have left; history and keys are kept for their time on purpose.
BALANCED = (
    "fd",
    "connection",
    "ring",
    "buffer",
    "segment",
    "timer",
    "membership",
    "pending",
    "request",
    "session",
    "aside",
)
MUST_BE_ZERO = ("lost", "repeated", "out_of_order", "corrupt", "refused", "disconnected", "without_fin_ack")
Result = dict[str, Any]


class Traffic(threading.Thread):
    """Publishes to the groups in turn, at a steady rate, in a thread of its own until `stop`."""

    def __init__(self, server: Server, shares: list[Share], rate: float) -> None:
        super().__init__(daemon=True)
        self.published: list[Share] = []
        self.failure: BenchError | None = None
        self._server, self._shares, self._rate = server, shares, rate
        self._ended = threading.Event()

    def run(self) -> None:
        """Sends each message at its time or, when late, at once; its latency counts from its time."""
        began_ns = time.monotonic_ns()
        with contextlib.closing(Publisher(self._server)) as publisher:
            while True:
                number = len(self.published)
                due_ns = began_ns + int((number + 1) * 1e9 / self._rate)
                if self._ended.wait(max(0.0, (due_ns - time.monotonic_ns()) * 1e-9)):
                    return
                share = self._shares[number % len(self._shares)]
                try:
                    group = number // len(self._shares) % share.groups
                    publisher.publish(share.channel(group), stamped(due_ns, number))
                except BenchError as failure:
                    self.failure = failure
                    return
                self.published.append(share)

    def stop(self) -> list[Share]:
        """Ends it; the share of each message.

        Raises:
            BenchError: a message was refused.
        """
        self._ended.set()
        self.join(GROUPS_DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        return self.published


def hold(server: Server, crowd: Crowd, options: argparse.Namespace) -> tuple[list[Sample], list[Share]]:
    """Looks at the crowd now and then until the time is over; the samples, and the share of each message published."""
    began_s = time.monotonic()
    every_s = min(SAMPLE_EVERY_S, options.hold / SAMPLES_AT_LEAST)
    samples = [look(server, crowd.pids(), began_s)]
    traffic = Traffic(server, crowd.shares, options.rate) if options.rate else None
    if traffic:
        traffic.start()
    try:
        while samples[-1].at_s < options.hold and samples[-1].connections >= options.connections:
            time.sleep(max(0.0, min(every_s, options.hold - (time.monotonic() - began_s))))
            samples.append(look(server, crowd.pids(), began_s))
    finally:
        published = traffic.stop() if traffic else []
    return samples, published


def speak_to_groups(publisher: Publisher, shares: list[Share]) -> list[Share]:
    """One message to the first group of each share."""
    for share in shares:
        publisher.publish(share.channel(0), stamped(time.monotonic_ns(), share.number))
    return shares


def delivered(server: Server) -> int:
    return int(metric_sum(server.metrics(), "holdfast_messages_delivered_total"))


def wait_delivered(server: Server, wanted: int) -> None:
    """Until the node has counted so many deliveries, or the deadline; the load clients' own counts are what decides."""
    end_s = time.monotonic() + GROUPS_DEADLINE_S
    while delivered(server) < wanted and time.monotonic() < end_s:
        time.sleep(0.2)


def ledger(server: Server) -> dict[str, float]:
    """What the ledger says is live, of the kinds that must all go when the clients do."""
    live = ledger_live(server.metrics())
    return {kind: live.get(kind, 0) for kind in BALANCED}


def settled_ledger(server: Server, before: dict[str, float]) -> dict[str, float]:
    """The ledger once it is back to `before`, or at the deadline."""
    end_s = time.monotonic() + SETTLE_DEADLINE_S
    while (live := ledger(server)) != before and time.monotonic() < end_s:
        time.sleep(0.2)
    return live


def run(options: argparse.Namespace) -> Result:
    """One run from the first process to the last, as it goes into the result file."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    shares = shares_of(options.connections, files, options.processes)
    workers = options.workers or workers_for(options.connections, files)
    say(f"{options.connections:,} connections: {workers} workers, {len(shares)} load processes")
    kernel_before = kernel_memory()
    with holdfast(workers, environment=PATIENT) as server, contextlib.closing(Publisher(server)) as publisher:
        ledger_before = ledger(server)
        user_before = user_memory(server, [])
        crowd = Crowd(server, shares, options.connect_rate, gather=options.rate == 0)
        began_s = time.monotonic()
        with crowd.joined():
            ramp_s = time.monotonic() - began_s
            say(f"all joined after {ramp_s:.0f} s; holding them for {options.hold:g} s")
            user, kernel = user_memory(server, crowd.pids()), since(kernel_memory(), kernel_before)
            samples, published = hold(server, crowd, options)
            say("speaking to everybody, then to groups")
            all_here = samples[-1].connections >= options.connections
            everybody = crowd.publish_global(publisher, GLOBAL_DEADLINE_S if all_here else LOST_DEADLINE_S)
            published = published + speak_to_groups(publisher, shares)
            group_deliveries = sum(share.members for share in published)
            if all_here:
                wait_delivered(server, options.connections + group_deliveries)
            user_after_hold = user_memory(server, crowd.pids())
            counters = {
                name: metric_sum(server.metrics(), f"holdfast_{name}_total")
                for name in ("heartbeats_lost", "hello_timeouts", "connections_refused", "pings_sent", "slow_consumers")
            }
            command = [shown(server.command), shown(crowd.swarms[0].command)]
            say("all leave")
            clients = crowd.leave()
        ledger_after = settled_ledger(server, ledger_before)
        user_after = user_memory(server, [])
    return {
        "connections": options.connections,
        "workers": workers,
        "load_processes": len(shares),
        "commands": command,
        "shares": [{"groups": share.groups, "members": share.members} for share in shares],
        "ramp_s": ramp_s,
        "hold_s": samples[-1].at_s,
        "connections_least": min(sample.connections for sample in samples),
        "user_before": user_before,
        "user": user,
        "user_after_hold": user_after_hold,
        "user_after": user_after,
        "kernel_memory": kernel,
        "cpu_us_per_connection_second": {
            "holdfast": cpu_us_per_connection_second(samples, lambda sample: sample.holdfast_cpu_s),
            "swarm": cpu_us_per_connection_second(samples, lambda sample: sample.swarm_cpu_s),
        },
        "growth_per_day": growth_per_day(samples),
        "global": everybody,
        "global_latency_ms": worst(clients, "global_latency_us"),
        "group_messages": len(published),
        "group_deliveries": group_deliveries,
        "group_latency_ms": worst(clients, "latency_us"),
        "counters": counters,
        "ledger_before": ledger_before,
        "ledger_after": ledger_after,
        "samples": [sample.as_dict() for sample in samples],
        "clients": clients,
    }


def worst(clients: list[Result], name: str) -> dict[str, float]:
    """Of each percentile, that of the load process where it is highest, in ms: percentiles cannot be averaged."""
    return {part: max(client[name][part] for client in clients) / 1000 for part in ("p50", "p90", "p99", "p999", "max")}


# ---- what must hold ----


def verdicts(result: Result, options: argparse.Namespace) -> Iterator[bool]:
    """Says each promise and whether it was kept."""
    clients, wanted = result["clients"], result["connections"]
    joined, least = sum(client["joined"] for client in clients), result["connections_least"]
    yield verdict(
        f"{joined:,} joined, never fewer than {least:,} in {result['hold_s']:.0f} s (all {wanted:,})",
        joined == wanted == least and result["hold_s"] >= options.hold,
    )
    wrong = [f"{sum(c[name] for c in clients):,} {name}" for name in MUST_BE_ZERO if any(c[name] for c in clients)]
    yield verdict(
        f"nothing lost, repeated, reordered, corrupt or cut off{''.join(f'; {text}' for text in wrong)}", not wrong
    )
    counts = {(client["globals_least"], client["globals_most"]) for client in clients}
    last_s = result["global"]["last_s"]
    when = "not everybody had it" if last_s is None else f"the last had it after {last_s:.2f} s"
    yield verdict(f"one global message to each: {when}", counts == {(1, 1)} and last_s is not None)
    got = sum(client["delivered"] for client in clients)
    yield verdict(
        f"{result['group_messages']:,} messages to groups: {got:,} deliveries of {result['group_deliveries']:,}",
        got == result["group_deliveries"],
    )
    lost = sum(result["counters"][name] for name in ("heartbeats_lost", "hello_timeouts", "connections_refused"))
    yield verdict(f"{lost:,.0f} heartbeats lost, handshakes timed out, connections refused", lost == 0)
    most = max(sum(result[when][side]["pss"] for side in ("holdfast", "swarm")) for when in ("user", "user_after_hold"))
    text = f"{most / GIB:.2f} GiB of user memory, both sides (at most {options.user_bytes_max / GIB:.2f} GiB)"
    yield verdict(text, most <= options.user_bytes_max)
    open_still = [kind for kind in BALANCED if result["ledger_after"][kind] != result["ledger_before"][kind]]
    yield verdict(f"the ledger is back where it was{''.join(f'; not {kind}' for kind in open_still)}", not open_still)


def print_figures(result: Result) -> None:
    """The figures that have no limit."""
    count = result["connections"]
    for when in ("user_before", "user", "user_after_hold", "user_after"):
        kinds = result[when].items()
        print(f"{when}: " + ", ".join(f"{kind} {part['pss'] / 2**20:,.1f}" for kind, part in kinds) + " MiB (PSS)")
    own = result["user"]["holdfast"]["pss"] - result["user_before"]["holdfast"]["pss"]
    load = result["user"]["swarm"]["pss"]
    print(f"a connection: {own / count:,.0f} bytes of Holdfast's, {load / count:,.0f} of the load's")
    print(
        "kernel: " + ", ".join(f"{name} {value / GIB:+.2f}" for name, value in result["kernel_memory"].items()) + " GiB"
    )
    cpu = result["cpu_us_per_connection_second"]
    print(f"CPU: {cpu['holdfast']:.2f} µs a connection and second, the load's {cpu['swarm']:.2f}")
    print(f"ramp {result['ramp_s']:.0f} s; memory {result['growth_per_day']:+.2%} a day over the hold")
    for name in ("global_latency_ms", "group_latency_ms"):
        print(f"{name}: " + ", ".join(f"{part} {value:,.1f}" for part, value in result[name].items()))


# ---- the command line ----


def verdict(text: str, kept: bool) -> bool:
    print(f"{'kept    ' if kept else 'NOT KEPT'}  {text}")
    return kept


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", action="store_true", help="the smaller run with traffic")
    parser.add_argument("--connections", type=int, help="1,000,000; 120,000 for --soak")
    parser.add_argument("--hold", type=float, default=600.0, help="seconds (600)")
    parser.add_argument("--rate", type=float, help="messages to groups a second while they are held (0; 20 for --soak)")
    parser.add_argument("--connect-rate", type=int, default=4_000, help="new connections a second at most (4,000)")
    parser.add_argument("--workers", type=int, default=0, help="as many as the limit of open files asks for")
    parser.add_argument("--processes", type=int, default=0, help="load processes; as many as that limit asks for")
    parser.add_argument("--user-bytes-max", type=int, default=USER_BYTES_MAX, help="user memory, both sides (1 GiB)")
    parser.add_argument("--name", help="of the result file (million; soak-120k for --soak)")
    options = parser.parse_args(arguments)
    options.connections = options.connections or (120_000 if options.soak else 1_000_000)
    options.rate = (20.0 if options.soak else 0.0) if options.rate is None else options.rate
    options.name = options.name or ("soak-120k" if options.soak else "million")
    if options.connections < 1 or options.hold <= 0 or options.connect_rate < 1 or options.rate < 0:
        parser.error("--connections, --hold and --connect-rate must be positive, --rate 0 or more")
    return options


def write(options: argparse.Namespace, around: Result, result: Result) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.name}.json"
    path.write_text(json.dumps({"name": options.name, **around, **result}, indent=1) + "\n")
    print(f"written to {shown([str(path)])}")


def end(number: int, _: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: by way of everybody's own end."""
    raise KeyboardInterrupt(number)


def main(arguments: list[str]) -> int:
    """The program; its exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, end)
    subprocess.run(["make", "-s", "-C", str(ROOT / "loadtest")], check=True, timeout=120)
    around = {**circumstances([]), "command": shown([Path(sys.executable).name, "-m", "loadtest.million", *arguments])}
    try:
        check_machine(options.connections)
        result = run(options)
    except BenchError as error:
        print(f"million: {error}", file=sys.stderr)
        return 1 if "lost" in str(error) else 2
    except KeyboardInterrupt:
        print("million: stopped; all that it had started is gone", file=sys.stderr)
        return 130
    print_figures(result)
    write(options, around, result)
    return 0 if all(list(verdicts(result, options))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
