"""A process that hangs is found, written down and replaced, and its clients come back."""

import socket
from pathlib import Path
from typing import Any

from core.ledger import CHECKED
from tests.conftest import Node, stand_still, wait_until
from tests.process.clients import open_session, run

STUCK_AFTER_MS = "2000"
DEADLINE_S = 30.0


def reports(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("stuck-*.txt"))]


def replaced(node: Node, name: str) -> bool:
    return node.metric("holdfast_process_restarts_total", process=name) == 1 and node.get("/readyz")[0] == 200


def test_a_worker_that_stands_still_is_replaced(holdfast: Any, tmp_path: Path) -> None:
    node: Node = holdfast(
        "--workers", "2", HOLDFAST_NODE_STUCK_AFTER_MS=STUCK_AFTER_MS, HOLDFAST_NODE_REPORT_DIR=str(tmp_path)
    )
    node.expect_lost()
    victim, other = node.workers
    stand_still(victim)
    wait_until(lambda: victim not in node.workers, "it is killed", DEADLINE_S)
    wait_until(lambda: node.metric("holdfast_process_restarts_total") == 1, "another is started", DEADLINE_S)
    wait_until(lambda: node.get("/readyz")[0] == 200, "all of it serves", DEADLINE_S)
    assert other in node.workers
    assert node.metric("holdfast_process_stuck_total") == 1
    (report,) = reports(tmp_path)
    assert f"(pid {victim}) is stuck" in report
    assert "T (stopped)" in report
    assert "child_stuck" in node.log_tail(200)


def test_a_router_that_stands_still_is_replaced(holdfast: Any, tmp_path: Path) -> None:
    node: Node = holdfast(
        "--workers", "1", HOLDFAST_NODE_STUCK_AFTER_MS=STUCK_AFTER_MS, HOLDFAST_NODE_REPORT_DIR=str(tmp_path)
    )
    node.expect_lost()
    (router,) = node.routers
    stand_still(router)
    wait_until(lambda: router not in node.routers, "it is killed", DEADLINE_S)
    wait_until(lambda: replaced(node, "router"), "another one serves", DEADLINE_S)
    assert len(reports(tmp_path)) == 1


def test_a_data_plane_that_hangs_is_told_by_its_stacks_and_cannot_be_made_to_in_a_release_build(
    holdfast: Any, tmp_path: Path
) -> None:
    node: Node = holdfast(
        "--workers",
        "1",
        HOLDFAST_NODE_STUCK_AFTER_MS=STUCK_AFTER_MS,
        HOLDFAST_NODE_REPORT_DIR=str(tmp_path),
        HOLDFAST_INJECT="stuck",
    )
    (victim,) = node.workers

    async def serves() -> None:
        await (await open_session(node)).close()

    if not CHECKED:
        run(serves())
        assert node.workers == [victim]
        return
    node.expect_lost()
    with socket.create_connection(("127.0.0.1", node.port), DEADLINE_S):
        wait_until(lambda: victim not in node.workers, "it is killed", DEADLINE_S)
    wait_until(lambda: replaced(node, "worker-0"), "another one serves", DEADLINE_S)
    (report,) = reports(tmp_path)[:1]
    assert "its data plane makes no turns" in report
    assert "core/loop." in report, "the frame that hangs, by its library and offset"
    assert "in serve" in report or "runners.py" in report, "and what Python was doing"
