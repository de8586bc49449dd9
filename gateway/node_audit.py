"""The ledger of the whole node, and its audit: every process walks its tables.

What two processes know of each other is compared as well.

Sessions and subscriptions are known twice: to the worker whose client has them, and to the router. Between the two a
change is under way for a moment, so a difference counts only when it is there at every look, and as large as it was at
the smallest.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from core.auditor import WALK_DEADLINE_S, Auditor
from core.commands import CommandError
from core.owned import ACCOUNT
from gateway.child import Child, Totals
from gateway.child_process import ChildProcess

ASK_DEADLINE_S = 2 * WALK_DEADLINE_S + 5.0
DEADLINE_S = 4 * ASK_DEADLINE_S
LOOKS = 12
"""Under thousands of connects a second something is under way at most of them; when nothing is, no more are taken."""
BETWEEN_LOOKS_S = 0.15
_LEAVING = " that leaves, pid "

Report = dict[str, Any]


class NodeAudit:
    """Reads and audits the ledgers of a node's processes.

    Args:
        own: the supervisor's name and pid.
        totals: what the supervisor has counted.
        auditor: audits the supervisor itself.
        children: the places of the other processes.
        node: this node's name; its router may serve the workers of other nodes, which have pids of their own.

    """

    def __init__(
        self,
        own: tuple[str, int],
        totals: Callable[[], Totals],
        auditor: Auditor,
        children: Callable[[], list[Child]],
        node: str,
    ) -> None:
        self._node = node
        self._own = own
        self._totals = totals
        self._auditor = auditor
        self._children = children
        self._turn = asyncio.Lock()
        self.last: dict[str, int] = {}
        """What the last audit found, a count a process; who did not answer is left out. Empty before the first."""

    def ledger(self) -> Report:
        """What every process has counted: `{"processes": [{"process", "pid", "kinds": {kind: {...}}}, ...]}`."""
        rows: list[tuple[str, int | None, Totals]] = [(*self._own, self._totals())]
        rows += [(child.name, child.pid, child.totals()) for child in self._children()]
        return {"processes": [{"process": name, "pid": pid, "kinds": _kinds(totals)} for name, pid, totals in rows]}

    async def audit(self) -> Report:
        """The ledger with what the audit found: kinds have `found` and `difference` besides, a process `findings` and
        `walked_us`, or `error` when it did not answer. `closes` says whether everything is as it should be.
        """
        async with asyncio.timeout(DEADLINE_S), self._turn:
            reports = await self._ask_all()
            crossed = differences(reports, self._node)
            for _ in range(LOOKS - 1):
                if not crossed:
                    break
                await asyncio.sleep(BETWEEN_LOOKS_S)
                crossed = smaller(crossed, differences(await self._ask_all(crossed=True), self._node))
        told = self.ledger()
        for row in told["processes"]:
            _complete(row, _together([report for name, report in reports.items() if _place(name) == row["process"]]))
        for (name, kind), count in crossed.items():
            row = next(row for row in told["processes"] if row["process"] == _place(name))
            row["findings"].append(_crossed(name, kind, count))
            row["finding_count"] += 1
        self.last = {row["process"]: row["finding_count"] for row in told["processes"] if "error" not in row}
        told["closes"] = all(not row["findings"] and "error" not in row for row in told["processes"])
        return told

    async def _ask_all(self, *, crossed: bool = False) -> dict[str, Report]:
        """The report of each process by its name; with `crossed` of the children only."""
        processes: dict[str, Child | ChildProcess] = {}
        for child in self._children():
            processes[child.name] = child
            processes |= {f"{child.name}{_LEAVING}{process.pid}": process for process in child.leaving}
        asked = {name: ACCOUNT.task(_ask(process), f"audit of {name}") for name, process in processes.items()}
        if not crossed:
            asked[self._own[0]] = ACCOUNT.task(self._auditor.audit(), "audit of the supervisor")
        await asyncio.wait(asked.values(), timeout=ASK_DEADLINE_S + 1)
        reports = {name: task.result() if task.done() else _failed("no answer in time") for name, task in asked.items()}
        for name, process in processes.items():
            if _LEAVING in name and process.pid is None:
                del reports[name]  # it has ended meanwhile, and nothing of it is left to be audited
        return reports


def _place(name: str) -> str:
    """The place that a process is in or leaves."""
    return name.partition(_LEAVING)[0]


async def _ask(process: Child | ChildProcess) -> Report:
    pid = process.pid
    try:
        answer: Report = await process.ask("audit", deadline_s=ASK_DEADLINE_S)
    except (CommandError, ConnectionError, TimeoutError) as error:
        return _failed(str(error) or "no answer in time")
    return {**answer, "pid": pid}


def _together(reports: list[Report]) -> Report:
    """What was found in all processes of a place."""
    if not reports:
        return _failed("it was not asked")
    told, *others = reports
    for other in others:
        kinds = {**told["kinds"]}
        for kind, counts in other["kinds"].items():
            before = kinds.get(kind, {})
            kinds[kind] = {name: count + before.get(name, 0) for name, count in counts.items()}
        told = {**told, **{name: other[name] for name in ("error",) if name in other}, "kinds": kinds}
        for name in ("findings", "finding_count", "walked_us"):
            told[name] = told[name] + other[name]
    return told


def _failed(why: str) -> Report:
    return {"error": why, "kinds": {}, "findings": [], "finding_count": 0, "links": [], "walked_us": 0}


def _kinds(totals: Totals) -> dict[str, dict[str, int]]:
    return {
        kind: {
            "opened": opened,
            "closed": totals.closed[kind],
            "lost": totals.lost[kind],
            "live": totals.live[kind],
        }
        for kind, opened in totals.opened.items()
    }


def _complete(row: Report, report: Report) -> None:
    """Put what a process's audit found beside its ledger."""
    for kind, audited in report["kinds"].items():
        row["kinds"][kind]["found"] = audited["found"]
        row["kinds"][kind]["difference"] = audited["found"] - (audited["opened"] - audited["closed"])
    row |= {name: report[name] for name in ("findings", "finding_count", "walked_us", "error") if name in report}


# ------------------------------------------------------------------------------------------------- between processes


def differences(reports: dict[str, Report], node: str) -> dict[tuple[str, str], int]:
    """How many more sessions and subscriptions the routers know of each worker than that worker has, where not 0."""
    links = [link for name, report in reports.items() if name.startswith("router") for link in report.get("links", [])]
    found = {}
    for name, report in reports.items():
        pid = report.get("pid")
        ours = [link for link in links if link["identity"].startswith(f"{node}/")]
        mine = [link for link in ours if pid is not None and link["identity"].endswith(f"-{pid}")]
        if not mine or "error" in report:
            continue
        for kind, has in (("session", "sessions"), ("subscription", "channels")):
            known = sum(link[f"{kind}s"] for link in mine)
            if known != report[has]:
                found[name, kind] = known - report[has]
    return found


def smaller(one: dict[tuple[str, str], int], other: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """What two looks have in common: differences in the same direction, each as small as it was seen."""
    return {
        place: min(count, other[place], key=abs)
        for place, count in one.items()
        if place in other and (count > 0) == (other[place] > 0)
    }


def _crossed(name: str, kind: str, count: int) -> Report:
    what = f"{abs(count)} {kind}s of {name} are known to {'the router' if count > 0 else name} alone"
    return {"kind": kind, "key": 0, "value": count, "what": what, "place": f"router and {name}"}
