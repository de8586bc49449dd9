"""Without a word about it, tokens are HS256, of any issuer and for nobody in particular."""

from gateway.token_policy import Policy


def test_the_policy_of_who_sets_none() -> None:
    assert Policy() == Policy(("HS256",), "", "", 0.0)
