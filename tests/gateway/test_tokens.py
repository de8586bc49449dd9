"""HELLO tokens: signed by a key of ours under an algorithm of ours, in time, for us; and nothing else comes in."""

import base64
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.codes import Code
from gateway import tokens
from gateway.identity import USER_BYTES_MAX, AuthError, Identity
from gateway.mac import Mac
from gateway.rights import PATTERN_BYTES_MAX, Rights
from gateway.token_keys import Key
from gateway.token_policy import Policy
from gateway.tokens import CACHE_MAX, TOKEN_BYTES_MAX, Tokens
from tests.gateway.token_makers import (
    EC_KEY,
    NOW,
    OTHER_RSA_KEY,
    PRIVATE,
    RSA_KEY,
    SECRET,
    pem,
    signed,
    token,
    unsigned,
    url64,
)

KEYS = (Key("RS256", RSA_KEY.public_key(), "rsa"), Key("ES256", EC_KEY.public_key()))
ALL = ("HS256", "RS256", "ES256")


def checker(*, algorithms: tuple[str, ...] = ALL, keys: tuple[Key, ...] = KEYS, **policy: Any) -> Tokens:
    return Tokens(SECRET, Mac(SECRET.encode()), Policy(algorithms, **policy), keys)


def verdict(of: Tokens, given_token: str, now_s: float = NOW) -> str | int:
    """The user, or the code of the refusal."""
    try:
        return of.check(given_token, now_s).user
    except AuthError as refused:
        return refused.code if str(refused) else 0


def taught() -> Tokens:
    """One that knows the usual header, so that it looks at tokens itself before it asks PyJWT."""
    found = checker()
    assert verdict(found, token({"sub": "first"})) == "first"
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


def oracle(text: bytes) -> str | int:
    """What a payload means, slowly."""
    try:
        claims = json.loads(text, parse_constant=lambda word: [word])
    except ValueError:
        return Code.BAD_TOKEN
    times = [claims.get(name) for name in ("exp", "nbf", "iat")]
    if any(time is not None and type(time) not in (int, float) for time in times):
        return Code.BAD_TOKEN
    user, (expires, *begins) = claims.get("sub"), times
    try:
        fits = isinstance(user, str) and 0 < len(user.encode()) <= USER_BYTES_MAX
    except UnicodeEncodeError:
        fits = False
    if not fits:
        return Code.BAD_TOKEN
    if expires is not None and not expires > NOW:
        return Code.TOKEN_EXPIRED
    return Code.BAD_TOKEN if any(time is not None and time > NOW for time in begins) else str(user)


@pytest.mark.parametrize("algorithm", ALL)
def test_a_good_token_gives_its_subject(algorithm: str) -> None:
    of = checker()
    for _ in range(2):
        given_token = token({"sub": "älice", "exp": NOW + 1}, PRIVATE[algorithm], algorithm)
        assert of.check(given_token, NOW) == Identity("älice", expires_s=NOW + 1)
        assert verdict(of, given_token) == "älice"


