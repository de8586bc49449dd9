"""HELLO tokens: JWT signed by the team's own backend, with HS256, RS256 or ES256.

PyJWT judges signatures. An algorithm has its own keys and a token names the algorithm only, so that none can be checked
with a key of another kind, and `none` with nothing. What was found good once is found again by its digest until it
ends; an HS256 token that is made as nearly all are, under a header that was good before, is recognised by the few steps
that are left then (ADR 10). Whatever is not plainly good there goes the long way.
"""

import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from core.codes import Code
from gateway.identity import USER_BYTES_MAX, AuthError, Identity
from gateway.mac import Mac
from gateway.rights import Rights
from gateway.token_keys import Key
from gateway.token_policy import Policy

TOKEN_BYTES_MAX = 16_384
DEVICE_BYTES_MAX = 32
CACHE_MAX = 8_192
ALGORITHMS = ("HS256", "RS256", "ES256")
_HEADERS_MAX = 64  # an issuer has one or two
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/***")  # what is not base64url becomes what is not base64
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# By the characters missing from a group of four: the last one that leaves no bits over (RFC 4648, section 3.5).
_LAST = (_ALPHABET, b"AEIMQUYcgkosw048", b"AQgw", b"")


class _Header(msgspec.Struct):
    """What is read of a token's header."""

    alg: str
    kid: str | None = None
    crit: msgspec.Raw | None = None
    b64: msgspec.Raw | None = None


class _Claims(msgspec.Struct):
    """What is read of a token's payload; the rest is the issuer's own."""

    sub: str
    exp: int | float | None = None
    nbf: int | float | None = None
    iat: int | float | None = None
    iss: str | None = None
    aud: str | list[str] | None = None
    dev: str | None = None
    channels: list[str] | None = None
    publish: list[str] | None = None


_header = msgspec.json.Decoder(_Header)
_claims = msgspec.json.Decoder(_Claims)
_jws = jwt.PyJWS()


class Tokens:
    """Checks tokens; the clock is an argument of every check."""

    def __init__(self, secret: str, mac: Mac, policy: Policy, keys: Iterable[Key] = ()) -> None:
        """Set up.

        Args:
            secret: of HS256.
            mac: under that secret.
            policy: what a token must be beside signed.
            keys: of the other algorithms.

        """
        self._secret = secret.encode()
        self._mac = mac
        self._policy = policy
        self._keys = tuple(keys)
        self._headers: set[bytes] = set()  # of HS256 tokens that PyJWT found good
        self._known: dict[bytes, tuple[Identity, float]] = {}  # by digest, with the time from which it is good

    def replace_keys(self, keys: Iterable[Key]) -> None:
        """Other keys from now on; what the old ones found good has to be found so again."""
        self._keys = tuple(keys)
        self._known.clear()

    def forget(self, user: str) -> None:
        """Tokens of a user are checked anew."""
        for digest in [digest for digest, (known, _) in self._known.items() if known.user == user]:
            del self._known[digest]

    def check(self, token: str, now_s: float) -> Identity:
        """Whose token it is.

        Raises:
            AuthError: bad_token or token_expired.

        """
        try:
            given = token.encode()
        except UnicodeEncodeError as error:
            raise AuthError(Code.BAD_TOKEN, "the token is malformed") from error
        digest = hashlib.sha256(given).digest()
        identity, begins_s = self._known.get(digest) or self._read(given)
        if identity.expires_s is not None and not identity.expires_s > now_s:
            self._known.pop(digest, None)
            raise AuthError(Code.TOKEN_EXPIRED, "the token's time is over")
        if not begins_s <= now_s:
            raise AuthError(Code.BAD_TOKEN, "the token's time has not come")
        if digest not in self._known:
            while len(self._known) >= CACHE_MAX:
                del self._known[next(iter(self._known))]
            self._known[digest] = identity, begins_s
        return identity

    # -------------------------------------------------------------------------------------------------- signatures

    def _read(self, token: bytes) -> tuple[Identity, float]:
        """What a token says, and from when on it is good."""
        if len(token) > TOKEN_BYTES_MAX:
            raise AuthError(Code.BAD_TOKEN, f"the token is longer than {TOKEN_BYTES_MAX} bytes")
        payload = self._plain(token)
        if payload is None:
            payload = self._judged(token)
        try:
            return self._meant(_claims.decode(payload))
        except ValueError as error:
            raise AuthError(Code.BAD_TOKEN, f"the token's claims are not as they must be: {error}") from error

    def _plain(self, token: bytes) -> bytes | None:
        """The payload of an HS256 token of the usual make; None: another, or not a good one: PyJWT decides."""
        signed, _, signature = token.rpartition(b".")
        header, _, payload = signed.partition(b".")
        if header not in self._headers:
            return None
        mac = binascii.b2a_base64(self._mac(signed), newline=False).translate(_TO_URL, b"=")
        if not hmac.compare_digest(mac, signature):
            return None
        try:
            return _decoded(payload)
        except ValueError:
            return None

    def _judged(self, token: bytes) -> bytes:
        """The payload of any token, by PyJWT."""
        parts = token.split(b".")
        if len(parts) != 3:
            raise AuthError(Code.BAD_TOKEN, "the token is no JWT: it has three parts with dots between them")
        try:
            head, _, _ = (_decoded(part) for part in parts)
            header = _header.decode(head)
        except ValueError as error:
            raise AuthError(Code.BAD_TOKEN, f"the token is malformed: {error}") from error
        if header.alg not in self._policy.algorithms or header.alg not in ALGORITHMS:
            allowed = ", ".join(self._policy.algorithms)
            raise AuthError(Code.BAD_TOKEN, f"the token is not signed by an algorithm of this gateway's: {allowed}")
        if header.crit is not None or header.b64 is not None:
            raise AuthError(Code.BAD_TOKEN, "the token's header asks for an extension that is not served")
        for key in self._candidates(header):
            try:
                payload: bytes = _jws.decode_complete(token, key, algorithms=[header.alg])["payload"]
            except jwt.PyJWTError:
                continue
            if header.alg == "HS256" and len(self._headers) < _HEADERS_MAX:
                self._headers.add(parts[0])  # a header that is good is good in the next token too
            return payload
        raise AuthError(Code.BAD_TOKEN, "the token is not signed by a key of this gateway's")

    def _candidates(self, header: _Header) -> Sequence[bytes | RSAPublicKey | EllipticCurvePublicKey]:
        """The keys that may have signed a token: of its algorithm, and by its kid where both have one."""
        if header.alg == "HS256":
            return [self._secret]
        return [
            one.key
            for one in self._keys
            if one.algorithm == header.alg and (one.kid is None or header.kid is None or one.kid == header.kid)
        ]

    # ------------------------------------------------------------------------------------------------------ claims

    def _meant(self, claims: _Claims) -> tuple[Identity, float]:
        """The identity of good claims; AuthError for others."""
        leeway_s, policy = self._policy.leeway_s, self._policy
        if policy.issuer and claims.iss != policy.issuer:
            raise AuthError(Code.BAD_TOKEN, "the token is another issuer's")
        audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        if policy.audience:
            if audience is None or policy.audience not in audience:
                raise AuthError(Code.BAD_TOKEN, "the token is for another audience")
        elif audience is not None:  # RFC 7519 §4.1.3: whoever is not named must not take it
            raise AuthError(Code.BAD_TOKEN, "the token is for an audience, and this gateway's auth.audience is not set")
        device = claims.dev or ""
        if len(_bytes(device, "dev")) > DEVICE_BYTES_MAX:
            raise AuthError(Code.BAD_TOKEN, f"dev, the class of device, has at most {DEVICE_BYTES_MAX} bytes")
        expires_s = None if claims.exp is None else float(min(claims.exp, 2**53)) + leeway_s
        begins_s = max(float(min(claims.nbf or 0, 2**53)), float(min(claims.iat or 0, 2**53))) - leeway_s
        identity = Identity(checked_user(claims.sub), device, Rights.of(claims.channels, claims.publish), expires_s)
        return identity, begins_s


def _decoded(part: bytes) -> bytes:
    """A part of a token: base64url without padding (RFC 7515 §2), in the one way to say these bytes; or ValueError."""
    missing = -len(part) % 4
    if part[-1:] not in _LAST[missing]:
        raise ValueError("no base64url")
    return binascii.a2b_base64(part.translate(_FROM_URL) + b"==="[:missing], strict_mode=True)


def _bytes(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        raise AuthError(Code.BAD_TOKEN, f"{what} in the token is not UTF-8") from error


def checked_user(user: object) -> str:
    """A user's id.

    Raises:
        AuthError: bad_token.

    """
    try:
        size = len(user.encode()) if isinstance(user, str) else 0
    except UnicodeEncodeError:
        size = 0
    if not isinstance(user, str) or not 0 < size <= USER_BYTES_MAX:
        raise AuthError(Code.BAD_TOKEN, f"a user id is a string of 1 to {USER_BYTES_MAX} bytes")
    return user
