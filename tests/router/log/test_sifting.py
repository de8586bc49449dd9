"""The bound of the embedded log's disk: what goes before its age, what stays, and who hears of it."""

import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from core import log_records
from core.namespace_spec import NamespaceSpec
from router.log.embedded import EmbeddedLog
from router.log.port import LogUnavailable, Position
from router.log.segments import SEGMENT_BYTES
from router.log.sifting import segment_bytes_of
from tests.contract.running import message, recovered, run
from tests.contract.stores import EmbeddedStore

GROUP = NamespaceSpec(name="group", domain="group", history_messages=100_000, history_bytes=1 << 30)
FEW = NamespaceSpec(name="few", domain="group", history_messages=5)
BOUND = 64_000
A, B = b"group:a", b"group:b"


async def everything(records: bytes) -> bytes:
    """A router that needs all that it is asked about."""
    return records


class Place:
    """A directory, the log that is open there, and what that told of the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.told: list[tuple[int, int]] = []
        self.is_crowded = False

    async def open(
        self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000, *, bytes_max: int = BOUND
    ) -> EmbeddedLog:
        self.log = EmbeddedLog(
            self.directory,
            sync="never",
            segment_bytes=segment_bytes_of(BOUND),
            bytes_max=bytes_max,
            namespaces=[GROUP, FEW],
            on_disk=lambda bytes_, outgrown: self.told.append((bytes_, outgrown)),
            on_crowded=self.on_crowded,
            now_ms=now_ms,
        )
        await self.log.open(1)
        return self.log

    def on_crowded(self) -> None:
        self.is_crowded = True

    async def say(self, channel: bytes, first: int, last: int) -> None:
        """Each message is a batch, and the log is sifted when it asks for that."""
        for offset in range(first, last + 1):
            await self.log.append(message(channel, 1, offset, body=b"x" * 100))
            if self.is_crowded:
                assert self.bytes() <= BOUND
                self.is_crowded = False
                await self.log.sift(everything)

    async def loaded(self, channel: bytes) -> tuple[Position, list[int]]:
        (found,) = await self.log.load([channel], messages=True)
        return found.position, [entry.offset for entry in log_records.entries(found.records)]

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob("segment-*"))

    @property
    def outgrown(self) -> int:
        return sum(count for _, count in self.told)


def over(directory: Path, body: Callable[[Place], Awaitable[None]]) -> None:
    place = Place(directory)

    async def whole() -> None:
        try:
            await body(place)
        finally:
            await place.log.close()

    run(EmbeddedStore(directory), whole)


def test_segments_are_a_part_of_the_bound() -> None:
    assert segment_bytes_of(1 << 40) == SEGMENT_BYTES
    assert segment_bytes_of(1 << 26) == 1 << 22
    assert segment_bytes_of(0) == SEGMENT_BYTES


def test_beyond_the_bound_the_oldest_messages_go_and_positions_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(place: Place) -> None:
        await place.open()
        await place.say(A, 1, 50)
        await place.say(B, 1, 100)
        assert (place.outgrown, caplog.text) == (0, "")
        await place.say(B, 101, 1000)
        position, offsets = await place.loaded(B)
        assert position == (1, 1000)
        assert offsets == list(range(offsets[0], 1001))
        assert await place.loaded(A) == ((1, 50), [])
        assert place.outgrown == 50 + offsets[0] - 1
        assert "log.bytes_max is reached: the oldest" in caplog.text
        assert place.bytes() > BOUND // 2
        await place.log.sift(everything)
        assert place.told[-1] == (place.bytes(), 0)
        await place.log.close()
        log = await place.open()
        assert place.told[-1] == (place.bytes(), 0)
        found = await recovered(log)
        assert [one.offset for one in found if one.channel == B and one.kind == log_records.MESSAGE] == offsets
        assert [(one.kind, one.offset) for one in found if one.channel == A] == [(log_records.POSITION, 50)]
        assert await place.loaded(A) == ((1, 50), [])

    over(tmp_path, body)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_said_in_many_channels_positions_are_right_and_what_is_left_has_no_hole(
    tmp_path: Path, seed: int
) -> None:
    async def body(place: Place) -> None:
        draw = random.Random(seed)
        last = {b"group:%d" % number: 0 for number in range(20)}
        await place.open()
        for _ in range(200):
            channel = draw.choice(list(last))
            count = draw.randint(1, 20)
            await place.say(channel, last[channel] + 1, last[channel] + count)
            last[channel] += count
            if draw.random() < 0.1:
                await place.log.sift(everything)
            if draw.random() < 0.02:
                await place.log.close()
                await place.open()
        kept = 0
        for channel, offset in last.items():
            position, offsets = await place.loaded(channel)
            assert position.offset == offset, f"seed {seed}"
            assert offsets == list(range(offset - len(offsets) + 1, offset + 1)), f"seed {seed}"
            kept += len(offsets)
        assert place.outgrown == sum(last.values()) - kept > 0
        await place.log.sift(everything)
        assert place.bytes() <= BOUND

    over(tmp_path, body)


def test_what_no_namespace_keeps_goes_first(tmp_path: Path) -> None:
    """Who says much where little is kept does not cost others what waits for them."""

    async def body(place: Place) -> None:
        await place.open()
        await place.say(A, 1, 200)
        assert place.bytes() > BOUND * 5 // 8  # so that no sift for its doubling comes before the bound
        await place.say(b"few:x", 1, 3000)
        assert (await place.loaded(A))[1] == list(range(1, 201))
        assert (await place.loaded(b"few:x"))[1] == list(range(2996, 3001))
        assert place.outgrown == 0

    over(tmp_path, body)


def test_what_has_aged_is_not_counted(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        await place.open(lambda: time.time_ns() // 1_000_000 + 8 * 86_400_000)
        await place.say(A, 1, 1000)
        assert (await place.loaded(A))[1][0] > 1
        assert place.outgrown == 0

    over(tmp_path, body)


def test_keys_that_a_router_needs_stay_and_are_said_when_nothing_else_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(place: Place) -> None:
        await place.open()
        for offset in range(1, 801):
            await place.log.append(message(A, 1, offset, body=b"x" * 100, key=(offset, 1)))
        assert place.is_crowded
        place.is_crowded = False
        for _ in range(2):
            await place.log.sift(everything)
        assert {one.key[0] for one in await recovered(place.log)} == set(range(1, 801))
        assert place.bytes() > BOUND
        await place.say(A, 801, 801)
        assert not place.is_crowded  # that would be asked for with each message
        caplog.clear()
        place.log._sifter._said_at = float("-inf")
        await place.log.sift(everything)
        assert "what is left are positions of channels and keys" in caplog.text
        assert f"of {BOUND} (log.bytes_max)" in caplog.text

    over(tmp_path, body)


def test_what_a_router_did_not_answer_about_stays(tmp_path: Path) -> None:
    async def answered(place: Place, count: int) -> bool:
        """Sift with a router that answers so often; whether that was enough."""
        left = count

        async def some(records: bytes) -> bytes:
            nonlocal left
            if left == 0:
                raise LogUnavailable("the data plane has no room")
            left -= 1
            return records

        try:
            await place.log.sift(some)
        except LogUnavailable:
            return False
        return True

    async def body(place: Place) -> None:
        await place.open(bytes_max=0)
        for offset in range(1, 801):
            key = (offset, 1) if offset % 8 == 0 else (0, 0)  # so that of each segment something is asked about
            await place.log.append(message(A, 1, offset, body=b"x" * 100, key=key))
        await place.log.sift(everything)
        assert len((await place.loaded(A))[1]) == 800
        await place.log.close()
        await place.open()
        failed, count = 0, 0
        while not await answered(place, count):
            failed, count = failed + 1, count + 1
            position, offsets = await place.loaded(A)
            assert position.offset == 800
            assert place.outgrown == 800 - len(offsets)
        assert failed > 10
        assert place.outgrown == 800 - len((await place.loaded(A))[1]) > 0

    over(tmp_path, body)
