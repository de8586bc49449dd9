"""Shards: the hash that everybody knows, spread evenly."""

import collections
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import shards


@given(st.binary(max_size=300))
def test_the_shard_of_a_name_is_its_crc_32_as_zlib_has_it(name: bytes) -> None:
    assert shards.shard(name) == zlib.crc32(name) % shards.SHARD_COUNT
    assert shards.shard(name) % 16 == zlib.crc32(name) % 16  # the lanes of the log in Redis


def test_channels_spread_evenly() -> None:
    found = collections.Counter(shards.shard(f"group:{number}".encode()) for number in range(25_600))
    assert len(found) == shards.SHARD_COUNT
    assert max(found.values()) < 150


@pytest.mark.parametrize("routers", [1, 2, 3, 64])
def test_each_shard_has_one_router_where_nobody_moves_them(routers: int) -> None:
    led = [shards.led_by(router, routers) for router in range(routers)]
    assert {len(one) for one in led} == {shards.SHARD_COUNT}
    assert [sum(column) for column in zip(*led, strict=True)] == [1] * shards.SHARD_COUNT
    assert max(map(sum, led)) - min(map(sum, led)) <= 1
