"""Private, locked, removed; and nothing of a living node is ever swept."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gateway.errors import RunDirectoryError
from gateway.run_directory import RunDirectory, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait(30)
    return process.pid


def test_a_new_one_is_private_and_removed_with_all_in_it(temporary: Path) -> None:
    directory = RunDirectory()
    assert directory.path.parent == temporary
    assert directory.path.name.startswith(f"holdfast-{os.getpid()}-")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.socket_path.write_text("")
    directory.close()
    directory.close()
    assert list(temporary.iterdir()) == []


def test_a_configured_one_that_was_there_stays_but_is_left_clean(temporary: Path) -> None:
    path = temporary / "run"
    path.mkdir()
    (path / "kept").write_text("")
    directory = RunDirectory(str(path))
    directory.socket_path.write_text("")
    directory.close()
    assert [entry.name for entry in path.iterdir()] == ["kept"]


def test_a_configured_one_that_was_not_there_is_made_and_removed(temporary: Path) -> None:
    directory = RunDirectory(str(temporary / "new" / "run"))
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.close()
    assert not directory.path.exists()


def test_two_nodes_never_share_one(temporary: Path) -> None:
    first = RunDirectory(str(temporary / "run"))
    with pytest.raises(RunDirectoryError, match="in use by another node"):
        RunDirectory(str(temporary / "run"))
    assert first.path.exists()
    first.close()
    RunDirectory(str(temporary / "run")).close()


def test_one_that_cannot_be_made_is_refused_with_the_reason(temporary: Path) -> None:
    (temporary / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="Not a directory"):
        RunDirectory(str(temporary / "file" / "run"))


def test_those_of_killed_nodes_are_swept_at_the_next_start(temporary: Path) -> None:
    left = temporary / f"holdfast-{dead_pid()}-abc"
    left.mkdir()
    (left / "router.sock").write_text("")
    RunDirectory().close()
    assert not left.exists()


def test_nothing_else_is_swept(temporary: Path) -> None:
    gone = dead_pid()
    kept = [temporary / f"holdfast-{os.getpid()}-abc", temporary / "holdfast-x-abc", temporary / f"other-{gone}-abc"]
    for path in kept:
        path.mkdir()
    link = temporary / f"holdfast-{gone}-link"
    link.symlink_to(kept[0])
    assert sweep(temporary) == []
    assert all(path.exists() for path in [*kept, link])


def test_one_that_is_locked_is_alive_whatever_its_number_says(temporary: Path) -> None:
    held = RunDirectory(str(temporary / f"holdfast-{dead_pid()}-abc"))
    assert sweep(temporary) == []
    held.close()
