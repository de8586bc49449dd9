"""The metric of requests for what sessions missed."""

from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest

from gateway.recovery_metrics import TOLD, RecoveryCollector


def test_answers_are_counted_by_code() -> None:
    registry, answers = CollectorRegistry(auto_describe=False), Counter[str]()
    registry.register(RecoveryCollector(answers))
    assert b"holdfast_recoveries_total{" not in generate_latest(registry)
    answers.update([TOLD, TOLD, "rate_limited"])
    text = generate_latest(registry).decode()
    assert 'holdfast_recoveries_total{code="ok"} 2.0' in text
    assert 'holdfast_recoveries_total{code="rate_limited"} 1.0' in text
