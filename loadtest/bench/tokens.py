"""Tokens for HELLO: JWTs signed with HS256 (RFC 7515, RFC 7519), as a team's own backend would make them."""

import base64
import hashlib
import hmac
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECRET = "only-for-the-benchmark-on-loopback-0123456789"
LIFE_S = 3600


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(user: str, secret: str, now_s: float) -> str:
    """A token for one user, good for an hour."""
    head = _part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    claims = _part(json.dumps({"sub": user, "iat": int(now_s), "exp": int(now_s) + LIFE_S}).encode())
    signed = f"{head}.{claims}"
    return f"{signed}.{_part(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


@contextmanager
def token_file(count: int, secret: str) -> Iterator[str]:
    """The path of a file with a token a line for the load client's first `count` users."""
    now_s = time.time()
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as file:
        file.writelines(token(f"swarm-{i}", secret, now_s) + "\n" for i in range(count))
        file.flush()
        yield file.name
