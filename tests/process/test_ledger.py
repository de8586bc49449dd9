"""`holdfast ledger --audit` on a real node: it closes with clients and without, and a leak of each kind shows."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import ledger
from tests.conftest import Node, complaints, wait_until
from tests.process.clients import open_session, run

AUDIT_DEADLINE_S = 40.0


def audit(node: Node) -> tuple[int, dict[str, Any]]:
    """The exit code of the command, and what it says."""
    program = Path(sys.executable).parent / "holdfast"
    command: list[str | Path] = [program, "ledger", "--audit", "--json", "--url", node.admin_url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_DEADLINE_S)
    assert ended.returncode in (0, 1), ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def test_a_node_closes_with_clients_and_without(node: Node) -> None:
    async def scenario() -> None:
        clients = [await open_session(node, "tcp", f"u{number}") for number in range(8)]
        for one in clients:
            await one.join("group:a")
        await clients[0].publish("group:a", "x", key="k")
        code, told = audit(node)
        assert (code, complaints(told)) == (0, [])
        rows = {row["process"]: row["kinds"] for row in told["processes"]}
        assert set(rows) == {"supervisor", "router", "worker-0", "worker-1"}
        both = [rows["worker-0"], rows["worker-1"]]
        assert sum(kinds["connection"]["found"] for kinds in both) == 8
        assert sum(kinds["membership"]["live"] for kinds in both) == 16
        assert rows["router"]["session"]["live"] == rows["router"]["session"]["found"] == 8
        assert rows["router"]["key"]["live"] == 1
        own = rows["supervisor"]
        assert own["lease"]["live"] == 1  # the run directory
        assert own["http_client"]["found"] >= 1  # who asks, and perhaps who asked before and is about to go
        assert (own["task"]["difference"], own["control_fd"]["difference"]) == (0, 0)
        assert own["task"]["found"] > 3
        assert own["control_fd"]["found"] > 6
        for one in clients:
            await one.close()

    run(scenario())
    code, told = audit(node)
    assert (code, complaints(told)) == (0, [])


def test_leaks_show_with_their_process_kind_and_place(holdfast: Callable[..., Node]) -> None:
    """One of each process at once: each process forgets one release of each of these kinds, but in a release build."""
    kinds = "session,subscription,fd,http_client,task"
    node = holdfast("--workers", "1", **{ledger.LEAKS_VARIABLE: kinds})
    if ledger.CHECKED:
        node.expect_leaks()

    async def scenario() -> None:
        one = await open_session(node, "tcp", "u")
        await one.abort()  # nobody is to wait for the end of a socket that stays open

    run(scenario())

    if not ledger.CHECKED:
        return  # the audit at the end must close

    def leaks() -> set[tuple[str, str]]:
        code, told = audit(node)
        assert code == 1
        return {(row["process"], one["kind"]) for row in told["processes"] for one in row["findings"] if one["place"]}

    wanted = {
        ("worker-0", "session"), ("worker-0", "subscription"), ("worker-0", "fd"), ("supervisor", "http_client"),
        ("supervisor", "task"),
    }  # fmt: skip
    wait_until(lambda: wanted <= leaks(), lambda: f"{wanted - leaks()} are found")
