"""Writes docs/million.md from what `make million` and `make soak-120k` found: figures in prose come from such a file.

python -m loadtest.million_page
"""

import json
import sys
from typing import Any

from loadtest.measure import ROOT

PAGE = ROOT / "docs" / "million.md"
RESULTS = ROOT / "loadtest" / "results"
MIB = 1 << 20
Result = dict[str, Any]

_HEAD = """\
# A million connections on one machine

Written by `python -m loadtest.million_page` from `loadtest/results/million.json` and `soak-120k.json`, which
`make million` and `make soak-120k` make. Both ends run on the machine. PSS counts a page that several processes share
once, over all of them.
"""
_KINDS = {
    "worker": "workers",
    "router": "router",
    "zygote": "zygote",
    "supervisor": "supervisor and admin server",
    "holdfast": "**Holdfast, all of it**",
    "swarm": "load clients",
}


def memory_table(result: Result) -> list[str]:
    """User memory by kind of process: without connections, and with all of them."""
    lines = [
        "| user memory (PSS, MiB) | processes | empty | all joined | after the hold |",
        "| --- | --: | --: | --: | --: |",
    ]
    for kind, name in _KINDS.items():
        empty, joined, held = (result[when][kind] for when in ("user_before", "user", "user_after_hold"))
        figures = (part["pss"] / MIB for part in (empty, joined, held))
        lines.append(f"| {name} | {joined['processes']} | " + " | ".join(f"{figure:,.0f}" for figure in figures) + " |")
    both = [sum(result[when][side]["pss"] for side in ("holdfast", "swarm")) for when in ("user", "user_after_hold")]
    lines.append(f"| **both sides** | | | {both[0] / MIB:,.0f} | {both[1] / MIB:,.0f} |")
    return lines


def section(title: str, result: Result) -> str:
    """What one run showed."""
    count, cpu = result["connections"], result["cpu_us_per_connection_second"]
    own = (result["user"]["holdfast"]["pss"] - result["user_before"]["holdfast"]["pss"]) / count
    lost = sum(client["disconnected"] for client in result["clients"])
    last_s = result["global"]["last_s"]
    heard = "not everybody had it" if last_s is None else f"the last one had it {last_s:.2f} s later"
    sizes = ", ".join(f"{size:,}" for size in sorted({share["members"] for share in result["shares"]}))
    latency, everybody = result["group_latency_ms"], result["global_latency_ms"]
    slab = result["kernel_memory"]["Slab"] / count / 1024
    lines = [
        f"## {title}",
        "",
        f"{result['at'][:10]}, {result['cpus']} processors ({result['cpu']}), Linux {result['kernel']}, commit"
        f" `{result['commit'][:12]}`: {result['workers']} workers, {result['load_processes']} load processes.",
        "",
        f"- {count:,} WebSocket connections joined within {result['ramp_s']:,.0f} s and were held for"
        f" {result['hold_s']:,.0f} s with heartbeats every 30 s; {lost:,} were lost, and there were never fewer than"
        f" {result['connections_least']:,}.",
        f"- One message to everybody: {heard} (p50 {everybody['p50'] / 1000:.2f} s, of the slowest load process).",
        f"- {result['group_messages']:,} messages to groups of {sizes} members, spread"
        f" over all workers: {result['group_deliveries']:,} deliveries, p50 {latency['p50']:,.1f} ms,"
        f" p99 {latency['p99']:,.1f} ms.",
        f"- A held connection costs {own:,.0f} bytes of user memory over all Holdfast processes, and"
        f" {cpu['holdfast']:.2f} µs of CPU a second ({cpu['swarm']:.2f} µs at the load client).",
        f"- The kernel took {slab:,.1f} KiB of slab for a connection, both ends.",
        f"- Holdfast's memory grew by {result['growth_per_day']:+.2%} a day, fitted over the hold.",
        "",
        *memory_table(result),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Writes the page from what results there are."""
    parts = [_HEAD]
    for name, title in (("million", "make million"), ("soak-120k", "make soak-120k")):
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append(section(title, json.loads(path.read_text())))
    if len(parts) == 1:
        print("no results: run make million or make soak-120k first", file=sys.stderr)
        return 2
    PAGE.write_text("\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
