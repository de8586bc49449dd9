"""Reading /proc and /metrics: sums over processes, and no figure where there is nothing to read."""

import os
import subprocess
import sys

import pytest

from loadtest.measure import (
    BenchError,
    Cpu,
    Memory,
    ledger_live,
    metric_sum,
    parse_metrics,
    parse_smaps_rollup,
    process_tree,
    read_cpu,
    read_memory,
)

METRICS = """\
# HELP holdfast_gil_takes_total Times the GIL was taken.
# TYPE holdfast_gil_takes_total counter
holdfast_gil_takes_total{worker="0"} 3
holdfast_gil_takes_total{worker="1"} 4.0
holdfast_gil_takes_total_other 100
holdfast_ledger_opened_total{process="worker-0",kind="ring"} 900
holdfast_ledger_live{process="worker-0",kind="ring"} 7.0
holdfast_ledger_live{kind="ring",process="worker-1"} 2
holdfast_ledger_live{kind="timer"} 1
"""
PARENT = "import subprocess, sys; c = subprocess.Popen(['cat'], stdin=0); print(c.pid, flush=True); c.wait()"


def test_metrics_are_summed_over_their_labels_only() -> None:
    samples = parse_metrics(METRICS)
    assert metric_sum(samples, "holdfast_gil_takes_total") == 7
    assert ledger_live(samples) == {"ring": 9, "timer": 1}
    with pytest.raises(BenchError, match="has no holdfast_gil"):
        metric_sum(samples, "holdfast_gil")


def test_a_process_tree_holds_grandchildren() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert process_tree(parent.pid) == tuple(sorted((parent.pid, child)))
        assert {parent.pid, child} <= set(process_tree(os.getpid()))
        own = read_memory([os.getpid()])
        both = read_memory([os.getpid(), parent.pid])
        assert 0 < own.uss <= own.pss <= own.rss < both.rss
        parent.communicate(timeout=5)


def test_cpu_grows_with_work_and_is_refused_when_processes_changed() -> None:
    before = read_cpu([os.getpid()])
    while read_cpu([os.getpid()]).since(before).total_s < 0.02:
        sum(range(10_000))
    with pytest.raises(BenchError, match="processes changed"):
        Cpu(1.0, 1.0, (1, 2)).since(Cpu(0.5, 0.5, (1, 3)))


def test_ticks_stand_in_for_a_thread_that_ended() -> None:
    before = Cpu(1.0, 1.0, (1,), 2.0)
    assert Cpu(1.5, 1.0, (1,), 2.504).since(before).total_s == pytest.approx(0.504)
    assert Cpu(1.5, 1.0, (1,), 2.1).since(before).total_s == 0.5


def test_smaps_rollup_is_read_in_bytes() -> None:
    lines = ["55d0-7ffc ---p 00000000 00:00 0 [rollup]", "Rss: 30 kB", "Pss: 20 kB", "Pss_Dirty: 9 kB"]
    lines += ["Private_Clean: 4 kB", "Private_Dirty: 6 kB"]
    assert parse_smaps_rollup("\n".join(lines)) == Memory(30 * 1024, 20 * 1024, 10 * 1024)
