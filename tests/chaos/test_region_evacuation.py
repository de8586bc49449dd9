"""A region is evacuated under load: its shards are led elsewhere and its clients go there at the pace that is set, and
nothing is lost at any level.
"""

import asyncio
import time
from collections.abc import Iterator

import pytest

from core.codes import Code
from tests.chaos.cohorts import Cohort, Tally, complaint
from tests.chaos.fleet import SECRET
from tests.chaos.guests import Guest, busiest
from tests.chaos.probe import Probe
from tests.chaos.regional import LoggedBook, ReplicatedBook
from tests.chaos.regions import REGIONS, Regions, running_regions
from tests.chaos.rounds import FULL, SEED
from tests.chaos.switch import why_not
from tests.chaos.test_regions import HABITS
from tests.conftest import wait_until

SHARDS, TTL_S = 32, 10
EVACUATED = REGIONS[0]
GUESTS, PACE = (400, 20) if FULL else (120, 20)
HURRIED = PACE if FULL else PACE + PACE // 4
"""Beside other tests, we may stand still for longer than the half second that the pace has room for."""
COHORTS = 20 if FULL else 6
GONE_S = 120.0
STAYS_S = 0.5 if FULL else 2.0
"""Answers of a shard that stays come within it: less than its taker would need to find out that it cannot open it."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def regions() -> Iterator[Regions]:
    if reason := why_not():
        pytest.skip(reason)
    with running_regions(dict.fromkeys(REGIONS, 1), shards=SHARDS, ttl_s=TTL_S) as made:
        made.wait_led_in({*REGIONS})
        yield made
        made.stop()


def cohorts_of(regions: Regions) -> list[Cohort]:
    found = []
    for number in range(COHORTS):
        namespace, kind = (("group", ReplicatedBook), ("logged", LoggedBook))[number % 2]
        place, seed = regions.places(0), f"evacuation-{SEED}-{number}"
        found.append(
            Cohort(
                seed,
                place,
                HABITS,
                namespace=namespace,
                secret=SECRET,
                kind=kind,
                own=ReplicatedBook,
                places=regions.places,
            )
        )
    return found


async def evacuation(regions: Regions, cohorts: list[Cohort], guests: list[Guest]) -> float:
    """And back; when it began."""
    host = regions.gateways[f"g-{EVACUATED}"].machine.host
    await asyncio.gather(*(one.come() for one in cohorts), *(one.come() for one in guests))
    assert {guest.host for guest in guests} == {host}
    for cohort in cohorts:
        cohort.act()
    began = time.monotonic()
    try:
        await asyncio.to_thread(regions.evacuate, EVACUATED, pace=PACE)
        await asyncio.gather(*(guest.is_elsewhere(host, GONE_S) for guest in guests))
        await asyncio.to_thread(regions.wait_led_in, {*REGIONS} - {EVACUATED})
        await asyncio.to_thread(regions.restore, EVACUATED)
        await asyncio.to_thread(regions.wait_led_in, {*REGIONS})
    except BaseException:
        await asyncio.gather(*(cohort.give_up() for cohort in cohorts), *(guest.go() for guest in guests))
        raise
    return began


async def one_round(regions: Regions, cohorts: list[Cohort], guests: list[Guest]) -> float:
    began = await evacuation(regions, cohorts, guests)
    settled = await asyncio.gather(*(one.settle() for one in cohorts), return_exceptions=True)
    await asyncio.gather(*(guest.go() for guest in guests))
    texts = [complaint(cohorts), *(str(one) for one in settled if isinstance(one, BaseException))]
    text = "\n".join(text for text in texts if text)
    assert not text, f"{text}\n{regions.told()}"
    return began


def test_a_shard_stays_where_it_is_led_while_its_taker_could_not_open_it(regions: Regions) -> None:
    """Its leader is not asked for it, and so does not pause it."""
    home, other = REGIONS[:2]
    taker = regions.routers[f"r-{other}-0"]
    shard = next(shard for shard, where in regions.led_in().items() if where == home)

    def said() -> int:
        return taker.log.read_text(errors="replace").count("is left where it is led")

    def try_to_move() -> None:
        before = said()
        regions.part_redis(home, other)
        regions.move(shard, taker.name)
        wait_until(lambda: said() > before, lambda: f"it says why not\n{regions.told()}", GONE_S)
        assert regions.led_in()[shard] == home

    async def probed() -> float:
        probe = Probe(regions.endpoints(home, alone=True), SHARDS, "stays", SECRET)
        await probe.come()
        await asyncio.to_thread(try_to_move)
        await probe.wait_answered()
        pause_s = probe.pauses_s()[shard]
        await probe.stop()
        return pause_s

    try:
        pause_s = asyncio.run(probed())
    finally:
        regions.wan.heal()
    print(f"a move that could not be: the shard left a publish without its answer for {pause_s:.3f} s at most")
    assert pause_s < STAYS_S
    wait_until(lambda: regions.led_in().get(shard) == other, lambda: f"it moves then\n{regions.told()}", GONE_S)
    regions.move(shard, None)


def test_nothing_is_lost_and_nobody_hurries(regions: Regions) -> None:
    cohorts = cohorts_of(regions)
    guests = [Guest(regions.endpoints(EVACUATED), f"guest-{number}", SECRET) for number in range(GUESTS)]
    began = asyncio.run(one_round(regions, cohorts, guests))
    moments = [moment for guest in guests for moment in guest.dialled if moment > began]
    tally = Tally()
    tally.add(cohorts)
    print(
        f"{GUESTS} guests in {max(moments) - began:.1f} s, at most {busiest(moments)} in a second at a pace of {PACE};"
        f" {tally}"
    )
    assert busiest(moments) <= HURRIED
    assert all(guest.told == [Code.MOVED] for guest in guests)
    books = [cohort.oracle.book(channel) for cohort in cohorts for channel in cohort.channels]
    lost = [(book.channel, book.lost) for book in books if isinstance(book, LoggedBook) and book.lost]
    assert not lost, f"{lost}\n{regions.told()}"
    regions.wait_same()
    assert [regions.dropped(region) for region in REGIONS] == [0, 0, 0], regions.told()
