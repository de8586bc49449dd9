"""Who may not come in: the worker's own copy of the bans, which the router tells at each link and with each change.

While there is no router, the copy of before counts. A ban that is over is kept as long as there may be resume tokens
that were issued before it: they stay dead.
"""

from core.ban_list import Standing, told_unpacked
from core.codes import Code
from gateway.identity import AuthError


class Bans:
    """The bans, by user."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}

    def take(self, body: bytes, now_s: float, *, all_: bool) -> list[str]:
        """What the router tells: a change, or all of them; the users whose sessions have to end now."""
        told, before, now_ms = told_unpacked(body).standings, self._standings, now_s * 1000
        kept = {} if all_ else {user: one for user, one in before.items() if one.kept_ms > now_ms}
        self._standings = kept | {one.user: one for one in told}
        return [one.user for one in told if one.until_ms > now_ms and before.get(one.user) != one]

    def holds(self, user: str, now_s: float) -> Standing | None:
        """The ban of a user that holds now, if there is one."""
        one = self._standings.get(user)
        return one if one is not None and one.until_ms > now_s * 1000 else None

    def __len__(self) -> int:
        return len(self._standings)

    def check(self, user: str, now_s: float, issued_ms: int | None = None) -> None:
        """Refuse a banned user, and a resume token that a ban has killed.

        Args:
            user: who wants to come in.
            now_s: wall clock.
            issued_ms: when the resume token was issued; None: it comes with another token.

        Raises:
            AuthError: banned, or session_expired when the ban is over.

        """
        one = self._standings.get(user)
        if one is None:
            return
        if one.until_ms > now_s * 1000:
            raise AuthError(Code.BANNED, one.reason or "this user is banned")
        if issued_ms is not None and issued_ms <= one.since_ms:
            raise AuthError(Code.SESSION_EXPIRED, "this session ended with a ban")
