"""Who a client is: HELLO tokens (JWT, HS256) and the resume tokens that every worker of a node can check."""

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass

import msgpack
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from core.codes import Code

USER_BYTES_MAX = 250  # `user:` and the id together are a channel's name, at most 255 bytes
_MAC_BYTES = 16


class AuthError(Exception):
    """A client that may not come in; `code` says why on the wire."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Resumed:
    """What a resume token proves."""

    session: bytes
    user: str


class Authenticator:
    """Checks tokens; the clock is an argument of every check."""

    def __init__(self, secret: str | None, *, node_key: bytes, resume_ttl_s: int) -> None:
        """Set up for one worker.

        Args:
            secret: checks HS256 tokens; None is development mode, in which HELLO may name any user.
            node_key: signs resume tokens in development mode; shared by the workers of a node, unknown to others.
            resume_ttl_s: seconds for which a resume token is good.

        """
        self._key = None if secret is None else OctKey.import_key(secret)
        signing = node_key if secret is None else secret.encode()
        self._resume_key = hmac.digest(signing, b"holdfast resume token", "sha256")
        self._resume_ttl_s = resume_ttl_s

    def user_of(self, token: object, named: object, now_s: float) -> str:
        """The user of a fresh HELLO.

        Raises:
            AuthError: bad_token or token_expired.

        """
        if self._key is None:
            return f"guest-{os.urandom(4).hex()}" if named is None else _checked(named)
        if not isinstance(token, str):
            raise AuthError(Code.BAD_TOKEN, "HELLO needs a token")
        try:
            claims = jwt.decode(token, self._key, algorithms=["HS256"]).claims
        except (JoseError, ValueError) as error:
            raise AuthError(Code.BAD_TOKEN, f"the token is not accepted: {type(error).__name__}") from error
        expires = claims.get("exp")
        if expires is not None and (not isinstance(expires, (int, float)) or expires <= now_s):
            raise AuthError(Code.TOKEN_EXPIRED, "the token's time is over")
        not_before = claims.get("nbf")
        if not_before is not None and (not isinstance(not_before, (int, float)) or not_before > now_s):
            raise AuthError(Code.BAD_TOKEN, "the token's time has not come")
        return _checked(claims.get("sub"))

    def resume_token(self, session: bytes, user: str, now_s: float) -> str:
        """A signed, short-lived token that resumes `session`."""
        body: bytes = msgpack.packb([session, user, int(now_s) + self._resume_ttl_s])
        return base64.urlsafe_b64encode(self._mac(body) + body).decode()

    def resumed(self, session: object, token: object, now_s: float) -> Resumed:
        """What a HELLO with `session` and `token` resumes.

        Raises:
            AuthError: bad_token, or session_expired when the token was good once.

        """
        if not isinstance(session, str) or not isinstance(token, str):
            raise AuthError(Code.BAD_TOKEN, "resuming needs the session and its resume token")
        try:
            whole = base64.urlsafe_b64decode(token.encode())
        except ValueError as error:
            raise AuthError(Code.BAD_TOKEN, "the resume token is malformed") from error
        mac, body = whole[:_MAC_BYTES], whole[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise AuthError(Code.BAD_TOKEN, "the resume token is not signed by this gateway")
        held, user, expires = msgpack.unpackb(body)
        if held.hex() != session:
            raise AuthError(Code.BAD_TOKEN, "the resume token is another session's")
        if expires <= now_s:
            raise AuthError(Code.SESSION_EXPIRED, "the resume token's time is over")
        return Resumed(held, user)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._resume_key, body, "sha256")[:_MAC_BYTES]


def node_key(router_endpoint: str) -> bytes:
    """The development-mode key: the run directory in the endpoint has a random name that only its owner can read."""
    return hashlib.sha256(router_endpoint.encode()).digest()


def _checked(user: object) -> str:
    if not isinstance(user, str) or not user or len(user.encode()) > USER_BYTES_MAX:
        raise AuthError(Code.BAD_TOKEN, f"a user id is a string of 1 to {USER_BYTES_MAX} bytes")
    return user
