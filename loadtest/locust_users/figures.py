"""The core's counters and histograms as locust's own statistics, filled in batches rather than message by message."""

import time
from collections.abc import Mapping, Sequence

from locust.stats import RequestStats, StatsEntry, StatsError, bucket_response_time

METHOD = "WS"
# Deliveries that are wrong: the counter, and what locust's list of failures says.
FAULTS = {
    "lost": "lost: an offset never came",
    "repeated": "repeated: an offset came twice",
    "out_of_order": "out of order: an offset came after a later one",
    "corrupt": "corrupt: the payload is not what was published",
    "told_gaps": "gap: the server said that messages would not come",
}


def add_times(stats: RequestStats, name: str, times: Sequence[tuple[int, int]]) -> None:
    """Add a histogram's difference, [(ns, count), …] rising, to the entry of that name and to the total."""
    if not times:
        return
    batch = _batch(stats, name)
    second = int(time.time())
    for value_ns, count in times:
        milliseconds = value_ns / 1e6
        batch.response_times[bucket_response_time(milliseconds)] += count
        batch.total_response_time += milliseconds * count
        batch.num_requests += count
        batch.num_reqs_per_sec[second] += count
    batch.min_response_time = times[0][0] / 1e6
    batch.max_response_time = times[-1][0] / 1e6
    batch.last_request_timestamp = time.time()
    _add(stats, batch)


def add_faults(stats: RequestStats, name: str, text: str, count: int) -> None:
    """Add failures of one kind; what never came has no response time."""
    if count <= 0:
        return
    batch = _batch(stats, name)
    batch.num_failures = batch.num_requests = batch.num_none_requests = count
    batch.num_fail_per_sec[int(time.time())] = count
    batch.last_request_timestamp = time.time()
    _add(stats, batch)
    error = stats.errors.setdefault(StatsError.create_key(METHOD, name, text), StatsError(METHOD, name, text))
    error.occurred()
    error.occurrences += count - 1


def _batch(stats: RequestStats, name: str) -> StatsEntry:
    return StatsEntry(stats, name, METHOD, use_response_times_cache=False)


def _add(stats: RequestStats, batch: StatsEntry) -> None:
    stats.entries[(batch.name, METHOD)].extend(batch)
    stats.total.extend(batch)


class Figures:
    """Pours what is new since the last time into a RequestStats."""

    def __init__(self, stats: RequestStats) -> None:
        self._stats = stats
        self._told = dict.fromkeys(FAULTS, 0)

    def pour(self, counts: Mapping[str, int], times: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Totals of the counters, and the histograms' differences."""
        for name, found in times.items():
            add_times(self._stats, name, found)
        for name, text in FAULTS.items():
            # A late message takes itself off the lost ones: what was told stays told, and nothing is told twice.
            add_faults(self._stats, "delivery", text, counts[name] - self._told[name])
            self._told[name] = max(self._told[name], counts[name])
