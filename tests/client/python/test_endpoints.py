"""Which endpoint is tried when."""

import re

import pytest
from holdfast_client.endpoints import (
    ASIDE_FIRST_S,
    ASIDE_MOST_S,
    HEAD_START_MOST_S,
    HEAD_START_S,
    MEASURED_S,
    TIE_S,
    Endpoints,
    Start,
)

A, B, C = "wss://a.example/ws", "wss://b.example/ws", "wss://c.example/ws"


def order(endpoints: Endpoints, now: float, target: str | None = None) -> list[str]:
    return [start.url for start in endpoints.starts(now, target)]


def test_unknown_ones_begin_together_and_the_applications_order_is_a_tie_breaker() -> None:
    assert Endpoints([A, B, C]).starts(0.0) == [Start(A, 0.0), Start(B, TIE_S), Start(C, TIE_S)]


def test_of_two_ways_to_write_one_the_first_is_taken() -> None:
    assert Endpoints([A, B, A + "/", "wss://a.example:7401/ws"]).urls == [A, B]


@pytest.mark.parametrize("url", ["wss://a.example:99999/ws", "wss://a.example:x/ws", "wss://[::1/ws"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(repr(url))} is no address of a gateway"):
        Endpoints([B, url])


def test_the_nearest_gets_a_head_start_of_twice_what_it_took() -> None:
    endpoints = Endpoints([A, B])
    endpoints.answered(B, 0.4, 1.0, raced=True)
    assert endpoints.starts(2.0) == [Start(B, 0.0), Start(A, 0.8)]
    endpoints.answered(A, 0.01, 3.0, raced=True)
    assert endpoints.starts(4.0) == [Start(A, 0.0), Start(B, HEAD_START_S)]
    endpoints.answered(A, 60.0, 5.0, raced=False)
    assert endpoints.starts(6.0)[1].after_s == HEAD_START_MOST_S


def test_who_is_near_is_measured_anew_now_and_then() -> None:
    endpoints = Endpoints([A, B])
    endpoints.answered(B, 0.4, 1.0, raced=True)
    assert endpoints.is_measured(1.0 + MEASURED_S - 1)
    assert endpoints.starts(1.0 + MEASURED_S) == [Start(A, 0.0), Start(B, TIE_S)]
    endpoints.answered(A, 0.1, 1.0 + MEASURED_S, raced=True)
    assert order(endpoints, 2.0 + MEASURED_S) == [A, B]


def test_one_that_failed_comes_last_for_longer_each_time_and_is_forgiven_when_it_answers() -> None:
    endpoints = Endpoints([A, B])
    endpoints.failed(A, 0.0)
    assert endpoints.starts(0.0) == [Start(B, 0.0), Start(A, HEAD_START_S)]
    assert order(endpoints, ASIDE_FIRST_S) == [A, B]
    endpoints.failed(A, 10.0)
    assert order(endpoints, 10.0 + ASIDE_FIRST_S) == [B, A]
    for at in range(100):
        endpoints.failed(A, 20.0 + at)
    assert order(endpoints, 119.0 + ASIDE_MOST_S) == [A, B]
    endpoints.failed(A, 1000.0)
    endpoints.answered(A, 0.1, 1000.0, raced=False)
    assert order(endpoints, 1000.0) == [A, B]


def test_with_all_set_aside_all_are_tried() -> None:
    endpoints = Endpoints([A, B, C])
    for at, url in enumerate((B, C, A)):
        endpoints.failed(url, float(at))
    assert order(endpoints, 2.0) == [B, C, A]


def test_a_target_goes_first_and_who_named_it_goes_last() -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.answered(A, 0.1, 0.0, raced=True)
    assert endpoints.target(C, A) == C
    endpoints.sent_away(A, 0.0)
    assert endpoints.starts(0.0, C) == [Start(C, 0.0), Start(B, HEAD_START_MOST_S), Start(A, HEAD_START_S)]
    assert order(endpoints, ASIDE_MOST_S - 1) == [B, C, A]


def test_a_target_is_a_known_one_however_it_is_written_or_a_new_one_of_an_allowed_scheme() -> None:
    endpoints = Endpoints(["wss://a.example", "wss://b.example:7401/ws"])
    assert endpoints.target("wss://b.example/ws", "wss://a.example") == "wss://b.example:7401/ws"
    assert endpoints.target("wss://new.example/ws", "wss://a.example") == "wss://new.example/ws"
    for named in ("ws://b.example/ws", "tcp://a.example", "https://a.example", "", None):
        assert endpoints.target(named, "wss://a.example") is None
    assert endpoints.urls == ["wss://a.example", "wss://b.example:7401/ws"]


def test_even_a_known_endpoint_in_the_clear_is_no_target_of_an_encrypted_one() -> None:
    assert Endpoints([A, "ws://b.example/ws"]).target("ws://b.example/ws", A) is None


def test_no_endpoint_and_no_address_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Endpoints([])
    with pytest.raises(ValueError, match="no address"):
        Endpoints([A, "http://b"])
