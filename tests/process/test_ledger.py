"""`holdfast ledger --audit` on a real node: it closes with clients and without, and a leak of each kind shows."""

import http.server
import json
import re
import subprocess
import sys
import threading
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


def test_a_node_audits_itself_and_tells_a_leak_by_itself(holdfast: Callable[..., Node]) -> None:
    """Nobody asks: the log, the metric and the hook say it, of the worker whose membership was never released."""
    told: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            node = holdfast(
                "--workers",
                "1",
                **{ledger.LEAKS_VARIABLE: "membership"},
                HOLDFAST_GROWTH_AUDIT_INTERVAL_S="1",
                HOLDFAST_GROWTH_HOOK_URL=f"http://127.0.0.1:{server.server_port}/",
            )
            check_what_is_told(node, told)
        finally:
            server.shutdown()
            thread.join(AUDIT_DEADLINE_S)


def check_what_is_told(node: Node, told: list[dict[str, Any]]) -> None:
    async def scenario() -> None:
        one = await open_session(node, "tcp", "u")
        await one.join("group:a")
        await one.close()

    def audited() -> dict[str, float]:
        samples = node.metrics().get("holdfast_ledger_audit_differences", [])
        return {labels["process"]: value for labels, value in samples}

    wait_until(lambda: audited().keys() == {"supervisor", "router", "worker-0"}, "nobody has asked for an audit")
    assert not any(audited().values())
    if ledger.CHECKED:
        node.expect_leaks()
    run(scenario())
    if not ledger.CHECKED:
        return  # it leaks nothing; the audit at the end must close

    def found() -> list[dict[str, Any]]:
        events = [event for event in told if (event["event"], event["process"]) == ("ledger_differs", "worker-0")]
        assert all(event["pid"] == node.workers[0] for event in events)
        return [one for event in events for one in event["findings"] if one["kind"] == "membership"]

    wait_until(lambda: bool(found()), lambda: f"the hook was told: {told}")
    assert any(re.match(r"core/\w+\.p(yx|xd):\d+", one["place"] or "") for one in found()), found()
    assert audited()["worker-0"] >= 1
    lines = [line for line in node.log.read_text().splitlines() if "ledger_differs" in line]
    assert any("membership" in line and "worker-0" in line for line in lines), node.log_tail()
