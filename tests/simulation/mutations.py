"""Planted bugs: each takes away one thing that keeps the cluster safe or going. The simulator has to find every one."""

from typing import Any

from router.shards import events as ev
from router.shards.leadership import Leadership
from router.shards.records import SHARDS, ShardRecord, decode, encode
from router.shards.roles import Role
from tests.simulation.cluster import Cluster
from tests.simulation.directory import Directory, Watch
from tests.simulation.log import Log
from tests.simulation.process import Process

# What the directory, the log and the process around the machine must do.


class LogWithoutFence(Log):
    """Skip the fence: the log takes appends under whatever epoch."""

    def accepts(self, shard: int, epoch: int) -> bool:
        return True


class NoCompare(Directory):
    """Ignore the compare: whoever claims gets the key."""

    def claim(self, claim: ev.Claim) -> ev.Won | ev.Lost:
        seen = self.items.get(claim.key, (None, 0))[1]
        return super().claim(claim._replace(expected_revision=seen))


class TakesNames(Directory):
    """Whoever registers makes a living node of that name go at once."""

    def register(self, node: str, value: bytes, dead: set[int]) -> int | None:
        return super().register(node, value, set(self.leases))


class RenewsLate(Process):
    """Renew after expiry: a lease counts from when the answer came, and one that is gone counts as kept."""

    def _beat_answered(self, epoch: int, sent: float, found: bool) -> None:
        super()._beat_answered(epoch, self.clock(), True)


class CountsFromAnswer(Process):
    """A lease counts from when the answer to its keep-alive came."""

    def _beat_answered(self, epoch: int, sent: float, found: bool) -> None:
        super()._beat_answered(epoch, self.clock(), found)


class TrustsClocks(Process):
    """No allowance for what clocks go apart, and no margin."""

    def bound(self, sent: float) -> float:
        return sent + self.cluster.directory.ttl + self.cluster.settings.margin_s


class NoBound(Process):
    """The data plane sequences until it is told to stop, whatever its clock says."""

    def believes(self, shard: int) -> bool:
        led = self.led.get(shard)
        return led is not None and not led.paused


class SaysDrained(Process):
    """Hand over before drain: what is under way is not waited for."""

    def _drain(self, effect: ev.Drain) -> None:
        self.world.after(0.001, self.take, self.step, ev.Drained(effect.shard, effect.ticket))


class WatchFromNow(Watch):
    """Watch without revision: after a broken connection it goes on with what comes next."""

    def connect_again(self) -> None:
        self.on_its_way = False
        self.told = len(self.directory.history[self.prefix])


# What the machine must do.


class LeadsAtOnce(Leadership):
    """Lead before open: the log does not know the epoch yet, and its tail may still grow."""

    def _own(self, shard: int, record: ShardRecord, seen: Any) -> None:
        super()._own(shard, record, seen)
        held = self.held[shard]
        if held.role is Role.OPENING:
            self._opened(ev.Opened(shard, record.epoch))


class TakesFromTheLiving(Leadership):
    """A shard is claimed when its owner is not known, though nodes may not be known so far."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.view.over = lambda epoch: epoch not in self.view.alive  # type: ignore[method-assign]


class SilenceIsNo(Leadership):
    """A hand-over that is not answered is taken for one that lost: the leader goes on under its epoch."""

    def _shard_answered(self, shard: int, claim: ev.Claim, result: ev.Won | ev.Lost | None) -> None:
        super()._shard_answered(shard, claim, result or ev.Lost(claim.expected_revision, None))


class KeepsSequencing(Leadership):
    """A leader goes on while it hands over."""

    def step(self, event: ev.Event, now: float) -> list[ev.Effect]:
        return [effect for effect in super().step(event, now) if not isinstance(effect, ev.Pause)]


class NeverStops(Leadership):
    """A leader that reads that a shard is another's does not stop."""

    def step(self, event: ev.Event, now: float) -> list[ev.Effect]:
        return [effect for effect in super().step(event, now) if not isinstance(effect, ev.Stop)]


class SameName(Leadership):
    """A new life goes on with what an earlier one of its name led."""

    def _look(self) -> None:
        for shard in self._dirty:
            seen = self.view.shards.get(str(shard))
            if seen.record is not None and seen.record.node == self.node and self.epoch:
                record = seen.record._replace(node_epoch=self.epoch)
                self.view.shards._seen[str(shard)] = seen._replace(record=record)
        super()._look()


class SameEpoch(Leadership):
    """A change of hands keeps the shard's epoch."""

    def _claim(self, key: str, revision: int, value: bytes | None, alive: ev.NodeEpoch | None = None) -> bool:
        if key.startswith(SHARDS) and value is not None:
            before = self.view.shards.get(key[len(SHARDS) :]).record
            record = decode(ShardRecord, value)
            if before is not None:
                value = encode(record._replace(epoch=before.epoch))
        return super()._claim(key, revision, value, alive)


class NeverTriesAgain(Leadership):
    """A claim that failed once is not tried again."""

    def _shard_answered(self, shard: int, claim: ev.Claim, result: ev.Won | ev.Lost | None) -> None:
        super()._shard_answered(shard, claim, result)
        if not isinstance(result, ev.Won):
            self._not_before[shard] = float("inf")


class NeverTakesBack(Leadership):
    """A hand-over of which nothing is known is left so."""

    def _take_back(self) -> None:
        pass


def cluster_of(**parts: type) -> type[Cluster]:
    """A cluster with some of its parts exchanged."""
    return type("Mutant", (Cluster,), parts)


class WatchesFromNow(Directory):
    """See WatchFromNow."""

    watch_type = WatchFromNow


PLANTED: dict[str, type[Cluster]] = {
    "skip the fence": cluster_of(log_type=LogWithoutFence),
    "renew after expiry": cluster_of(process_type=RenewsLate),
    "ignore the compare": cluster_of(directory_type=NoCompare),
    "hand over before drain": cluster_of(process_type=SaysDrained),
    "watch without revision": cluster_of(directory_type=WatchesFromNow),
}
"""The five that the work on many nodes was to be measured by."""

MORE: dict[str, type[Cluster]] = {
    "no bound": cluster_of(process_type=NoBound),
    "a living node's name is taken": cluster_of(directory_type=TakesNames),
    "sequence while handing over": cluster_of(machine_type=KeepsSequencing),
    "never stop": cluster_of(machine_type=NeverStops),
    "the same name": cluster_of(machine_type=SameName),
    "the same epoch": cluster_of(machine_type=SameEpoch),
    "never try again": cluster_of(machine_type=NeverTriesAgain),
}
"""Others that show within some tens of seeds."""

RARE: dict[str, type[Cluster]] = {
    "clocks are trusted": cluster_of(process_type=TrustsClocks),
    "a lease counts from its answer": cluster_of(process_type=CountsFromAnswer),
    "take from the living": cluster_of(machine_type=TakesFromTheLiving),
    "silence is no": cluster_of(machine_type=SilenceIsNo),
    "never take back": cluster_of(machine_type=NeverTakesBack),
    "lead before open": cluster_of(machine_type=LeadsAtOnce),
}
"""Those that need several things to go wrong together: hundreds of seeds."""
