"""The ending of `make test` tells the runs' own summaries, and never takes a cut-off log for a passed run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import ending

Tree = Callable[[dict[str, str]], Path]


@pytest.mark.parametrize(
    ("log", "summary"),
    [
        ("....\n==== slowest ====\n312 passed, 2 skipped in 33.10s\n", "312 passed, 2 skipped in 33.10s"),
        ("== 1 failed, 3 passed in 0.50s ==\n", "1 failed, 3 passed in 0.50s"),
        ("# tests 9\n# pass 8\n# fail 0\n# skipped 1\n", "8 pass, 1 skipped"),
        ("\N{INFORMATION SOURCE} tests 9\n\N{INFORMATION SOURCE} pass 9\n", "9 pass"),
    ],
)
def test_the_last_summary_of_a_log_is_found(log: str, summary: str) -> None:
    assert ending.summary_of(log) == summary


def test_a_log_without_a_summary_fails_the_ending(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree({"release.log": "9 passed in 1.00s\n", "checked.log": "Fatal Python error: Aborted\n"})
    assert ending.main(root) == 1
    assert "everything passed" not in capsys.readouterr().out


def test_the_ending_names_each_run(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree({"release.log": "9 passed in 1.00s\n", "checked.log": "8 passed in 2.00s\n"})
    assert ending.main(root) == 0
    printed = capsys.readouterr().out
    assert "release build: 9 passed in 1.00s" in printed
    assert "checked build: 8 passed in 2.00s" in printed
    assert printed.endswith("make test: everything passed\n")
