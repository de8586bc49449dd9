"""What can be known of the place of a node's log before it runs: the disk's room, or what Redis says of itself."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gateway.config import Config
from gateway.region_config import logs_of
from router.log.port import LogError
from router.log.redis_settings import concerns_at

DEADLINE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class LogFacts:
    """Of the log that the configuration names. None: not known, or of the other kind of log."""

    disk_free: int | None = None
    """Bytes that this user may still write where the directory is, or will be."""
    disk_used: int = 0
    """Bytes that the log's segments have there already."""
    is_writable: bool | None = None
    redis_concerns: tuple[str, ...] | None = None
    """What of its settings loses messages."""
    redis_error: str = ""
    """Why it could not be asked."""
    regions: Mapping[str, "LogFacts"] = field(default_factory=dict)
    """The same of the logs of other regions, by region."""


def log_facts(config: Config) -> LogFacts:
    """Look at the disk, or ask Redis, within a few times DEADLINE_S."""
    if config.log.backend == "embedded":
        return _of_disk(Path(config.log.directory))
    if config.log.backend == "redis":
        others = {region: _of_redis(url) for region, url in logs_of(config.log.regions).items()}
        return replace(_of_redis(config.log.redis_url), regions=others)
    return LogFacts()


def _of_disk(directory: Path) -> LogFacts:
    try:
        there = next(path for path in (directory, *directory.parents) if path.exists())
        room = os.statvfs(there)
        used = sum(path.stat().st_size for path in directory.glob("segment-*"))
    except OSError:
        return LogFacts(is_writable=False)
    return LogFacts(
        disk_free=room.f_bavail * room.f_frsize,
        disk_used=used,
        is_writable=there.is_dir() and os.access(there, os.W_OK | os.X_OK),
    )


def _of_redis(url: str) -> LogFacts:
    try:
        concerns = asyncio.run(concerns_at(url, DEADLINE_S))
    except LogError as error:
        return LogFacts(redis_error=str(error))
    return LogFacts(redis_concerns=None if concerns is None else tuple(concerns))
