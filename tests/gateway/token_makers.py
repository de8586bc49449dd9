"""Tokens for tests: good ones, forged ones, and texts that only look like one."""

import base64
import hmac
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SECRET = "a secret of more than thirty-two bytes, for tests"
NOW = 1_793_491_200.0
RSA_KEY = rsa.generate_private_key(65_537, 2_048)
OTHER_RSA_KEY = rsa.generate_private_key(65_537, 2_048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
PRIVATE = {"HS256": SECRET, "RS256": RSA_KEY, "ES256": EC_KEY}


def token(claims: dict[str, Any], secret: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(claims, secret, algorithm=algorithm, headers=headers or None)


def url64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(header: bytes, payload: bytes, secret: bytes = SECRET.encode()) -> str:
    """A token of any two texts, each already as it stands in it, with the MAC of HS256."""
    body = header + b"." + payload
    return (body + b"." + url64(hmac.digest(secret, body, "sha256"))).decode(errors="surrogateescape")


def unsigned(claims: dict[str, Any]) -> str:
    parts = [url64(json.dumps(part).encode()) for part in ({"alg": "none"}, claims)]
    return b".".join([*parts, b""]).decode()


def pem(key: Any) -> bytes:
    """The public half of a key."""
    found: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


def jwk(key: Any, **fields: Any) -> dict[str, Any]:
    """The public half of a key as an entry of a JWKS."""
    made = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    found: dict[str, Any] = made.to_jwk(key.public_key(), as_dict=True)
    found.pop("key_ops", None)
    return found | fields
