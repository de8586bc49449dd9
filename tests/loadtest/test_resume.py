"""The bench of resumes in small: whoever was cut comes back and gets everything once."""

from loadtest.measure import holdfast
from loadtest.resume import measure, percentile


def test_sessions_that_were_cut_get_all_that_was_said_once() -> None:
    with holdfast(2, environment={"HOLDFAST_GATEWAY_CHANNELS_PER_SESSION_MAX": "1000"}) as server:
        told = measure(server, 60, 4, 1)
    assert 0 < told["cut"] < 60
    assert told["back"] == told["resumed"] == told["cut"]
    assert told["delivered"] == told["expected"] == 240
    assert [told[name] for name in ("lost", "repeated", "out_of_order", "told_gaps", "corrupt")] == [0] * 5
    assert 0 < told["welcomed_s"] <= told["caught_up_s"]


def test_a_percentile_is_that_of_all_deliveries() -> None:
    assert percentile([(1_000_000, 98), (5_000_000, 2)], 0.5) == 1.0
    assert percentile([(1_000_000, 98), (5_000_000, 2)], 0.99) == 5.0
    assert percentile([], 0.99) == 0.0
