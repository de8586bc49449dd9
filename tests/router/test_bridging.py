"""The bridge in a router process: one pair of seeds for all regions, and what the data plane is told in which note."""

import asyncio
from typing import Any

import pytest

from core import notes
from router.bridging import Bridged, shared_seeds
from router.config import DirectoryConfig, RouterConfig
from router.loads import Other
from router.log.port import Position
from router.log.redis import SEED_BYTES
from router.log.redis_shared import SharedRedisLog
from router.shard_keeper import EPOCH_BITS
from tests.servers import etcd

OWN, OTHER = "redis://127.0.0.1:1/0", "redis://127.0.0.1:2/0"


class Machine:
    def regions(self) -> frozenset[str]:
        return frozenset({"us"})


class Keeper:
    """Notes what is to be told to the data plane."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.told: list[tuple[int, dict[str, Any]]] = []

    def tell(self, kind: int, **fields: Any) -> None:
        self.told.append((kind, fields))


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


async def bridged(keeper: Keeper) -> Bridged:
    directory = DirectoryConfig(endpoints=("127.0.0.1:1",), region="eu", shards=8)
    config = RouterConfig(
        node="a",
        endpoint="tcp://127.0.0.1:3",
        epoch=1,
        directory=directory,
        log_backend="redis",
        log_redis_url=OWN,
        log_regions={"us": OTHER},
    )
    made = Bridged(config, SharedRedisLog(OWN, shards=8, bridge_entries=16))
    made.begin(keeper)  # type: ignore[arg-type]
    return made


def test_each_thing_is_told_in_its_note(keeper: Keeper) -> None:
    async def hear() -> None:
        one = await bridged(keeper)
        one.epoch(5, 2)
        one.records(5, b"too early")
        one.epoch(5, 3)
        one.live(5)
        one.records(5, b"records")
        one.live(5)
        one.epoch(5, 4)
        one.replicated(17, True)
        one.replicated(17, False)
        one.led_replicated(5)

    asyncio.run(hear())
    assert keeper.told == [
        (notes.FOLLOW, {"request": 5, "first": 3 << EPOCH_BITS}),
        (notes.FOLLOWED, {"text": b"records"}),
        (notes.FOLLOW, {"request": 5, "first": 4 << EPOCH_BITS}),
        (notes.REPLICATED, {"request": 17, "first": 1}),
        (notes.REPLICATED, {"request": 17, "first": 0}),
        (notes.REPLICATED, {"request": 5, "second": 1}),
    ]


def test_what_is_led_elsewhere_is_followed_there(keeper: Keeper) -> None:
    async def follow() -> None:
        one = await bridged(keeper)
        one.follow(frozenset({1, 5}), {1: ("us", 2), 5: ("us", 4)})
        assert one.bridge.followed() == {1, 5}
        one.epoch(1, 2)
        one.live(1)
        one.follow(frozenset({5}), {5: ("us", 4)})
        assert one.bridge.followed() == {5}
        keeper.told.clear()
        one.follow(frozenset({1, 5}), {1: ("us", 6), 5: ("us", 4)})
        one.epoch(1, 6)
        assert keeper.told == [], "what was let go is told of once all of it is here again"
        one.live(1)

    asyncio.run(follow())
    assert keeper.told == [(notes.FOLLOW, {"request": 1, "first": 6 << EPOCH_BITS})]


def test_how_far_other_regions_are_is_told_of_what_is_led_and_of_what_is_followed(keeper: Keeper) -> None:
    async def look() -> dict[str, Other]:
        one = await bridged(keeper)
        one.follow(frozenset({1, 5}), {1: ("us", 2), 5: ("us", 4)})
        one.bridge.replicated.open(3, 1, Position(0, 0), {})
        return one.others()

    assert asyncio.run(look()) == {"us": Other(True, {3: (0, 0.0)}, 2, 2)}


@pytest.mark.slow
def test_all_regions_have_the_seeds_of_who_came_first() -> None:
    async def ask(endpoint: str) -> list[bytes]:
        config = DirectoryConfig(endpoints=(endpoint,), prefix="seeds-test/")
        return await asyncio.gather(*(shared_seeds(config) for _ in range(3)), shared_seeds(config))

    with etcd.running() as member:
        found = asyncio.run(ask(member.endpoint))
    assert len(set(found)) == 1
    assert len(found[0]) == SEED_BYTES
