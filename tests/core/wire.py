"""Both sides of the bus for scripted peers, written from core/records.pxd with `struct` alone.

What the router says is built here, what a worker says is taken apart; so the records' layout is held to a second
implementation as well.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack

from core import records

_LINK, _CHANNEL, _SESSION = struct.Struct("=QIIQ"), struct.Struct("=QQQ"), struct.Struct("=Q16sIIQQ")
_PUBLISH, _HISTORY, _BODY = struct.Struct("=IIHHI"), struct.Struct("=IIHHIQQ"), struct.Struct("=II")
_CATCHUP, _CAUGHT = struct.Struct("=QQQIIII"), struct.Struct("=QQQQQQQIIIBBH")
_STATE = struct.Struct("=16sQQHHIQQ")
_PUBLISHED, _MESSAGE, _HEAD = struct.Struct("=IIQQ"), struct.Struct("=QQQII"), struct.Struct("=IBBH")
_SHARDS = struct.Struct("=4Q")
Record = dict[str, Any]
# Of the claims that are answered here, unless another one is wanted.
FENCE = 7


def packed(value: Any) -> bytes:
    body: bytes = msgpack.packb(value)
    return body


def record(kind: int, aux: int, fixed: bytes, variable: bytes = b"", shard: int = 0) -> bytes:
    size = (8 + len(fixed) + len(variable) + 7) & ~7
    return (_HEAD.pack(size, kind, shard, aux) + fixed + variable).ljust(size, b"\0")


def leads(epoch: int, shards: Iterable[int] = range(256)) -> bytes:
    """LEADS for each of these shards."""
    return b"".join(record(records.LEADS, 0, struct.pack("=Q", epoch), shard=one) for one in shards)


def feeds(epoch: int, shards: Iterable[int]) -> bytes:
    """LEADS for each of these shards, of a router that follows another region's leader."""
    return b"".join(record(records.LEADS, records.FEEDS, struct.pack("=Q", epoch), shard=one) for one in shards)


def linked(epoch: int, *, ask: bool, stored_ms: int = 0, version: int = records.VERSION) -> bytes:
    return record(records.LINKED, int(ask), _LINK.pack(epoch, version, 0, stored_ms))


def subscribed(channel: int, epoch: int, offset: int, code: int = 0) -> bytes:
    return record(records.SUBSCRIBED, code, _CHANNEL.pack(channel, epoch, offset))


def everybody(name: str, epoch: int, offset: int, *, gone: bool = False) -> bytes:
    """GLOBAL."""
    return record(records.GLOBAL, len(name), _CHANNEL.pack(records.GONE * gone, epoch, offset), name.encode())


def opened(conn: int, seq: int, stored: Sequence[Any] | None = (), code: int = 0, fence: int = FENCE) -> bytes:
    """`stored` is None where no log keeps sessions."""
    body = b"" if stored is None else packed(list(stored))
    return record(records.OPENED, code, _SESSION.pack(conn, bytes(16), seq, len(body), 0, fence), body)


def refused(conn: int, seq: int, code: int, why: str) -> bytes:
    """OPENED without a fence: the session is another's, or nobody can tell."""
    body = why.encode()
    return record(records.OPENED, code, _SESSION.pack(conn, bytes(16), seq, len(body), 0, 0), body)


def evict(conn: int, session: bytes = bytes(16), fence: int = 0) -> bytes:
    """With a session and a fence as a channel's leader says it, which knows the low half of a handle."""
    return record(records.EVICT, 0, _SESSION.pack(conn, session, 0, 0, 0, fence))


def published(seq: int, epoch: int, offset: int, code: int = 0) -> bytes:
    return record(records.PUBLISHED, code, _PUBLISHED.pack(seq, 0, epoch, offset))


def reply(seq: int, body: bytes, code: int = 0) -> bytes:
    return record(records.REPLY, code, _BODY.pack(seq, len(body)), body)


def bans(body: bytes, aux: int = 0) -> bytes:
    return record(records.BANS, aux, _BODY.pack(0, len(body)), body)


def event(channel: int, body: bytes) -> bytes:
    return record(records.MESSAGE, 2, _MESSAGE.pack(channel, 0, 0, len(body), 0), body)


def message(channel: int, epoch: int, offset: int, body: bytes, *, everybody: bool = False) -> bytes:
    return record(records.MESSAGE, int(everybody), _MESSAGE.pack(channel, epoch, offset, len(body), 0), body)


