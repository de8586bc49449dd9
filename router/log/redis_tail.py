"""What a shard keeps of recent records for the next router: their idempotency keys and their origins.

One entry of a stream has those of one batch, packed; nothing else of a record, since most of Redis' memory would go
there: 58 bytes and the channel's name for each message of the last five minutes.
"""

import struct
from collections.abc import Iterator

from core import log_records
from core.log_records import LogEntry

HAS_KEY = 1
HAS_ORIGIN = 2
_HEAD = struct.Struct("<BBQQQ")  # flags, size of the name, epoch, offset, time
_KEY = struct.Struct("<QQ")
_ORIGIN = struct.Struct("<QII")


def packed(entry: LogEntry) -> bytes:
    """What is kept of a record; nothing if it has neither key nor origin."""
    has_key, has_origin = entry.key != (0, 0), entry.origin[0] != 0
    if not has_key and not has_origin:
        return b""
    flags = HAS_KEY * has_key | HAS_ORIGIN * has_origin
    parts = [_HEAD.pack(flags, len(entry.channel), entry.epoch, entry.offset, entry.time_ms), entry.channel]
    if has_key:
        parts.append(_KEY.pack(*entry.key))
    if has_origin:
        parts.append(_ORIGIN.pack(*entry.origin))
    return b"".join(parts)


def unpacked(blob: bytes) -> Iterator[bytes]:
    """The same as log records without bodies.

    Raises:
        ValueError: the bytes are something else.
    """
    at = 0
    try:
        while at < len(blob):
            flags, size, epoch, offset, time_ms = _HEAD.unpack_from(blob, at)
            at += _HEAD.size
            channel = blob[at : at + size]
            at += size
            key, origin = (0, 0), (0, 0, 0)
            if flags & HAS_KEY:
                key = _KEY.unpack_from(blob, at)
                at += _KEY.size
            if flags & HAS_ORIGIN:
                origin = _ORIGIN.unpack_from(blob, at)
                at += _ORIGIN.size
            if at > len(blob) or not size:
                raise struct.error
            yield log_records.pack(
                log_records.POSITION, channel, epoch, offset, time_ms=time_ms, key=key, origin=origin
            )
    except struct.error:
        raise ValueError(f"{len(blob)} bytes that are no keys and origins") from None
