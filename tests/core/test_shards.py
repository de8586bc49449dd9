"""Shards: the same in every process and release, spread evenly, and a power of two."""

from collections import Counter

import pytest

from core import shards
from core.namespace_spec import BUILT_IN, NamespaceSpec


@pytest.mark.parametrize(("name", "byte"), [(b"user:alice", 51), (b"group:1", 157), (b"", 174)])
def test_a_name_has_the_same_byte_for_ever(name: bytes, byte: int) -> None:
    assert shards.byte_of(name) == byte


@pytest.mark.parametrize("pattern", ["user:%d", "group:room-%d", "user:u%06d"])
def test_names_that_differ_in_a_number_are_spread_evenly(pattern: str) -> None:
    counts = Counter(shards.byte_of((pattern % number).encode()) for number in range(51_200))
    assert len(counts) == shards.COUNT_MAX
    assert min(counts.values()) > 120  # of 200; six deviations are 85
    assert max(counts.values()) < 290


@pytest.mark.parametrize("count", [1, 2, 64, 256])
def test_a_power_of_two_is_a_count(count: int) -> None:
    assert shards.check_count(count) == count


@pytest.mark.parametrize("count", [-1, 0, 3, 255, 257, 512])
def test_any_other_number_is_none(count: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        shards.check_count(count)


@pytest.mark.parametrize("count", [1, 8, 256])
def test_a_channel_is_in_the_shard_of_its_name_unless_everybody_hears_it(count: int) -> None:
    news = NamespaceSpec(name="news", domain="global")
    found = shards.Shards((*BUILT_IN, news), count)
    for number in range(100):
        assert found.of_channel(b"group:%d" % number) == shards.byte_of(b"group:%d" % number) & (count - 1)
        assert found.of_channel(b"global:%d" % number) == shards.OF_GLOBALS
        assert found.of_channel(b"news:%d" % number) == shards.OF_GLOBALS


def test_there_are_no_three_shards() -> None:
    with pytest.raises(ValueError, match="power of two"):
        shards.Shards(BUILT_IN, 3)
