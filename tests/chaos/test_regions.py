"""Three regions in network namespaces, 40 and 80 ms apart and with 0.1 % loss: whatever happens to one of them, nothing
that another had confirmed is lost, repeated or out of order; what was lost is what the region says that it dropped;
and in the end all of them have the same, id for id.

Two of the faults in every run of the tests, all of them with more seeds under HOLDFAST_CHAOS=full (make chaos).
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.chaos.cohorts import Cohort, Tally, complaint
from tests.chaos.fleet import SECRET
from tests.chaos.habits import Habits
from tests.chaos.probe import Probe
from tests.chaos.region_faults import FAULTS, SERVED_S, Away, Fault, restore
from tests.chaos.regional import LoggedBook, ReplicatedBook
from tests.chaos.regions import REGIONS, Regions, lacking, running_regions
from tests.chaos.rounds import FULL, SEED
from tests.chaos.switch import why_not

ROUTERS = 2 if FULL else 1
SHARDS = 32
TTL_S = 4
SLACK_S = 0.0 if FULL else 5.0
"""As in test_fleet.py: the bound is held at full size, which has the machine to itself."""
REPLICATED, LOGGED = (17, 8) if FULL else (10, 5)
"""Seeds of a round, by what their channels answer at."""
ROUNDS = 2 if FULL else 1
HABITS = Habits(pause_s=0.5, breaks=2, hurries=1, forgets=10, acks_every=10, sure_s=2.0)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 if FULL else 400)]


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    if reason := why_not():
        pytest.skip(reason)
    with running_regions(dict.fromkeys(REGIONS, ROUTERS), shards=SHARDS, ttl_s=TTL_S) as made:
        made.wait_led_in({*REGIONS})
        yield made
        made.stop()


@dataclass
class Round:
    """What lives through a fault, and what came of it."""

    replicated: list[Cohort]
    logged: list[Cohort]
    probes: dict[str, Probe]
    away: Away
    pauses_s: dict[str, float]
    """The longest of any shard until all were served again, as a client of each region sees it."""

    @property
    def cohorts(self) -> list[Cohort]:
        return self.replicated + self.logged

    async def come(self) -> None:
        await asyncio.gather(*(one.come() for one in self.probes.values()), *(one.come() for one in self.cohorts))
        for cohort in self.cohorts:
            cohort.act()

    async def give_up(self) -> None:
        await asyncio.gather(
            *(probe.stop() for probe in self.probes.values()), *(one.give_up() for one in self.cohorts)
        )

    def served(self, fault: Fault) -> list[Probe]:
        """The probes that are to be answered while the fault lasts."""
        return [one for region, one in self.probes.items() if not (fault.inside and region == self.away.region)]


def new_round(regions: Regions, fault: Fault, number: int, region: str) -> Round:
    def cohort(index: int, **options: object) -> Cohort:
        seed = f"{fault.name.replace(' ', '-').replace(',', '')}-{number}-{index}"
        places = regions.insiders if fault.inside else regions.places
        return Cohort(seed, places(0), HABITS, secret=SECRET, places=places, own=ReplicatedBook, **options)  # type: ignore[arg-type]

    return Round(
        [cohort(index, kind=ReplicatedBook) for index in range(REPLICATED)],
        [cohort(REPLICATED + index, namespace="logged", kind=LoggedBook) for index in range(LOGGED)],
        {one: Probe(regions.endpoints(one, alone=fault.inside), SHARDS, f"{one}{number}", SECRET) for one in REGIONS},
        Away(region),
        {},
    )


async def strike(regions: Regions, fault: Fault, found: Round, rng: random.Random) -> None:
    """The fault, until the others serve everything again; then until all serve again as they did."""
    loop = asyncio.get_running_loop()

    async def measure() -> None:
        probes = found.served(fault)
        await asyncio.gather(*(probe.wait_answered() for probe in probes))
        for region, probe in found.probes.items():
            if probe in probes:
                found.pauses_s[region] = max(probe.pauses_s())

    def taken_over() -> None:
        asyncio.run_coroutine_threadsafe(measure(), loop).result(120.0)

    def note(what: str) -> None:
        for cohort in found.cohorts:
            cohort.oracle.note(what)

    regions.note = note
    for probe in found.probes.values():
        probe.begin()
    found.away = await asyncio.to_thread(fault.act, regions, found.away.region, rng, taken_over)
    await asyncio.to_thread(restore, regions)


async def one_round(regions: Regions, fault: Fault, number: int) -> tuple[Tally, Round]:
    rng = random.Random(f"{fault.name} {number}")
    region = rng.choice(REGIONS)
    found = new_round(regions, fault, number, region)
    await found.come()
    try:
        await strike(regions, fault, found, rng)
    except BaseException:
        await found.give_up()
        raise
    settled = await asyncio.gather(*(one.settle() for one in found.cohorts), return_exceptions=True)
    await asyncio.gather(*(probe.stop() for probe in found.probes.values()))
    await asyncio.to_thread(regions.wait_same)  # nobody says anything any more
    tally = Tally()
    tally.add(found.cohorts)
    texts = [complaint(found.cohorts), *(str(one) for one in settled if isinstance(one, BaseException))]
    text = "\n".join(text for text in texts if text)
    assert not text, f"{fault.name} of {region}, round {number}\n{text}\n{regions.told()}"
    return tally, found


def check_lost(regions: Regions, found: Round) -> tuple[int, int]:
    """What was logged and is lost is among what the region had alone; and all of that is what it says it dropped."""
    away = found.away
    alone = set(lacking(away.before, regions.history(away.region)))
    lost = {
        (book.channel.encode(), b"%d-%d" % position)
        for cohort in found.logged
        for channel in cohort.channels
        if isinstance(book := cohort.oracle.book(channel), LoggedBook)
        for position in book.lost
    }
    known = {(key.partition(b":c:")[2], number) for key, number in alone}
    assert lost <= known, f"lost, and not in the log of {away.region}: {sorted(lost - known)[:20]}\n{regions.told()}"
    said = regions.dropped(away.region) - away.dropped
    assert said == len(alone), f"{away.region} had {len(alone)} alone, says it dropped {said}\n{regions.told()}"
    return len(lost), said


@pytest.mark.parametrize("fault", [one for one in FAULTS if one.short or FULL], ids=lambda one: one.name)
def test_a_region_is_lost_and_comes_back(regions: Regions, fault: Fault) -> None:
    bound_s = TTL_S + SERVED_S + SLACK_S
    for number in range(ROUNDS):
        tally, found = asyncio.run(one_round(regions, fault, SEED * 1_000 + number))
        lost, dropped = check_lost(regions, found)
        pauses = {region: round(pause_s, 2) for region, pause_s in found.pauses_s.items()}
        print(
            f"{fault.name}, {found.away.region}: longest pauses {pauses} s, bound {bound_s:.1f} s; {lost} lost of what"
            f" was logged, {dropped} dropped; {tally}"
        )
        assert tally.counts["acknowledged"] > tally.seeds
        slow = {region: pause_s for region, pause_s in pauses.items() if pause_s >= bound_s}
        assert not slow, f"not served for {slow} s after {found.away.region} was {fault.name}\n{regions.told()}"
