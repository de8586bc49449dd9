"""Two gateways and three routers in network namespaces with a real etcd and a real Redis: whatever happens to the
routers and between the machines, no acknowledged message is lost or repeated, and no shard pauses for longer than it
may.

A few of the faults in every run of the tests, all of them, each several times and with more clients, under
HOLDFAST_CHAOS=full (make chaos).
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.chaos.cohorts import Cohort, Tally, complaint
from tests.chaos.fleet import SECRET, Fleet, running_fleet
from tests.chaos.fleet_faults import FAULTS, Fault, restore
from tests.chaos.habits import Habits
from tests.chaos.probe import Probe
from tests.chaos.rounds import FULL, SEED
from tests.chaos.switch import why_not

GATEWAYS, ROUTERS = 2, 3
SHARDS = 64
TTL_S = 4
SLACK_S = 0.0 if FULL else 1.5
"""Beside other tests, what one shard waits for says less of Holdfast than of the machine: the bounds are held at full
size, which has the machine to itself, and here that nothing waits for a retry, a lease or for ever."""
QUIET_S = 1.5
COHORTS = 100 if FULL else 20
ROUNDS = 3 if FULL else 1
HABITS = Habits(pause_s=0.5, breaks=2, hurries=1, forgets=10, acks_every=10)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if reason := why_not():
        pytest.skip(reason)
    with running_fleet(GATEWAYS, ROUTERS, shards=SHARDS, ttl_s=TTL_S) as made:
        yield made
        made.stop()


async def one_round(fleet: Fleet, fault: Fault, number: int) -> tuple[Tally, list[float], float]:
    """Cohorts and a probe live while it happens; what they proved, each shard's longest pause, and how long of it was
    the machine's own: what shards waited for before it or, where some are handed over, those that are not.
    """
    seeds = [f"{fault.name.replace(' ', '-')}-{number}-{index}" for index in range(COHORTS)]
    habits = replace(HABITS, returns_left=fault.cuts_workers)
    cohorts = [Cohort(seed, fleet.place, habits, secret=SECRET) for seed in seeds]
    probe = Probe(fleet.place, SHARDS, f"probe{number}", SECRET)
    await asyncio.gather(probe.come(), *(cohort.come() for cohort in cohorts))
    for cohort in cohorts:
        cohort.act()
    try:
        await asyncio.sleep(QUIET_S)
        idle_s = max(probe.pauses_s())
        led = fleet.leaders()
        probe.begin()
        await asyncio.to_thread(fault.act, fleet)
        await probe.wait_answered()
        pauses_s = probe.pauses_s()
        if fault.planned:
            stayed = [shard for shard, name in fleet.leaders().items() if led[shard] == name]
            idle_s = max([idle_s, *(pauses_s[shard] for shard in stayed)])
        await asyncio.to_thread(restore, fleet, ROUTERS)
    except BaseException:
        await asyncio.gather(probe.stop(), *(cohort.give_up() for cohort in cohorts))
        raise
    found = await asyncio.gather(*(cohort.settle() for cohort in cohorts), return_exceptions=True)
    await probe.stop()
    tally = Tally()
    tally.add(cohorts)
    texts = [complaint(cohorts), *(str(one) for one in found if isinstance(one, BaseException))]
    text = "\n".join(text for text in texts if text)
    assert not text, f"{text}\n{fleet.told()}"
    return tally, pauses_s, idle_s


@pytest.mark.parametrize("fault", [one for one in FAULTS if one.short or FULL], ids=lambda one: one.name)
def test_nothing_acknowledged_is_lost_or_repeated(fleet: Fleet, fault: Fault) -> None:
    bound_s = fault.pause_s(TTL_S) + SLACK_S
    for number in range(ROUNDS):
        tally, pauses_s, idle_s = asyncio.run(one_round(fleet, fault, SEED * 1_000 + number))
        ordered = sorted(pauses_s)
        print(
            f"{fault.name}: the longest pause of a shard {ordered[-1]:.3f} s, median {ordered[SHARDS // 2]:.3f} s,"
            f" bound {bound_s:.1f} s, the machine's own {idle_s:.3f} s; {tally}"
        )
        assert tally.counts["acknowledged"] > tally.seeds
        slow = {shard: round(pause_s, 3) for shard, pause_s in enumerate(pauses_s) if pause_s - idle_s >= bound_s}
        assert not slow, f"paused for {bound_s} s or longer, beyond {idle_s:.3f} s: {slow}\n{fleet.told()}"
