"""What of a node is compared before and after."""

import os
import subprocess
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

from loadtest.measure import Server
from loadtest.soak.samples import Sample, appeared, ended, errors_in, files_left, found_wrong, processes, unbalanced

LIVE = {"connection": 3, "ring": 0, "history": 5, "stream": 2, "fd": 5}
SAMPLE = Sample(0.0, 3, 3, {"worker-0": 1}, {"worker-0": 100}, {"worker-0": 200}, {"worker-0": 10}, LIVE)


def test_a_ledger_that_is_where_it_was_is_balanced_whatever_is_kept_on_purpose() -> None:
    assert unbalanced(SAMPLE, replace(SAMPLE, live={**LIVE, "history": 90, "stream": 17})) == {}


def test_every_other_line_that_is_not_is_named_also_one_that_is_new() -> None:
    after = replace(SAMPLE, live={**LIVE, "ring": 2, "fd": 4, "lease": 1})
    assert unbalanced(SAMPLE, after) == {"fd": -1, "lease": 1, "ring": 2}


def test_open_files_are_compared_by_process() -> None:
    assert files_left(SAMPLE, SAMPLE) == {}
    assert files_left(SAMPLE, replace(SAMPLE, fds={"worker-0": 12})) == {"worker-0": 2}
    assert files_left(SAMPLE, replace(SAMPLE, fds={"worker-0": 10, "zygote 9": 5})) == {"zygote 9": 5}


def test_processes_are_compared_by_pid() -> None:
    assert (ended(SAMPLE, SAMPLE), appeared(SAMPLE, SAMPLE)) == ([], [])
    replaced = replace(SAMPLE, pids={"worker-0": 2, "zygote": 3})
    assert (ended(SAMPLE, replaced), appeared(SAMPLE, replaced)) == (["worker-0"], ["worker-0", "zygote"])


def test_two_processes_of_one_name_are_two() -> None:
    with subprocess.Popen(["sleep", "60"]) as first, subprocess.Popen(["sleep", "60"]) as second:
        try:
            pids = (os.getpid(), first.pid, second.pid)
            server = SimpleNamespace(pids=lambda: pids, process=SimpleNamespace(pid=os.getpid()))
            found = processes(cast(Server, server))
        finally:
            first.kill()
            second.kill()
    assert len(found) == 3
    assert found["supervisor"] == os.getpid()
    assert sorted(found.values()) == sorted(pids)


def test_what_a_process_finds_wrong_with_itself_is_named() -> None:
    metrics = {
        'holdfast_handles_leaked_total{process="worker-0"}': 2.0,
        'holdfast_handles_leaked_total{process="router"}': 0.0,
        'holdfast_tasks_failed_total{process="supervisor"}': 1.0,
        'holdfast_pings_lost_total{process="worker-0"}': 9.0,
    }
    assert found_wrong(metrics) == {
        "holdfast_handles_leaked_total of worker-0": 2,
        "holdfast_tasks_failed_total of supervisor": 1,
    }


def test_errors_and_whatever_is_no_line_of_the_log_are_found() -> None:
    lines = [
        b'{"event": "leak_suspected", "level": "warning"}',
        b'{"event": "hook_gave_up", "level": "error"}',
        b"WARNING:asyncio:slow",
        b"",
        b"Traceback (most recent call last):",
        b"ERROR:asyncio:Task exception was never retrieved",
        b"[1]",
    ]
    assert errors_in(b"\n".join(lines)) == [lines[number].decode() for number in (1, 4, 5, 6)]


def test_files_beside_connections_and_memory_are_of_the_whole_node() -> None:
    sample = replace(SAMPLE, fds={"worker-0": 10, "router": 4}, private={"worker-0": 100, "router": 50})
    assert (sample.files, sample.memory) == (11, 150)
