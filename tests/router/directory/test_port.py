"""What the port refuses before any side is asked; what both sides refuse is in tests/contract/test_directory.py."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.directory import port
from router.directory.port import Claim, DirectoryError, Misused, NotAllowed, Unavailable, Won


def test_its_clock_goes_on_while_the_machine_is_suspended() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= port.now() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_lease_is_trusted_for_less_than_its_time_from_when_it_was_asked_for() -> None:
    assert port.safe_bound(100.0, 10) == pytest.approx(109.9)


def test_all_its_errors_are_of_one_tree_and_say_what_is_known() -> None:
    assert all(issubclass(kind, DirectoryError) for kind in (Unavailable, NotAllowed, Misused))
    error = Unavailable("away", results=[Won(3), None], nothing_done=True)
    assert (str(error), error.results, error.nothing_done) == ("away", (Won(3), None), True)
    assert (Unavailable("away").results, Unavailable("away").nothing_done) == ((), False)


@given(st.text(), st.integers(), st.none() | st.binary())
def test_what_it_lets_through_is_a_claim(key: str, revision: int, value: bytes | None) -> None:
    claim = Claim(key, revision, value)
    right = (
        0 < len(key.encode(errors="surrogatepass")) <= port.KEY_BYTES_MAX
        and "\0" not in key
        and not key.startswith(port.NODES)
        and revision >= 0
        and (value is not None or revision > 0)
    )
    try:
        assert port.checked_claim(claim) is claim
    except Misused:
        assert not right
    else:
        assert right


@pytest.mark.parametrize("ttl_s", [port.TTL_MIN_S, port.TTL_MAX_S])
def test_a_registration_has_a_key_of_its_own(ttl_s: int) -> None:
    assert port.checked_registration("a-1", b"", ttl_s) == "nodes/a-1"


@pytest.mark.parametrize("ttl_s", [port.TTL_MIN_S - 1, port.TTL_MAX_S + 1])
def test_a_time_to_live_has_limits(ttl_s: int) -> None:
    with pytest.raises(Misused, match=f"{ttl_s} s"):
        port.checked_registration("a", b"", ttl_s)


def test_a_key_that_utf_8_cannot_write_is_none() -> None:
    with pytest.raises(Misused, match="no key"):
        port.checked_key("\ud800")
