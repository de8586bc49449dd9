"""Who a client is: by its HELLO token, by its resume token, or, in development mode, by what it says."""

import hashlib
import os
from collections.abc import Iterable

from core.ban_list import RESUME_AGE_MAX_MS
from core.codes import Code
from gateway.bans import Bans
from gateway.identity import USER_BYTES_MAX as USER_BYTES_MAX
from gateway.identity import AuthError as AuthError
from gateway.identity import Identity
from gateway.mac import Mac
from gateway.resume_token import Resumed, ResumeTokens
from gateway.token_keys import Key
from gateway.token_policy import Policy
from gateway.tokens import Tokens, checked_user


class Authenticator:
    """Checks credentials; the clock is an argument of every check."""

    def __init__(
        self,
        secret: str | None,
        *,
        node_key: bytes,
        resume_ttl_s: int,
        resume_age_max_s: int = RESUME_AGE_MAX_MS // 1000,
        policy: Policy | None = None,
        keys: Iterable[Key] = (),
        bans: Bans | None = None,
    ) -> None:
        """Set up for one worker.

        Args:
            secret: checks HS256 tokens and signs resume tokens; None is development mode, in which HELLO may name any
                user.
            node_key: signs resume tokens in development mode; shared by the workers of a node, unknown to others.
            resume_ttl_s: seconds for which a resume token is good by itself.
            resume_age_max_s: and for which it is good while its session is there.
            policy: what HELLO tokens must be.
            keys: that check RS256 and ES256 tokens.
            bans: who may not come in; none: nobody is banned.

        """
        mac = Mac(node_key if secret is None else secret.encode())
        self.bans = Bans() if bans is None else bans  # one without bans has no length, and is one all the same
        self._tokens = None if secret is None else Tokens(secret, mac, policy or Policy(), keys)
        self._resume = ResumeTokens(mac, resume_ttl_s, resume_age_max_s)

    def identify(self, token: object, named: object, now_s: float) -> Identity:
        """Who says a fresh HELLO, with `token`; in development mode as `named`.

        Raises:
            AuthError: bad_token, token_expired or banned.

        """
        if self._tokens is None:
            identity = Identity(f"guest-{os.urandom(4).hex()}" if named is None else checked_user(named))
        elif isinstance(token, str):
            identity = self._tokens.check(token, now_s)
        else:
            raise AuthError(Code.BAD_TOKEN, "HELLO needs a token")
        self.bans.check(identity.user, now_s)
        return identity

    def refreshed(self, token: object, user: str, now_s: float) -> Identity:
        """Who the user of a live session is by its new token.

        Raises:
            AuthError: bad_token, token_expired, banned, or not_allowed when it is another user's.

        """
        identity = self.identify(token, user, now_s)
        if identity.user != user:
            raise AuthError(Code.NOT_ALLOWED, "the token is another user's than the session")
        return identity

    def resume_token(self, session: bytes, identity: Identity, now_s: float) -> str:
        """A signed, short-lived token that resumes `session`."""
        return self._resume.make(session, identity, now_s)

    def resumed(self, session: object, token: object, now_s: float) -> Resumed:
        """What a HELLO with `session` and `token` resumes.

        Raises:
            AuthError: bad_token, token_expired, session_expired or banned.

        """
        found = self._resume.check(session, token, now_s)
        self.bans.check(found.user, now_s, found.issued_ms)
        return found

    def replace_keys(self, keys: Iterable[Key]) -> None:
        """Other public keys from now on."""
        if self._tokens is not None:
            self._tokens.replace_keys(keys)

    def forget(self, user: str) -> None:
        """Nothing that was found of a user's tokens counts any more."""
        if self._tokens is not None:
            self._tokens.forget(user)


def node_key(known: str) -> bytes:
    """The development-mode key, from what only this node knows: its development key, or else the router's endpoint,
    whose run directory has a random name that only its owner can read.
    """
    return hashlib.sha256(known.encode()).digest()
