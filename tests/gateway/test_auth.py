"""Who comes in: HELLO tokens of a known key, resume tokens of this node, and nobody else."""

import base64
import json
import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from core.codes import Code
from gateway.auth import USER_BYTES_MAX, Authenticator, AuthError, node_key

SECRET = "a secret of more than thirty-two bytes, for tests"
NOW = 1_793_491_200.0
SESSION = bytes(range(16))


def authenticator(secret: str | None = SECRET, node: bytes = b"node", ttl_s: int = 60) -> Authenticator:
    return Authenticator(secret, node_key=node, resume_ttl_s=ttl_s)


def token(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode({"alg": algorithm}, claims, OctKey.import_key(secret), algorithms=[algorithm])


def unsigned(claims: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
    return b".".join([*parts, b""]).decode()


def test_a_good_token_gives_its_subject() -> None:
    assert authenticator().user_of(token({"sub": "alice", "exp": NOW + 1}), None, NOW) == "alice"
    assert authenticator().user_of(token({"sub": "ünï"}), None, NOW) == "ünï"


def test_with_a_secret_a_named_user_is_nobody() -> None:
    with pytest.raises(AuthError) as refused:
        authenticator().user_of(None, "alice", NOW)
    assert refused.value.code == Code.BAD_TOKEN


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, Code.BAD_TOKEN),
        (5, Code.BAD_TOKEN),
        ("", Code.BAD_TOKEN),
        ("no.such.token", Code.BAD_TOKEN),
        (token({"sub": "alice"}, "another secret of more than 32 bytes, of others"), Code.BAD_TOKEN),
        (token({"sub": "alice"}, algorithm="HS512"), Code.BAD_TOKEN),
        (unsigned({"sub": "alice"}), Code.BAD_TOKEN),
        (token({"sub": "alice"})[:-2], Code.BAD_TOKEN),
        (token({"exp": NOW + 60}), Code.BAD_TOKEN),
        (token({"sub": ""}), Code.BAD_TOKEN),
        (token({"sub": 5}), Code.BAD_TOKEN),
        (token({"sub": "x" * (USER_BYTES_MAX + 1)}), Code.BAD_TOKEN),
        (token({"sub": "alice", "nbf": NOW + 1}), Code.BAD_TOKEN),
        (token({"sub": "alice", "exp": NOW}), Code.TOKEN_EXPIRED),
        (token({"sub": "alice", "exp": NOW - 1}), Code.TOKEN_EXPIRED),
    ],
)
def test_other_tokens_are_refused_under_their_code(given: Any, code: Code) -> None:
    with pytest.raises(AuthError) as refused:
        authenticator().user_of(given, None, NOW)
    assert refused.value.code == code
    assert str(refused.value)


def test_development_mode_takes_the_named_user_or_gives_a_random_one() -> None:
    development = authenticator(None)
    assert development.user_of(None, "alice", NOW) == "alice"
    first, second = (development.user_of(None, None, NOW) for _ in range(2))
    assert first
    assert first != second
    for wrong in (5, "", "x" * (USER_BYTES_MAX + 1), ["alice"]):
        with pytest.raises(AuthError) as refused:
            development.user_of(None, wrong, NOW)
        assert refused.value.code == Code.BAD_TOKEN


@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_resume_token_gives_back_session_and_user_on_every_worker_of_the_node(secret: str | None) -> None:
    given = authenticator(secret).resume_token(SESSION, "älice", NOW)
    held = authenticator(secret).resumed(SESSION.hex(), given, NOW + 59)
    assert (held.session, held.user) == (SESSION, "älice")


def test_a_resume_token_ends_with_its_time() -> None:
    given = authenticator().resume_token(SESSION, "alice", NOW)
    with pytest.raises(AuthError) as refused:
        authenticator().resumed(SESSION.hex(), given, NOW + 60)
    assert refused.value.code == Code.SESSION_EXPIRED


def test_another_sessions_resume_token_is_refused() -> None:
    given = authenticator().resume_token(SESSION, "alice", NOW)
    with pytest.raises(AuthError) as refused:
        authenticator().resumed(bytes(16).hex(), given, NOW)
    assert refused.value.code == Code.BAD_TOKEN


def test_a_resume_token_of_another_key_is_refused() -> None:
    for other in (authenticator("another secret of more than 32 bytes, of others"), authenticator(None)):
        given = other.resume_token(SESSION, "alice", NOW)
        with pytest.raises(AuthError) as refused:
            authenticator().resumed(SESSION.hex(), given, NOW)
        assert refused.value.code == Code.BAD_TOKEN
    given = authenticator(None, b"one").resume_token(SESSION, "alice", NOW)
    with pytest.raises(AuthError):
        authenticator(None, b"other").resumed(SESSION.hex(), given, NOW)


def test_no_bit_of_a_resume_token_can_be_changed() -> None:
    whole = base64.urlsafe_b64decode(authenticator().resume_token(SESSION, "alice", NOW))
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuthError) as refused:
            authenticator().resumed(SESSION.hex(), base64.urlsafe_b64encode(changed).decode(), NOW)
        assert refused.value.code == Code.BAD_TOKEN


@pytest.mark.parametrize("given", [None, 5, "", "*", "AAAA", "é", "A" * 5])
def test_what_is_no_resume_token_is_refused(given: Any) -> None:
    with pytest.raises(AuthError) as refused:
        authenticator().resumed(SESSION.hex(), given, NOW)
    assert refused.value.code == Code.BAD_TOKEN


@pytest.mark.parametrize("session", [None, 5, b"x", ""])
def test_a_session_that_is_no_session_is_refused(session: Any) -> None:
    given = authenticator().resume_token(SESSION, "alice", NOW)
    with pytest.raises(AuthError) as refused:
        authenticator().resumed(session, given, NOW)
    assert refused.value.code == Code.BAD_TOKEN


def test_each_run_directory_has_its_own_key() -> None:
    assert node_key("ipc:///run/a/router.sock") == node_key("ipc:///run/a/router.sock")
    assert node_key("ipc:///run/a/router.sock") != node_key("ipc:///run/b/router.sock")


def test_the_real_clock_is_not_asked() -> None:
    past = token({"sub": "alice", "exp": 100})
    assert time.time() > 100
    assert authenticator().user_of(past, None, 99) == "alice"
