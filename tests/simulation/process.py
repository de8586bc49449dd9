"""A router process: the machine under test, a data plane that sequences, and all that goes wrong between the two.

Its clock is wrong by up to the allowance; it is paused, killed, cut off; whatever it sends takes its time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.shards import events as ev
from router.shards.leadership import Leadership
from router.shards.records import NodeRecord, encode
from tests.simulation.directory import RATE_ERROR

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

ALLOWANCE = 0.01
CLAIM_DEADLINE = 1.0
REGISTER_AGAIN = 0.5


@dataclass(slots=True)
class Led:
    """A shard in the data plane."""

    epoch: int
    offset: int
    paused: bool = False
    under_way: int = 0
    ticket: int = 0


class Process:
    """One life of one router."""

    def __init__(self, cluster: "Cluster", name: str, life: int, weight: int = 1) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.label = f"{name}#{life}"
        self.weight = weight
        self.dead_epochs: set[int] = set()
        """Of earlier processes of this name that are known to have ended: their leases need not be waited for."""
        self.epochs: set[int] = set()
        self.running = True
        self.paused = False
        self.cut_in = self.cut_out = False
        """No answers from the directory; no requests to it."""
        self.slowness = 1.0
        self.log_slowness = 1.0
        self.machine: Leadership = cluster.make_machine(name)
        self.led: dict[int, Led] = {}
        self.hold = 0.0
        self.epoch = 0
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._rate = 1 + self.world.chance.uniform(-RATE_ERROR, RATE_ERROR)
        self._offset = self.world.chance.uniform(0, 1000)
        self._tails: dict[int, tuple[int, int]] = {}
        self._log_at = 0.0
        self._tick_at = 0.0
        self._away = False
        self._watches = cluster.directory.watch(self)
        for watch in self._watches:
            self.world.after(self.delay(), self._start_watch, watch)
        self._register()
        self._beat()

    # Time, and being there.

    def clock(self) -> float:
        """What the process takes the time to be."""
        return self._offset + self.world.now * self._rate

    def reachable(self) -> bool:
        """Whether anything comes from the directory."""
        return self.running and not self.cut_in and self.cluster.directory.up

    def delay(self) -> float:
        """How long something takes to or from the directory."""
        return self.world.chance.uniform(0.001, 0.02) * self.slowness

    def take(self, call: Callable[..., None], *args: Any) -> None:
        """Do something in the process; once it is not paused any more."""
        if self.paused:
            self._inbox.append((call, args))
        elif self.running:
            call(*args)

    def pause(self) -> None:
        self.paused = True

    def go_on(self) -> None:
        """End a pause. The data plane goes on first, believing what it did; then comes what came meanwhile."""
        self.paused = False
        for shard in list(self.led):
            self.publish(shard)
        inbox, self._inbox = self._inbox, []
        for call, args in inbox:
            self.take(call, *args)

    def kill(self) -> None:
        self.running = False
        self.paused = False
        self.led.clear()
        self.cluster.directory.forget(self._watches)

    def believes(self, shard: int) -> bool:
        """Whether it would sequence for a shard if it did something now."""
        led = self.led.get(shard)
        return led is not None and not led.paused and self.clock() < self.hold

    # The machine.

    def step(self, event: ev.Event) -> None:
        """Give the machine an event, and do what it wants."""
        self.world.note(self.label, event)
        for effect in self.machine.step(event, self.clock()):
            self.world.note(self.label, "    ->", effect)
            getattr(self, _EFFECTS[type(effect)])(effect)

    def hear(self, event: ev.Changed | ev.Snapshot) -> None:
        self.step(event)

    def _start_watch(self, watch: Any) -> None:
        if not self.running:
            return
        if self.reachable():
            watch.start()
        else:
            self.world.after(0.3, self._start_watch, watch)

    def connect_again(self) -> None:
        """Its link to the directory is back."""
        for watch in self._watches:
            watch.connect_again()

    def _claims(self, effect: ev.Claims) -> None:
        chance = self.world.chance
        for claim in effect.claims:
            answered = [False]
            late = chance.random() * 6 if self.slowness > 1 and chance.random() < 0.2 else 0.0
            self.world.after(self.delay() + late, self._claim_arrives, claim, answered)
            self.world.after(CLAIM_DEADLINE, self.take, self._claim_ends, claim, answered, None)

    def _claim_arrives(self, claim: ev.Claim, answered: list[bool]) -> None:
        """Also when the process is gone meanwhile."""
        directory = self.cluster.directory
        if not directory.up or self.cut_out:
            return
        result = self.cluster.claim(claim)
        self.world.note("directory", claim, result)
        if self.running and not self.cut_in and (self.slowness == 1 or self.world.chance.random() > 0.2):
            self.world.after(self.delay(), self.take, self._claim_ends, claim, answered, result)

    def _claim_ends(self, claim: ev.Claim, answered: list[bool], result: ev.Won | ev.Lost | None) -> None:
        if answered[0]:
            return
        answered[0] = True
        self.step(ev.ClaimAnswered(claim, result))
        if result is None and not self._away:
            self._away = True
            self.step(ev.DirectoryAway())

    def _wake_at(self, effect: ev.WakeAt) -> None:
        self._tick_at = effect.time
        left = max(0.0, (effect.time - self.clock()) / self._rate)
        self.world.after(left + 1e-6, self.take, self._tick, effect.time)

    def _tick(self, time: float) -> None:
        if time == self._tick_at:
            self.step(ev.Tick())

    def stall(self, pick: int, until: float) -> None:
        """One of its watches tells nothing for a while, and the others go on; mostly that of nodes or shards."""
        self._watches[pick % len(self._watches) if pick % 4 == 0 else pick % 2].stalled_until = until

    # The lease.

    def _register(self) -> None:
        self.world.after(self.delay(), self._register_arrives, self.record(), self.clock())

    def record(self) -> bytes:
        """What it says of itself."""
        return encode(NodeRecord(self.weight, self.label))

    def _register_arrives(self, value: bytes, sent: float) -> None:
        if not self.running:
            return
        epoch = None
        if self.cluster.directory.up and not self.cut_out:
            epoch = self.cluster.register(self.name, value, self.dead_epochs)
        if epoch is not None:
            self.epochs.add(epoch)
        if epoch is None or self.cut_in:
            self.world.after(REGISTER_AGAIN, self.take, self._register)
        else:
            self.world.after(self.delay(), self.take, self._registered, epoch, sent)

    def _registered(self, epoch: int, sent: float) -> None:
        self.epoch = epoch
        self.step(ev.Registered(epoch))
        self._held(epoch, sent)

    def _held(self, epoch: int, sent: float) -> None:
        self.step(ev.LeaseHeld(epoch, self.bound(sent)))
        if self._away:
            self._away = False
            self.step(ev.DirectoryBack())

    def bound(self, sent: float) -> float:
        """Until when a lease certainly lives whose keep-alive was sent then."""
        return sent + self.cluster.directory.ttl * (1 - ALLOWANCE)

    def _beat(self) -> None:
        if self.epoch:
            self.world.after(self.delay(), self._beat_arrives, self.epoch, self.clock())
        self.world.after(self.cluster.directory.ttl / 3, self.take, self._beat)

    def _beat_arrives(self, epoch: int, sent: float) -> None:
        if not self.running or not self.cluster.directory.up or self.cut_out:
            return
        found = self.cluster.directory.keep_alive(epoch)
        if not self.cut_in:
            self.world.after(self.delay(), self.take, self._beat_answered, epoch, sent, found)

    def _beat_answered(self, epoch: int, sent: float, found: bool) -> None:
        if epoch != self.epoch:
            return
        if found:
            self._held(epoch, sent)
        else:
            self.epoch = 0
            self.step(ev.LeaseLost(epoch))
            self._register()

    # The data plane.

    def publish(self, shard: int) -> None:
        """A message for a shard comes to it, if it is one that would take it."""
        if self.running and not self.paused and self.believes(shard):
            led = self.led[shard]
            self._to_log(self._append, shard, led.epoch, led.offset)
            led.offset += 1
            led.under_way += 1

    def _to_log(self, call: Callable[..., None], *args: Any) -> None:
        """One connection: what is sent first arrives first, also after the process was killed."""
        delay = self.world.chance.uniform(0.001, 0.02) * self.log_slowness
        self._log_at = max(self._log_at, self.world.now + delay, self.cluster.log.up_at)
        self.world.at(self._log_at, call, *args)

    def _append(self, shard: int, epoch: int, offset: int) -> None:
        taken = self.cluster.log.append(shard, epoch, offset, self.label)
        self.world.after(0.005 * self.log_slowness, self.take, self._appended, shard, epoch, taken)

    def _appended(self, shard: int, epoch: int, taken: bool) -> None:
        led = self.led.get(shard)
        if led is None or led.epoch != epoch:
            return
        led.under_way -= 1
        if not taken:
            self.step(ev.Refused(shard, epoch, self.newest(shard)))
        elif led.ticket and not led.under_way:
            self.step(ev.Drained(shard, led.ticket))

    def newest(self, shard: int) -> int:
        """The epoch that the log knows."""
        return self.cluster.log.epochs[shard]

    def _hold(self, effect: ev.Hold) -> None:
        self.hold = effect.until
        for shard in self.led:
            self.cluster.check_leaders(shard)

    def _open(self, effect: ev.Open) -> None:
        self._to_log(self._open_arrives, effect.shard, effect.epoch)

    def _open_arrives(self, shard: int, epoch: int) -> None:
        tail = self.cluster.log.open(shard, epoch, self.label)
        self.world.after(0.005 * self.log_slowness, self.take, self._opened, shard, epoch, tail)

    def _opened(self, shard: int, epoch: int, tail: int | None) -> None:
        if tail is None:
            self.step(ev.Refused(shard, epoch, self.cluster.log.epochs[shard]))
        else:
            self._tails[shard] = (epoch, tail)
            self.step(ev.Opened(shard, epoch))

    def _lead(self, effect: ev.Lead) -> None:
        epoch, tail = self._tails.get(effect.shard, (0, 0))
        if epoch != effect.epoch:
            tail = self.cluster.log.lengths.get(effect.shard, 0)
        self.led[effect.shard] = Led(effect.epoch, tail)
        self.cluster.led(effect.shard)
        self.cluster.check_leaders(effect.shard)

    def _pause(self, effect: ev.Pause) -> None:
        # In a busy cluster there is always something under way.
        self.publish(effect.shard)
        self.led[effect.shard].paused = True
        self.cluster.paused(effect.shard)

    def _drain(self, effect: ev.Drain) -> None:
        led = self.led[effect.shard]
        led.ticket = effect.ticket
        if not led.under_way:
            self.world.after(0.001, self.take, self.step, ev.Drained(effect.shard, effect.ticket))

    def _resume(self, effect: ev.Resume) -> None:
        led = self.led[effect.shard]
        if led.epoch != effect.epoch:
            raise AssertionError("resumed under another epoch")
        led.paused = False
        led.ticket = 0
        self.cluster.check_leaders(effect.shard)

    def _stop(self, effect: ev.Stop) -> None:
        self.led.pop(effect.shard, None)

    def _prepare(self, effect: ev.Prepare) -> None:
        self._to_log(self.take, self.step, ev.Prepared(effect.shard, effect.epoch))

    def _ignore(self, effect: ev.Forget | ev.Complain) -> None:
        pass

    def _follow(self, effect: ev.Follow) -> None:
        raise AssertionError("there are no regions here")

    def _told(self, effect: ev.Told) -> None:
        self.cluster.told.append(effect)


_EFFECTS = {
    ev.Claims: "_claims",
    ev.Hold: "_hold",
    ev.Open: "_open",
    ev.Lead: "_lead",
    ev.Pause: "_pause",
    ev.Drain: "_drain",
    ev.Resume: "_resume",
    ev.Stop: "_stop",
    ev.Prepare: "_prepare",
    ev.Forget: "_ignore",
    ev.Complain: "_ignore",
    ev.WakeAt: "_wake_at",
    ev.Told: "_told",
    ev.Follow: "_follow",
}
