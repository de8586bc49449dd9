"""Routers in several regions, each with a log of its own, and one directory: a region is cut off, dies, comes back.

At most one region is away at a time. Then nothing that another region had when it was answered may ever be missing in a
leader's history, all regions have the same history in the end, and what was logged and is in none of them is exactly
what they said they dropped. `python -m tests.simulation.regions 1 1000` runs seeds 1 to 999; with one number it tells
the story of that one.
"""

import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from router.beats import Beats
from router.shards import events as ev
from router.shards.leadership import Leadership
from router.shards.records import REGIONS, RegionRecord, encode
from router.shards.roles import Settings
from tests.simulation.cluster import Cluster, Plan
from tests.simulation.faults import KINDS, Fault
from tests.simulation.process import Process
from tests.simulation.region_log import Id, RegionLog
from tests.simulation.region_process import RegionProcess
from tests.simulation.run import Failure
from tests.simulation.world import Violation, World

NAMES = ("eu", "us", "ap")
FAULTS_END = 20.0
QUIET = 6.0
AWAY = {
    "region cut": (1.0, 9.0),
    "region half cut": (3.0, 9.0),
    "region killed": (0.5, 9.0),
    "region log away": (0.3, 3.0),
}
"""Of these, one at a time: two regions that are away together may take with them what only they have."""
OF_REGIONS = {"evacuate": (1.0, 6.0), "slow bridge": (1.0, 8.0), "no directory": (3.0, 9.0), "new term": (0.0, 0.1)}
OTHERS = ("kill", "pause", "slow", "slow log", "directory away", "move", "reconnect", "stall", *OF_REGIONS, *OF_REGIONS)
LENGTHS = KINDS | AWAY | OF_REGIONS
PLACEMENTS: tuple[tuple[str, ...], ...] = ((), ("eu", "us", "ap"), ("us",))


@dataclass(frozen=True)
class RegionPlan(Plan):
    """What a run is made of."""

    regions: int = 3
    placement: tuple[str, ...] = ()


