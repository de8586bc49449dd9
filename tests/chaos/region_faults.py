"""What is done to a region, and what is known of it while it is away.

Each fault is a function that returns once the region is there again; that it struck is looked for, not taken on trust.
Before a region that was away is reached by anybody, what its log holds is read: what it has to drop is known by that.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.regions import REGIONS, History, Regions
from tests.conftest import wait_until

SERVED_S = 3.0
"""After a lease has ended, all that a lost region led is served by another within this."""
SECOND_S = 1.0
MOMENT_S = (0.5, 2.5)
ALONE_S = 2.0
"""For so long the others go on after they have taken over."""


@dataclass
class Away:
    """What is known of a region while it is away.

    Attributes:
        before: what its log held then.
        dropped: what its routers had said by then that they dropped.
        led: the shards that it led when it was struck.

    """

    region: str
    before: History = field(default_factory=dict)
    dropped: int = 0
    led: set[int] = field(default_factory=set)


Act = Callable[[Regions, str, random.Random, Callable[[], None]], Away]
"""Given the regions, which one is struck, chance, and what to call once others have taken over."""


@dataclass(frozen=True)
class Fault:
    """One thing that happens to a region.

    Attributes:
        inside: clients of the region stay with it, instead of going elsewhere.
        short: whether every run of the tests has it.

    """

    name: str
    act: Act
    inside: bool = False
    short: bool = False


def struck(regions: Regions, region: str, rng: random.Random) -> Away:
    """At a random moment; it leads something."""
    time.sleep(rng.uniform(*MOMENT_S))
    led = {shard for shard, where in regions.led_in().items() if where == region}
    assert led, f"{region} leads nothing\n{regions.told()}"
    return Away(region, dropped=regions.dropped(region), led=led)


def wait_taken_over(regions: Regions, away: Away) -> None:
    """Until the others lead all that it led."""

    def is_taken_over() -> bool:
        led = regions.led_in()
        return all(led.get(shard, away.region) != away.region for shard in away.led)

    wait_until(is_taken_over, lambda: f"others lead what {away.region} led\n{regions.told()}", regions.ttl_s + 30.0)
    regions.note(f"others lead what {away.region} led")


def killed(*, second: bool) -> Act:
    """All processes of a region at once. `second`: Redis comes back without what it wrote in the last second."""

    def act(regions: Regions, region: str, rng: random.Random, taken_over: Callable[[], None]) -> Away:
        away = struck(regions, region, rng)
        size = None
        if second:
            size = regions.written(region)
            time.sleep(SECOND_S)
        regions.kill(region)
        wait_taken_over(regions, away)
        taken_over()
        time.sleep(ALONE_S)
        regions.bring_back_redis(region, size)
        away.before = regions.history(region)
        regions.bring_back(region)
        regions.etcd.wait()
        return away

    return act


def cut_off(regions: Regions, region: str, rng: random.Random, taken_over: Callable[[], None]) -> Away:
    """Nothing passes between it and the others; its clients stay with it."""
    away = struck(regions, region, rng)
    regions.cut(region)
    wait_taken_over(regions, away)
    taken_over()
    time.sleep(ALONE_S)
    away.before = regions.history(region)
    regions.heal()
    return away


def cut_shortly(regions: Regions, region: str, rng: random.Random, taken_over: Callable[[], None]) -> Away:
    """For less than a lease: nobody takes over, and nothing is lost."""
    away = struck(regions, region, rng)
    regions.cut(region)
    time.sleep(SECOND_S)
    regions.heal()
    taken_over()
    return away


FAULTS = (
    Fault("killed", killed(second=False), short=True),
    Fault("killed, without the last second", killed(second=True)),
    Fault("cut off", cut_off, inside=True, short=True),
    Fault("cut off for less than a lease", cut_shortly, inside=True),
)


def restore(regions: Regions) -> None:
    """Everything passes, everybody is there, and each region leads its share."""
    regions.wan.heal()
    for region in list(regions.down):
        regions.bring_back_redis(region)
        regions.bring_back(region)
    regions.etcd.wait()
    wait_until(regions.is_up, lambda: f"no node ended\n{regions.told()}")
    regions.wait_whole()
    regions.wait_led_in({*REGIONS})
