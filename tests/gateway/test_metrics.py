"""What Prometheus reads: names, labels, and counters that never go back."""

import os
import resource
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from core import ledger
from gateway import metrics
from gateway.child import Totals
from gateway.metrics import NodeCollector, ProcessView, exposition, usage


def scraped(*views: ProcessView) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, sorted by label."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(lambda: views, node="host-1", version="1.2.3"))
    samples: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(exposition(registry).decode()):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[label] for label in sorted(sample.labels, reverse=True)))
            assert key not in samples, f"{key} comes twice"
            samples[key] = sample.value
    return samples


def view(name: str, totals: Totals | None, *, ready: bool = True, restarts: int = 0) -> ProcessView:
    return ProcessView(name, os.getpid(), ready, restarts, totals)


def totals_of_nothing() -> Totals:
    return Totals.of(ledger.read(bytes(ledger.STATS_BYTES)))


def test_the_ledger_of_each_process_is_shown_kind_by_kind() -> None:
    totals = Totals(Counter(fd=9), Counter(fd=4), Counter(fd=2), Counter(fd=3), Counter(acks=6), {"linked": 1})
    samples = scraped(view("worker-0", totals), view("router", None))
    assert samples["holdfast_ledger_opened_total", "worker-0", "fd"] == 9
    assert samples["holdfast_ledger_closed_total", "worker-0", "fd"] == 4
    assert samples["holdfast_ledger_lost_total", "worker-0", "fd"] == 2
    assert samples["holdfast_ledger_live", "worker-0", "fd"] == 3
    assert samples["holdfast_acks_total", "worker-0"] == 6
    assert samples["holdfast_linked", "worker-0"] == 1
    assert ("holdfast_acks_total", "router") not in samples


def test_gaps_are_told_by_their_reasons() -> None:
    one = Totals(Counter(), Counter(), Counter(), Counter(), Counter(gaps_trimmed=3, gaps_router_lost=1), {})
    two = Totals(Counter(), Counter(), Counter(), Counter(), Counter(gaps_reset=2), {})
    samples = scraped(view("worker-0", one), view("router", two))
    assert samples["holdfast_gaps_total", "trimmed", "worker-0"] == 3
    assert samples["holdfast_gaps_total", "router_lost", "worker-0"] == 1
    assert samples["holdfast_gaps_total", "reset", "router"] == 2
    assert not any(name.startswith("holdfast_gaps_") and name != "holdfast_gaps_total" for name, *_ in samples)


def test_every_word_of_a_real_ledger_is_exported() -> None:
    samples = scraped(view("worker-0", totals_of_nothing()))
    for kind in ledger.KINDS:
        assert samples["holdfast_ledger_opened_total", "worker-0", kind] == 0
        assert samples["holdfast_ledger_live", "worker-0", kind] == 0
    for counter in ledger.COUNTERS:
        name, _, reason = counter.partition("_") if counter.startswith("gaps_") else (counter, "", "")
        assert samples[(f"holdfast_{name}_total", *([reason] if reason else []), "worker-0")] == 0
    for gauge in ledger.GAUGES:
        assert samples[f"holdfast_{gauge}", "worker-0"] == 0


def test_readiness_restarts_memory_and_processor_time() -> None:
    samples = scraped(view("supervisor", None), ProcessView("worker-0", None, False, 3, None))
    assert samples["holdfast_process_ready", "supervisor"] == 1
    assert samples["holdfast_process_ready", "worker-0"] == 0
    assert samples["holdfast_process_restarts_total", "worker-0"] == 3
    assert samples["holdfast_process_resident_memory_bytes", "supervisor"] > 1_000_000
    assert samples["holdfast_process_cpu_seconds_total", "supervisor"] > 0
    assert ("holdfast_process_cpu_seconds_total", "worker-0") not in samples
    assert samples["holdfast_build_info", "1.2.3", "host-1"] == 1


def test_a_process_that_is_gone_has_no_usage() -> None:
    assert usage(2**22 + 1) is None


def test_open_files_their_limit_and_the_start_are_told() -> None:
    before = usage(os.getpid())
    with open("/dev/null", "rb"):
        used = usage(os.getpid())
    assert before is not None
    assert used is not None
    assert used.open_files == before.open_files + 1
    assert used.open_files_max == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0 < time.time() - used.started_seconds < 3 * 3600
    samples = scraped(view("supervisor", None))
    assert samples["holdfast_process_open_fds", "supervisor"] == before.open_files
    assert samples["holdfast_process_max_fds", "supervisor"] == used.open_files_max
    assert samples["holdfast_process_start_time_seconds", "supervisor"] == used.started_seconds


def test_where_the_folders_size_says_nothing_the_files_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 6.2."""
    before = metrics._open_files(os.getpid())
    monkeypatch.setattr(os, "stat", lambda _: SimpleNamespace(st_size=0))
    # The listing itself is one more.
    assert metrics._open_files(os.getpid()) == before + 1


def test_errors_are_shown_by_code_and_times_as_histograms() -> None:
    words = bytearray(ledger.STATS_BYTES)
    totals = Totals.of(ledger.read(words))
    totals.errors["rate_limited"] = 3
    for bucket, count in (("1", 4), ("500", 2), ("inf", 1), ("sum", 61_000)):
        totals.times[f"publish_{bucket}"] = count
    samples = scraped(view("worker-0", totals))
    assert samples["holdfast_request_errors_total", "worker-0", "rate_limited"] == 3
    assert samples["holdfast_request_errors_total", "worker-0", "overloaded"] == 0
    name = "holdfast_publish_seconds_bucket"
    assert samples[name, "worker-0", "0.001"] == samples[name, "worker-0", "0.2"] == 4
    assert samples[name, "worker-0", "0.5"] == samples[name, "worker-0", "10"] == 6
    assert samples[name, "worker-0", "+Inf"] == samples["holdfast_publish_seconds_count", "worker-0"] == 7
    assert samples["holdfast_publish_seconds_sum", "worker-0"] == 61
    assert samples["holdfast_welcome_seconds_count", "worker-0"] == 0


def test_errors_and_times_of_ended_processes_stay_counted() -> None:
    first, second = totals_of_nothing(), totals_of_nothing()
    first.errors["internal"], first.times["welcome_5"] = 2, 7
    second.errors["internal"], second.times["welcome_5"] = 1, 1
    both = totals_of_nothing().plus(first).ended().plus(second)
    assert (both.errors["internal"], both.times["welcome_5"]) == (3, 8)


def test_the_last_audit_is_shown_once_there_was_one() -> None:
    registry = CollectorRegistry(auto_describe=False)
    last: dict[str, int] = {}
    registry.register(metrics.AuditCollector(lambda: last))
    assert "holdfast_ledger_audit_differences{" not in exposition(registry).decode()
    last.update({"worker-0": 2, "router": 0})
    text = exposition(registry).decode()
    assert 'holdfast_ledger_audit_differences{process="worker-0"} 2.0' in text
    assert 'holdfast_ledger_audit_differences{process="router"} 0.0' in text
