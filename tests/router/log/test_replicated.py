"""What other regions have of ours: confirmations in every order, without a server but where one is asked."""

import asyncio
import contextlib

from router.log.bridge_source import Source, beats
from router.log.port import Position
from router.log.redis_keys import Keys
from router.log.replicated import BREAKER_S, CHUNKS_MAX, Replicated
from tests.router.log.conftest import run
from tests.servers.redis import Server

KEYS = Keys("t:", shards=8)


class Leader:
    """Two shards, 1 and 2, and what is said of them."""

    def __init__(self, regions: tuple[str, ...] = ("eu", "us")) -> None:
        self.now = 100.0
        self.parts: dict[bytes, list[tuple[int, int]]] = {}
        self.said: list[tuple[int, bool]] = []
        self.led: list[int] = []
        self.number = 0
        self.replicated = Replicated(
            Source("asia", "redis://127.0.0.1:1", KEYS),
            KEYS,
            regions,
            lambda data: self.parts.get(data),
            on_replicated=lambda number, confirming: self.said.append((number, confirming)),
            on_led=self.led.append,
            clock=lambda: self.now,
        )

    def open(self, shard: int, epoch: int = 1, at: tuple[int, int] = (0, 0), **known: tuple[int, int]) -> None:
        self.replicated.open(shard, epoch, Position(*at), {name: Position(*one) for name, one in known.items()})

    def chunk(self, *parts: tuple[int, int], appended: bool = True) -> bytes:
        self.number += 1
        data = b"chunk %d" % self.number
        if appended:
            self.parts[data] = list(parts)
        self.replicated.on_batch(self.number, data)
        return data

    def confirm(self, region: str, shard: int, epoch: int, number: int) -> None:
        self.replicated.on_push(KEYS.shards[shard] + b"confirmed", b"%s %d-%d" % (region.encode(), epoch, number))

    def beat(self, region: str) -> None:
        self.replicated.on_push(b"t:log:beats", region.encode())


def leader(work: object) -> None:
    """Run with a leader: its link belongs to a loop, though nobody connects."""

    async def inside() -> None:
        work(Leader())  # type: ignore[operator]

    run(inside())


def numbers(one: Leader) -> list[int]:
    """What it was told that is replicated, each once."""
    return list(dict.fromkeys(number for number, _ in one.said if number))


def test_a_chunk_is_replicated_once_some_region_has_each_of_its_parts() -> None:
    def work(one: Leader) -> None:
        one.open(1)
        one.open(2)
        one.chunk((1, 1))
        one.chunk((1, 2), (2, 1))
        one.chunk((2, 2))
        one.confirm("eu", 2, 1, 2)
        assert numbers(one) == []
        one.confirm("us", 1, 1, 1)
        assert numbers(one) == [1]
        one.confirm("us", 1, 1, 2)
        assert numbers(one) == [1, 3]
        one.confirm("eu", 1, 1, 2)
        assert numbers(one) == [1, 3], "the other region's, later"

    leader(work)


def test_a_confirmation_of_another_epoch_counts_for_nothing() -> None:
    def work(one: Leader) -> None:
        one.open(1, epoch=3)
        one.chunk((1, 1))
        one.confirm("eu", 1, 2, 900)
        one.confirm("us", 1, 4, 1)
        assert numbers(one) == []
        one.confirm("eu", 1, 3, 1)
        assert numbers(one) == [1]

    leader(work)


def test_an_unknown_region_is_not_heard() -> None:
    def work(one: Leader) -> None:
        one.open(1)
        one.chunk((1, 1))
        one.confirm("mars", 1, 1, 1)
        assert one.said == []

    leader(work)


def test_a_chunk_that_is_not_appended_yet_waits_and_those_behind_it() -> None:
    def work(one: Leader) -> None:
        one.open(1)
        first = one.chunk(appended=False)
        one.chunk((1, 2))
        one.confirm("eu", 1, 1, 2)
        assert numbers(one) == []
        one.parts[first] = [(1, 1)]
        one.confirm("eu", 1, 1, 2)
        assert numbers(one) == [2]

    leader(work)


def test_what_is_of_a_shard_that_was_given_away_is_waited_for_no_more() -> None:
    def work(one: Leader) -> None:
        one.open(1)
        one.open(2)
        one.chunk((1, 1))
        one.chunk((2, 1))
        one.replicated.close_shards([1])
        assert numbers(one) == [1]
        one.open(1, epoch=2)
        one.confirm("eu", 1, 1, 5)
        one.confirm("eu", 2, 1, 1)
        assert numbers(one) == [1, 2]

    leader(work)


def test_what_a_shard_had_when_it_was_led_is_replicated_once_a_region_says_so() -> None:
    def work(one: Leader) -> None:
        one.open(1, epoch=4, at=(3, 7), eu=(3, 5), us=(2, 99))
        one.replicated.led(1)
        assert one.led == []
        one.confirm("us", 1, 3, 6)
        assert one.led == []
        one.confirm("us", 1, 3, 7)
        one.confirm("us", 1, 4, 1)
        assert one.led == [1]
        one.open(2, epoch=4, at=(3, 7), eu=(3, 7))
        assert one.led == [1], "the data plane does not lead it yet"
        one.replicated.led(2)
        assert one.led == [1, 2]

    leader(work)