class Regions(Cluster):
    """The world of one run."""

    process_type: type[Process] = RegionProcess
    beats_type = Beats
    plan: RegionPlan

    def __init__(self, plan: RegionPlan) -> None:
        super().__init__(plan)
        self.dropped: set[tuple[int, Id]] = set()
        self.logged: set[tuple[int, Id]] = set()
        """What some region's log took from a leader."""
        self.answered: set[tuple[int, Id]] = set()
        """What was answered as being in two regions."""
        self.logs = {name: self.make_log(self.world, name) for name in NAMES[: plan.regions]}
        self.cut_off: set[str] = set()
        self.cut_links: set[frozenset[str]] = set()
        self.publishing = True
        self._beats: dict[str, tuple[int, int]] = {}
        """By node, the life that beat last, and a number for each beat."""
        self._slow_until = dict.fromkeys(self.logs, 0.0)

    def make_log(self, world: World, region: str) -> RegionLog:
        return RegionLog(world, region, self.dropped)

    def make_machine(self, name: str) -> Leadership:
        region = self.region_of(name)
        others = frozenset(self.logs) - {region}
        settings = Settings(
            shards=self.plan.shards, region=region, regions=others, placement=self.plan.placement, retry_s=0.5
        )
        return self.machine_type(name, settings)

    def region_of(self, name: str) -> str:
        """Of a router: r0 is in the first region, r1 in the second, and so on around."""
        return NAMES[int(name[1:]) % self.plan.regions]

    def distance(self) -> float:
        """How long something takes to another region."""
        return self.world.chance.uniform(0.02, 0.08)

    def slowness_of(self, region: str) -> float:
        """How much later a region's followers hear what they read, for now."""
        return self.world.chance.random() * 3.0 if self.world.now < self._slow_until[region] else 0.0

    def linked(self, one: str, other: str) -> bool:
        """Whether anything goes between two regions, and there is a log at either end."""
        if one != other and ({one, other} & self.cut_off or frozenset((one, other)) in self.cut_links):
            return False
        return not self.logs[other].down

    def confirmed(self, region: str, shard: int, position: Id) -> None:
        """A confirmation stands in a region's log: its routers read it there."""
        for process in self.processes:
            if isinstance(process, RegionProcess) and process.region == region:
                self.world.after(
                    self.world.chance.uniform(0.001, 0.02), process.take, process.on_confirmed, shard, position
                )

    # A run.

    def _publish(self) -> None:
        if self.publishing:
            super()._publish()

    def run(self) -> None:
        """All of it.

        Raises:
            Violation: at the first thing that must not happen.
        """
        super().run()
        self.publishing = False
        self.world.run(self.world.now + QUIET)
        self.check_the_same_everywhere()

    def _strike(self, fault: Fault) -> None:
        if fault.kind in AWAY or fault.kind in OF_REGIONS:
            self.world.note("FAULT", fault)
            region = NAMES[fault.pick % self.plan.regions]
            getattr(self, "_" + fault.kind.replace(" ", "_"))(region, fault.length)
        else:
            super()._strike(fault)

    def _of(self, region: str) -> list[Process]:
        return [process for process in self.processes if self.region_of(process.name) == region]

    def _region_cut(self, region: str, length: float) -> None:
        self.cut_off.add(region)
        for process in self._of(region):
            process.cut_in = process.cut_out = True
        self.world.after(length, self._region_mended, region)

    def _region_half_cut(self, region: str, length: float) -> None:
        """Nothing goes between it and the directory, nor any region but one."""
        left = [name for name in self.logs if name != region][1:]
        self.cut_links |= {frozenset((region, name)) for name in left}
        self._no_directory(region, length)
        self.world.after(length, self._region_mended, region)

    def _region_mended(self, region: str) -> None:
        self.cut_off.discard(region)
        self.cut_links.clear()
        for process in self._of(region):
            self._mend(process)

    def start(self, name: str) -> Process:
        process = super().start(name)
        process.cut_in = process.cut_out = self.region_of(name) in self.cut_off
        return process

    def _region_killed(self, region: str, length: float) -> None:
        log = self.logs[region]
        log.dead_until = max(log.dead_until, self.world.now + length)
        for process in self._of(region):
            self._remove(process)
            self.world.after(length, self._start_again, process.name, process.epochs)

    def _start_again(self, name: str, dead: set[int]) -> None:
        log = self.logs[self.region_of(name)]
        if self.world.now < log.dead_until:
            self.world.at(log.dead_until, self._start_again, name, dead)
        else:
            super()._start_again(name, dead)

    def _region_log_away(self, region: str, length: float) -> None:
        log = self.logs[region]
        log.up_at = max(log.up_at, self.world.now + length)

    def _slow_bridge(self, region: str, length: float) -> None:
        self._slow_until[region] = self.world.now + length

    def _no_directory(self, region: str, length: float) -> None:
        """Its leases end, and what its routers have on the way to their log is late; all else goes on."""
        for process in self._of(region):
            process.cut_in = process.cut_out = True
            process.log_slowness = 50.0
            self.world.after(length, self._mend, process)

    def _new_term(self, region: str, length: float) -> None:
        """The directory has another leader, which gives all leases their time anew, and more."""
        for epoch, (node, _) in self.directory.leases.items():
            self.directory.leases[epoch] = (node, self.world.now + 2 * self.plan.ttl)

    def beat(self, name: str, epoch: int) -> None:
        """A renewal arrives, and is told to whoever is to be reached; some hear nothing of it."""
        if epoch not in self.directory.leases:
            return
        number = self._beats.get(name, (0, 0))[1] + 1
        self._beats[name] = (epoch, number)
        for process in self.processes:
            if isinstance(process, RegionProcess) and process.reachable():
                value = b"%d %d" % (epoch, self.plan.ttl)
                self.world.after(process.delay(), process.take, process.beats.hear, name, value, number)

    def end_silent(self, silent: ev.NodeEpoch, number: int) -> None:
        """Somebody asks for the end of a life that has said nothing since."""
        if self.directory.up and silent.epoch in self.directory.leases and self._is_last(silent, number):
            self.world.note("silent", silent)
            self.directory.end(silent.epoch)

    def _is_last(self, silent: ev.NodeEpoch, number: int) -> bool:
        return self._beats[silent.node] == (silent.epoch, number)

    def _evacuate(self, region: str, length: float) -> None:
        if self.directory.up and REGIONS + region not in self.directory.items:
            self.directory.claim(ev.Claim(REGIONS + region, 0, encode(RegionRecord("simulation", 0)), None))
            self.world.after(length, self._restore, region)

    def _restore(self, region: str) -> None:
        item = self.directory.items.get(REGIONS + region)
        if item is not None:
            self.directory.claim(ev.Claim(REGIONS + region, item[1], None, None))

    def _heal(self) -> None:
        for region, log in self.logs.items():
            self.cut_off.discard(region)
            log.up_at = log.dead_until = self.world.now
            self._restore(region)
        self.cut_links.clear()
        self._slow_until = dict.fromkeys(self.logs, 0.0)
        super()._heal()

    # What is checked.

    def check_nothing_lost(self, shard: int, log: RegionLog) -> None:
        """Whoever begins to lead has everything that was answered."""
        missing = {entry for at, entry in self.answered if at == shard} - set(log.history(shard))
        if missing:
            raise Violation(f"{log.region} leads shard {shard} without {sorted(missing)}, which were answered")

    def check_balanced(self) -> None:
        """Nothing moves any more, and nobody has more than his share, whatever region shares are of."""
        if not self.plan.placement:
            super().check_balanced()

    def check_the_same_everywhere(self) -> None:
        """The same histories, with all that was answered; what is missing was said to be dropped."""
        final: set[tuple[int, Id]] = set()
        for shard in range(self.plan.shards):
            histories = {region: log.history(shard) for region, log in self.logs.items()}
            first = next(iter(histories.values()))
            for region, history in histories.items():
                if history != first:
                    raise Violation(f"shard {shard}: {region} has {history[-5:]}, and others {first[-5:]} at the end")
            if len(set(first)) < len(first) or first != sorted(first):
                raise Violation(f"shard {shard} has entries twice or out of order: {first}")
            final |= {(shard, entry) for entry in first}
        if self.answered - final:
            raise Violation(f"answered and lost: {sorted(self.answered - final)}")
        if self.logged - final != self.dropped:
            lost, said = sorted(self.logged - final - self.dropped), sorted(self.dropped - (self.logged - final))
            raise Violation(f"lost without being said: {lost}; said to be dropped, and not lost: {said}")
        if not self.answered:
            raise Violation("nothing at all was answered")


