"""The development key: made once, the same for every start, and only where it is needed."""

import stat
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.development_key import development_key
from gateway.settings import load


def configured(directory: Path, **flags: object) -> Config:
    return load(None, {"HOME": "/nonexistent"}, {"log.directory": str(directory), **flags})


def test_it_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    config = configured(tmp_path / "log")
    made = development_key(config)
    assert len(made) == 64
    assert development_key(config) == made
    assert development_key(configured(tmp_path / "other")) != made
    (path,) = (tmp_path / "log").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("flags", [{"auth.secret": "s" * 32}, {"log.backend": "none"}])
def test_there_is_none_where_it_would_not_be_used(tmp_path: Path, flags: dict[str, object]) -> None:
    assert development_key(configured(tmp_path, **flags)) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_gives_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert development_key(configured(tmp_path / "file" / "log")) == ""
