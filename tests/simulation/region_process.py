"""A router of one region among several: it leads into its region's log, and brings what is led elsewhere into it."""

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from router.directory.port import Changes, Snapshot
from router.shards import events as ev
from router.shards.records import NodeRecord, encode
from tests.simulation.process import Led, Process
from tests.simulation.region_log import START, Id, RegionLog

if TYPE_CHECKING:
    from tests.simulation.regions import Regions

POLL = 0.12
LOOK = 0.2
ANSWER_DEADLINE = 1.0
LOST, LATE, REPEATED = 0.05, 0.05, 0.1


class NoDirectory:
    """The way to the directory is the simulation's own."""

    async def read(self, prefix: str) -> Snapshot:
        raise AssertionError(prefix)

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes | Snapshot, None]:
        raise AssertionError(prefix)

    async def end(self, silent: ev.NodeEpoch, revision: int) -> bool:
        raise AssertionError(silent)


class RegionProcess(Process):
    """One life of one router."""

    cluster: "Regions"

    def __init__(self, cluster: "Regions", name: str, life: int) -> None:
        self.region = cluster.region_of(name)
        self.follows: dict[int, tuple[str, int]] = {}
        super().__init__(cluster, name, life)
        self.beats = cluster.beats_type(name, NoDirectory(), lambda: self.machine.view.alive, self.clock)
        self._poll()
        self._end_silent()

    @property
    def log(self) -> RegionLog:
        """That of its region."""
        return self.cluster.logs[self.region]

    def record(self) -> bytes:
        return encode(NodeRecord(self.weight, self.label, self.region))

    # The lease.

    def _beat_arrives(self, epoch: int, sent: float) -> None:
        """It is written down for the others as well."""
        if self.running and self.cluster.directory.up and not self.cut_out:
            self.cluster.beat(self.name, epoch)
        super()._beat_arrives(epoch, sent)

    def _end_silent(self) -> None:
        if not self.running:
            return
        for silent, revision in [] if self.paused or self.cut_out else self.beats.silent():
            self.world.after(self.delay(), self.cluster.end_silent, silent, revision)
        self.world.after(LOOK * (0.5 + self.world.chance.random()), self._end_silent)

    # The way to logs.

    def _to_log(self, call: Callable[..., None], *args: Any) -> None:
        """One connection to its own: what is sent first arrives first, also after the process was killed."""
        delay = self.world.chance.uniform(0.001, 0.02) * self.log_slowness
        self._log_at = max(self._log_at, self.world.now + delay, self.log.up_at)
        self.world.at(self._log_at, self._at_log, call, *args)

    def _at_log(self, call: Callable[..., None], *args: Any) -> None:
        if self.world.now >= self.log.dead_until:
            call(*args)

    def _far(self, region: str, call: Callable[..., None], *args: Any) -> None:
        """Something goes to another region, or comes from there, if anything does now and then."""
        delay = self.cluster.distance()
        if self.cluster.linked(self.region, region):
            self.world.after(delay, self._arrives_far, region, call, *args)

    def _arrives_far(self, region: str, call: Callable[..., None], *args: Any) -> None:
        if self.cluster.linked(self.region, region):
            call(*args)

    # Leading.

    def publish(self, shard: int) -> None:
        if self.running and not self.paused and self.believes(shard):
            led = self.led[shard]
            led.offset += 1
            led.under_way += 1
            self._to_log(self._append, shard, led.epoch, led.offset)

    def _append(self, shard: int, epoch: int, offset: int) -> None:
        taken = self.log.append(shard, (epoch, offset), self.label)
        if taken:
            self.cluster.logged.add((shard, (epoch, offset)))
        self.world.after(0.005 * self.log_slowness, self.take, self._appended, shard, epoch, taken)

    def newest(self, shard: int) -> int:
        return self.log.epoch(shard)

    def on_confirmed(self, shard: int, position: Id) -> None:
        """Another region has all up to a position: what of it was published here is answered."""
        led = self.led.get(shard)
        if self.running and led is not None and led.epoch == position[0]:
            self.cluster.answered.update((shard, (led.epoch, number)) for number in range(1, position[1] + 1))

    # Opening: the other regions first, then what they have more, then our own.

    def _open(self, effect: ev.Open) -> None:
        shard, epoch = effect
        others = [region for region in self.cluster.logs if region != self.region]
        answers: dict[str, tuple[int | None, Id]] = {}
        for region in others:
            self._far(region, self._fence_far, region, shard, epoch, answers)
        self.world.after(ANSWER_DEADLINE, self.take, self._fenced, shard, epoch, answers)

    def _fence_far(self, region: str, shard: int, epoch: int, answers: dict[str, tuple[int | None, Id]]) -> None:
        log = self.cluster.logs[region]
        self._far(region, answers.__setitem__, region, (log.fence(shard, epoch), log.last(shard)))

    def _fenced(self, shard: int, epoch: int, answers: dict[str, tuple[int | None, Id]]) -> None:
        refusals = [newest for newest, _ in answers.values() if newest is not None]
        if refusals:
            self.step(ev.Refused(shard, epoch, max(refusals)))
        elif not self.machine.regions() <= answers.keys():
            self.step(ev.Refused(shard, epoch, None))
        else:
            best = max(answers, key=lambda region: answers[region][1], default=self.region)
            self._catch_up(shard, epoch, best, answers[best][1] if answers else START)

    def _catch_up(self, shard: int, epoch: int, region: str, position: Id) -> None:
        if position <= self.log.last(shard):
            self._to_log(self._open_own, shard, epoch)
            return
        read: list[list[Id]] = []
        log = self.cluster.logs[region]
        self._far(region, lambda: self._far(region, read.append, list(log.history(shard))))
        self.world.after(ANSWER_DEADLINE / 2, self.take, self._caught_up, shard, epoch, read)

    def _caught_up(self, shard: int, epoch: int, read: list[list[Id]]) -> None:
        if not read:
            self.step(ev.Refused(shard, epoch, None))
            return
        self._to_log(self._adopt, shard, epoch, read[0])
        self._to_log(self._open_own, shard, epoch)

    def _adopt(self, shard: int, epoch: int, history: list[Id]) -> None:
        if epoch >= self.log.epoch(shard) and history[-1] > self.log.last(shard):
            self.log.become(shard, history)

    def _open_own(self, shard: int, epoch: int) -> None:
        newest = self.log.fence(shard, epoch)
        self.world.after(0.005 * self.log_slowness, self.take, self._open_ended, shard, epoch, newest)

    def _open_ended(self, shard: int, epoch: int, newest: int | None) -> None:
        self.step(ev.Opened(shard, epoch) if newest is None else ev.Refused(shard, epoch, newest))

    def _lead(self, effect: ev.Lead) -> None:
        last = self.log.last(effect.shard)
        # A raised epoch begins anew; one that was led before goes on where it was.
        self.led[effect.shard] = Led(effect.epoch, last[1] if last[0] == effect.epoch else 0)
        self.cluster.led(effect.shard)
        self.cluster.check_leaders(effect.shard)
        self.cluster.check_nothing_lost(effect.shard, self.log)

    # Taking over from who lives: whoever could not open a shard does not ask for it.

    def _prepare(self, effect: ev.Prepare) -> None:
        asked = set(self.machine.regions())
        if not asked:
            super()._prepare(effect)
        left = set(asked)
        for region in asked:
            self._far(region, self._far, region, self._prepared_by, effect, region, left)

    def _prepared_by(self, effect: ev.Prepare, region: str, left: set[str]) -> None:
        left.discard(region)
        if not left:
            self.take(self.step, ev.Prepared(*effect))

    # Following.

    def _follow(self, effect: ev.Follow) -> None:
        self.follows = dict(effect.leaders)

    def _poll(self) -> None:
        if not self.running:
            return
        for shard, (region, epoch) in self.follows.items():
            if not self.paused and not self.log.down:
                self._far(region, self._read_far, region, shard, epoch, self.log.last(shard))
        self.world.after(POLL * (0.5 + self.world.chance.random()), self._poll)

    def _read_far(self, region: str, shard: int, epoch: int, after: Id) -> None:
        log, chance = self.cluster.logs[region], self.world.chance
        whole, entries = log.read(shard, after)
        if not entries or not self.is_open(log, shard, epoch):
            return
        luck = chance.random()
        if luck < LOST:
            return
        late = chance.random() * 2 if luck < LOST + LATE else 0.0
        late += self.cluster.slowness_of(self.region)
        for _ in range(2 if luck > 1 - REPEATED else 1):
            self.world.after(late, self._far, region, self.hear_of, region, shard, epoch, whole, tuple(entries), after)

    def hear_of(self, region: str, shard: int, epoch: int, whole: bool, entries: tuple[Id, ...], after: Id) -> None:
        """The answer is here; the process takes it when it can."""
        self.take(self._read, region, shard, epoch, whole, entries, after)

    def is_open(self, log: RegionLog, shard: int, epoch: int) -> bool:
        """Whether a leader's log is that of this epoch: before, what it has may still be dropped."""
        return log.epoch(shard) >= epoch

    def _read(self, region: str, shard: int, epoch: int, whole: bool, entries: tuple[Id, ...], after: Id) -> None:
        self._to_log(self._repeat, region, shard, epoch, whole, entries, after)

    def _repeat(self, region: str, shard: int, epoch: int, whole: bool, entries: tuple[Id, ...], after: Id) -> None:
        if self.log.repeat(shard, epoch, whole, entries, after):
            self.confirm(region, shard, entries[-1])

    def confirm(self, region: str, shard: int, position: Id) -> None:
        """Tell the leader's region what is here."""
        self._far(region, self.cluster.confirmed, region, shard, position)
