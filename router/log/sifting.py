"""Which of the embedded log's old segments are sifted, when, and what goes before its age near the disk's bound.

A segment is old when nothing is appended to it any more. Old ones are read, the router says what of them stays, and
that is put in their place (`router.log.segments.Sifted`).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from core.log_index import LogIndex
from router.log import segments
from router.log.disk_thread import DiskThread
from router.log.port import LogUnavailable, Sift
from router.log.segments import SEGMENT_BYTES, Segment, SegmentWriter, Sifted

# Of the bound: the oldest go in such steps.
STEPS = 16
# That messages go before their age is said again so often.
SAID_AGAIN_S = 60.0

_log = logging.getLogger("holdfast.log")

_Ask = Callable[[bytes, int, int], tuple[bytes, int]]
"""Of a batch of records, their segment and where in it they begin: what the router is asked about, and how many
messages go whatever it says, before their age."""


def segment_bytes_of(bytes_max: int) -> int:
    """A segment's, of a log of so many bytes at most; 0: no bound."""
    return min(SEGMENT_BYTES, bytes_max // STEPS) if bytes_max else SEGMENT_BYTES


class Sifter:
    """Gives back the place of what the embedded log does not keep any more.

    Args:
        directory: where the segments are.
        index: of what is in them.
        writer: appends to the last one.
        disk: the thread that sifts; errors come from there in the port's words.
        segment_bytes: of a segment.
        bytes_max: of all segments; 0: no bound.
        deadline_s: for each answer of the router.
        now_ms: the wall clock.

    """

    def __init__(
        self,
        directory: Path,
        index: LogIndex,
        writer: SegmentWriter,
        disk: DiskThread,
        *,
        segment_bytes: int,
        bytes_max: int,
        deadline_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._index = index
        self._writer = writer
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._step = bytes_max // STEPS
        self._most = bytes_max - self._step  # the rest is what may come until the next sift
        self._hurry_bytes = min(SEGMENT_BYTES, self._step // 2)
        self._looked_at = 0  # what the writer had appended then
        self._deadline_s = deadline_s
        self._now_ms = now_ms
        self._going = 0  # messages that go before their age once the segments that hold them are replaced
        self._said_at = float("-inf")
        self._unsaid = 0
        self.disk_bytes = 0
        """Of all segments, when they were last looked at."""
        self.outgrown = 0
        """Messages that went before their age."""

    # ----------------------------------------------------------------------------------------------------------- when

    async def sift(self, keep: Sift) -> None:
        """See `Log.sift`.

        When the old segments are twice what was kept of them the last time, they are sifted anew: so each record is
        written again at most about once for each time that the log's size doubles. Near the bound they are sifted
        sooner if that gives enough back; if not, the oldest messages go.
        """
        self._going = 0  # what a sift that failed has not replaced does not go
        old = await self._disk.run(self.look)
        if self._is_due(old):
            sifted = Sifted(self._directory, self._writer.epoch)
            for segment in old:
                await self._sift_one(segment, sifted, keep, self._ask)
            await self._disk.run(self._finish, sifted)
            old = await self._disk.run(self.look)
        if self._step and self.disk_bytes > self._most:
            await self._forget_oldest(old, keep)
            await self._disk.run(self.look)

    def is_crowded(self) -> bool:
        """Whether the log has come near its bound since it was looked at, and grows: a sift is wanted."""
        appended = self._writer.appended_bytes - self._looked_at
        return bool(self._step) and appended >= self._hurry_bytes and self.disk_bytes + appended > self._most

    def look(self) -> list[Segment]:
        """Those that nothing is appended to, oldest first."""
        self._looked_at = self._writer.appended_bytes
        found = segments.listed(self._directory)
        self.disk_bytes = sum(segment.size for segment in found)
        return [segment for segment in found if segment.last < self._writer.number]

    def _is_due(self, old: Sequence[Segment]) -> bool:
        size = sum(segment.size for segment in old)
        kept = sum(segment.size for segment in old if segment.sifted)
        if size > max(2 * kept, kept + self._segment_bytes):
            return True
        # What the namespaces' sizes do not keep is known to the index; of what a sift wrote, nearly all is kept.
        useless = min(self.disk_bytes - self._index.record_bytes, size - kept)
        return bool(self._step) and self.disk_bytes > self._most and useless > 2 * self._step

    async def _forget_oldest(self, old: Sequence[Segment], keep: Sift) -> None:
        """Of the oldest segments only positions stay, and keys in their window, until there is room for a step."""
        left, before = self.disk_bytes, self.outgrown
        sifted = Sifted(self._directory, self._writer.epoch)
        for segment in old:
            if left <= self._most - self._step:
                break
            left -= segment.size - await self._sift_one(segment, sifted, keep, self._ask_positions)
        await self._disk.run(self._finish, sifted)
        self._unsaid += self.outgrown - before
        self._say(left)

    def _say(self, left: int) -> None:
        """That messages went before their age, or that nothing is left that could go."""
        now = asyncio.get_running_loop().time()
        if now < self._said_at + SAID_AGAIN_S:
            return
        if self._unsaid:
            _log.error(
                "%s: log.bytes_max is reached: the oldest %d messages went before their age, and who missed them is "
                "told of a gap; raise it, or let the namespaces keep less",
                self._directory,
                self._unsaid,
            )
        elif left > self._most:
            _log.error(
                "%s: the log has %d bytes of %d (log.bytes_max), and what is left are positions of channels and keys "
                "in their window, which stay: raise the bound",
                self._directory,
                left,
                self._most + self._step,
            )
        else:
            return
        self._said_at, self._unsaid = now, 0

    # ------------------------------------------------------------------------------------------------------------ how

    async def _sift_one(self, segment: Segment, sifted: Sifted, keep: Sift, ask: _Ask) -> int:
        """Put a segment behind those that `sifted` has already; the bytes that are kept of it."""
        kept = []
        asked, going = await self._disk.run(self._asked_of, segment, ask)
        for records in asked:
            try:
                async with asyncio.timeout(self._deadline_s):
                    kept.append(await keep(records))
            except TimeoutError as error:
                raise LogUnavailable(
                    f"nobody said within {self._deadline_s:g} s what is kept of old records"
                ) from error
        if any(kept) and not sifted.size:
            await self._disk.run(self._finish, sifted)  # of these nothing is kept: on a full disk, that helps
        sifted.add(segment, kept)
        self._going += going
        if sifted.size >= self._segment_bytes:
            await self._disk.run(self._finish, sifted)
        return sum(map(len, kept))

    def _asked_of(self, segment: Segment, ask: _Ask) -> tuple[list[bytes], int]:
        """What the router is to be asked about, and how many messages go before their age."""
        parts, going = [], 0
        for at, records in segments.placed_of(segment):
            asked, young = ask(records, segment.number, at)
            parts.append(asked)
            going += young
        return list(segments.chunks(parts)), going

    def _ask(self, records: bytes, segment: int, at: int) -> tuple[bytes, int]:
        return self._index.ask(records, segment, at), 0

    def _ask_positions(self, records: bytes, segment: int, at: int) -> tuple[bytes, int]:
        return self._index.ask_positions(records, segment, at, self._now_ms())

    def _finish(self, sifted: Sifted) -> None:
        sifted.finish(self._index.settle)
        self.outgrown += self._going
        self._going = 0
