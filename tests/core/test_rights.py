"""Rights of a token: which channels its lists fit, and that what cannot be read gives nothing."""

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from core.rights import RIGHTS_MAX, find

NAMES = st.text("ab:*", min_size=1, max_size=6)


@given(st.lists(NAMES, max_size=5), NAMES)
def test_a_list_gives_what_its_patterns_fit_and_refuses_the_rest(patterns: list[str], channel: str) -> None:
    rights = msgpack.packb({"other": [channel], "join": patterns})
    fits = any(
        channel.startswith(pattern[:-1]) if pattern.endswith("*") else channel == pattern for pattern in patterns
    )
    assert find(rights, "join", channel.encode()) is fits


def test_each_verb_has_its_own_list_and_without_one_nothing_is_said() -> None:
    rights = msgpack.packb({"publish": ["group:a", "group:team-*"]})
    assert find(rights, "join", b"group:a") is None
    assert find(rights, "publish", b"group:a") is True
    assert find(rights, "publish", b"group:team-7") is True
    assert find(rights, "publish", b"group:ab") is False
    assert find(msgpack.packb({}), "publish", b"group:a") is None
    assert find(msgpack.packb({"join": []}), "join", b"group:a") is False


@given(st.binary(max_size=40))
def test_what_cannot_be_read_gives_nothing(rights: bytes) -> None:
    try:
        read = msgpack.unpackb(rights)
        sound = isinstance(read, dict) and all(isinstance(key, str) for key in read)
    except (ValueError, TypeError, msgpack.UnpackException):
        sound = False
    if not sound:
        assert find(rights, "join", b"group:a") is not True


def test_a_list_in_the_middle_of_damage_refuses() -> None:
    rights = msgpack.packb({"join": ["group:a", "group:b"]})
    for size in range(len(rights)):
        found = find(rights[:size], "join", b"group:b")
        assert found is False, size
    assert 1_000 < RIGHTS_MAX <= 65_536
