"""The worker's side of the registry: which connections are there, and ending some of them, for the admin API.

The data plane looks at a bounded part of its table a turn and says where to go on, so a listing is a row of short
questions; between any two of them the clients are served. Nothing is kept of a listing but the answer that is waited
for, and every wait has the deadline of whoever asked.
"""

import asyncio
import ipaddress
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

import msgpack

from core import conn as connections
from core import listing, notes
from core.codes import NAMES
from gateway.connection_id import ConnectionId
from gateway.devices import Devices

LIMIT_MAX = 1000
REASON_BYTES_MAX = 500
ANSWER_DEADLINE_S = 5.0
"""For one turn's answer: whoever asked gives up sooner, and this gives back what its end did not."""
_TICK_S = listing.TICK_MS / 1000
_UINT32_MAX = 2**32 - 1


class DataPlane(Protocol):
    """What the control plane needs of core.loop.EdgeLoop."""

    def put(
        self,
        kind: int,
        conn: int = 0,
        request: int = 0,
        *,
        flags: int = 0,
        first: int = 0,
        second: int = 0,
        third: int = 0,
        session: bytes = ...,
        text: bytes = b"",
        extra: bytes = b"",
    ) -> None: ...


class Plane(DataPlane, Protocol):
    """What is needed of core.loop.EdgeLoop."""

    def flush(self) -> None: ...


