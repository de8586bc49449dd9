"""The bench of resumes in small: whoever was cut comes back and gets everything once."""

import os

from loadtest.measure import holdfast
from loadtest.resume import ENVIRONMENT, measure, percentile, thread_seconds, used_between


def test_sessions_that_were_cut_get_all_that_was_said_once() -> None:
    with holdfast(2, environment=ENVIRONMENT) as server:
        told = measure(server, 60, 4, 1)
    assert 0 < told["cut"] < 60
    assert told["back"] == told["resumed"] == told["cut"]
    assert told["delivered"] == told["expected"] == 240
    assert told["replayed"] == 4 * told["cut"]
    assert [told[name] for name in ("lost", "repeated", "out_of_order", "told_gaps", "corrupt", "refused")] == [0] * 6
    assert told["welcomed_s"] > 0
    assert told["caught_up_s"] > told["away_s"] > 0
    assert told["live_p99_ms_away"] > 0
    assert 0 < told["live_p50_ms"] <= told["live_p99_ms"] <= told["live_max_ms"]
    assert 0 < told["busiest_thread_s"] <= told["server_cpu_s"]
    assert told["client_cpu_s"] > 0


def test_a_percentile_is_that_of_all_deliveries() -> None:
    assert percentile([(1_000_000, 98), (5_000_000, 2)], 0.5) == 1.0
    assert percentile([(5_000_000, 2), (1_000_000, 98)], 0.99) == 5.0
    assert percentile([], 0.99) == 0.0


def test_the_cpu_of_threads_is_that_of_the_time_in_between() -> None:
    before = {(1, 1): ("router", 2.0), (2, 2): ("worker-0", 9.0)}
    after = {(1, 1): ("router", 2.5), (1, 3): ("router", 0.25), (4, 4): ("worker-0", 1.0)}
    assert used_between(before, after) == [("router", 0.5), ("router", 0.25), ("worker-0", 1.0)]
    own = thread_seconds([os.getpid()])
    assert own[os.getpid(), os.getpid()][1] > 0
    assert thread_seconds([2**22 + 1]) == {}
