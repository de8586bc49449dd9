"""Bans: the router's control thread decides, stores and tells; its data plane passes on (core/bans.pxd).

A ban is told when the log has it and not before, so that none is believed in that a restart would forget. What cannot
be stored is answered to whoever asked, and changes nothing. Wishes are taken one after the other. What finds no room on
its way to the data plane is kept and told as soon as there is some, in its order.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from core.ban_list import BANS_MAX, REASON_BYTES_MAX, USER_BYTES_MAX, Standing, Wish, told_packed, wish_unpacked
from core.owned import ACCOUNT, Held, end_tasks
from router.log.port import Ban, LogError
from router.plane import ROOM_S

WISHES_MAX = 256
UNAVAILABLE, OVERLOADED, TOO_MANY, NOT_BANNED, BAD_REQUEST = (
    "unavailable",
    "overloaded",
    "too_many_bans",
    "not_banned",
    "bad_request",
)
_log = logging.getLogger("holdfast.bans")


class BanStore(Protocol):
    """What is needed of the log; see `router.log.port.Log` for what these raise."""

    async def ban(self, ban: Ban) -> None:
        """Stores one."""

    async def bans(self) -> list[Ban]:
        """All that are kept."""
        ...


class MemoryStore:
    """Bans that last as long as the router: for one without a log."""

    def __init__(self) -> None:
        self._bans: dict[str, Ban] = {}

    async def ban(self, ban: Ban) -> None:
        """Stores one."""
        self._bans[ban.user] = ban

    async def bans(self) -> list[Ban]:
        """All that are kept."""
        return list(self._bans.values())


class BanKeeper:
    """The bans of one router.

    Args:
        store: where they survive.
        say: tells the data plane a change (may be empty) and all of them; BufferError: it has no room now.
        clock: wall clock, in seconds.

    """

    def __init__(self, store: BanStore, say: Callable[[bytes, bytes], None], *, clock: Callable[[], float]) -> None:
        self._store = store
        self._say = say
        self._clock = clock
        self._standings: dict[str, Standing] = {}
        self._wishes: asyncio.Queue[Wish] = asyncio.Queue(WISHES_MAX)
        self._untold: deque[bytes] = deque()
        self._telling: asyncio.TimerHandle | None = None
        self._others = asyncio.Event()
        """Others stored something."""
        self._held: Held | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def load(self) -> None:
        """Read what is stored, before workers link.

        Raises:
            LogError: it cannot be read.

        """
        self._standings = {one.user: _standing(one) for one in await self._store.bans()}
        self._tell(b"")

    def start(self, reread_s: float = 0.0) -> None:
        """Take wishes from now on, and every `reread_s` what other routers stored; 0: there are no others."""
        self._held = ACCOUNT.hold("handle", "the keeper of bans", object_=self)
        self._tasks = [ACCOUNT.task(self._run(), "bans", owner=self._held)]
        if reread_s:
            self._tasks.append(ACCOUNT.task(self._reread_always(reread_s), "bans of other routers", owner=self._held))

    async def close(self) -> None:
        """Give up what is under way."""
        if self._telling is not None:
            self._telling.cancel()
        await end_tasks(self._tasks)
        if self._held is not None:
            self._held.close()

    def on_wish(self, body: bytes) -> None:
        """A worker's or the admin API's wish."""
        try:
            wish = wish_unpacked(body)
            sound = type(wish.ask) is int and type(wish.until_ms) is int and 0 <= wish.until_ms < 2**63
            sound = sound and 0 < len(wish.user.encode()) <= USER_BYTES_MAX
            sound = sound and len(wish.reason.encode()) <= REASON_BYTES_MAX
        except (ValueError, TypeError, AttributeError):
            return  # no peer of this version says this, and there is nobody to answer
        if len(self._untold) >= WISHES_MAX:
            _log.warning("a wish about the bans is passed over: the data plane takes no answers")
            return
        if not sound:
            self._refuse(wish, BAD_REQUEST)
            return
        try:
            self._wishes.put_nowait(wish)
        except asyncio.QueueFull:
            self._refuse(wish, OVERLOADED)

    async def _run(self) -> None:
        while True:
            wish = await self._wishes.get()  # no deadline: until somebody has a wish
            await self._fulfil(wish)

    async def _fulfil(self, wish: Wish) -> None:
        now_ms = int(self._clock() * 1000)
        self._standings = {user: one for user, one in self._standings.items() if one.kept_ms > now_ms}
        known = self._standings.get(wish.user)
        if wish.until_ms <= now_ms:
            if known is None or known.until_ms <= now_ms:
                self._refuse(wish, NOT_BANNED)
                return
            standing = known._replace(until_ms=now_ms)
        else:
            standing = Standing(wish.user, now_ms, wish.until_ms, wish.reason)
        if known is None and len(self._standings) >= BANS_MAX:
            self._refuse(wish, TOO_MANY)
            return
        try:
            await self._store.ban(Ban(standing.user, standing.until_ms, standing.reason, standing.since_ms))
        except LogError:
            self._refuse(wish, UNAVAILABLE)
            return
        self._standings[wish.user] = standing
        self._tell(told_packed(wish.ask, "", [standing]))

    def reread_soon(self) -> None:
        """Others stored something just now."""
        self._others.set()

    async def _reread_always(self, every_s: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._others.wait()
            self._others.clear()
            try:
                await self.reread()
            except LogError as error:
                _log.debug("bans of other routers are not read now: %s", error)

    async def reread(self) -> None:
        """Take what other routers stored, and tell it. What was stored from here meanwhile is newer than what is read.

        Raises:
            LogError: it cannot be read.

        """
        before = dict(self._standings)
        found = [_standing(one) for one in await self._store.bans()]
        changed = [one for one in found if before.get(one.user) != one]
        changed = [one for one in changed if self._standings.get(one.user) == before.get(one.user)]
        if changed and not self._untold:  # else they are read again soon
            self._standings |= {one.user: one for one in changed}
            self._tell(told_packed(0, "", changed))

    def _refuse(self, wish: Wish, why: str) -> None:
        self._tell(told_packed(wish.ask, why, []))

    def _tell(self, change: bytes) -> None:
        self._untold.append(change)
        if len(self._untold) == 1:
            self._tell_untold()

    def _tell_untold(self) -> None:
        while self._untold:
            try:
                self._say(self._untold[0], told_packed(0, "", self._standings.values()))
            except BufferError:
                self._telling = asyncio.get_running_loop().call_later(ROOM_S, self._tell_untold)
                return
            self._untold.popleft()


def _standing(ban: Ban) -> Standing:
    return Standing(ban.user, ban.since_ms, ban.until_ms, ban.reason)
