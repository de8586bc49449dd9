"""docs/performance.md, made from the result files: `python -m loadtest.bench.report`."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loadtest.bench.figures import cost, latency_ms, median, of, rate, ratio, servers_in
from loadtest.bench.provide import PYTHON
from loadtest.bench.runs import ALL_READ, DELIVERED, SOME_SLOW, Run, wrong_with
from loadtest.bench.servers import DOES_NOT
from loadtest.bench.verdicts import Verdict, judge
from loadtest.bench.workloads import WORKLOADS
from loadtest.measure import ROOT

RESULTS = ROOT / "loadtest" / "results"
PAGE = ROOT / "docs" / "performance.md"
PLOT_DEADLINE_S = 120
# Beyond this many cores used by others, a window's figures are not to be trusted to the last tenth.
OTHERS_CORES = 0.1
WITHOUT_COUNTERS = ("idle", "storm", "resume")

HEAD = """\
# Performance

Made by `make bench` from `loadtest/results/`; do not edit. How it measures stands in
[loadtest/README.md](../loadtest/README.md). CPU and memory are those of all processes of a server, from `/proc`; the
load client runs on the same machine. Figures are medians over the rounds, with the least and the most in brackets.
"""
Content = dict[str, Any]


# ---- one run on one line ----


def line(run: Run) -> str:
    """One run, as it is shown while the benchmark goes on."""
    client, head = run["client"], f"{run['server'] + ' ' + run.get('variant', ''):<28}"
    wrong = f"  WRONG: {', '.join(bad)}" if (bad := wrong_with(client)) else ""
    if "cpu_us_per_delivery" in run:
        return (
            f"{head}{client['deliveries_per_s']:>11,.0f}/s {run['cpu_us_per_delivery']:>7.3f} µs"
            f"  p50 {client['latency_us']['p50'] / 1000:>7.2f} ms  p99 {client['latency_us']['p99'] / 1000:>7.2f} ms"
            f"  cores {run['server_cores']:.2f} + {run['client_cores']:.2f} (others {run['other_cores']:.2f}),"
            f" bottleneck {run['bottleneck']}{wrong}"
        )
    if "resume" in run:
        told = run["resume"]
        return (
            f"{head}away {told['away_s']:.2f} s, welcomed {told['welcomed_s']:.2f} s, caught up"
            f" {told['caught_up_s']:.2f} s, live p99 {told['live_p99_ms_away']:.1f} and {told['live_p99_ms']:.1f} ms"
            f"  cores {run['server_cores']:.2f} + {run['client_cores']:.2f} (others {run['other_cores']:.2f}),"
            f" bottleneck {run['bottleneck']}{wrong}"
        )
    text = f"{head}{run['cpu_us_per_connection']:>7.1f} µs/connection, p95 {client['connect_us']['p95'] / 1000:.1f} ms"
    if "hold" in run:
        text += f", {run['bytes_per_connection']['rss']:,.0f} bytes, {run['hold']['cpu_us_per_connection_s']:.2f} µs/s"
    return text + wrong


# ---- tables ----


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown; all columns but the first are figures."""
    names = list(head)
    rule = ["---", *["---:" for _ in names[1:]]]
    return "\n".join("| " + " | ".join(row) + " |" for row in (names, rule, *rows))