@given(CLAIMS, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_signed_claims_get_the_verdict_of_a_slow_judge(claims: dict[str, Any], ascii_: bool, blanks: bool) -> None:
    text = json.dumps(claims, ensure_ascii=ascii_, separators=None if blanks else (",", ":"))
    raw = text.encode(errors="surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        expected: str | int = Code.BAD_TOKEN
    else:
        expected = oracle(raw)
    given_token = signed(USUAL, url64(raw))
    assert [verdict(TAUGHT, given_token), verdict(checker(), given_token)] == [expected] * 2


ODD = [
    url64(b'{"sub":"alice","exp":NaN}'),
    url64(b'{"sub":"alice","exp":1793491201}'),
    url64(b'{"sub":"alice","exp":"1793491201"}'),
    url64(b'{"sub":"alice","dev":5}'),
    url64(b'{"sub":"alice","channels":"group:a"}'),
    url64(b'["sub","alice"]'),
    url64(b'"alice"'),
    url64(b'{"sub":"alice"} x'),
    url64(b'{"sub":"\\ud800"}'),
    url64(b'{"sub":"alice","dev":"\\ud800"}'),
    url64(b'{"sub":"alice","publish":["\\ud800"]}'),
    url64(b'{"sub":"\xff"}'),
    url64('{"sub":"alice"}'.encode("utf-16")),
    url64(b'{"sub":"alice"}') + b"=",
    url64(b'{"sub":"alice"}') + b"A",
    url64(b'{"sub":"alic"}')[:-1] + b"R",  # bits that are left over, but not 0
    url64(b'{"sub":"ali"}')[:-1] + b"B",
    base64.b64encode(b'{"sub":"al??>>ice"}').rstrip(b"="),
    b" " + url64(b'{"sub":"alice"}'),
    url64(b'{"sub":"alice"}') + b"\n",
    url64(b'{"sub":"alice"}')[:6] + b"\n" + url64(b'{"sub":"alice"}')[6:],
    url64(b'{"sub":"alice"}') + b".",
    b"",
    b"\xc3\xa9",
    url64(b'{"sub":"' + b"a" * 6000 + b'"}'),
]


@pytest.mark.parametrize("payload", ODD)
def test_odd_payloads_are_judged_alike_the_short_and_the_long_way(payload: bytes) -> None:
    given_token = signed(USUAL, payload)
    found = verdict(checker(), given_token)
    assert verdict(taught(), given_token) == found
    assert found == ("alice" if payload == ODD[1] else Code.BAD_TOKEN)


@pytest.mark.parametrize(
    ("header", "good"),
    [
        ({"alg": "HS256"}, True),
        ({"typ": "JWT", "alg": "HS256", "kid": "1"}, True),
        ({"alg": "HS256", "other": 1}, True),
        ({"alg": "HS256", "kid": 5}, False),
        ({"alg": "HS256", "b64": False, "crit": ["b64"]}, False),
        ({"alg": "HS256", "b64": True}, False),
        ({"alg": "HS256", "crit": ["exp"]}, False),
        ({"alg": "HS256", "crit": None}, False),
        ({"alg": "HS512"}, False),
        ({"alg": "none"}, False),
        ({"alg": "None"}, False),
        ({"alg": "hs256"}, False),
        ({"alg": ""}, False),
        ({"alg": ["HS256"]}, False),
        ({"alg": "RS256"}, False),
        ({"alg": "ES256"}, False),
        ({"typ": "JWT"}, False),
        ({}, False),
    ],
    ids=repr,
)
def test_a_header_is_judged_the_same_the_first_time_and_later(header: dict[str, Any], good: bool) -> None:
    of = checker()
    for user in ("alice", "bob", "carol"):
        given_token = signed(url64(json.dumps(header).encode()), url64(json.dumps({"sub": user}).encode()))
        assert verdict(of, given_token) == (user if good else Code.BAD_TOKEN)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_token_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    whole = token({"sub": "alice", "exp": NOW + 60})
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.sampled_from("ABab01-_.=+/ é\n"))
    changed = whole[:place] + other + whole[place + data.draw(st.integers(0, 1)) :]
    for of in (TAUGHT, checker()):
        assert verdict(of, changed) == ("alice" if changed == whole else Code.BAD_TOKEN)


def test_tokens_of_the_usual_make_are_recognised_without_pyjwt(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        pytest.fail("PyJWT was asked")

    of = taught()
    monkeypatch.setattr(tokens._jws, "decode_complete", decode)
    assert verdict(of, token({"sub": "älice", "exp": NOW + 60, "iat": 1, "nbf": 0.5, "roles": ["x"]})) == "älice"
    assert verdict(of, token({"sub": "alice", "exp": NOW})) == Code.TOKEN_EXPIRED


def test_a_header_of_a_forged_token_is_not_taken_for_good() -> None:
    of = checker()
    forged = token({"sub": "eve"}, "another secret of more than 32 bytes, of others")
    for _ in range(2):
        assert verdict(of, forged) == Code.BAD_TOKEN
    assert verdict(of, token({"sub": "alice"})) == "alice"
    assert verdict(of, forged) == Code.BAD_TOKEN


# ---- no algorithm is taken for another ----


def hs256_with(key: bytes, **claims: Any) -> str:
    """A token whose MAC was made with what everybody may know; PyJWT itself would not make it."""
    return signed(url64(b'{"alg":"HS256","typ":"JWT"}'), url64(json.dumps(claims).encode()), key)


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY])
@pytest.mark.parametrize("algorithms", [ALL, ("RS256", "ES256"), ("HS256",)])
def test_a_public_key_is_never_taken_for_the_secret(key: Any, algorithms: tuple[str, ...]) -> None:
    of = checker(algorithms=algorithms)
    if "HS256" in algorithms:
        assert verdict(of, token({"sub": "teaches the header"})) == "teaches the header"
    for public in (pem(key), pem(key).strip(), pem(key).decode().encode("utf-16")):
        assert verdict(of, hs256_with(public, sub="eve")) == Code.BAD_TOKEN


