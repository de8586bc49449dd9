"""The node's own audits: at an interval it proves its ledger, and says what does not close.

A finding is told when two audits in a row have it: what one of them sees may be under way (an object that is handed
from one process to another). So that nobody waits an interval for the second, it follows soon after a first one that
found something. Each finding is told once, to the log and the hook; so is that a process closes again.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway import logs
from gateway.node_audit import NodeAudit, Report

FIRST_S = 300.0
"""From the start to the first audit, unless the interval is shorter."""
AGAIN_S = 60.0
"""From an audit that found something new to the next, unless the interval is shorter."""
TOLD_MAX = 10
"""Findings in one event; all are counted."""

Key = tuple[str, int, str, str]

_log = logs.get("ledger")


@dataclass
class _Place:
    """What is known of the process in one place."""

    pid: int | None
    seen: set[Key] = field(default_factory=set)
    """By the last audit."""
    told: set[Key] = field(default_factory=set)


class LedgerWatch:
    """Runs the node's audit for as long as the node lives.

    Args:
        audit: what is run.
        interval_s: from the end of one audit to the next; 0: none is run.
        node: the node's name, for the events.
        tell: takes each event; never waits.

    """

    def __init__(
        self, audit: NodeAudit, interval_s: float, node: str, tell: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._audit = audit
        self._interval_s = interval_s
        self._node = node
        self._tell = tell
        self._places: dict[str, _Place] = {}

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = min(self._interval_s, FIRST_S)
        while self._interval_s:
            await asyncio.sleep(pause_s)
            pause_s = self._interval_s
            try:
                if await self.turn():
                    pause_s = min(self._interval_s, AGAIN_S)
            except Exception:
                # A fault of ours must end neither the audits nor the node.
                _log.exception("audit_failed")

    async def turn(self) -> bool:
        """Audits once; whether something was found that the audit before did not find."""
        rows = {row["process"]: row for row in (await self._audit.audit())["processes"]}
        for name in self._places.keys() - rows.keys():
            del self._places[name]
        # Of every one, although one is enough to know.
        return any([self._judge(name, row) for name, row in rows.items()])

    def _judge(self, name: str, row: Report) -> bool:
        place = self._places.setdefault(name, _Place(row["pid"]))
        if place.pid != row["pid"]:
            self._say_closes(name, place, "the process has ended")
            place = self._places[name] = _Place(row["pid"])
        if "error" in row:  # nothing is known of it: what hangs is the business of gateway.watch
            _log.info("audit_incomplete", process=name, pid=place.pid, error=row["error"])
            return False
        found = {_key(finding): finding for finding in row["findings"]}
        new = [key for key in found if key in place.seen and key not in place.told]
        if new:
            self._say_differs(name, place, [found[key] for key in new], row["finding_count"])
        elif not found:
            self._say_closes(name, place, "nothing is found any more")
        first_seen = found.keys() - place.seen
        place.told = (place.told | set(new)) & found.keys()
        place.seen = set(found)
        return bool(first_seen)

    def _say_differs(self, name: str, place: _Place, findings: list[Report], count: int) -> None:
        _log.warning(
            "ledger_differs",
            process=name,
            pid=place.pid,
            findings=[_said(finding) for finding in findings[:TOLD_MAX]],
            new=len(findings),
            all=count,
        )
        told = {"findings": findings[:TOLD_MAX], "new": len(findings), "all": count}
        self._tell(self._event("ledger_differs", name, place) | told)

    def _say_closes(self, name: str, place: _Place, reason: str) -> None:
        """Only after it was told that it does not."""
        if not place.told:
            return
        _log.info("ledger_closes", process=name, pid=place.pid, reason=reason)
        self._tell(self._event("ledger_closes", name, place) | {"reason": reason})

    def _event(self, event: str, process: str, place: _Place) -> dict[str, Any]:
        return {"event": event, "time": time.time(), "node": self._node, "process": process, "pid": place.pid}


def _key(finding: Report) -> Key:
    """What makes a finding the same in two audits: all but how much there was of it."""
    return finding["kind"], finding["key"], re.sub(r"\d+", "#", finding["what"]), finding["place"] or ""


def _said(finding: Report) -> str:
    """A finding in a line of the log."""
    return f"{finding['kind']} {finding['key']} {finding['what']} {finding['place'] or ''}".rstrip()
