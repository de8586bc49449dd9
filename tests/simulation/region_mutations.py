"""Planted bugs of regions: each takes away one thing that keeps what was answered. The simulator finds every one."""

from collections.abc import Sequence

from router.beats import Beats
from router.shards import events as ev
from tests.simulation.region_log import Id, RegionLog
from tests.simulation.region_process import RegionProcess
from tests.simulation.regions import Regions
from tests.simulation.world import World


class SkipsTheFence(RegionProcess):
    """Other regions are asked what they have, and go on taking what comes under the former epoch."""

    def _fence_far(self, region: str, shard: int, epoch: int, answers: dict[str, tuple[int | None, Id]]) -> None:
        log = self.cluster.logs[region]
        newest = log.epoch(shard) if log.epoch(shard) > epoch else None
        self._far(region, answers.__setitem__, region, (newest, log.last(shard)))


class LeadsWithWhatItHas(RegionProcess):
    """What another region has more is not read before leading."""

    def _catch_up(self, shard: int, epoch: int, region: str, position: Id) -> None:
        self._to_log(self._open_own, shard, epoch)


class ConfirmsFirst(RegionProcess):
    """What was read is confirmed before it is in our own log."""

    def hear_of(self, region: str, shard: int, epoch: int, whole: bool, entries: tuple[Id, ...], after: Id) -> None:
        self.confirm(region, shard, entries[-1])
        super().hear_of(region, shard, epoch, whole, entries, after)


class FollowsTooEarly(RegionProcess):
    """A leader is read before it has opened the shard."""

    def is_open(self, log: RegionLog, shard: int, epoch: int) -> bool:
        return True


class FollowsTheFirst(RegionProcess):
    """Who follows does not hear that another leads."""

    def _follow(self, effect: ev.Follow) -> None:
        before = self.follows
        super()._follow(effect)
        self.follows |= {shard: leader for shard, leader in before.items() if shard in self.follows}


class KeepsEverything(RegionLog):
    """What is beyond the last common entry stays."""

    def drop(self, shard: int, kept: int) -> None:
        pass


class DropsInSilence(RegionLog):
    """What is dropped is not counted."""

    def drop(self, shard: int, kept: int) -> None:
        del self.history(shard)[kept:]


class TakesFromTheDeposed(RegionLog):
    """What is repeated is not held against the epoch."""

    def repeat(self, shard: int, under: int, whole: bool, entries: Sequence[Id], after: Id) -> bool:
        return super().repeat(shard, max(under, self.epoch(shard)), whole, entries, after)


class Hasty(Beats):
    """A life is ended before its bound is over."""

    def silent(self) -> list[tuple[ev.NodeEpoch, int]]:
        time, alive = self._clock(), self._alive()
        return [
            (ev.NodeEpoch(node, beat.epoch), beat.revision)
            for node, beat in self._beats.items()
            if alive.get(beat.epoch) == node and time - beat.heard >= beat.ttl_s / 2
        ]


def regions_of(
    process: type[RegionProcess] = RegionProcess, log: type[RegionLog] = RegionLog, beats: type[Beats] = Beats
) -> type[Regions]:
    """A world with one of its parts exchanged."""

    class Mutant(Regions):
        process_type = process
        beats_type = beats

        def make_log(self, world: World, region: str) -> RegionLog:
            return log(world, region, self.dropped)

    return Mutant


PLANTED: dict[str, type[Regions]] = {
    "skip the remote fence": regions_of(SkipsTheFence),
    "lead without catching up": regions_of(LeadsWithWhatItHas),
    "confirm before append": regions_of(ConfirmsFirst),
    "keep what is beyond the base": regions_of(log=KeepsEverything),
    "follow the former leader": regions_of(FollowsTheFirst),
    "drop in silence": regions_of(log=DropsInSilence),
    "end lives too early": regions_of(beats=Hasty),
}
"""Found among some hundreds of seeds."""

TOLD: dict[str, tuple[str, type[Regions]]] = {
    "follow who is not open yet": ("in turn", regions_of(FollowsTooEarly)),
    "skip the remote fence": ("half cut", regions_of(SkipsTheFence)),
    "take from the deposed": ("half cut", regions_of(log=TakesFromTheDeposed)),
}
"""Found in the stories of `tests.simulation.regions.story`, by the name of theirs."""
