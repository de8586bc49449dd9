"""What is found of the log's place, and that asking Redis ends whatever is there."""

from pathlib import Path

import pytest

from gateway.config import Config, LogSection
from gateway.log_facts import LogFacts, log_facts
from tests.conftest import free_ports
from tests.servers.redis import FLEETING, LASTING, running


def facts(**log: object) -> LogFacts:
    return log_facts(Config(log=LogSection(**log)))  # type: ignore[arg-type]


def test_a_folder_that_is_still_to_be_made_is_where_its_parents_are(tmp_path: Path) -> None:
    found = facts(directory=str(tmp_path / "a" / "b"))
    assert found.is_writable is True
    assert found.disk_used == 0
    assert found.disk_free is not None
    assert found.disk_free > 0
    assert not (tmp_path / "a").exists(), "it only looks"


def test_what_the_segments_have_is_counted(tmp_path: Path) -> None:
    (tmp_path / "segment-000000000001.log").write_bytes(bytes(1_000))
    (tmp_path / "state.sqlite").write_bytes(bytes(500))
    assert facts(directory=str(tmp_path)).disk_used == 1_000


def test_a_file_in_the_way_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert facts(directory=str(tmp_path / "file")).is_writable is False
    assert facts(directory=str(tmp_path / "file" / "below")).is_writable is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LASTING, ()),
        ((*FLEETING, "--maxmemory-policy", "allkeys-lru"), ("appendonly is no", "maxmemory-policy is allkeys-lru")),
    ],
)
def test_redis_says_what_it_does_not_keep(options: tuple[str, ...], said: tuple[str, ...]) -> None:
    with running(*options) as server:
        found = facts(backend="redis", redis_url=f"redis://127.0.0.1:{server.port}")
    assert found.redis_concerns is not None
    assert len(found.redis_concerns) == len(said)
    for concern, part in zip(found.redis_concerns, said, strict=True):
        assert concern.startswith(f"Redis at 127.0.0.1:{server.port}: {part}")


def test_where_nobody_is_the_reason_is_told() -> None:
    found = facts(backend="redis", redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}")
    assert found.redis_concerns is None
    assert "cannot be reached" in found.redis_error


def test_the_logs_of_other_regions_are_asked_as_well() -> None:
    with running(*FLEETING) as server:
        own, gone = f"redis://127.0.0.1:{server.port}", f"redis://127.0.0.1:{free_ports(1)[0]}"
        found = facts(backend="redis", redis_url=own, regions=f"us={own} ap={gone}").regions
    assert list(found) == ["us", "ap"]
    assert found["us"].redis_concerns
    assert "cannot be reached" in found["ap"].redis_error


def test_without_a_log_there_is_nothing_to_look_at() -> None:
    assert facts(backend="none") == LogFacts()
