"""What of a node is compared before and after."""

from dataclasses import replace

from loadtest.soak.samples import Sample, files_left, unbalanced

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


def test_files_beside_connections_and_memory_are_of_the_whole_node() -> None:
    sample = replace(SAMPLE, fds={"worker-0": 10, "router": 4}, private={"worker-0": 100, "router": 50})
    assert (sample.files, sample.memory) == (11, 150)
