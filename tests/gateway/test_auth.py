"""Who comes in: by a HELLO token, by a resume token of this node, or in development mode by name; and nobody else."""

import base64
import dataclasses
from typing import Any

import pytest

from core.ban_list import FOREVER_MS, Standing, told_packed
from core.codes import Code
from gateway.auth import USER_BYTES_MAX, Authenticator, AuthError, node_key
from gateway.bans import Bans
from gateway.identity import Identity
from gateway.rights import Rights
from gateway.token_keys import Key
from gateway.token_policy import Policy
from tests.gateway.token_makers import NOW, OTHER_RSA_KEY, RSA_KEY, SECRET, token

SESSION = bytes(range(16))


def authenticator(secret: str | None = SECRET, node: bytes = b"node", ttl_s: int = 60, **more: Any) -> Authenticator:
    return Authenticator(secret, node_key=node, resume_ttl_s=ttl_s, **more)


def banned(user: str, since_s: float, until_ms: int = FOREVER_MS) -> Bans:
    bans = Bans()
    bans.take(told_packed(0, "", [Standing(user, int(since_s * 1000), until_ms, "spam")]), NOW, all_=True)
    return bans


def refusal(call: Any, *arguments: Any) -> int:
    with pytest.raises(AuthError) as refused:
        call(*arguments)
    assert str(refused.value)
    return refused.value.code


def test_a_token_says_who_it_is_and_a_name_beside_it_nothing() -> None:
    assert authenticator().identify(token({"sub": "alice"}), "bob", NOW) == Identity("alice")
    for no_token in (None, 5, "", b"x", ["alice"]):
        assert refusal(authenticator().identify, no_token, "alice", NOW) == Code.BAD_TOKEN


def test_development_mode_takes_the_named_user_or_gives_a_random_one() -> None:
    development = authenticator(None)
    assert development.identify(None, "alice", NOW) == Identity("alice")
    first, second = (development.identify(None, None, NOW).user for _ in range(2))
    assert first
    assert first != second
    for wrong in (5, "", "x" * (USER_BYTES_MAX + 1), ["alice"], "\ud800"):
        assert refusal(development.identify, None, wrong, NOW) == Code.BAD_TOKEN


@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_banned_user_neither_comes_in_nor_comes_back(secret: str | None) -> None:
    before = authenticator(secret).resume_token(SESSION, Identity("eve"), NOW)
    of = authenticator(secret, bans=banned("eve", NOW))
    given = token({"sub": "eve"})
    assert refusal(of.identify, given, "eve", NOW) == Code.BANNED
    assert refusal(of.refreshed, given, "eve", NOW) == Code.BANNED
    assert refusal(of.resumed, SESSION.hex(), before, NOW) == Code.BANNED
    assert of.identify(token({"sub": "alice"}), "alice", NOW).user == "alice"


@pytest.mark.parametrize("secret", [SECRET, None])
def test_after_a_ban_only_the_resume_tokens_of_before_stay_dead(secret: str | None) -> None:
    before = authenticator(secret).resume_token(SESSION, Identity("eve"), NOW - 1)
    of = authenticator(secret, bans=banned("eve", NOW - 1, int(NOW * 1000)))
    assert refusal(of.resumed, SESSION.hex(), before, NOW) == Code.SESSION_EXPIRED
    eve = of.identify(token({"sub": "eve"}), "eve", NOW)
    after = of.resume_token(SESSION, eve, NOW)
    assert of.resumed(SESSION.hex(), after, NOW).user == "eve"


def test_a_new_token_is_for_the_same_user() -> None:
    of = authenticator()
    assert of.refreshed(token({"sub": "alice", "exp": NOW + 9}), "alice", NOW).expires_s == NOW + 9
    assert refusal(of.refreshed, token({"sub": "bob"}), "alice", NOW) == Code.NOT_ALLOWED
    assert refusal(of.refreshed, token({"sub": "alice", "exp": NOW}), "alice", NOW) == Code.TOKEN_EXPIRED
    assert refusal(of.refreshed, "alice", "alice", NOW) == Code.BAD_TOKEN
    assert authenticator(None).refreshed(None, "alice", NOW) == Identity("alice")


def test_keys_can_be_replaced_while_it_runs() -> None:
    of = authenticator(policy=Policy(("RS256",)), keys=[Key("RS256", RSA_KEY.public_key())])
    old, new = (token({"sub": "a"}, key, "RS256") for key in (RSA_KEY, OTHER_RSA_KEY))
    assert of.identify(old, None, NOW).user == "a"
    of.replace_keys([Key("RS256", OTHER_RSA_KEY.public_key())])
    assert of.identify(new, None, NOW).user == "a"
    assert refusal(of.identify, old, None, NOW) == Code.BAD_TOKEN
    of.forget("a")
    assert of.identify(new, None, NOW).user == "a"
    authenticator(None).replace_keys([])
    authenticator(None).forget("a")


@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_resume_token_is_good_on_every_worker_of_the_node(secret: str | None) -> None:
    identity = Identity("älice", "phone", Rights(("group:a",)), NOW + 50)
    given = authenticator(secret).resume_token(SESSION, identity, NOW)
    held = authenticator(secret).resumed(SESSION.hex(), given, NOW + 49)
    assert (held.session, held.identity, held.issued_ms) == (SESSION, identity, NOW * 1000)
    assert held.user == "älice"


def test_a_resume_token_of_development_mode_is_of_this_node_alone() -> None:
    given = authenticator(None, node=b"one").resume_token(SESSION, Identity("alice"), NOW)
    assert refusal(authenticator(None, node=b"other").resumed, SESSION.hex(), given, NOW) == Code.SESSION_EXPIRED


def test_resuming_never_outlives_what_the_token_allowed() -> None:
    of = authenticator(ttl_s=60)
    given = of.resume_token(SESSION, Identity("alice", expires_s=NOW + 5), NOW)
    assert of.resumed(SESSION.hex(), given, NOW + 4.9).identity.expires_s == NOW + 5
    assert refusal(of.resumed, SESSION.hex(), given, NOW + 5) == Code.TOKEN_EXPIRED
    again = of.resume_token(SESSION, of.resumed(SESSION.hex(), given, NOW + 4).identity, NOW + 4)
    assert refusal(of.resumed, SESSION.hex(), again, NOW + 5) == Code.TOKEN_EXPIRED


def test_a_resume_token_is_bytes_that_only_the_gateway_makes() -> None:
    of = authenticator()
    given = of.resume_token(SESSION, Identity("alice"), NOW)
    whole = base64.urlsafe_b64decode(given)
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert (
            refusal(of.resumed, SESSION.hex(), base64.urlsafe_b64encode(changed).decode(), NOW) == Code.SESSION_EXPIRED
        )


def test_an_identity_is_a_value() -> None:
    assert dataclasses.is_dataclass(Identity)
    assert node_key("ipc:///a") != node_key("ipc:///b")