def spread(values: list[float], form: str) -> str:
    """The median, and the range when there was more than one round."""
    ordered = sorted(values)
    middle = form.format((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
    if len(ordered) == 1:
        return middle
    return f"{middle} ({form.format(ordered[0])} - {form.format(ordered[-1])})"


def most_often(words: list[str]) -> str:
    return max(dict.fromkeys(words), key=words.count)


def faults(runs: list[Run]) -> str:
    found = [f"round {run['round']}: {', '.join(bad)}" for run in runs if (bad := wrong_with(run["client"]))]
    return "; ".join(found) or "-"


def cores(runs: list[Run]) -> str:
    """What the server and the load client used of the machine."""
    return f"{median(runs, lambda run: run['server_cores']):.2f} + {median(runs, lambda run: run['client_cores']):.2f}"


def load_row(server: str, runs: list[Run], floors: list[Run]) -> list[str]:
    to_floor = ratio(runs, floors, cost)
    return [
        server,
        spread([cost(run) for run in runs], "{:.3f}"),
        "-" if to_floor is None else f"{to_floor:.2f}",
        f"{median(runs, rate):,.0f}",
        f"{median(runs, latency_ms('p50')):.2f}",
        spread([latency_ms("p99")(run) for run in runs], "{:.2f}"),
        cores(runs),
        most_often([run["bottleneck"] for run in runs]),
        faults(runs),
    ]


def load_table(runs: list[Run], floor: str) -> str:
    head = (
        "server",
        "CPU µs a delivery",
        f"times {floor}",
        "deliveries/s",
        "p50 ms",
        "p99 ms",
        "cores: server + client",
    )
    rows = [load_row(name, of(runs, name), of(runs, floor)) for name in servers_in(runs)]
    return table((*head, "bottleneck", "faults"), rows)


def slow_table(runs: list[Run]) -> str:
    head = ("server", "p99 ms, all read", "p99 ms, 1 % read nothing", "ratio", "of these ended by the server", "faults")
    rows = []
    for name in servers_in(runs):
        without, hanging = of(runs, name, ALL_READ), of(runs, name, SOME_SLOW)
        found = ratio(hanging, without, latency_ms("p99"))
        rows.append(
            [
                name,
                spread([latency_ms("p99")(run) for run in without], "{:.2f}"),
                spread([latency_ms("p99")(run) for run in hanging], "{:.2f}"),
                "-" if found is None else f"{found:.2f}",
                f"{median(hanging, lambda run: slow_ended(run)):.0f}",
                faults([*without, *hanging]),
            ]
        )
    return table(head, rows)


def slow_ended(run: Run) -> float:
    """As seen by the client, or by Holdfast's own counter: a close behind unread data is not seen before it is read."""
    counted: float = sum(run["counters"].get("slow_consumers", {}).values())
    seen: float = run["client"]["slow_ended"]
    return max(counted, seen)


def idle_table(runs: list[Run]) -> str:
    head = ("server", "RSS bytes a connection", "PSS", "USS", "CPU µs to accept one", "CPU µs a second held")
    rows = []
    for name in servers_in(runs):
        own = of(runs, name)
        rows.append(
            [
                name,
                *(
                    spread([run["bytes_per_connection"][kind] for run in own], "{:,.0f}")
                    for kind in ("rss", "pss", "uss")
                ),
                spread([run["cpu_us_per_connection"] for run in own], "{:.0f}"),
                spread([run["hold"]["cpu_us_per_connection_s"] for run in own], "{:.2f}"),
                spread([run["after_to_before"] for run in own], "{:.2f}"),
                faults(own),
            ]
        )
    return table((*head, "memory after / before", "faults"), rows)


def storm_table(runs: list[Run]) -> str:
    head = ("server", "CPU µs a connection", "p50 ms", "p95 ms", "p99 ms", "cores: server + client")
    rows = []
    for name in servers_in(runs):
        own = of(runs, name)
        percentiles = ("p50", "p95", "p99")
        rows.append(
            [
                name,
                spread([run["cpu_us_per_connection"] for run in own], "{:.0f}"),
                *(spread([run["client"]["connect_us"][one] / 1000 for run in own], "{:,.1f}") for one in percentiles),
                cores(own),
                most_often([run["bottleneck"] for run in own]),
                f"{sum(run['client']['failed'] for run in own):,}",
            ]
        )
    return table((*head, "bottleneck", "failed"), rows)


def resume_table(runs: list[Run]) -> str:
    head = (
        "server",
        "away for, s",
        "all welcomed, s",
        "all caught up, s",
        "messages replayed",
        "live p50 ms",
        "live p99 ms",
        "live p99 ms while away",
        "live p99 ms before",
        "CPU µs a session",
        "cores: server + client",
    )
    rows = []
    for name in servers_in(runs):
        own = of(runs, name)
        told = [run["resume"] for run in own]
        seconds = [spread([one[key] for one in told], "{:.2f}") for key in ("away_s", "welcomed_s", "caught_up_s")]
        keys = ("live_p50_ms", "live_p99_ms", "live_p99_ms_away", "live_p99_ms_before")
        rows.append(
            [
                name,
                *seconds,
                f"{statistics.median(one['replayed'] for one in told):,.0f}",
                *(spread([one[key] for one in told], "{:.1f}") for key in keys),
                spread([run["cpu_us_per_connection"] for run in own], "{:.0f}"),
                cores(own),
                most_often([run["bottleneck"] for run in own]),
                faults(own),
            ]
        )
    return table((*head, "bottleneck", "faults"), rows)


def counter_table(runs: list[Run]) -> str:
    """What explains the CPU of Holdfast's deliveries: per delivery, over all processes; empty without counters."""
    head = ("server", "sends", "wake-ups", "batches in", "batches out", "bytes out", "takes of the GIL")
    names = ("sends", "wakeups", "batches_in", "batches_out", "bytes_out", "gil_takes")
    rows = []
    for server in servers_in(runs):
        own = [run["counters"] for run in of(runs, server) if run["counters"]]
        delivered = sum(sum(one[DELIVERED].values()) for one in own)
        if delivered:
            totals = [sum(sum(one[name].values()) for one in own) / delivered for name in names]
            rows.append([server, *(f"{total:.4g}" for total in totals)])
    return f"For each delivery, over all processes:\n\n{table(head, rows)}\n" if rows else ""


def process_lines(runs: list[Run]) -> str:
    """Which of Holdfast's processes used the CPU."""
    found = []
    for server in servers_in(runs):
        own = [run["cpu_us_by_process"] for run in of(runs, server) if server.startswith("holdfast")]
        if own:
            each = (f"{name} {statistics.median(one.get(name, 0.0) for one in own):.3f}" for name in own[0])
            found.append(f"CPU µs of {server} by process: {', '.join(each)}.\n")
    return "\n".join(found)


# ---- the page ----


def verdict_table(verdicts: list[Verdict]) -> str:
    rows = (
        [one.workload, one.what, one.figure, one.limit, "kept" if one.kept else "**NOT KEPT**", one.by]
        for one in verdicts
    )
    return table(("workload", "what", "figure", "limit", "", "by"), rows).replace("---:", "---")


def disturbed(runs: list[Run]) -> str:
    """Says so when other programs took a part of the machine during a window."""
    others = [f"{run['server']} {run['other_cores']:.2f}" for run in runs if run.get("other_cores", 0) > OTHERS_CORES]
    return f"Other programs used the machine meanwhile (cores): {', '.join(others)}.\n" if others else ""


def section(content: Content, has_plot: bool) -> str:
    name, runs = content["name"], content["runs"]
    tables = {"slow": slow_table, "idle": idle_table, "storm": storm_table, "resume": resume_table}
    floor = "floor-per-delivery" if name in ("fan", "big") else "floor-coalesce"
    body = tables[name](runs) if name in tables else load_table(runs, floor)
    parts = [f"## {name}\n", f"{content['about'][0].upper()}{content['about'][1:]}. {made_with(content)}\n"]
    parts += [f"![{name}](performance/{name}.svg)\n"] if has_plot else []
    parts += [f"{body}\n", counter_table(runs) if name not in WITHOUT_COUNTERS else ""]
    parts += [process_lines(runs) if name != "idle" else "", disturbed(runs)]
    parts += [f"No figure: {one.splitlines()[0]}\n" for one in content["failures"]]
    return "\n".join(part for part in parts if part)


def made_with(content: Content) -> str:
    state = ", with changes that are not committed" if content["uncommitted_changes"] else ""
    client = content["runs"][0]["client_command"].split(" --port")[0]
    options = " ".join(WORKLOADS[content["name"]].options)
    return (
        f"Measured {content['at'][:10]} at commit `{content['commit'][:10]}`{state} by `{content['command']}`; "
        f"load client: `{client} {options}`."
    )


def versions(contents: list[Content]) -> str:
    """A row a server: its version, and what must be known before comparing."""
    found = {name: version for content in contents for name, version in content["versions"].items()}
    ran = servers_in(run for content in contents for run in content["runs"])
    rows = [
        [name, found.get(name, found["holdfast"] if "holdfast" in name else "this repository"), DOES_NOT.get(name, "")]
        for name in ran
    ]
    return table(("server", "version", "what it does not do, and other differences"), rows).replace("---:", "---")


def machine(content: Content) -> str:
    return (
        f"Machine: {content['cpus']} cores of {content['cpu']}, {content['memory_bytes'] / 2**30:.0f} GiB, Linux "
        f"{content['kernel']}; Python {content['python']}, {content['go'] or 'no Go'}, "
        f"node {content['node'] or 'missing'}. Build mode: {content['build_mode']}. Traffic over loopback only."
    )


def page(contents: list[Content], plots: set[str]) -> str:
    """The page from the contents of result files."""
    verdicts = [verdict for content in contents for verdict in judge(content["name"], content["runs"])]
    missed = sum(not verdict.kept for verdict in verdicts)
    unmeasured = [name for name in WORKLOADS if name not in {content["name"] for content in contents}]
    parts = [
        HEAD,
        f"{machine(contents[0])}\n",
        f"## What must hold\n\n{len(verdicts) - missed} kept, {missed} not kept.\n\n{verdict_table(verdicts)}\n",
        *([f"Not measured: {', '.join(unmeasured)}.\n"] if unmeasured else []),
        *(section(content, content["name"] in plots) for content in contents),
        f"## Who was measured\n\n{versions(contents)}",
    ]
    return "\n".join(parts) + "\n"


def read_results(folder: Path) -> list[Content]:
    """The result files that there are, in the order of the workloads."""
    paths = [folder / f"{name}.json" for name in WORKLOADS]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def draw(folder: Path, plots: Path) -> set[str]:
    """The workloads of which there is a plot now; none, and a word about it, where nothing can draw."""
    if not PYTHON.exists():
        print("bench: no plots: matplotlib is not installed in build/peers", file=sys.stderr)
        return set()
    command = [str(PYTHON), "-m", "loadtest.bench.plots", str(folder), str(plots)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PLOT_DEADLINE_S)
    if done.returncode:
        print(f"bench: no plots: {done.stderr.strip()[-500:]}", file=sys.stderr)
    return set(done.stdout.split())


def write_page(folder: Path, to: Path = PAGE) -> None:
    """Draws the plots and writes the page."""
    contents = read_results(folder)
    if not contents:
        return
    plots = draw(folder, to.parent / to.stem)
    to.write_text(page(contents, plots))
    print(f"bench: {to.relative_to(ROOT) if to.is_relative_to(ROOT) else to} written")


if __name__ == "__main__":
    write_page(RESULTS)
