"""The bridge in a router process: one pair of seeds for all regions, and what the data plane is told in which note."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from core import log_records, notes
from core.ledger import Stats
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

    def before(self, shard: int) -> tuple[str, int]:
        return ("us", shard + 1)


class Keeper:
    """Notes what is to be told to the data plane."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.anew: list[int] = []

    def follow_anew(self, shard: int) -> None:
        self.anew.append(shard)

    def tell(self, kind: int, **fields: Any) -> None:
        self.told.append((kind, fields))


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


async def bridged(keeper: Keeper, counts: Counter[str] | None = None) -> Bridged:
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
    counted = Counter[str]() if counts is None else counts
    log = SharedRedisLog(OWN, shards=8, bridge_entries=16)
    made = Bridged(config, log, lambda name, by: counted.update({name: by}))
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
        assert one.bridge._before(1) == ("us", 2), "as the machine of shards knows"
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


def test_what_was_copied_is_followed_anew_where_the_data_plane_knows_of_it(keeper: Keeper) -> None:
    async def hear() -> None:
        one = await bridged(keeper)
        one.copied(5)
        one.epoch(5, 3)
        one.live(5)
        one.copied(5)
        one.dropped(6, 1)
        one.dropped(5, 1)

    asyncio.run(hear())
    assert keeper.anew == [5, 5]


def test_who_keeps_the_bans_is_told_of_others(keeper: Keeper) -> None:
    async def hear() -> list[str]:
        told: list[str] = []
        one = await bridged(keeper)
        one.bans()
        one.begin(keeper, lambda: told.append("others"))  # type: ignore[arg-type]
        one.bans()
        return told

    assert asyncio.run(hear()) == ["others"]


def test_what_is_replicated_followed_and_dropped_is_counted_once(keeper: Keeper) -> None:
    counts = Counter[str]()

    async def hear() -> None:
        one = await bridged(keeper, counts)
        for number, confirming in ((0, True), (3, True), (3, False), (3, True), (5, True)):
            one.replicated(number, confirming)
        one.records(5, b"not told yet, but our log has them")
        one.live(5)
        one.records(5, b"records")
        one.dropped(5, 4)
        one.dropped(6, 2)

    asyncio.run(hear())
    assert counts == {"log_batches_replicated": 5, "log_batches_followed": 2, "log_records_dropped": 6}
    stats = Stats()
    for name in counts:
        stats.count(name)  # the ledger has them


def test_how_far_other_regions_are_is_told_of_what_is_led_and_of_what_is_followed(keeper: Keeper) -> None:
    async def look() -> dict[str, Other]:
        one = await bridged(keeper)
        one.follow(frozenset({1, 5}), {1: ("us", 2), 5: ("us", 4)})
        one.bridge.replicated.open(3, 1, Position(0, 0), {})
        return one.others()

    assert asyncio.run(look()) == {"us": Other(True, {3: (0, 0.0)}, 2, 2)}


def test_what_is_in_no_log_is_said_once_a_shard_for_all_that_came_at_once(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Mapping[int, bytes]] = []

    def say(records: Mapping[int, bytes]) -> bool:
        said.append(dict(records))
        return True

    async def hand_over() -> None:
        one = await bridged(keeper, lost)
        monkeypatch.setattr(one.bridge, "say", say)
        one.on_abroad(5, b"a")
        one.on_abroad(2, b"b")
        one.on_abroad(5, b"c")
        await asyncio.sleep(0)
        one.on_abroad(5, b"d")
        await asyncio.sleep(0)

    lost = Counter[str]()
    asyncio.run(hand_over())
    assert said == [{5: b"ac", 2: b"b"}, {5: b"d"}]
    assert lost == {}


def test_what_is_in_no_log_is_counted_where_our_redis_is_away(keeper: Keeper) -> None:
    event = log_records.pack(log_records.EVENT, b"group:a", 0, 0, body=b"x", shard=5)
    lost = Counter[str]()

    async def hand_over() -> None:
        one = await bridged(keeper, lost)
        one.on_abroad(5, event + event)
        one.on_abroad(2, event)
        await asyncio.sleep(0)
        await one.bridge.close()

    asyncio.run(hand_over())
    assert lost == {"abroad_lost": 3}


@pytest.mark.slow
def test_all_regions_have_the_seeds_of_who_came_first() -> None:
    async def ask(endpoint: str) -> list[bytes]:
        config = DirectoryConfig(endpoints=(endpoint,), prefix="seeds-test/")
        return await asyncio.gather(*(shared_seeds(config) for _ in range(3)), shared_seeds(config))

    with etcd.running() as member:
        found = asyncio.run(ask(member.endpoint))
    assert len(set(found)) == 1
    assert len(found[0]) == SEED_BYTES
