"""Which log a router has, by its configuration, and how it is opened."""

import asyncio
import logging
import time
from pathlib import Path

from router.config import RouterConfig
from router.log.embedded import EmbeddedLog
from router.log.port import Log, LogUnavailable, Opened
from router.log.redis import RedisLog

BACKENDS = ("embedded", "redis", "none")
OPEN_DEADLINE_S = 15.0
OPEN_RETRY_S = 0.5
# Batches under way at once: the embedded log writes together whatever comes while it writes.
UNDER_WAY_MAX = 4

_log = logging.getLogger("holdfast.log")


def make_log(config: RouterConfig) -> Log | None:
    """The log that the configuration names, not open yet; None: messages are kept in memory alone."""
    if config.log_backend == "none":
        return None
    if config.log_backend == "redis":
        return RedisLog(
            config.log_redis_url,
            namespaces=config.namespaces,
            prefix=config.log_redis_prefix,
            replicas=None if config.log_redis_replicas < 0 else config.log_redis_replicas,
            key_window_s=config.key_window_s,
        )
    return EmbeddedLog(Path(config.log_directory), sync=config.log_sync)


async def open_log(log: Log, epoch: int) -> Opened:
    """Open a log that may be away for a moment.

    Raises:
        LogUnavailable: it is still away after OPEN_DEADLINE_S.
        LogBroken: see `router.log.port`.
    """
    until = time.monotonic() + OPEN_DEADLINE_S
    said = False
    while True:
        try:
            return await log.open(epoch)
        except LogUnavailable as error:
            if time.monotonic() > until:
                raise
            if not said:
                _log.warning("the log is away, and is asked again for %g s: %s", OPEN_DEADLINE_S, error)
                said = True
        await asyncio.sleep(OPEN_RETRY_S)
