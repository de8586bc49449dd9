"""The lock of a log's directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.owned import ACCOUNT
from router.log.lock import DirectoryLock
from router.log.port import LogDeposed, LogInUse, LogLost
from tests.contract.running import message, run
from tests.contract.stores import EmbeddedStore

DEADLINE_S = 30
HOLD = """
import sys
from pathlib import Path
from router.log.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]), 1.0)
print("held", flush=True)
sys.stdin.read()
"""


def test_whoever_comes_second_hears_who_holds_it(tmp_path: Path) -> None:
    before = len(ACCOUNT.held)
    first = DirectoryLock(tmp_path / "lock", 0.0)
    with pytest.raises(LogInUse, match=rf"{tmp_path} is in use by process {os.getpid()}: stop it, or .* log.directory"):
        DirectoryLock(tmp_path / "lock", 0.0)
    assert first.is_mine()
    first.release()
    first.release()
    DirectoryLock(tmp_path / "lock", 0.0).release()
    assert len(ACCOUNT.held) == before


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LogInUse, match=f"process {process.pid}"):
            DirectoryLock(tmp_path / "lock", 0.1)
        process.kill()
        process.wait(DEADLINE_S)
    DirectoryLock(tmp_path / "lock", 5.0).release()


def test_one_whose_file_was_removed_and_locked_by_another_knows_it(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path / "lock", 0.0)
    (tmp_path / "lock").unlink()
    assert not first.is_mine()
    assert f"{tmp_path / 'lock'} was removed" in first.lost()
    second = DirectoryLock(tmp_path / "lock", 0.0)
    assert first.lost() == f"another process took {tmp_path / 'lock'}: process {os.getpid()}"
    assert second.is_mine()
    assert second.lost() == ""
    first.release()
    second.release()


def test_one_whose_folder_was_removed_says_so_and_not_that_another_took_it(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    first = DirectoryLock(folder / "lock", 0.0)
    shutil.rmtree(folder)
    assert first.lost().startswith(f"{folder} was removed while this process used it")
    folder.mkdir()
    assert first.lost().startswith(f"{folder / 'lock'} was removed")
    first.release()
    assert first.lost() == f"{folder / 'lock'} was given up"


def test_a_log_whose_lock_was_removed_is_lost_and_one_whose_lock_another_has_is_taken(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "log")

    async def body() -> None:
        log = await store.log()
        await log.open(1)
        (tmp_path / "log" / "lock").unlink()
        with pytest.raises(LogLost, match="was removed while this process used it"):
            await log.append(message(b"group:a", 1, 1))
        other = DirectoryLock(tmp_path / "log" / "lock", 0.0)
        with pytest.raises(LogDeposed, match="another process took") as caught:
            await log.append(message(b"group:a", 1, 2))
        assert type(caught.value) is LogDeposed
        other.release()

    run(store, body)