def test_a_token_without_a_signature_never_comes_in() -> None:
    for of in (checker(), taught()):
        assert verdict(of, unsigned({"sub": "eve"})) == Code.BAD_TOKEN
        assert verdict(of, token({"sub": "eve"}).rpartition(".")[0] + ".") == Code.BAD_TOKEN
        assert verdict(of, USUAL.decode() + "." + url64(b'{"sub":"eve"}').decode() + ".") == Code.BAD_TOKEN


@pytest.mark.parametrize("algorithm", ALL)
def test_an_algorithm_that_is_not_allowed_is_refused_however_well_it_is_signed(algorithm: str) -> None:
    of = checker(algorithms=tuple(other for other in ALL if other != algorithm))
    assert verdict(of, token({"sub": "alice"}, PRIVATE[algorithm], algorithm)) == Code.BAD_TOKEN


def test_a_key_of_another_kind_is_not_even_tried() -> None:
    of = checker(keys=(Key("ES256", EC_KEY.public_key()),))
    assert verdict(of, token({"sub": "alice"}, RSA_KEY, "RS256")) == Code.BAD_TOKEN


# ---- several keys ----


def test_a_kid_chooses_the_key_and_without_one_all_are_tried() -> None:
    of = checker(keys=(Key("RS256", RSA_KEY.public_key(), "old"), Key("RS256", OTHER_RSA_KEY.public_key(), "new")))
    for key, kid, good in (
        (RSA_KEY, "old", True),
        (OTHER_RSA_KEY, "new", True),
        (RSA_KEY, "new", False),
        (RSA_KEY, "unknown", False),
        (RSA_KEY, None, True),
        (OTHER_RSA_KEY, None, True),
    ):
        given_token = token({"sub": "alice"}, key, "RS256", **({"kid": kid} if kid else {}))
        assert verdict(of, given_token) == ("alice" if good else Code.BAD_TOKEN)


def test_other_keys_make_the_old_ones_worthless_at_once() -> None:
    of = checker()
    old, new = token({"sub": "a"}, RSA_KEY, "RS256"), token({"sub": "b"}, OTHER_RSA_KEY, "RS256")
    assert (verdict(of, old), verdict(of, new)) == ("a", Code.BAD_TOKEN)
    of.replace_keys([Key("RS256", OTHER_RSA_KEY.public_key())])
    assert (verdict(of, old), verdict(of, new)) == (Code.BAD_TOKEN, "b")


