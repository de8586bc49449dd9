"""Ids of connections: what is written is read back, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connection_id import ConnectionId


@given(st.integers(0, 999_999), st.integers(0, 10**18), st.integers(2**32, 2**64 - 1))
def test_an_id_reads_back(worker: int, epoch: int, handle: int) -> None:
    one = ConnectionId(worker, epoch, handle)
    assert ConnectionId.parse(str(one)) == one
    assert one.slot == handle % 2**32


def test_an_id_looks_like_this() -> None:
    assert str(ConnectionId(3, 1_764_139_200, 0x1F << 32 | 0x2A)) == "3-1764139200-1f-2a"


@pytest.mark.parametrize(
    "text",
    ["", "3", "3-4-5", "3-4-5-6-7", "-1-2-3-4", "a-1-2-3", "1-2-3-g", "1-2-3-4 ", "1-2-123456789-4", "1-2-3-A"],
)
def test_what_is_no_id_is_none(text: str) -> None:
    assert ConnectionId.parse(text) is None


@pytest.mark.parametrize("text", ["1-2-0-0", "1-2-00000000-0", "1-2-0-7"])
def test_generation_0_is_nobodys(text: str) -> None:
    assert ConnectionId.parse(text) is None
