"""Draws one SVG a workload from the result files: `python -m loadtest.bench.plots RESULTS FOLDER`.

Runs in the environment of the peers, where matplotlib is. Prints the names of the workloads drawn. Bars are medians,
dots are the repetitions.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import ScalarFormatter

from loadtest.bench.figures import Pick, cost, latency_ms, rate

Run = dict[str, Any]
Panel = tuple[str, Pick]
COLOURS = {"holdfast": "#c0392b", "floor": "#7f8c8d"}
PEER_COLOUR = "#4a7fb0"
BAR_INCHES = 0.32
LINEAR_RATIO_MAX = 30

COST: Panel = ("CPU µs a delivery", cost)
P99: Panel = ("p99 latency, ms", latency_ms("p99"))
PANELS: dict[str, tuple[Panel, Panel]] = {
    "max": (COST, ("million deliveries a second", lambda run: rate(run) / 1e6)),
    "one": (COST, ("p50 latency, ms", latency_ms("p50"))),
    "idle": (
        ("KiB of user memory a joined connection", lambda run: run["bytes_per_connection"]["rss"] / 1024),
        ("CPU µs to accept one connection", lambda run: run["cpu_us_per_connection"]),
    ),
    "storm": (
        ("CPU µs a connection", lambda run: run["cpu_us_per_connection"]),
        ("p95 from the intended time to joined, ms", lambda run: run["client"]["connect_us"]["p95"] / 1000),
    ),
    "resume": (
        ("seconds until all were caught up", lambda run: run["resume"]["caught_up_s"]),
        ("p99 latency of live traffic while they resume, ms", lambda run: run["resume"]["live_p99_ms"]),
    ),
}


def label(run: Run) -> str:
    return f"{run['server']}, {run['variant']}" if "variant" in run else str(run["server"])


def draw_panel(axes: Any, panel: Panel, runs: list[Run]) -> None:
    """Horizontal bars, the first server on top; logarithmic, and said so, where one is far longer than another."""
    title, pick = panel
    longest = 0.0
    shortest = float("inf")
    labels = list(dict.fromkeys(label(run) for run in runs))
    for place, name in enumerate(labels):
        values = [max(pick(run), 1e-3) for run in runs if label(run) == name]
        colour = COLOURS.get(name.partition("-")[0].partition(",")[0], PEER_COLOUR)
        middle = statistics.median(values)
        axes.barh(place, middle, color=colour, height=0.7)
        axes.plot(values, [place] * len(values), ".", color="black", markersize=3)
        beside = {"xytext": (5, 0), "textcoords": "offset points"}
        axes.annotate(f"{middle:.3g}", (max(values), place), va="center", fontsize=7, **beside)
        longest, shortest = max(longest, middle), min(shortest, middle)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    logarithmic = longest > LINEAR_RATIO_MAX * shortest
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.margins(x=0.15)
    axes.set_title(f"{title} (logarithmic)" if logarithmic else title, fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(name: str, runs: list[Run], path: Path) -> None:
    bars = len({label(run) for run in runs})
    figure, both = plt.subplots(1, 2, figsize=(10, 1.0 + BAR_INCHES * bars))
    for axes, panel in zip(both, PANELS.get(name, (COST, P99)), strict=True):
        draw_panel(axes, panel, runs)
    figure.tight_layout()
    # No date and no random identifiers: the same results give the same file.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(results: Path, folder: Path) -> None:
    plt.rcParams.update({"svg.hashsalt": "holdfast", "svg.fonttype": "none", "font.family": "sans-serif"})
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or [path.stem for path in sorted(results.glob("*.json"))]:
        content = json.loads((results / f"{name}.json").read_text())
        if "runs" not in content:  # of another program's: a million, locust
            continue
        if all("round" in run for run in content["runs"]):
            draw(name, content["runs"], folder / f"{name}.svg")
            print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
