"""What a worker does about credentials while it runs: ends the sessions of who is banned, and reads keys again.

A HELLO that was decided just before the ban may still be on its way to its WELCOME, where nobody finds it by its user:
so sessions are looked for again, until whatever was under way must be open or gone.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from core.codes import Code
from core.owned import ACCOUNT, Held
from gateway import logs
from gateway.auth import Authenticator
from gateway.errors import ConfigError
from gateway.listing import Listing
from gateway.token_keys import KeyFile

KEYS_LOOK_S = 5.0
_AGAIN_S = 1.0
REASON = "this user is banned"

_log = logs.get("worker")


class Guard:
    """One worker's.

    Args:
        auth: what checks credentials.
        listing: what ends sessions.
        key_file: where the public keys are; None: there are none.
        clock: wall clock, in seconds.
        request_timeout_s: after which a HELLO that waits for the router is given up.

    """

    def __init__(
        self,
        auth: Authenticator,
        listing: Listing,
        key_file: KeyFile | None,
        *,
        clock: Callable[[], float],
        request_timeout_s: float,
    ) -> None:
        self._auth = auth
        self._listing = listing
        self._key_file = key_file
        self._clock = clock
        self._pauses_s = (0.0, _AGAIN_S, request_timeout_s)
        self._held: Held | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Look at the file of keys from now on."""
        self._held = ACCOUNT.hold("handle", "the guard", object_=self)
        if self._key_file is not None:
            self._begin(self._watch(), "keys")

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_AGAIN_S)
        if self._held is not None:
            self._held.close()

    def on_bans(self, body: bytes, *, all_: bool) -> None:
        """A word of the router about bans."""
        users = self._auth.bans.take(body, self._clock(), all_=all_)
        for user in users:
            self._auth.forget(user)
        if users:
            self._begin(self._end(users), "end banned sessions")

    def look_at_keys(self) -> None:
        """Read the keys again if their file has changed; what cannot be read changes nothing."""
        if self._key_file is None or not self._key_file.changed():
            return
        try:
            keys = self._key_file.read()
        except ConfigError as error:
            _log.error("keys_not_read", why=str(error), then="those of before stay")
            return
        self._auth.replace_keys(keys)
        _log.info("keys_read", keys=len(keys))

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = ACCOUNT.task(work, name, owner=self._held)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, users: Sequence[str]) -> None:
        for pause_s in self._pauses_s:
            await asyncio.sleep(pause_s)
            for user in users:
                ban = self._auth.bans.holds(user, self._clock())
                if ban is not None:
                    await self._end_sessions(user, ban.reason or REASON)

    async def _end_sessions(self, user: str, reason: str) -> None:
        more = True
        try:
            while more:
                said = await self._listing.reclaim(code=int(Code.BANNED), reason=reason, after_ms=0, user=user)
                more = said["more"] and bool(said["connections"])
                if said["connections"]:
                    _log.info("banned_sessions_ended", user=user, count=len(said["connections"]))
        except TimeoutError:
            _log.error("banned_sessions_left", user=user, why="the data plane does not answer")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(KEYS_LOOK_S)
            self.look_at_keys()
