"""The node's audit over several processes: what two of them know of each other, and who does not answer."""

import asyncio
from typing import Any

import pytest

from core.auditor import Auditor
from core.ledger import KINDS, Stats
from core.owned import Account
from gateway import node_audit
from gateway.child import Totals
from gateway.node_audit import NodeAudit, differences, smaller

DEADLINE_S = 30.0


def report(**more: Any) -> dict[str, Any]:
    kinds = {"ring": {"opened": 5, "closed": 4, "found": 1}}
    empty = {"findings": [], "finding_count": 0, "sessions": 0, "channels": 0, "walked_us": 3, "links": []}
    return {"kinds": kinds, **empty, **more}


def link(pid: int, sessions: int, subscriptions: int) -> dict[str, Any]:
    return {"identity": f"n/0/1-{pid}", "state": 3, "sessions": sessions, "subscriptions": subscriptions}


class Process:
    """Stands for a place with a process in it that answers one report after the other, the last for ever."""

    def __init__(self, name: str, pid: int, *answers: dict[str, Any] | Exception) -> None:
        self.name = name
        self.pid: int | None = pid
        self.leaving: list[Process] = []
        self._answers = list(answers)

    def totals(self) -> Totals:
        return Totals.of(Stats().read())

    async def ask(self, method: str, *, deadline_s: float) -> Any:
        assert (method, deadline_s > 0) == ("audit", True)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def audit(monkeypatch: pytest.MonkeyPatch, *processes: Process) -> tuple[bool, dict[str, dict[str, Any]]]:
    """Whether it closes, and the rows by process."""
    monkeypatch.setattr(node_audit, "BETWEEN_LOOKS_S", 0.0)
    stats = Stats()

    async def scenario() -> dict[str, Any]:
        one = NodeAudit(
            ("supervisor", 1),
            lambda: Totals.of(stats.read()),
            Auditor(Account(stats)),
            lambda: list(processes),  # type: ignore[arg-type]
            "n",
        )
        async with asyncio.timeout(DEADLINE_S):
            told = await one.audit()
        counts = {row["process"]: len(row["findings"]) for row in told["processes"] if "error" not in row}
        assert one.last == counts, "the metric says what the report says"
        for row in told["processes"]:  # the tests' own tasks and descriptors are nobody's here
            row["findings"] = [found for found in row["findings"] if found["kind"] not in ("task", "control_fd")]
        return told

    told = asyncio.run(scenario())
    rows = {row["process"]: row for row in told["processes"]}
    return not any(row["findings"] or "error" in row for row in rows.values()), rows


def test_processes_that_agree_close(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Process("router", 2, report(links=[link(3, 2, 5)]))
    closes, rows = audit(monkeypatch, router, Process("worker-0", 3, report(sessions=2, channels=5)))
    assert closes
    assert set(rows) == {"supervisor", "router", "worker-0"}
    assert set(rows["router"]["kinds"]) == set(KINDS)
    assert rows["worker-0"]["kinds"]["ring"]["difference"] == 0
    assert rows["worker-0"]["walked_us"] == 3


def test_a_session_that_only_the_router_knows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Process("router", 2, report(links=[link(3, 4, 5)]))
    closes, rows = audit(monkeypatch, router, Process("worker-0", 3, report(sessions=2, channels=5)))
    assert not closes
    (finding,) = rows["worker-0"]["findings"]
    assert (finding["kind"], finding["value"]) == ("session", 2)
    assert finding["what"] == "2 sessions of worker-0 are known to the router alone"


def test_what_is_under_way_between_two_processes_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Process("router", 2, report(links=[link(3, 4, 5)]))
    worker = Process("worker-0", 3, report(sessions=2, channels=6), report(sessions=5, channels=5))
    assert audit(monkeypatch, router, worker)[0]


def test_what_is_under_way_at_most_looks_is_no_finding_either(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Process("router", 2, *[report(links=[link(3, 7, 5)])] * 10, report(links=[link(3, 2, 5)]))
    assert audit(monkeypatch, router, Process("worker-0", 3, report(sessions=2, channels=5)))[0]


def test_a_process_that_does_not_answer_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    closes, rows = audit(monkeypatch, Process("worker-0", 3, TimeoutError()))
    assert not closes
    assert rows["worker-0"]["error"] == "no answer in time"


def test_a_process_that_leaves_its_place_is_audited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"kind": "ring", "key": 1, "value": 0, "what": "leaks", "place": ""}
    worker = Process("worker-0", 3, report(sessions=2, channels=5))
    worker.leaving = [Process("worker-0", 4, report(sessions=7, findings=[found], finding_count=1))]
    router = Process("router", 2, report(links=[link(3, 2, 5), link(4, 9, 0)]))
    closes, rows = audit(monkeypatch, router, worker)
    assert not closes
    assert set(rows) == {"supervisor", "router", "worker-0"}
    row = rows["worker-0"]
    assert row["findings"][0] == found
    assert row["findings"][1]["what"] == "2 sessions of worker-0 that leaves, pid 4 are known to the router alone"
    assert (row["kinds"]["ring"]["found"], row["kinds"]["ring"]["difference"], row["walked_us"]) == (2, 0, 6)


def test_a_process_that_leaves_and_does_not_answer_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Process("worker-0", 3, report())
    worker.leaving = [Process("worker-0", 4, TimeoutError())]
    closes, rows = audit(monkeypatch, worker)
    assert (closes, rows["worker-0"]["error"]) == (False, "no answer in time")


def test_a_process_that_has_left_meanwhile_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, gone = Process("worker-0", 3, report()), Process("worker-0", 4, ConnectionResetError("it has ended"))
    gone.pid = None
    worker.leaving = [gone]
    assert audit(monkeypatch, worker)[0]


def test_only_what_every_look_sees_counts() -> None:
    first = {("w", "session"): 5, ("w", "subscription"): -2, ("v", "session"): 1}
    second = {("w", "session"): 3, ("w", "subscription"): 2}
    assert smaller(first, second) == {("w", "session"): 3}


def test_a_worker_that_the_router_does_not_know_yet_is_passed_over() -> None:
    reports = {"router": report(links=[]), "worker-0": report(pid=3, sessions=9)}
    assert differences(reports, "n") == {}


def test_a_worker_of_another_node_with_the_same_pid_is_another_one() -> None:
    links = [{**link(3, 7, 7), "identity": "n-2/0/1-3"}, link(3, 9, 0)]
    reports = {"router": report(links=links), "worker-0": report(pid=3, sessions=9)}
    assert differences(reports, "n") == {}
