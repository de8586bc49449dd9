"""The public keys that tokens are checked with: from a PEM file or a JWKS file (RFC 7517), read again as it changes.

A key serves the one algorithm that fits its kind, and no other: an RSA key RS256, one on the curve P-256 ES256. So no
key of this file can ever be taken for the secret of HS256.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway.errors import ConfigError

FILE_BYTES_MAX = 1_048_576
KEYS_MAX = 64
RSA_BITS_MIN = 2_048  # RFC 7518 §3.3
_BLOCK = re.compile(r"-----BEGIN (?P<kind>[A-Z0-9 ]+)-----.+?-----END (?P=kind)-----", re.DOTALL)
_FOR = {"RSA": "RS256", "EC": "ES256"}


@dataclass(frozen=True)
class Key:
    """One key and what it is for."""

    algorithm: str
    key: RSAPublicKey | EllipticCurvePublicKey
    kid: str | None = None
    """The name that tokens call it by; None: it has none, and is tried for any name."""


class KeyFile:
    """One file of keys."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def changed(self) -> bool:
        """Whether it is another file, or another content, than at the last `read`."""
        try:
            return self._mark() != self._seen
        except OSError:
            return True

    def read(self) -> tuple[Key, ...]:
        """Its keys.

        Raises:
            ConfigError: it cannot be read, holds no key that can be used, or one that must not be here.

        """
        try:
            self._seen = self._mark()
            with Path(self._path).open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
            text = content.decode()
        except OSError as error:
            raise ConfigError(f"auth.keys_file {self._path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"auth.keys_file {self._path} is neither PEM nor JSON") from error
        if len(content) > FILE_BYTES_MAX:
            raise ConfigError(f"auth.keys_file {self._path} is longer than {FILE_BYTES_MAX} bytes")
        try:
            keys = _of_set(text) if text.lstrip().startswith("{") else _of_pem(text)
        except ValueError as error:
            raise ConfigError(f"auth.keys_file {self._path}: {error}") from error
        if not keys:
            raise ConfigError(f"auth.keys_file {self._path} has no key: it needs an RSA or a P-256 public key")
        if len(keys) > KEYS_MAX:
            raise ConfigError(f"auth.keys_file {self._path} has {len(keys)} keys: at most {KEYS_MAX} are tried")
        return keys

    def _mark(self) -> tuple[int, int, int]:
        found = os.stat(self._path)
        return found.st_mtime_ns, found.st_size, found.st_ino


def _key(found: object, kid: str | None) -> Key:
    """A public key as one of ours, or ValueError."""
    if isinstance(found, RSAPublicKey):
        if found.key_size < RSA_BITS_MIN:
            raise ValueError(f"an RSA key of {found.key_size} bits is too weak: {RSA_BITS_MIN} or more")
        return Key("RS256", found, kid)
    if isinstance(found, EllipticCurvePublicKey) and isinstance(found.curve, SECP256R1):
        return Key("ES256", found, kid)
    raise ValueError("only RSA keys (RS256) and keys on the curve P-256 (ES256) are served")


def _of_pem(text: str) -> tuple[Key, ...]:
    keys = []
    for block in _BLOCK.finditer(text):
        if "PRIVATE" in block["kind"]:
            raise ValueError("it holds a private key: give the gateway the public one alone (openssl pkey -pubout)")
        if block["kind"] not in ("PUBLIC KEY", "RSA PUBLIC KEY"):
            raise ValueError(f"a {block['kind']} is no public key (openssl x509 -pubkey -noout takes it out)")
        try:
            keys.append(_key(load_pem_public_key(block[0].encode()), None))
        except UnsupportedAlgorithm as error:
            raise ValueError("only RSA keys (RS256) and keys on the curve P-256 (ES256) are served") from error
    return tuple(keys)


def _of_set(text: str) -> tuple[Key, ...]:
    """Those of a JWKS that can be used; a set that others use as well may hold any."""
    try:
        entries = json.loads(text)["keys"]
    except (KeyError, TypeError) as error:
        raise ValueError('a JWKS file is {"keys": [...]}') from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError('a JWKS file is {"keys": [...]}, with an object for each key')
    return tuple(_of_entry(entry) for entry in entries if _usable(entry))


def _usable(entry: dict[str, Any]) -> bool:
    """Whether a key of a set is for checking signatures of ours; one that must not be here is an error."""
    if "d" in entry or entry.get("kty") == "oct":
        raise ValueError("it holds a secret: only public keys belong here, the secret of HS256 into auth.secret")
    kind = entry.get("kty")
    if kind not in _FOR or (kind == "EC" and entry.get("crv") != "P-256"):
        return False
    return bool(entry.get("use", "sig") == "sig" and entry.get("alg", _FOR[kind]) == _FOR[kind])


def _of_entry(entry: dict[str, Any]) -> Key:
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("a kid is a string")
    try:
        return _key(jwt.PyJWK(entry, _FOR[entry["kty"]]).key, kid)
    except jwt.PyJWTError as error:
        raise ValueError(f"the key {kid or 'without kid'} cannot be read: {error}") from error
