"""Runs a soak: a node, a load process of regulars and one of rogues, samples all the time, and the verdicts.

    make soak                    20 minutes
    make soak SOAK=24h           a day
    make soak SOAK=3m            to try; heartbeats are quicker then, and growth is told less finely

The first half is warm-up; growth is fitted over the second. Then all leave, and nothing of them may be left. The exit
code is 1 when something was not kept, and 2 when there is no figure, or when nothing was broken and growth cannot be
told in so short a time. Writes loadtest/results/soak.json. All that was started is ended again, by its own handle, also
at Ctrl-C.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loadtest.bench.circumstances import circumstances
from loadtest.crowd import Publisher
from loadtest.measure import ROOT, BenchError, Program, Server, holdfast, shown
from loadtest.soak import logged
from loadtest.soak.plan import Plan, plan_for, seconds_of
from loadtest.soak.samples import Sample, appeared, ended, errors_in, files_left, found_wrong, look, unbalanced
from loadtest.soak.verdicts import (
    GrowthFigure,
    Result,
    Verdict,
    end_verdicts,
    growth_figures,
    growth_verdicts,
    load_verdicts,
    logged_verdicts,
)

RESULTS = ROOT / "loadtest" / "results"
JOIN_SLACK_S = 120.0
ARRIVE_S = 30.0
LEAVE_S = 120.0
SETTLE_S = 30.0
REST_S = 1.0
AUDIT_S = 60.0
SAY_EVERY_S = 60.0
HOST = "127.0.0.1"


@contextlib.contextmanager
def load(server: Server, plan: Plan) -> Iterator[tuple[Program, Program]]:
    """Both load processes, everybody there; after it neither is left."""
    where = [plan.to_json(), HOST, str(server.tcp_port), str(server.ws_port)]
    with Program([sys.executable, "-m", "loadtest.soak.regulars", *where]) as regulars:
        regulars.expect("joined", plan.connections / plan.connect_rate + JOIN_SLACK_S)
        with Program([sys.executable, "-m", "loadtest.soak.rogues", *where]) as rogues:
            rogues.expect("arriving", ARRIVE_S)
            yield regulars, rogues


@contextlib.contextmanager
def beside(plan: Plan) -> Iterator[Program]:
    """The log's part, on a node of its own."""
    with holdfast(plan.workers, "logged", logged.environment()) as server:
        where = [plan.to_json(), str(server.tcp_port), str(server.process.pid)]
        with Program([sys.executable, "-m", "loadtest.soak.logged", *where]) as program:
            yield program


def watch(server: Server, plan: Plan, began_s: float) -> list[Sample]:
    """Samples until the time is over."""
    samples = [look(server, began_s)]
    said_s = 0.0
    while (left_s := plan.seconds - (time.monotonic() - began_s)) > 0:
        time.sleep(min(plan.sample_every_s, left_s))
        samples.append(sample := look(server, began_s))
        if sample.at_s - said_s >= SAY_EVERY_S:
            said_s = sample.at_s
            say(
                f"{sample.at_s:.0f} s: {sample.connections:,} connections of {sample.opened:,} so far,"
                f" {sample.memory / 2**20:.1f} MiB, {sample.files} files"
            )
    return samples


def at_rest(server: Server, began_s: float) -> Sample:
    """The node before anybody came, all its own links made."""
    with contextlib.closing(Publisher(server)) as publisher:
        publisher.publish("group:soak-before", "")
    end_s, before = time.monotonic() + SETTLE_S, look(server, began_s)
    while True:
        time.sleep(REST_S)
        sample = look(server, began_s)
        if not unbalanced(before, sample) and not files_left(before, sample):
            return sample
        if time.monotonic() > end_s:
            raise BenchError(f"the node does not come to rest: {unbalanced(before, sample)}")
        before = sample


def settled(server: Server, before: Sample, began_s: float) -> Sample:
    """A look once everything is back to `before`, or at the deadline."""
    end_s = time.monotonic() + SETTLE_S
    while True:
        sample = look(server, began_s)
        if (not unbalanced(before, sample) and not files_left(before, sample)) or time.monotonic() > end_s:
            return sample
        time.sleep(0.2)


def audit(server: Server) -> list[str]:
    """What the node's own audit finds, one line a finding; that there is no audit is one.

    Raises:
        BenchError: it was refused.
    """
    url = f"http://{HOST}:{server.admin_port}/api/ledger/audit"
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=AUDIT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (404, 405):
            return ["the node has no audit"]
        raise BenchError(f"the audit was refused: {error.code} {error.read().decode()[:200]}") from error
    return audit_findings(found)


def audit_findings(report: dict[str, Any]) -> list[str]:
    """One line for each finding of the node's audit; one that says that something does not close has one at least."""
    lines = []
    for process in report["processes"]:
        if "error" in process:
            lines.append(f"{process['process']}: {process['error']}")
        for one in process.get("findings", []):
            lines.append(
                f"{process['process']}: {one['kind']} {one['key']} {one['what']} {one.get('place') or ''}".rstrip()
            )
    return lines or ([] if report["closes"] else ["it does not close"])