def faults(seed: int, until: float = FAULTS_END - 2.0) -> tuple[Fault, ...]:
    """The faults of a seed: regions that are away, one after another, and others among and between them."""
    chance = random.Random(f"regions/{seed}")
    found: list[Fault] = []
    at = chance.uniform(1.0, 6.0)
    while at < until:
        kind = chance.choice(("region cut", *AWAY))
        found.append(_fault(chance, at, kind))
        at += found[-1].length + chance.random() ** 3 * 8.0
        if chance.random() < 0.3:
            break
    for _ in range(chance.randint(0, 6)):
        near = chance.choice(found).at if chance.random() < 0.6 else chance.uniform(1.0, until)
        found.append(_fault(chance, min(near + chance.random(), until), chance.choice(OTHERS)))
    return tuple(sorted(found))


def _fault(chance: random.Random, at: float, kind: str) -> Fault:
    shortest, longest = LENGTHS[kind]
    length = shortest + (longest - shortest) * chance.random() ** chance.choice((1, 4))
    return Fault(at, kind, chance.randrange(1 << 16), length)


def plan_of(seed: int) -> RegionPlan:
    """What a seed stands for."""
    chance = random.Random(f"region plan/{seed}")
    regions = chance.choice((2, 3, 3))
    return RegionPlan(
        seed=seed,
        regions=regions,
        routers=regions * chance.choice((1, 1, 2)),
        shards=chance.randint(2, 4),
        placement=chance.choice(PLACEMENTS),
        faults=faults(seed),
        faults_end=FAULTS_END,
    )


def story(name: str, seed: int) -> RegionPlan:
    """What chance seldom brings together.

    `in turn`: a region is back with what only it had, and another is away before it has caught up. `half cut`: a region
    hears neither the directory nor all others, so that its followers go on where its leaders are over, and hear late.
    """
    found: tuple[Fault, ...]
    if name == "in turn":
        found = (Fault(5.0, "region cut", 0, 5.5), Fault(10.6, "region cut", 1 + seed % 2, 7.0))
    else:
        late = (Fault(4.0, "slow bridge", seed % 3, 12.0), Fault(4.0, "slow bridge", (seed + 1) % 3, 12.0))
        found = (*late, Fault(5.0, "region half cut", seed // 3 % 3, 9.0))
    return RegionPlan(seed=seed, routers=3, shards=4, faults=found)


def fails(plan: RegionPlan, regions_type: type[Regions] = Regions) -> tuple[str, str] | None:
    """Run it; what went wrong, and the story."""
    regions = regions_type(plan)
    try:
        regions.run()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}", regions.world.story(160)
    return None


def first_failure(seeds: Iterable[int], regions_type: type[Regions] = Regions) -> Failure | None:
    """Run seeds until one fails; with the fewest faults that still do it."""
    for seed in seeds:
        plan = plan_of(seed)
        found = fails(plan, regions_type)
        if found is None:
            continue
        for fault in plan.faults:
            fewer = replace(plan, faults=tuple(one for one in plan.faults if one is not fault))
            again = fails(fewer, regions_type)
            if again is not None:
                found, plan = again, fewer
        return Failure(plan, *found)
    return None


def main(arguments: list[str]) -> int:
    """The command line."""
    first = int(arguments[0])
    seeds = range(first, int(arguments[1])) if len(arguments) > 1 else range(first, first + 1)
    began = time.process_time()
    failure = first_failure(seeds)
    if failure is not None:
        print(failure)
        return 1
    took = (time.process_time() - began) / len(seeds) * 1000
    print(f"{len(seeds)} seeds without a violation, {took:.1f} ms of CPU each")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
