"""The audit of one process: its data plane's walk, its control thread's account, and its descriptors, in one report."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from core import audit, descriptors
from core.owned import Account

WALK_DEADLINE_S = 20.0
# Between two looks at a descriptor that seems to be nobody's: it may just have been handed on.
AGAIN_S = 0.05


class Auditor:
    """Audits this process.

    Args:
        account: what the control thread holds.
        ask: says NOTE_AUDIT with this request to the data plane; None: this process has none.

    """

    def __init__(self, account: Account, ask: Callable[[int], None] | None = None) -> None:
        self._account = account
        self._ask = ask
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def on_note(self, request: int, text: bytes, extra: bytes) -> None:
        """NOTE_AUDITED came."""
        future = self._waiting.get(request)
        if future is not None and not future.done():
            future.set_result(audit.unpack(text, extra))

    async def audit(self) -> dict[str, Any]:
        """Everything, as `core.audit.unpack` says it but with all kinds and without `fds`.

        Raises:
            TimeoutError: the data plane did not answer within WALK_DEADLINE_S.

        """
        report = await self._walk()
        theirs = descriptors.from_bits(report["fds"])
        strangers = await asyncio.to_thread(self._account.strangers, theirs)  # no deadline: it only reads /proc
        if strangers:
            await asyncio.sleep(AGAIN_S)
            report = await self._walk()
            theirs = descriptors.from_bits(report["fds"])
            again = await asyncio.to_thread(self._account.strangers, theirs)  # no deadline: as above
            strangers = {fd: one for fd, one in strangers.items() if again.get(fd) == one}
        kinds, findings = self._account.audit()
        findings += [
            {"kind": "control_fd", "key": fd, "value": 0, "what": "is open and nobody's", "place": one.link}
            for fd, one in sorted(strangers.items())
        ]
        del report["fds"]
        report["kinds"] |= kinds
        report["findings"] += findings
        report["finding_count"] += len(findings)
        return report

    async def _walk(self) -> dict[str, Any]:
        """What the data plane found; of a process without one, nothing."""
        if self._ask is None:
            return {
                "kinds": {},
                "findings": [],
                "finding_count": 0,
                "sessions": 0,
                "channels": 0,
                "walked_us": 0,
                "links": [],
                "fds": b"",
            }
        request = next(self._requests)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        try:
            async with asyncio.timeout(WALK_DEADLINE_S):
                self._ask(request)
                return await future
        finally:
            del self._waiting[request]
