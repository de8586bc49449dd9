"""An identity knows how long its credentials last, in the data plane's terms."""

import pytest

from gateway.identity import Identity


@pytest.mark.parametrize(
    ("expires_s", "left_ms"),
    [(None, 0), (100.0, 90_000), (10.0004, 1), (10.0, 1), (5.0, 1), (2.0**53, 2**32 * 1000)],
)
def test_time_left_is_told_in_milliseconds_and_0_means_for_ever(expires_s: float | None, left_ms: int) -> None:
    assert Identity("alice", expires_s=expires_s).left_ms(10.0) == left_ms
