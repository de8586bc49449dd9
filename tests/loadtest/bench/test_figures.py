"""Medians and ratios: a machine that slows down between two rounds must not change what is said of the servers."""

from loadtest.bench.figures import cost, latency_ms, median, of, rate, ratio, servers_in

from .runs import a_run


def test_ratios_are_taken_within_a_round() -> None:
    # The second round ran while the machine was busy: both cost more, and the ratio is the same.
    runs = [a_run("floor", 4, 1), a_run("holdfast", 6, 1), a_run("floor", 40, 2), a_run("holdfast", 60, 2)]
    assert ratio(of(runs, "holdfast"), of(runs, "floor"), cost) == 1.5


def test_a_round_without_its_counterpart_is_left_out_of_the_ratio() -> None:
    runs = [a_run("floor", 4, 1), a_run("holdfast", 8, 1), a_run("holdfast", 99, 2)]
    assert ratio(of(runs, "holdfast"), of(runs, "floor"), cost) == 2
    assert ratio(of(runs, "holdfast"), of(runs, "nobody"), cost) is None


def test_medians_are_by_server_and_by_figure() -> None:
    runs = [a_run("ws", us, n, deliveries_per_s=us * 10) for n, us in enumerate((1, 9, 2), 1)] + [a_run("nbio", 7)]
    assert servers_in(runs) == ["ws", "nbio"]
    assert (median(of(runs, "ws"), cost), median(of(runs, "ws"), rate)) == (2, 20)
    assert median(of(runs, "ws"), latency_ms("p99")) == 2.0
    assert median(of(runs, "gws"), cost) is None
