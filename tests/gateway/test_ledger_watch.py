"""The node's own audits: what two in a row see is told once, and what one of them sees is not."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import structlog

from gateway import ledger_watch
from gateway.ledger_watch import LedgerWatch
from gateway.node_audit import NodeAudit

DEADLINE_S = 30.0


def finding(key: int = 7, kind: str = "ring", what: str = "is held by nobody") -> dict[str, Any]:
    return {"kind": kind, "key": key, "value": 1, "what": what, "place": "a:1"}


def row(*findings: dict[str, Any], process: str = "worker-0", pid: int = 3, **more: Any) -> dict[str, Any]:
    return {"process": process, "pid": pid, "findings": list(findings), "finding_count": len(findings), **more}


class Audits:
    """Stands for the node's audit: its reports one after the other, the last for ever."""

    def __init__(self, *reports: list[dict[str, Any]] | Exception) -> None:
        self.reports = list(reports)
        self.count = 0

    async def audit(self) -> dict[str, Any]:
        self.count += 1
        report = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        if isinstance(report, Exception):
            raise report
        return {"processes": report, "closes": False}


def watch(audits: Audits, told: list[dict[str, Any]], interval_s: float = 3600) -> LedgerWatch:
    return LedgerWatch(cast(NodeAudit, audits), interval_s, "n1", lambda event: told.append(dict(event)))


def turns(*reports: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[bool]]:
    """The events of one audit after the other, and which of these saw something for the first time."""
    told: list[dict[str, Any]] = []
    one = watch(Audits(*reports), told)

    async def scenario() -> list[bool]:
        return [await one.turn() for _ in reports]

    return told, asyncio.run(scenario())


def test_what_one_audit_alone_sees_is_not_told() -> None:
    told, first = turns([row(finding())], [row()], [row(finding())], [row(finding(8))])
    assert told == []
    assert first == [True, False, True, True]


def test_what_two_in_a_row_see_is_told_once_and_its_end_as_well() -> None:
    told, first = turns([row(finding())], [row(finding())], [row(finding())], [row()], [row()])
    assert [event["event"] for event in told] == ["ledger_differs", "ledger_closes"]
    differs, closes = told
    assert (differs["node"], differs["process"], differs["pid"]) == ("n1", "worker-0", 3)
    assert (differs["findings"], differs["new"], differs["all"]) == ([finding()], 1, 1)
    assert closes["reason"] == "nothing is found any more"
    assert first == [True, False, False, False, False]


def test_the_log_has_it_as_a_warning_that_names_kind_and_place() -> None:
    with structlog.testing.capture_logs() as lines:
        turns([row(finding())], [row(finding())])
    (line,) = lines
    assert (line["event"], line["log_level"], line["process"]) == ("ledger_differs", "warning", "worker-0")
    assert line["findings"] == ["ring 7 is held by nobody a:1"]


def test_a_further_finding_is_told_alone_once_it_is_sure() -> None:
    both = [row(finding(), finding(8))]
    told, _ = turns([row(finding())], [row(finding())], both, both, both)
    assert [[found["key"] for found in event["findings"]] for event in told] == [[7], [8]]
    assert [event["all"] for event in told] == [1, 2]


def test_how_much_there_is_of_it_may_change() -> None:
    told, _ = turns(
        [row(finding(0, "session", "2 sessions of worker-0 are known to the router alone"))],
        [row(finding(0, "session", "3 sessions of worker-0 are known to the router alone"))],
    )
    assert len(told) == 1
    assert turns(
        [row(finding(0, "session", "2 sessions of worker-0 are known to the router alone"))],
        [row(finding(0, "session", "2 sessions of worker-0 are known to worker-0 alone"))],
    )[0] == []  # fmt: skip


def test_the_same_in_another_process_is_another_finding() -> None:
    assert turns([row(finding())], [row(finding(), pid=4)], [row(finding(), process="worker-1")])[0] == []


def test_a_process_that_ends_takes_its_findings_with_it() -> None:
    told, _ = turns([row(finding())], [row(finding())], [row(pid=4)])
    assert [event["event"] for event in told] == ["ledger_differs", "ledger_closes"]
    assert (told[1]["pid"], told[1]["reason"]) == (3, "the process has ended")


def test_of_a_process_that_does_not_answer_nothing_is_known() -> None:
    silent = [row(error="no answer in time")]
    told, first = turns(silent, [row(finding())], silent, [row(finding())], silent, [row(finding())])
    assert [event["event"] for event in told] == ["ledger_differs"]
    assert first == [False, True, False, False, False, False]


def test_many_findings_are_counted_and_the_first_are_told() -> None:
    many = [row(*(finding(key) for key in range(40)), finding_count=99)]
    (event,) = turns(many, many)[0]
    assert (len(event["findings"]), event["new"], event["all"]) == (ledger_watch.TOLD_MAX, 40, 99)


def paused(
    monkeypatch: pytest.MonkeyPatch, audits: Audits, interval_s: float, until: Callable[[list[float]], bool]
) -> list[float]:
    """The pauses that `run` makes, none of which is waited for."""
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real(0)

    async def scenario() -> None:
        running = asyncio.create_task(watch(audits, [], interval_s).run())
        async with asyncio.timeout(DEADLINE_S):
            while not running.done() and not until(pauses):
                await real(0)
        running.cancel()
        await asyncio.wait({running}, timeout=DEADLINE_S)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(scenario())
    return pauses


def test_the_second_look_comes_soon_and_the_others_at_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    audits = Audits([row()], [row(finding())], [row(finding())], [row(finding())])
    pauses = paused(monkeypatch, audits, 3600, lambda pauses: len(pauses) >= 5)
    assert pauses[:5] == [ledger_watch.FIRST_S, 3600, ledger_watch.AGAIN_S, 3600, 3600]


def test_a_short_interval_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = paused(monkeypatch, Audits([row(finding())]), 2, lambda pauses: len(pauses) >= 3)
    assert set(pauses) == {2}


def test_an_audit_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    audits = Audits(TimeoutError(), [row()])
    paused(monkeypatch, audits, 5, lambda pauses: len(pauses) >= 3)
    assert audits.count >= 2


def test_without_an_interval_nothing_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    audits = Audits([row()])
    assert paused(monkeypatch, audits, 0, lambda _: False) == []
    assert audits.count == 0