class Listing:
    """Answers the commands `connections` and `reclaim`.

    Args:
        plane: the data plane; `on_listed` has to be called with its LISTED notes.
        worker: place of the worker on its node.
        epoch: of this start of the worker.
        wall_offset_s: the wall clock's time when the monotonic clock stood at 0.
        devices: what the classes of devices are called.

    """

    def __init__(
        self, plane: Plane, *, worker: int, epoch: int, wall_offset_s: float, devices: Devices | None = None
    ) -> None:
        self._plane = plane
        self._worker = worker
        self._epoch = epoch
        self._wall_offset_s = wall_offset_s
        self._devices = devices or Devices()
        self._numbers = itertools.count(1)
        self._one_at_a_time = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes, int]]] = {}

    async def connections(self, *, limit: int = LIMIT_MAX, after: str | None = None, **filters: Any) -> dict[str, Any]:
        """The connections that fit, at most `limit`, in the order of the table's slots.

        Args:
            limit: how many at most.
            after: id of the one to go on behind, of this start of the worker or another.
            filters: see `_conditions`.

        Returns:
            {"connections": [...], "more": whether others may follow}; with `channel` also "members": how many it has.

        """
        return await self._gather(notes.LIST, limit, self._slot_behind(after), filters)

    async def reclaim(
        self, *, code: int, reason: str, after_ms: int, limit: int = LIMIT_MAX, **filters: Any
    ) -> dict[str, Any]:
        """End the connections that fit, at most `limit`: FIN, with all that follows from it.

        Those that end already are passed over, unless one is asked for by its id. `connections` of the answer are those
        that were found; each says which state it `was` in, and which it is in now.
        """
        if "id" not in filters:
            filters.setdefault("states", list(_BEFORE_CLOSING))
        named = {"first": code, "second": after_ms, "extra": _cut(reason)}
        return await self._gather(notes.RECLAIM, limit, 0, filters, **named)

    def on_listed(self, request: int, goes_on: int, records: bytes, members: int) -> None:
        """One turn's answer of the data plane; `members`: of the channel that was asked for."""
        future = self._waiting.get(request)
        if future is not None and not future.done():
            future.set_result((goes_on, records, members))

    @property
    def waiting(self) -> int:
        """How many turns' answers are waited for."""
        return len(self._waiting)

    async def _gather(self, kind: int, limit: int, slot: int, filters: dict[str, Any], **named: Any) -> dict[str, Any]:
        """Turn after turn until the limit or the table's end."""
        conditions = self._conditions(**filters)
        found: list[dict[str, Any]] = []
        members = 0
        while conditions is not None and slot != listing.END and len(found) < limit:
            query = listing.query(slot=slot, limit=limit - len(found), **conditions)
            slot, records, members = await self._ask(kind, query, named)
            found += map(self._shown, _unpacked(records))
        answer = {"connections": found, "more": conditions is not None and slot != listing.END}
        return {**answer, "members": members} if "channel" in filters else answer

    async def _ask(self, kind: int, query: bytes, named: dict[str, Any]) -> tuple[int, bytes, int]:
        number = next(self._numbers)
        future: asyncio.Future[tuple[int, bytes, int]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            # However many listings there are, one turn of the data plane has a part of one of them.
            async with asyncio.timeout(ANSWER_DEADLINE_S), self._one_at_a_time:
                self._plane.put(kind, request=number, text=query, **named)
                self._plane.flush()
                return await future
        finally:
            del self._waiting[number]

    def _slot_behind(self, after: str | None) -> int:
        """Where to begin; those of an earlier start of the worker come before ours, those of a later one behind."""
        last = None if after is None else ConnectionId.parse(after)
        if last is None or last.epoch < self._epoch:
            return 0
        return min(last.slot + 1, listing.END) if last.epoch == self._epoch else listing.END

    def _conditions(
        self,
        *,
        id: str | None = None,
        states: list[str] | None = None,
        session: str | None = None,
        address: str | None = None,
        older_s: float = 0,
        idle_s: float = 0,
        device: str | None = None,
        **same: Any,
    ) -> dict[str, Any] | None:
        """The arguments of `core.listing.query`; None: nothing can fit.

        Args:
            id: of the one connection that is asked for.
            states: names of the states that fit.
            session: id in hexadecimal.
            address: without port.
            older_s: at least so many seconds since it was accepted.
            idle_s: at least so many since anything was heard of it.
            device: class of the device; empty: it told none.
            same: `user`, `channel` and `queued_bytes`.

        """
        if id is not None:
            wanted = ConnectionId.parse(id)
            ours = wanted is not None and (wanted.worker, wanted.epoch) == (self._worker, self._epoch)
            return {"conn": wanted.handle} if wanted is not None and ours else None
        same |= {"older": _ticks(older_s), "idle": _ticks(idle_s)}
        if device is not None:
            same["device"] = self._devices.known(device)
            if same["device"] is None:
                return None
        if states is not None:
            same["states"] = sum(1 << connections.STATES.index(state) for state in set(states))
        if session is not None:
            same["session"] = bytes.fromhex(session)
        if address is not None:
            same["address"] = packed_address(address)
        return same

    def _shown(self, record: dict[str, Any]) -> dict[str, Any]:
        """One record of the data plane as the API tells it."""
        address, port = record["address"], record["port"]
        encoding = "json" if record["json"] else "msgpack"
        return {
            "id": str(ConnectionId(self._worker, self._epoch, record["conn"])),
            "worker": f"worker-{self._worker}",
            "user": record["user"],
            "device": self._devices.name(record["device"]),
            "session": record["session"].hex() if record["session"] else None,
            "state": connections.STATES[record["state"]],
            "was": connections.STATES[record["was"]],
            "reason": NAMES[record["reason"]] if record["state"] >= _CLOSING else None,
            "address": shown_address(address) if port else None,
            "port": port or None,
            "transport": "websocket" if record["websocket"] else "tcp",
            "encoding": encoding if record["encoded"] else None,
            "tls": record["tls"],
            "created": self._time(record["created"]),
            "last_heard": self._time(record["heard"]),
            "last_sent": self._time(record["sent"]),
            **{name: record[name] for name in ("rtt_ms", "lost_heartbeats", "queued_bytes", "memberships", "requests")},
        }

    def _time(self, tick: int) -> str:
        """The wall clock at a tick of the data plane, to a tenth of a second."""
        at = datetime.fromtimestamp(self._wall_offset_s + tick * _TICK_S, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_CLOSING = connections.STATES.index("closing")
_BEFORE_CLOSING = connections.STATES[:_CLOSING]


def _cut(reason: str) -> bytes:
    """As much of a FIN's reason as fits, in whole characters: half of one would make the frame unreadable."""
    return reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()


def _ticks(seconds: float) -> int:
    return min(int(seconds / _TICK_S), _UINT32_MAX)


def _unpacked(records: bytes) -> Iterator[dict[str, Any]]:
    unpacker = msgpack.Unpacker(unicode_errors="replace")
    unpacker.feed(records)
    return (dict(zip(listing.FIELDS, record, strict=True)) for record in unpacker)


def packed_address(address: str) -> bytes:
    """An IP address as the data plane keeps it: 16 bytes, IPv4 mapped.

    Raises:
        ValueError: it is none.

    """
    read = ipaddress.ip_address(address)
    return read.packed if read.version == 6 else bytes(10) + b"\xff\xff" + read.packed


def shown_address(packed: bytes) -> str:
    """The other way round."""
    read = ipaddress.IPv6Address(packed)
    return str(read.ipv4_mapped or read)
