"""A whole node watches the growth of all its processes, and says what it found."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Node, wait_until

PROCESSES = {"supervisor", "zygote", "router", "worker-0", "worker-1"}
DEADLINE_S = 60.0


def test_every_process_is_sampled_and_fitted(holdfast: Callable[..., Node]) -> None:
    # What grows by a few percent while a node warms up is no leak; this is about the figures being there.
    node = holdfast(
        "--workers",
        "2",
        HOLDFAST_GROWTH_INTERVAL_S="1",
        HOLDFAST_GROWTH_WINDOW_S="60",
        HOLDFAST_GROWTH_WARM_UP_S="0",
        HOLDFAST_GROWTH_SAMPLES_MIN="12",
        HOLDFAST_GROWTH_THRESHOLD_PERCENT="1000",
    )

    def fitted() -> set[str]:
        return {labels["process"] for labels, _ in node.metrics().get("holdfast_growth_per_day_ratio", [])}

    wait_until(lambda: fitted() == PROCESSES, lambda: f"all processes are fitted: {fitted()}", DEADLINE_S)
    found = {one["process"]: one["resources"] for one in json.loads(node.get("/api/growth")[1])["processes"]}
    assert found.keys() == PROCESSES
    assert found["zygote"].keys() == {"private_bytes", "fds", "threads"}
    asked = {"private_bytes", "heap_used_bytes", "fds", "threads", "tasks", "objects", "blocks"}
    for process in PROCESSES - {"zygote"}:
        assert asked <= found[process].keys(), f"{process} was not asked: {sorted(found[process])}"
    assert {"ring", "buffer", "fd", "timer"} <= found["worker-0"].keys()
    assert "subscription" in found["router"]
    assert node.metric("holdfast_leak_suspected") == 0
    shown = subprocess.run(
        [Path(sys.executable).parent / "holdfast", "growth", "--all", "--url", node.admin_url],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert shown.returncode == 0, shown.stderr
    assert {line.split()[0] for line in shown.stdout.splitlines()[1:] if line and line[0] != " "} >= PROCESSES
