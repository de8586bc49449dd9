"""A run is right when the clients' counts agree with each other and with the server's, to the message."""

from collections import Counter

import pytest

from core.client_loop import COUNTS
from loadtest.locust_users.verdict import EXIT_WRONG, judge, samples, summed

RIGHT = {**dict.fromkeys(COUNTS, 0), "published": 12, "publish_refused": 2, "accepted": 10, "delivered": 500}
SERVER = {"publishes": 10, "sequenced": 10, "delivered": 500}


def test_counts_that_agree_are_right() -> None:
    verdict = judge(RIGHT, SERVER)
    assert (verdict.wrong, verdict.exit_code) == ((), None)
    assert any("500" in line and line.startswith("delivered") for line in verdict.lines())


@pytest.mark.parametrize("name", ["publishes", "sequenced", "delivered"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_one_message_of_difference_is_wrong(name: str, difference: int) -> None:
    verdict = judge(RIGHT, {**SERVER, name: SERVER[name] + difference})
    assert verdict.exit_code == EXIT_WRONG
    assert [one.partition(":")[0] for one in verdict.wrong] == [name]
    assert f"{difference:+}" in verdict.wrong[0]


@pytest.mark.parametrize("name", ["lost", "repeated", "out_of_order", "corrupt", "told_gaps", "overdue", "unanswered"])
def test_one_fault_is_wrong_whatever_the_server_says(name: str) -> None:
    for server in (SERVER, None):
        assert judge({**RIGHT, name: 1}, server).wrong == (f"{name}: 1",)


def test_a_worker_that_did_not_answer_makes_the_run_wrong() -> None:
    assert judge(RIGHT, SERVER, ["worker-2"]).exit_code == EXIT_WRONG


def test_what_is_not_compared_is_said_to_be_so() -> None:
    assert any("not compared" in line for line in judge(RIGHT, None).lines())


def test_workers_are_summed() -> None:
    assert summed([{"a": 1, "b": 0}, {"a": 2, "b": 0}]) == Counter(a=3, b=0)
    assert summed([]) == Counter()


def test_metrics_are_read_by_their_whole_name() -> None:
    text = 'x_total{process="router"} 3.0\nx_total{process="worker-0"} 1e3\nx_total_more 9\nyx_total 7\nx_total 1\n'
    assert list(samples(text, "x_total")) == [3, 1000, 1]


@pytest.mark.parametrize("name", ["published", "delivered"])
def test_a_run_in_which_nothing_happened_shows_nothing(name: str) -> None:
    assert f"{name}: nothing, so nothing was shown" in judge({**RIGHT, name: 0}, None).wrong
