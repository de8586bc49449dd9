"""Which log a router has, by its configuration, and how it is opened."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from router.config import RouterConfig
from router.log.bridge_scripts import BRIDGE_ENTRIES
from router.log.embedded import EmbeddedLog
from router.log.port import Log, LogBroken, LogUnavailable, Opened
from router.log.redis import RedisLog
from router.log.redis_shared import SharedRedisLog
from router.log.sifting import segment_bytes_of

BACKENDS = ("embedded", "redis", "none")
OPEN_RETRY_S = 0.5
OPEN_RETRY_MAX_S = 5.0
# While a log stays away, it is said again so often why.
SAID_AGAIN_S = 60.0
# Batches under way at once: the embedded log writes together whatever comes while it writes.
UNDER_WAY_MAX = 4
# From one batch of several messages to the next, since each costs the same whatever is in it (ADR 98).
PACE_MS = 4

_log = logging.getLogger("holdfast.log")


def make_log(
    config: RouterConfig,
    on_disk: Callable[[int, int], None] = lambda bytes_, outgrown: None,
    on_crowded: Callable[[], None] = lambda: None,
    on_kept: Callable[[int], None] = lambda bytes_: None,
) -> Log | None:
    """The log that the configuration names, not open yet; None: messages are kept in memory alone.

    Args:
        config: see there.
        on_disk: see `EmbeddedLog`.
        on_crowded: see `EmbeddedLog`.
        on_kept: see `RedisLog`.

    """
    if config.log_backend == "none":
        return None
    if config.log_backend == "redis":
        make = (
            RedisLog
            if config.directory is None
            else partial(
                SharedRedisLog,
                shards=config.directory.shards,
                bridge_entries=BRIDGE_ENTRIES if config.log_regions else 0,
                region=config.directory.region if config.log_regions else "",
            )
        )
        return make(
            config.log_redis_url,
            namespaces=config.namespaces,
            prefix=config.log_redis_prefix,
            replicas=None if config.log_redis_replicas < 0 else config.log_redis_replicas,
            key_window_s=config.key_window_s,
            kept_bytes_max=config.log_redis_kept_bytes_max,
            on_kept=on_kept,
        )
    return EmbeddedLog(
        Path(config.log_directory),
        sync=config.log_sync,
        namespaces=config.namespaces,
        segment_bytes=segment_bytes_of(config.log_disk_bytes_max),
        bytes_max=config.log_disk_bytes_max,
        on_disk=on_disk,
        on_crowded=on_crowded,
    )


async def open_log(
    log: Log, epoch: int, *, timeout_s: int = 0, away: Callable[[str], None] = lambda why: None
) -> Opened:
    """Open a log that may be away, and wait for it.

    Args:
        log: not open yet.
        epoch: see `Log.open`.
        timeout_s: how long it may be away; 0: for ever.
        away: called with the reason whenever it is away for another one than before.

    Raises:
        LogBroken: see `router.log.port`; or it is still away after `timeout_s`.
    """
    began = said_at = time.monotonic()
    retry_s, said = OPEN_RETRY_S, ""
    while True:
        try:
            return await log.open(epoch)
        except LogUnavailable as error:
            why, now = str(error), time.monotonic()
        if timeout_s and now - began >= timeout_s:
            raise LogBroken(f"the log was away for {timeout_s} s (log.open_timeout_s): {why}")
        if why != said:
            away(why)
        if why != said or now - said_at >= SAID_AGAIN_S:
            _log.warning("the log is away; the router serves once it is back: %s", why)
            said, said_at = why, now
        await asyncio.sleep(min(retry_s, max(0.0, began + timeout_s - now)) if timeout_s else retry_s)
        retry_s = min(2 * retry_s, OPEN_RETRY_MAX_S)
