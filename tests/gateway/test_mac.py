"""HMAC-SHA256, held to the standard library's."""

import hmac

from hypothesis import given
from hypothesis import strategies as st

from gateway.mac import Mac


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_a_mac_is_that_of_the_standard_library(key: bytes, message: bytes) -> None:
    mac = Mac(key)
    for _ in range(2):
        assert mac(message) == hmac.digest(key, message, "sha256")
