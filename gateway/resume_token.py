"""Resume tokens: signed by the gateway, short-lived, good on every worker that has the same secret.

A connection may have been open for longer than its token was good by itself: within `age_max_s` such a token resumes
the session if that is still stored, which the router tells (`Resumed.if_alive`).

One carries all that the session's credentials said, and when they end: nobody gets more by resuming than the token of
the HELLO gave. It carries when it was issued, too, so that a ban kills it for good (`gateway.bans`).

A token that has the form of one and another signature is most often one of before: `auth.secret` was changed, or the
key of development mode is lost. Its client is sent back to its own token (session_expired), not away (bad_token).
"""

import base64
import hmac
import logging
from dataclasses import dataclass

import msgpack

from core.codes import Code
from gateway.identity import AuthError, Identity
from gateway.mac import Mac
from gateway.rights import Rights

_MAC_BYTES = 16
_FIELDS = 7
TOLD_EVERY_S = 60.0

_log = logging.getLogger("holdfast.resume")


@dataclass(frozen=True)
class Resumed:
    """What a resume token proves."""

    session: bytes
    identity: Identity
    issued_ms: int
    if_alive: bool = False
    """The token is older than it is good by itself: the session counts, if it is stored and has not expired."""

    @property
    def user(self) -> str:
        """Of the session."""
        return self.identity.user


class ResumeTokens:
    """Makes and checks them.

    Args:
        mac: under the gateway's secret.
        ttl_s: how long one is good by itself.
        age_max_s: how long at most, of a session that is still there.

    """

    def __init__(self, mac: Mac, ttl_s: int, age_max_s: int) -> None:
        self._mac = Mac(mac(b"holdfast resume token"))
        self._ttl_s = ttl_s
        self._age_max_ms = age_max_s * 1000
        self._strange = 0
        self._told_s = float("-inf")

    def make(self, session: bytes, of: Identity, now_s: float) -> str:
        """A token that resumes `session`."""
        body: bytes = msgpack.packb(
            [session, of.user, int(now_s) + self._ttl_s, int(now_s * 1000), of.device, of.rights.packed(), of.expires_s]
        )
        return base64.urlsafe_b64encode(self._mac(body)[:_MAC_BYTES] + body).decode()

    def check(self, session: object, token: object, now_s: float) -> Resumed:
        """What a HELLO with `session` and `token` resumes.

        Raises:
            AuthError: bad_token; token_expired when the credentials have ended; session_expired when the token has, or
                when it is signed by a key that is not known.

        """
        if not isinstance(session, str) or not isinstance(token, str):
            raise AuthError(Code.BAD_TOKEN, "resuming needs the session and its resume token")
        try:
            whole = base64.b64decode(token.encode(), b"-_", validate=True)
        except ValueError as error:
            raise AuthError(Code.BAD_TOKEN, "the resume token is malformed") from error
        if len(whole) <= _MAC_BYTES:
            raise AuthError(Code.BAD_TOKEN, "the resume token is malformed: it is too short")
        mac, body = whole[:_MAC_BYTES], whole[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)[:_MAC_BYTES]):
            self._count_strange(now_s)
            raise AuthError(Code.SESSION_EXPIRED, "the resume token is not signed by a key of this gateway's")
        fields = msgpack.unpackb(body)
        if len(fields) != _FIELDS:
            raise AuthError(Code.SESSION_EXPIRED, "the resume token is of another version of the gateway")
        held, user, until_s, issued_ms, device, rights, expires_s = fields
        if held.hex() != session:
            raise AuthError(Code.BAD_TOKEN, "the resume token is another session's")
        if expires_s is not None and expires_s <= now_s:
            raise AuthError(Code.TOKEN_EXPIRED, "the time of the token that began the session is over")
        if_alive = until_s <= now_s
        if if_alive and issued_ms + self._age_max_ms <= now_s * 1000:
            raise AuthError(Code.SESSION_EXPIRED, "the resume token's time is over")
        return Resumed(held, Identity(user, device, Rights.unpacked(rights), expires_s), issued_ms, if_alive)

    def _count_strange(self, now_s: float) -> None:
        """Say that tokens of an unknown key come, at most once in TOLD_EVERY_S."""
        self._strange += 1
        if now_s - self._told_s < TOLD_EVERY_S:
            return
        said = "%d resume tokens were not signed by a key of this gateway's (is auth.secret another?): session_expired"
        _log.warning(said, self._strange)
        self._strange, self._told_s = 0, now_s
