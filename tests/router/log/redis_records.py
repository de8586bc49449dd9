"""Batches for tests of the log."""

from core import log_records
from router.log.port import Loaded

NOW_MS = 1_800_000_000_000


def message(channel: str, epoch: int, offset: int, body: bytes = b"body", **fields: object) -> bytes:
    fields = {"time_ms": NOW_MS, **fields}
    return log_records.pack(log_records.MESSAGE, channel.encode(), epoch, offset, body=body, **fields)  # type: ignore[arg-type]


def offsets(loaded: Loaded) -> list[int]:
    return [entry.offset for entry in log_records.entries(loaded.records)]


def bodies(loaded: Loaded) -> list[bytes]:
    return [entry.body for entry in log_records.entries(loaded.records)]


def now_ms() -> int:
    return NOW_MS
