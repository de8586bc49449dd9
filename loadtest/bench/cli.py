"""The command line of `make bench`: which workloads, against whom, how often and how long.

    make bench                                   everything, in about half an hour
    make bench ARGS="fan max --servers holdfast,floor --rounds 2 --seconds 5"

All servers take turns within a round, so that what else the machine does hits them alike. Every repetition is written
to loadtest/results/<workload>.json, and docs/performance.md is made from these files. The exit code is 1 when a promise
is not kept, and 2 when Holdfast, or everybody, has no figure; make prints it as Error 1 or 2 and ends with 2 itself.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from loadtest.bench import connections, provide, report, resumes, runs
from loadtest.bench.circumstances import circumstances
from loadtest.bench.servers import MAKE, with_tokens
from loadtest.bench.verdicts import judge, summary
from loadtest.bench.workloads import PEERS, WORKLOADS, Workload, expand, left_out
from loadtest.measure import ROOT, BenchError

RESULTS = ROOT / "loadtest" / "results"
BUILD_DEADLINE_S = 120
RUN = {**runs.RUN, "idle": connections.idle, "storm": connections.storm, "resume": resumes.resumed}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--servers", help="names with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=2, help="how many of the rounds the peers take part in")
    parser.add_argument("--idle-rounds", type=int, default=1, help="of idle, which takes longest")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window of messages")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result files go")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"there is no workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    options.servers = _servers(parser, options.servers.split(","), options.workloads) if options.servers else None
    if options.rounds < 1 or options.idle_rounds < 1 or options.seconds <= 0 or options.warmup < 0:
        parser.error("--rounds and --seconds must be positive")
    return options


def _servers(parser: argparse.ArgumentParser, wanted: list[str], workloads: list[str]) -> list[str]:
    """Those that are meant; a name that a workload has nothing for, which was asked for as well, is refused."""
    try:
        found = expand(wanted)
    except ValueError as error:
        parser.error(str(error))
    for name in workloads:
        if why := left_out(WORKLOADS[name], wanted):
            parser.error(why)
    return found


def one_run(workload: Workload, name: str, options: argparse.Namespace) -> list[runs.Run]:
    server = with_tokens(name) if workload.kind in ("storm", "resume") else MAKE[name]()
    with server as ready:
        return RUN[workload.kind](ready, workload, options.seconds, options.warmup)


def all_rounds(workload: Workload, names: list[str], options: argparse.Namespace) -> tuple[list[runs.Run], list[str]]:
    """The runs of a workload, and in words what gave no figure: one server's failure is not the others'."""
    rounds = options.idle_rounds if workload.kind == "idle" else options.rounds
    found: list[runs.Run] = []
    failures: list[str] = []
    for number in range(1, rounds + 1):
        for name in names:
            if name in PEERS and number > options.peer_rounds:
                continue
            started = time.monotonic()
            try:
                made = one_run(workload, name, options)
            except BenchError as error:
                failures.append(f"{name}, round {number}: {error}")
                print(f"NO FIGURE  {workload.name}: {failures[-1]}", file=sys.stderr, flush=True)
                continue
            found += [{**run, "round": number} for run in made]
            for run in made:
                print(f"{workload.name:<6} {number}/{rounds}  {report.line(run)}", flush=True)
            print(f"       {time.monotonic() - started:.1f} s", flush=True)
    return found, failures


def write(path: Path, workload: Workload, around: dict[str, Any], found: list[runs.Run], failures: list[str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "name": workload.name,
        "about": workload.about,
        **around,
        "versions": {**provide.versions(), "holdfast": around["version"]},
        "failures": failures,
        "summary": summary(workload.name, found),
        "verdicts": [vars(verdict) for verdict in judge(workload.name, found)],
        "runs": found,
    }
    (path / f"{workload.name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def main(arguments: list[str]) -> int:
    """Runs it all; the exit code."""
    options = parse(arguments)
    chosen = [WORKLOADS[name] for name in options.workloads or WORKLOADS]
    wanted = {
        workload.name: [n for n in workload.servers if not options.servers or n in options.servers]
        for workload in chosen
    }
    subprocess.run(["make", "-s", "-C", str(ROOT / "loadtest")], check=True, timeout=BUILD_DEADLINE_S)
    missing = provide.provide({name for names in wanted.values() for name in names})
    for peer, why in missing.items():
        print(f"LEFT OUT  {peer}: {why}", file=sys.stderr, flush=True)
    verdicts, empty = [], []
    for workload in chosen:
        around = circumstances(arguments)
        names = [name for name in wanted[workload.name] if name not in missing]
        found, failures = all_rounds(workload, names, options)
        failures += [f"{peer}: {why}" for peer, why in missing.items() if peer in wanted[workload.name]]
        if not found:
            empty.append(workload.name)
            continue
        ours = {name for name in names if name.startswith("holdfast")}
        if ours - {run["server"] for run in found}:
            empty.append(workload.name)
        write(options.results, workload, around, found, failures)
        verdicts += judge(workload.name, found)
    if not options.no_page:
        report.write_page(options.results)
    print(*verdicts, sep="\n")
    if empty:
        print(f"bench: no figure of all that were asked for in {', '.join(empty)}", file=sys.stderr)
        return 2
    return 0 if all(verdict.kept for verdict in verdicts) else 1
