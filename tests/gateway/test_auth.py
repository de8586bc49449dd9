"""Who comes in: HELLO tokens of a known key, resume tokens of this node, and nobody else."""

import base64
import hmac
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from core.codes import Code
from gateway.auth import USER_BYTES_MAX, Authenticator, AuthError, Mac, node_key

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


def url64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(header: bytes, payload: bytes, secret: str = SECRET) -> str:
    """A token of any two texts, each already as it stands in it."""
    body = header + b"." + payload
    return (body + b"." + url64(hmac.digest(secret.encode(), body, "sha256"))).decode(errors="surrogateescape")


def verdict(of: Authenticator, given_token: str) -> str | int:
    """The user, or the code of the refusal."""
    try:
        return of.user_of(given_token, None, NOW)
    except AuthError as refused:
        return refused.code


def oracle(given_token: str) -> Any:
    """The same by joserfc alone."""
    try:
        claims = jwt.decode(given_token, OctKey.import_key(SECRET), algorithms=["HS256"]).claims
    except (JoseError, ValueError):
        return Code.BAD_TOKEN
    expires, not_before, user = claims.get("exp"), claims.get("nbf"), claims.get("sub")
    if expires is not None and not (isinstance(expires, (int, float)) and expires > NOW):
        return Code.TOKEN_EXPIRED
    if not_before is not None and not (isinstance(not_before, (int, float)) and not_before <= NOW):
        return Code.BAD_TOKEN
    try:
        fits = isinstance(user, str) and 0 < len(user.encode()) <= USER_BYTES_MAX
    except UnicodeEncodeError:
        fits = False
    return user if fits else Code.BAD_TOKEN


def taught() -> Authenticator:
    """One that knows the usual header, so that it looks at tokens itself before it asks joserfc."""
    found = authenticator()
    assert found.user_of(token({"sub": "first"}), None, NOW) == "first"
    return found


TAUGHT = taught()
USUAL = token({"sub": "alice"}).partition(".")[0].encode()
TIMES = (
    st.none() | st.booleans() | st.integers(0, 2**70) | st.floats() | st.sampled_from([NOW, NOW + 1, NOW - 1, "1", []])
)
CLAIMS = st.fixed_dictionaries(
    {"sub": st.text(st.characters(exclude_categories=())) | st.integers() | st.none()},
    optional={"exp": TIMES, "nbf": TIMES, "iat": TIMES, "admin": st.recursive(st.none() | st.text(), st.lists)},
)


@given(CLAIMS, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_signed_token_gets_the_verdict_that_joserfc_gives(claims: dict[str, Any], ascii_: bool, blanks: bool) -> None:
    text = json.dumps(claims, ensure_ascii=ascii_, separators=None if blanks else (",", ":"))
    given_token = signed(USUAL, url64(text.encode(errors="surrogatepass")))
    assert verdict(TAUGHT, given_token) == oracle(given_token)


@pytest.mark.parametrize(
    "payload",
    [
        url64(b'{"sub":"alice","sub":"bob"}'),
        url64(b'{"sub":"alice","exp":NaN}'),
        url64(b'{"sub":"alice","exp":1e999}'),
        url64(b'{"sub":"alice","exp":1793491201}'),
        url64(b'{"sub":"alice","exp":"1793491201"}'),
        url64(b'["sub","alice"]'),
        url64(b'"alice"'),
        url64(b'{"sub":"alice"} x'),
        url64(b'{"sub":"\\ud800"}'),
        url64(b'{"sub":"\xff"}'),
        url64('{"sub":"alice"}'.encode("utf-16")),
        url64(b'{"sub":"alice"}') + b"=",
        url64(b'{"sub":"alice"}') + b"A",
        url64(b'{"sub":"alic"}')[:-1] + b"R",  # bits that are left over, but not 0
        url64(b'{"sub":"ali"}')[:-1] + b"B",
        base64.b64encode(b'{"sub":"al??>>ice"}').rstrip(b"="),
        url64(b'{"sub":"al??>>ice"}'),
        b" " + url64(b'{"sub":"alice"}'),
        url64(b'{"sub":"alice"}') + b"\n",
        url64(b'{"sub":"alice"}')[:6] + b"\n" + url64(b'{"sub":"alice"}')[6:],
        url64(b'{"sub":"alice"}') + b".",
        b"",
        b"\xc3\xa9",
        url64(b'{"sub":"' + b"a" * 6000 + b'"}'),
        url64(b'{"sub":"alice","x":"' + b"a" * 6000 + b'"}'),
    ],
)
def test_odd_payloads_get_the_verdict_that_joserfc_gives(payload: bytes) -> None:
    given_token = signed(USUAL, payload)
    assert verdict(TAUGHT, given_token) == oracle(given_token)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256"},
        {"typ": "JWT", "alg": "HS256", "kid": "1"},
        {"alg": "HS256", "typ": 5},
        {"alg": "HS256", "other": 1},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        {"alg": "HS256", "crit": ["exp"]},
        {"alg": "HS512"},
        {"alg": "none"},
        {"typ": "JWT"},
        {},
    ],
    ids=repr,
)
def test_a_header_is_judged_the_same_the_first_time_and_later(header: dict[str, Any]) -> None:
    fresh = authenticator()
    given_token = signed(url64(json.dumps(header).encode()), url64(b'{"sub":"alice"}'))
    assert [verdict(fresh, given_token) for _ in range(3)] == [oracle(given_token)] * 3


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_token_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    whole = token({"sub": "alice", "exp": NOW + 60})
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.sampled_from("ABab01-_.=+/ é\n"))
    changed = whole[:place] + other + whole[place + data.draw(st.integers(0, 1)) :]
    assert verdict(TAUGHT, changed) == ("alice" if changed == whole else Code.BAD_TOKEN)


def test_tokens_of_the_usual_make_are_recognised_without_joserfc(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        pytest.fail("joserfc was asked")

    of = taught()
    monkeypatch.setattr("gateway.auth.jwt.decode", decode)
    assert verdict(of, token({"sub": "älice", "exp": NOW + 60, "iat": 1, "nbf": 0.5, "roles": ["x"]})) == "älice"
    assert verdict(of, token({"sub": "alice", "exp": NOW})) == Code.TOKEN_EXPIRED


def test_a_header_of_a_forged_token_is_not_taken_for_good() -> None:
    fresh = authenticator()
    forged = token({"sub": "eve"}, "another secret of more than 32 bytes, of others")
    for _ in range(2):
        assert verdict(fresh, forged) == Code.BAD_TOKEN
    assert verdict(fresh, token({"sub": "alice"})) == "alice"
    assert verdict(fresh, forged) == Code.BAD_TOKEN


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_a_mac_is_that_of_the_standard_library(key: bytes, message: bytes) -> None:
    mac = Mac(key)
    for _ in range(2):
        assert mac(message) == hmac.digest(key, message, "sha256")


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
