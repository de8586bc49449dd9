"""URLs of Redis: the forms that are taken, and what is said of others."""

import pytest

from router.log.redis_url import parse


@pytest.mark.parametrize(
    ("url", "kind", "tls", "addresses", "primary", "database"),
    [
        ("redis://one", "single", False, (("one", 6379),), "", 0),
        ("redis://one:7000/3", "single", False, (("one", 7000),), "", 3),
        ("rediss://one/", "single", True, (("one", 6379),), "", 0),
        ("redis://[::1]:7000", "single", False, (("::1", 7000),), "", 0),
        ("redis://[::1]", "single", False, (("::1", 6379),), "", 0),
        ("redis+sentinel://a,b:7/prime", "sentinel", False, (("a", 26379), ("b", 7)), "prime", 0),
        ("rediss+sentinel://a/prime/2", "sentinel", True, (("a", 26379),), "prime", 2),
        ("redis+cluster://a,b:7", "cluster", False, (("a", 6379), ("b", 7)), "", 0),
    ],
)
def test_each_form_is_taken_apart(
    url: str, kind: str, tls: bool, addresses: tuple[tuple[str, int], ...], primary: str, database: int
) -> None:
    found = parse(url)
    assert (found.kind, found.tls, found.addresses) == (kind, tls, addresses)
    assert (found.primary, found.database) == (primary, database)


def test_user_and_password_may_hold_any_letter() -> None:
    found = parse("redis://al%40ice:p%2Fw%3A@one")
    assert (found.user, found.password, found.addresses) == ("al@ice", "p/w:", (("one", 6379),))
    assert parse("redis://:secret@one").password == "secret"


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(parse("redis://user:secret@one"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("one:6379", "begins with"),
        ("http://one", "begins with"),
        ("redis://", "needs a host"),
        ("redis://one:0", "no port"),
        ("redis://one:x", "no port"),
        ("redis://one:70000", "no port"),
        ("redis://[::1", "no address"),
        ("redis://a,b", "one server"),
        ("redis://one/x", "number of a database"),
        ("redis://one/1/2", "number of a database"),
        ("redis://one?db=1", "no parameters"),
        ("redis+sentinel://a", "primary's name"),
        ("redis+cluster://a/1", "only database 0"),
    ],
)
def test_what_is_wrong_is_named_and_the_password_is_not(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse(url.replace("://", "://user:secret@", 1) if "://" in url else url)
    assert "secret" not in str(caught.value)