def caught(
    one: Record,
    position: tuple[int, int],
    messages: list[tuple[int, int, bytes]] = [],  # noqa: B006 - never changed
    *,
    outcome: str = "replayed",
    gap: tuple[int, int] = (0, 0),
    reason: int = 0,
    code: int = 0,
) -> bytes:
    """The answer to a CATCHUP `one`: messages are (epoch, offset, frame)."""
    body = b"".join(
        struct.pack("=QII", offset, len(frame), 0) + frame + bytes(-len(frame) % 8) for _, offset, frame in messages
    )
    last = (position[0], gap[1]) if gap[0] else one["since"]
    last = messages[-1][:2] if messages else last
    fixed = _CAUGHT.pack(
        one["channel"],
        *position,
        *last,
        *gap,
        one["seq"],
        len(body),
        len(messages),
        records.OUTCOMES.index(outcome),
        reason,
        0,
    )
    return record(records.CAUGHT, code, fixed, body)


def _fields(kind: int, aux: int, data: bytes) -> Record:
    if kind in (records.LINK, records.BEGIN, records.END, records.BYE):
        epoch, version, worker, now_ms = _LINK.unpack_from(data)
        return {"epoch": epoch, "version": version, "worker": worker, "now_ms": now_ms}
    if kind in (records.SUBSCRIBE, records.UNSUBSCRIBE):
        channel, epoch, offset = _CHANNEL.unpack_from(data)
        return {"channel": channel, "epoch": epoch, "offset": offset, "name": data[_CHANNEL.size :][:aux]}
    if kind in (records.OPEN, records.CLOSE):
        conn, session, seq, size, time_us, fence = _SESSION.unpack_from(data)
        said = {"conn": conn, "session": session, "seq": seq, "time_us": time_us, "fence": fence}
        return {**said, "body": data[_SESSION.size :][:size]}
    if kind == records.PUBLISH:
        seq, data_size, key_size, sender_size, flags = _PUBLISH.unpack_from(data)
        parts, place = [], _PUBLISH.size
        for size in (aux, key_size, sender_size, data_size):
            parts.append(data[place : place + size])
            place += size
        said = {"name": parts[0], "key": parts[1], "sender": parts[2], "data": parts[3]}
        return {"seq": seq, "again": bool(flags & 1), **said}
    if kind in (records.HISTORY, records.PRESENCE):
        seq, limit, reverse, has_since, bytes_max, epoch, offset = _HISTORY.unpack_from(data)
        since = (epoch, offset) if has_since else None
        asked = {"seq": seq, "limit": limit, "reverse": reverse, "since": since, "bytes_max": bytes_max}
        return {**asked, "name": data[_HISTORY.size :][:aux]}
    if kind == records.CATCHUP:
        channel, epoch, offset, seq, bytes_max, flags, _ = _CATCHUP.unpack_from(data)
        asked = {"channel": channel, "since": (epoch, offset), "seq": seq, "bytes_max": bytes_max, "flags": flags}
        return {**asked, "name": data[_CATCHUP.size :][:aux]}
    if kind == records.SHARDS:
        words = _SHARDS.unpack_from(data)
        return {"which": {shard for shard in range(256) if words[shard // 64] >> shard % 64 & 1}}
    assert kind in (records.STATE, records.ATTEND), f"a worker says no record of kind {kind}"
    session, epoch, offset, what, user_size, conn, time_us, fence = _STATE.unpack_from(data)
    names = data[_STATE.size :]
    told = {"session": session, "position": (epoch, offset), "what": what, "conn": conn}
    return {**told, "time_us": time_us, "fence": fence, "name": names[:aux], "user": names[aux:][:user_size]}


def unpack(batch: bytes, *, shards: bool = False) -> list[Record]:
    """The records of a worker's batch; with `shards` those that say which shards follow, too, and the shard of each."""
    found: list[Record] = []
    place = 0
    while place < len(batch):
        size, kind, shard, aux = _HEAD.unpack_from(batch, place)
        assert size % 8 == 0, "records are multiples of 8 bytes"
        if shards or kind != records.SHARDS:
            one = {"kind": kind, "aux": aux, **_fields(kind, aux, batch[place + 8 : place + size])}
            found.append({**one, "shard": shard} if shards else one)
        place += size
    assert place == len(batch)
    return found