# ---- what was verified ----


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each signature that PyJWT checks."""
    asked: list[int] = []
    before = jwt.PyJWS.decode_complete

    def decode(self: jwt.PyJWS, *rest: Any, **named: Any) -> Any:
        asked.append(1)
        return before(self, *rest, **named)

    monkeypatch.setattr(jwt.PyJWS, "decode_complete", decode)
    return asked


def test_a_verified_token_is_verified_once_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, of = counted(monkeypatch), checker()
    given_token = token({"sub": "alice", "exp": NOW + 60}, EC_KEY, "ES256")
    assert [verdict(of, given_token, NOW + second) for second in (0, 30, 59.9)] == ["alice"] * 3
    assert len(asked) == 1
    assert verdict(of, given_token, NOW + 60) == Code.TOKEN_EXPIRED
    assert verdict(of, given_token[:-2] + "AA", NOW) == Code.BAD_TOKEN


def test_what_is_forgotten_of_a_user_is_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, of = counted(monkeypatch), checker()
    mine, theirs = (token({"sub": user}, EC_KEY, "ES256") for user in ("alice", "bob"))
    assert [verdict(of, one) for one in (mine, theirs)] == ["alice", "bob"]
    of.forget("alice")
    assert [verdict(of, one) for one in (mine, theirs)] == ["alice", "bob"]
    assert len(asked) == 3


def test_no_more_verified_tokens_are_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_MAX", 3)
    asked, of = counted(monkeypatch), checker()
    given_tokens = [token({"sub": f"u{number}"}, EC_KEY, "ES256") for number in range(4)]
    for one in (*given_tokens, *given_tokens[1:]):
        verdict(of, one)
    assert len(asked) == 4
    verdict(of, given_tokens[0])  # the oldest had to go
    assert len(asked) == 5
    assert CACHE_MAX > 1_000


def test_a_token_whose_time_has_not_come_is_not_remembered_as_good() -> None:
    of = checker()
    given_token = token({"sub": "alice", "nbf": NOW + 5})
    assert verdict(of, given_token) == Code.BAD_TOKEN
    assert verdict(of, given_token, NOW + 5) == "alice"
    assert verdict(of, given_token, NOW + 4) == Code.BAD_TOKEN


# ---- claims ----


@pytest.mark.parametrize(
    ("claims", "policy", "code"),
    [
        ({}, {}, None),
        ({"exp": NOW}, {}, Code.TOKEN_EXPIRED),
        ({"exp": NOW - 4}, {"leeway_s": 5}, None),
        ({"exp": NOW - 5}, {"leeway_s": 5}, Code.TOKEN_EXPIRED),
        ({"nbf": NOW + 1}, {}, Code.BAD_TOKEN),
        ({"nbf": NOW + 5}, {"leeway_s": 5}, None),
        ({"iat": NOW + 1}, {}, Code.BAD_TOKEN),
        ({"iat": NOW}, {}, None),
        ({"iss": "shop"}, {}, None),
        ({"iss": "shop"}, {"issuer": "shop"}, None),
        ({"iss": "shops"}, {"issuer": "shop"}, Code.BAD_TOKEN),
        ({}, {"issuer": "shop"}, Code.BAD_TOKEN),
        ({"aud": "chat"}, {"audience": "chat"}, None),
        ({"aud": ["x", "chat"]}, {"audience": "chat"}, None),
        ({"aud": "chatter"}, {"audience": "chat"}, Code.BAD_TOKEN),
        ({"aud": []}, {"audience": "chat"}, Code.BAD_TOKEN),
        ({}, {"audience": "chat"}, Code.BAD_TOKEN),
        ({"aud": "chat"}, {}, Code.BAD_TOKEN),
        ({"dev": "x" * 32}, {}, None),
        ({"dev": "x" * 33}, {}, Code.BAD_TOKEN),
        ({"channels": ["group:*:a"]}, {}, Code.BAD_TOKEN),
        ({"publish": ["x" * PATTERN_BYTES_MAX]}, {}, None),
        ({"publish": ["x" * (PATTERN_BYTES_MAX + 1)]}, {}, Code.BAD_TOKEN),
        ({"publish": [""]}, {}, Code.BAD_TOKEN),
        ({"channels": [f"group:{number:0200}" for number in range(100)]}, {}, Code.BAD_TOKEN),
    ],
    ids=repr,
)
def test_claims_are_held_to_the_policy(claims: dict[str, Any], policy: dict[str, Any], code: int | None) -> None:
    of = checker(**policy)
    for _ in range(2):
        assert verdict(of, token({"sub": "alice", **claims})) == ("alice" if code is None else code)


def test_a_token_tells_the_device_and_what_may_be_joined_and_published_to() -> None:
    claims = {"sub": "alice", "dev": "phone", "channels": ["group:a", "group:team-*"], "publish": []}
    found = checker(leeway_s=2).check(token({**claims, "exp": NOW + 60}), NOW)
    assert (found.device, found.expires_s) == ("phone", NOW + 62)
    assert found.rights == Rights(("group:a", "group:team-*"), ())
    assert checker().check(token({"sub": "alice"}), NOW) == Identity("alice")


def test_a_token_that_is_too_long_is_not_looked_at() -> None:
    given_token = token({"sub": "alice", "x": "a" * TOKEN_BYTES_MAX})
    assert verdict(checker(), given_token) == verdict(taught(), given_token) == Code.BAD_TOKEN


@pytest.mark.parametrize("given_token", ["", ".", "..", "...", "no.such.token", "\ud800", "a.b", "é.é.é", "." * 5000])
def test_what_is_no_token_is_refused(given_token: str) -> None:
    assert verdict(checker(), given_token) == verdict(taught(), given_token) == Code.BAD_TOKEN


def test_a_second_look_at_an_es256_token_costs_a_small_part_of_the_first() -> None:
    of = checker()
    many = [token({"sub": f"u{number}"}, EC_KEY, "ES256") for number in range(50)]

    def took_s() -> float:
        began = time.perf_counter()
        for one in many:
            of.check(one, NOW)
        return time.perf_counter() - began

    first, second = took_s(), min(took_s() for _ in range(5))
    assert second < first / 2


@pytest.mark.parametrize("junk", ["junk", "a.b", "a.b.c.d", "", "."])
def test_what_is_no_token_at_all_is_told_so_in_words(junk: str) -> None:
    with pytest.raises(AuthError, match="the token is no JWT: it has three parts with dots between them"):
        checker().check(junk, NOW)