def test_a_region_that_is_silent_is_away_and_one_that_does_not_confirm_as_well() -> None:
    def work(one: Leader) -> None:
        one.open(1)
        one.beat("eu")
        assert one.said == [(0, True)]
        assert one.replicated.breakers() == {"eu": False, "us": True}
        one.now += BREAKER_S + 0.1
        one.replicated._look()
        assert one.said[-1] == (0, False)
        one.beat("eu")
        assert one.said[-1] == (0, True)
        one.chunk((1, 1))
        for _ in range(12):
            one.now += BREAKER_S / 8
            one.beat("eu")
            one.replicated._look()
        assert one.said[-1] == (0, False), "it is there, but confirms nothing"
        entries, seconds = one.replicated.lags()[1, "eu"]
        assert entries == 1
        assert seconds > BREAKER_S
        one.confirm("eu", 1, 1, 1)
        assert one.said[-2:] == [(1, False), (1, True)]
        assert one.replicated.lags()[1, "eu"] == (0, 0.0)

    leader(work)


def test_while_all_are_away_what_waits_takes_little_memory() -> None:
    def work(one: Leader) -> None:
        one.open(1)
        one.open(2)
        for number in range(1, 3 * CHUNKS_MAX):
            one.chunk((1, number), (2, number))
        assert len(one.replicated._chunks) <= CHUNKS_MAX + 1
        one.confirm("eu", 1, 1, 3 * CHUNKS_MAX)
        one.confirm("eu", 2, 1, CHUNKS_MAX)
        assert numbers(one) == [], "those that count as one are not all there"
        one.confirm("eu", 2, 1, 3 * CHUNKS_MAX)
        assert numbers(one) == [3 * CHUNKS_MAX - 1]

    leader(work)


def test_what_was_confirmed_before_the_leader_listened_is_read(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        keys = Keys(prefix, shards=8)
        redis_server.do("HSET", keys.shards[1] + b"confirmed", "eu", "1-3", "mars", "1-9")
        said: list[int] = []
        one = Replicated(
            Source("asia", redis_server.url, keys, lambda channel, text: one.on_push(channel, text)),
            keys,
            ["eu"],
            lambda data: [(1, int(data))],
            on_replicated=lambda number, confirming: said.append(number),
            on_led=lambda shard: None,
        )
        one.open(1, 1, Position(0, 0), {})
        for number in (1, 2, 3, 4):
            one.on_batch(number, b"%d" % number)
        await one._source.link()
        await one._read([1])
        assert said[-1] == 3
        await one.close()

    run(work())


def test_a_confirmation_that_was_missed_is_read(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        keys = Keys(prefix, shards=8)
        said: list[int] = []
        heard = asyncio.Event()

        def on_replicated(number: int, confirming: bool) -> None:
            said.append(number)
            heard.set()

        one = Replicated(
            Source("asia", redis_server.url, keys, lambda channel, text: one.on_push(channel, text)),
            keys,
            ["eu"],
            lambda data: [(1, int(data))],
            on_replicated=on_replicated,
            on_led=lambda shard: None,
        )
        one.start()
        one.open(1, 1, Position(0, 0), {"eu": Position(0, 0)})
        one.led(1)
        one.on_batch(1, b"1")
        for wanted in (0, 1):
            while wanted not in said:
                redis_server.do("PUBLISH", beats(keys), "eu")
                heard.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await heard.wait()
            # From here on it listens; what is written without being published is a confirmation that it missed.
            redis_server.do("HSET", keys.shards[1] + b"confirmed", "eu", "1-1")
        await one.close()

    run(work())


def test_what_is_said_again_is_no_confirmation() -> None:
    def work(one: Leader) -> None:
        one.open(1)
        one.chunk((1, 1), (2, 1))
        one.confirm("eu", 1, 1, 1)
        one.chunk((1, 2))
        for _ in range(12):
            one.now += BREAKER_S / 8
            one.confirm("eu", 1, 1, 1)
            one.replicated._look()
        assert one.replicated.breakers()["eu"]

    leader(work)


def test_what_other_regions_say_when_they_are_asked_once_more_counts_alone() -> None:
    def work(one: Leader) -> None:
        assert one.replicated.confirmed(1) == Position(0, 0)
        one.open(1, 3, us=(2, 4))
        one.confirm("eu", 1, 3, 7)
        assert one.replicated.confirmed(1) == Position(3, 7)
        one.replicated.confirmed_anew(1, {"us": Position(2, 9)})
        one.replicated.confirmed_anew(2, {})
        assert one.replicated.confirmed(1) == Position(2, 9)

    leader(work)
