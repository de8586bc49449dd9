"""What Prometheus reads: names, labels, and counters that never go back."""

import os
from collections import Counter

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from core import ledger
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


def test_every_word_of_a_real_ledger_is_exported() -> None:
    samples = scraped(view("worker-0", totals_of_nothing()))
    for kind in ledger.KINDS:
        assert samples["holdfast_ledger_opened_total", "worker-0", kind] == 0
        assert samples["holdfast_ledger_live", "worker-0", kind] == 0
    for counter in ledger.COUNTERS:
        assert samples[f"holdfast_{counter}_total", "worker-0"] == 0
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
