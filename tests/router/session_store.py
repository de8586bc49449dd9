"""What of a log sessions need, for their tests."""

import asyncio
from collections.abc import Sequence

from router.log.port import Changes, Position, Session


class Store:
    """What of a log sessions need, in memory; `gate` holds it up, `fails` makes it refuse."""

    def __init__(self) -> None:
        self.stored: dict[bytes, Session] = {}
        self.marks: dict[str, Position] = {}
        self.dated: dict[bytes, bytes] = {}
        self.saves: list[Changes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Exception | None = None
        self.asked = asyncio.Event()

    async def _pass(self) -> None:
        self.asked.set()
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails

    async def save(self, changes: Changes) -> None:
        await self._pass()
        self.saves.append(changes)
        for session, change in changes.sessions.items():
            if change.ended:
                self.stored.pop(session, None)
            if change.date and (change.ended or change.opened is not None or session in self.stored):
                self.dated[session] = change.date
            before = self.stored.get(session)
            if before is None and change.opened is None:
                continue
            before = before or Session(b"", 0, {})
            channels = change.channels_after(before.channels)
            expires_ms = change.expires_ms or before.expires_ms
            self.stored[session] = Session(change.opened or before.opened, expires_ms, channels)
        for name, position in changes.cursors.items():
            self.marks[name] = max(self.marks.get(name, position), position)

    async def sessions(self, ids: Sequence[bytes]) -> list[Session | None]:
        await self._pass()
        return [self.stored.get(one) for one in ids]

    async def dates(self, ids: Sequence[bytes]) -> list[bytes]:
        await self._pass()
        return [self.dated.get(one, b"") for one in ids]

    async def cursors(self, channels: Sequence[str]) -> list[Position | None]:
        await self._pass()
        return [self.marks.get(one) for one in channels]
