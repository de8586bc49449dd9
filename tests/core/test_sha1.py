"""SHA-1 against hashlib, at every length around the block's edges."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import sha1


@pytest.mark.parametrize("size", [*range(130), 1000, 65536])
def test_every_length_around_the_edges_of_blocks(size: int) -> None:
    data = bytes(at * 31 % 256 for at in range(size))
    assert sha1.digest(data) == hashlib.sha1(data).digest()


@given(st.binary(max_size=300))
def test_random_data(data: bytes) -> None:
    assert sha1.digest(data) == hashlib.sha1(data).digest()
