"""Requests for what sessions missed (gateway/recovery.py), in the node's metrics."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

TOLD = "ok"


class RecoveryCollector(Collector):
    """Collects at the time of the scrape.

    Args:
        answers: how often each code was the answer; TOLD: nothing was refused.

    """

    def __init__(self, answers: Counter[str]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """One counter."""
        about = "Requests for what a session missed, by the code of the answer."
        family = CounterMetricFamily("holdfast_recoveries", about, labels=["code"])
        for code, count in sorted(self._answers.items()):
            family.add_metric([code], count)
        yield family
