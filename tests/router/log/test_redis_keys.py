"""Names of keys: a script's keys share a slot, and a namespace says how long what is kept."""

import pytest

from core.namespace_spec import (
    BUILT_IN,
    DAY_S,
    HISTORY_AGE_S_MAX,
    HISTORY_BYTES_MAX,
    HISTORY_MESSAGES_MAX,
    NamespaceSpec,
)
from router.log.redis_keys import SHARDS, Keys
from router.log.redis_nodes import SLOTS, slot_of


def tag(key: bytes) -> bytes:
    """The part of a key that decides its slot (Redis Cluster specification)."""
    return key[key.index(b"{") + 1 : key.index(b"}")]


@pytest.mark.parametrize("channel", [b"group:a", b"user:al{i}ce", b"global:all", "group:\N{SNOWMAN}".encode()])
def test_all_keys_of_a_channels_shard_have_its_slot(channel: bytes) -> None:
    keys = Keys("hf:")
    key, slot = keys.channel(channel)
    assert slot_of(tag(key)) == slot
    start = keys.shards[keys.shard_of(channel)]
    assert key == start + b"c:" + channel
    assert slot_of(tag(start)) == slot


def test_sessions_and_cursors_have_their_slots() -> None:
    keys = Keys("hf:")
    for key, slot in (keys.session(bytes(range(16))), keys.cursor("user:{a}")):
        assert slot_of(tag(key)) == slot


def test_channels_spread_over_all_shards() -> None:
    keys = Keys("hf:")
    assert {keys.shard_of(b"group:%d" % number) for number in range(50 * SHARDS)} == set(range(SHARDS))


def test_every_third_of_a_cluster_has_some_shards() -> None:
    assert {slot * 3 // SLOTS for slot in Keys("hf:").shard_slots} == {0, 1, 2}


def test_retention_is_the_namespaces_own() -> None:
    keys = Keys("hf:", (NamespaceSpec(name="chat", domain="group", history_messages=7, history_age_s=60),))
    found = keys.retention(b"chat:a")
    assert (found.messages, found.age_ms) == (7, 60_000)
    assert found.expire_ms == (120 + DAY_S) * 1000


def test_what_is_of_no_configured_namespace_is_kept_as_the_largest_may_ask() -> None:
    keys = Keys("hf:", (NamespaceSpec(name="chat", domain="group", history_messages=7, history_age_s=60),))
    found = keys.retention(b"other:a")
    assert (found.messages, found.bytes) == (HISTORY_MESSAGES_MAX, HISTORY_BYTES_MAX)
    assert found.age_ms == HISTORY_AGE_S_MAX * 1000
    assert (keys.is_known(b"chat"), keys.is_known(b"other")) == (True, False)


def test_what_everybody_hears_is_listed_for_longer_than_it_is_kept() -> None:
    """By more than the hour that may pass until it is listed again, and no other channel is."""
    keys = Keys("hf:", (NamespaceSpec(name="board", domain="global", history_age_s=60), *BUILT_IN))
    for channel in (b"board:a", b"global:a"):
        found = keys.retention(channel)
        assert found.listed_ms > found.age_ms + 3_600_000
        assert found.settings == f"{found.expire_ms}:{found.listed_ms}"
    for channel in (b"group:a", b"user:a", b"other:a"):
        assert keys.retention(channel).settings == f"{keys.retention(channel).expire_ms}"


@pytest.mark.parametrize("prefix", ["", "a{b", "a b", "a*", "a\n"])
def test_a_prefix_that_would_break_the_keys_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="cannot begin keys"):
        Keys(prefix)
