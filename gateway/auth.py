"""Who a client is: HELLO tokens (JWT, HS256) and the resume tokens that every worker of a node can check.

joserfc judges tokens. One that is made as nearly all are, under a header that joserfc found good before, is recognised
by the few steps that are left then, at a fifth of the cost (ADR 10); whatever is not plainly good goes to joserfc.
"""

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass

import msgpack
import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from core.codes import Code

USER_BYTES_MAX = 250  # `user:` and the id together are a channel's name, at most 255 bytes
_MAC_BYTES = 16
_PLAIN_BYTES_MAX = 4_096  # of a token that is looked at before joserfc does
_HEADERS_MAX = 64  # an issuer has one or two
_SHA256_BLOCK_BYTES = 64
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/***")  # what is not base64url becomes what is not base64
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# By the characters missing from a group of four: the last one that leaves no bits over (RFC 4648, section 3.5).
_LAST = (_ALPHABET, b"AEIMQUYcgkosw048", b"AQgw", b"")


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


class _Claims(msgspec.Struct):
    """What is read of a token's payload; the rest is the issuer's own."""

    sub: str
    exp: int | float | None = None
    nbf: int | float | None = None


_claims = msgspec.json.Decoder(_Claims)
_Claimed = tuple[object, object, object]  # exp, nbf and sub


class Mac:
    """HMAC-SHA256 (RFC 2104) under one key: what only the key decides is hashed once, not for every message."""

    def __init__(self, key: bytes) -> None:
        block = (hashlib.sha256(key).digest() if len(key) > _SHA256_BLOCK_BYTES else key).ljust(
            _SHA256_BLOCK_BYTES, b"\0"
        )
        self._inner = hashlib.sha256(block.translate(_INNER_PAD))
        self._outer = hashlib.sha256(block.translate(_OUTER_PAD))

    def __call__(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


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
        self._mac = Mac(signing)
        self._resume_mac = Mac(self._mac(b"holdfast resume token"))
        self._resume_ttl_s = resume_ttl_s
        self._headers: set[bytes] = set()  # of tokens that joserfc found good

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
            expires, not_before, user = self._plain(token.encode()) or self._judged(token, self._key)
        except (JoseError, ValueError) as error:
            raise AuthError(Code.BAD_TOKEN, f"the token is not accepted: {type(error).__name__}") from error
        if expires is not None and not (isinstance(expires, (int, float)) and expires > now_s):
            raise AuthError(Code.TOKEN_EXPIRED, "the token's time is over")
        if not_before is not None and not (isinstance(not_before, (int, float)) and not_before <= now_s):
            raise AuthError(Code.BAD_TOKEN, "the token's time has not come")
        return _checked(user)

    def _plain(self, token: bytes) -> _Claimed | None:
        """What a token of the usual make says; None: another, or not a good one: joserfc decides."""
        signed, _, signature = token.rpartition(b".")
        header, _, payload = signed.partition(b".")
        missing = -len(payload) % 4
        if header not in self._headers or len(token) > _PLAIN_BYTES_MAX or payload[-1:] not in _LAST[missing]:
            return None
        mac = binascii.b2a_base64(self._mac(signed), newline=False).translate(_TO_URL, b"=")
        if not hmac.compare_digest(mac, signature):
            return None
        try:
            text = binascii.a2b_base64(payload.translate(_FROM_URL) + b"==="[:missing], strict_mode=True)
            claims = _claims.decode(text)
        except ValueError:
            return None
        return claims.exp, claims.nbf, claims.sub

    def _judged(self, token: str, key: OctKey) -> _Claimed:
        """What any token says, by joserfc.

        Raises:
            JoseError, ValueError: it is not ours, or no token.

        """
        judged = jwt.decode(token, key, algorithms=["HS256"])
        # A header that is good is good in the next token too, unless it changes how the rest is read.
        if len(self._headers) < _HEADERS_MAX and not {"b64", "crit"} & judged.header.keys():
            self._headers.add(token.partition(".")[0].encode())
        return judged.claims.get("exp"), judged.claims.get("nbf"), judged.claims.get("sub")

    def resume_token(self, session: bytes, user: str, now_s: float) -> str:
        """A signed, short-lived token that resumes `session`."""
        body: bytes = msgpack.packb([session, user, int(now_s) + self._resume_ttl_s])
        return base64.urlsafe_b64encode(self._resume_mac(body)[:_MAC_BYTES] + body).decode()

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
        if not hmac.compare_digest(mac, self._resume_mac(body)[:_MAC_BYTES]):
            raise AuthError(Code.BAD_TOKEN, "the resume token is not signed by this gateway")
        held, user, expires = msgpack.unpackb(body)
        if held.hex() != session:
            raise AuthError(Code.BAD_TOKEN, "the resume token is another session's")
        if expires <= now_s:
            raise AuthError(Code.SESSION_EXPIRED, "the resume token's time is over")
        return Resumed(held, user)


def node_key(router_endpoint: str) -> bytes:
    """The development-mode key: the run directory in the endpoint has a random name that only its owner can read."""
    return hashlib.sha256(router_endpoint.encode()).digest()


def _checked(user: object) -> str:
    try:
        size = len(user.encode()) if isinstance(user, str) else 0
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        size = 0
    if not isinstance(user, str) or not 0 < size <= USER_BYTES_MAX:
        raise AuthError(Code.BAD_TOKEN, f"a user id is a string of 1 to {USER_BYTES_MAX} bytes")
    return user