def run(plan: Plan, environment: dict[str, str]) -> tuple[Result, list[Verdict], list[GrowthFigure]]:
    """One soak from the first process to the last."""
    began_s = time.monotonic()
    with holdfast(plan.workers, environment={**plan.environment(), **environment}) as server:
        before, written = at_rest(server, began_s), len(server.written())
        with load(server, plan) as (regulars, rogues), beside(plan) as log_part:
            say(f"{plan.connections:,} joined after {time.monotonic() - began_s:.0f} s; {plan.seconds:.0f} s of churn")
            began_s = time.monotonic()
            samples = watch(server, plan, began_s)
            of_log = log_part.result(LEAVE_S)
            say("the rogues leave, then the regulars")
            rogues.stop()
            of_rogues = rogues.result(plan.silence_s + LEAVE_S)
            regulars.stop()
            of_regulars = regulars.result(2 * LEAVE_S)
        after = settled(server, before, began_s)
        result: Result = {
            "plan": asdict(plan),
            "settings": {**plan.environment(), **environment},
            "command_of_the_node": shown(server.command),
            "regulars": of_regulars,
            "rogues": of_rogues,
            "logged": of_log,
            "unbalanced": unbalanced(before, after),
            "audit": audit(server),
            "files_left": files_left(before, after),
            "processes_ended": ended(before, after),
            "processes_new": appeared(before, after),
            "found_wrong": found_wrong(server.metrics()),
            "errors": errors_in(server.written(written)),
            "said_by_the_node": server.said(),
        }
    figures = growth_figures(samples, plan)
    verdicts = [
        *load_verdicts(plan, samples, of_regulars, of_rogues),
        *logged_verdicts(of_log),
        *end_verdicts(result),
        *growth_verdicts(figures),
    ]
    result["growth"] = [figure.as_dict() for figure in figures]
    result["verdicts"] = [asdict(verdict) for verdict in verdicts]
    result["kept"] = kept(verdicts)
    result["before"], result["after"] = before.as_dict(), after.as_dict()
    result["samples"] = [sample.as_dict() for sample in samples]
    return result, verdicts, figures


def kept(verdicts: list[Verdict]) -> bool | None:
    """Whether all was kept; None: nothing was broken, and something cannot be told."""
    if any(verdict.kept is False for verdict in verdicts):
        return False
    return None if any(verdict.kept is None for verdict in verdicts) else True


# ---- the command line ----


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=seconds_of, default=seconds_of("20m"), help="90s, 20m (the default), 24h")
    parser.add_argument("--connections", type=int, help="regulars held (15,500)")
    parser.add_argument("--churn", type=float, help="regulars that leave and come back a second (150)")
    parser.add_argument("--rogues", type=float, help="connections of rogues a second (200)")
    parser.add_argument("--workers", type=int, help="of the node (2)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random")
    parser.add_argument(
        "--inject", metavar="KINDS", help="leak one of each (ring,buffer) in the checked build: they are found"
    )
    parser.add_argument("--checked", action="store_true", help="the node runs the checked build (make build-checked)")
    parser.add_argument("--name", default="soak", help="of the result file")
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace) -> Plan:
    names = ("connections", "churn", "rogues", "workers")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(plan_for(options.time, options.seed), **given)


def environment_of(options: argparse.Namespace) -> dict[str, str]:
    """What makes the node run the checked build, and leak."""
    if not options.checked and not options.inject:
        return {}
    checked = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT / "build" / "checked")}
    return {**checked, "HOLDFAST_TEST_LEAKS": options.inject} if options.inject else checked


def write(path: Path, around: Result, result: Result) -> None:
    """One line a key and one a sample, so that changes can be read."""
    lines = [
        f" {json.dumps(key)}: {json.dumps(value)}" for key, value in {**around, **result}.items() if key != "samples"
    ]
    rows = ",\n".join(f"  {json.dumps(sample)}" for sample in result["samples"])
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join([*lines, f' "samples": [\n{rows}\n ]']) + "\n}\n")
    print(f"written to {shown([str(path)])}")


def end(number: int, _: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: by way of everybody's own end."""
    raise KeyboardInterrupt(number)


def main(arguments: list[str]) -> int:
    """The program; its exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, end)
    environment = environment_of(options)
    around: dict[str, Any] = {
        "name": options.name,
        **circumstances([]),
        "build_mode": "checked" if environment else os.environ.get("HOLDFAST_BUILD", "release"),
        "command": shown([Path(sys.executable).name, "-m", "loadtest.soak", *arguments]),
    }
    try:
        result, verdicts, figures = run(plan_of(options), environment)
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("soak: stopped; all that it had started is gone", file=sys.stderr)
        return 130
    for figure in figures:
        print(figure)
    for verdict in verdicts:
        print(verdict)
    write(RESULTS / f"{options.name}.json", around, result)
    return {True: 0, False: 1, None: 2}[result["kept"]]
