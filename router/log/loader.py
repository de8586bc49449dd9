"""The control thread's side of loads: reads what the data plane wants of streams, many in one round trip.

What is asked while a read is under way goes into the next one. A log that is away is asked again until LOAD_DEADLINE_S
has passed; then what waits for it is refused, and whoever still wants it asks anew. A stream that cannot be read is
refused alone, as late as that, since its members would ask at once again.
"""

import asyncio
import logging
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core import notes
from core.codes import Code
from router.log.port import Loaded, Log, LogBroken, LogDeposed, LogError
from router.plane import ROOM_S, Put, put_when_room

CHANNELS_MAX = 512
# Their messages may be a megabyte each.
CHANNELS_WITH_MESSAGES_MAX = 32
LOAD_DEADLINE_S = 5.0
RETRY_S = 0.1
# Of one stream in one note: a mailbox has room for several, and a stream may have more than a whole mailbox.
PART_BYTES = 4 * 1024 * 1024
_SIZE = struct.Struct("=I")

_log = logging.getLogger("holdfast.log")


class _Wanted(NamedTuple):
    request: int
    channel: bytes


class Loader:
    """Answers the data plane's loads.

    Args:
        log: an open one.
        put: tells the data plane.

    """

    def __init__(self, log: Log, put: Put) -> None:
        self._log = log
        self._put = put
        self._wanted: dict[bool, deque[_Wanted]] = {False: deque(), True: deque()}
        self._something = {False: asyncio.Event(), True: asyncio.Event()}
        self._is_away = False

    def on_load(self, request: int, channel: bytes, *, messages: bool) -> None:
        """The data plane wants a stream's position, or its messages as well."""
        self._wanted[messages].append(_Wanted(request, channel))
        self._something[messages].set()

    async def run(self, *, messages: bool) -> None:
        """Load positions, or messages as well, until this is cancelled.

        Raises:
            LogDeposed: another router took over.
        """
        most = CHANNELS_WITH_MESSAGES_MAX if messages else CHANNELS_MAX
        while True:
            await self._something[messages].wait()  # no deadline: for as long as nothing is wanted
            wanted = self._wanted[messages]
            now = [wanted.popleft() for _ in range(min(most, len(wanted)))]
            if not wanted:
                self._something[messages].clear()
            loaded = await self._ask([one.channel for one in now], messages=messages)
            for one, found in zip(now, loaded, strict=True):
                if isinstance(found, LogBroken):
                    _log.error("%r is refused: %s", one.channel.decode(errors="replace"), found)
                    asyncio.get_running_loop().call_later(LOAD_DEADLINE_S, self._refuse, one.request)
                else:
                    await self._tell(one.request, found)

    async def _ask(self, channels: Sequence[bytes], *, messages: bool) -> Sequence[Loaded | LogBroken | None]:
        """What the log has; None: it is away."""
        until = time.monotonic() + LOAD_DEADLINE_S
        while True:
            try:
                loaded = await self._log.load(channels, messages=messages)
            except LogDeposed:
                raise
            except LogBroken as broken:
                return [broken] if len(channels) == 1 else await self._each(channels, messages=messages)
            except LogError as error:
                self._away(error)
                if time.monotonic() > until:
                    return [None] * len(channels)
            else:
                self._is_away = False
                return loaded
            await asyncio.sleep(RETRY_S)

    async def _each(self, channels: Sequence[bytes], *, messages: bool) -> Sequence[Loaded | LogBroken | None]:
        """One of them cannot be read: find out which."""
        found: list[Loaded | LogBroken | None] = []
        for channel in channels:
            if found and found[-1] is None:
                found.append(None)  # away by now: once is enough
            else:
                found += await self._ask([channel], messages=messages)
        return found

    def _away(self, error: LogError) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning("the log is away, channels that have to be read from it wait and are refused: %s", error)

    def _refuse(self, request: int) -> None:
        try:
            self._put(notes.LOG_LOADED, request=request, third=Code.UNAVAILABLE)
        except BufferError:
            asyncio.get_running_loop().call_later(ROOM_S, self._refuse, request)

    async def _tell(self, request: int, loaded: Loaded | None) -> None:
        """Put the answer as soon as the mailbox has room, which the data plane makes in each of its turns."""
        if loaded is None:
            await put_when_room(self._put, notes.LOG_LOADED, request=request, third=Code.UNAVAILABLE)
            return
        epoch, offset = loaded.position
        for text, more in _parts(loaded.records):
            await put_when_room(
                self._put, notes.LOG_LOADED, request=request, conn=int(more), first=epoch, second=offset, text=text
            )


def _parts(records: bytes) -> Iterator[tuple[bytes, bool]]:
    """Log records in parts of whole ones, and whether more of them come."""
    start = end = 0
    while end < len(records):
        (size,) = _SIZE.unpack_from(records, end)
        if end > start and end + size - start > PART_BYTES:
            yield records[start:end], True
            start = end
        end += size
    yield records[start:], False
