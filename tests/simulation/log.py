"""A log that keeps to the epochs of shards as the script in Redis does, and knows when it was fooled."""

from router.shards.records import SHARDS, ShardRecord, decode
from tests.simulation.directory import Directory
from tests.simulation.world import Violation, World


class Log:
    """The shards' epochs and how many messages each has."""

    def __init__(self, world: World, directory: Directory) -> None:
        self.world = world
        self.directory = directory
        self.up_at = 0.0
        self.epochs: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.leaders: dict[tuple[int, int], str] = {}
        """Who came under which epoch of a shard."""

    def open(self, shard: int, epoch: int, who: str) -> int | None:
        """The tail of the shard; None: a higher epoch was opened."""
        if epoch < self.epochs.get(shard, 0):
            return None
        self._admit(shard, epoch, who)
        return self.lengths.get(shard, 0)

    def append(self, shard: int, epoch: int, offset: int, who: str) -> bool:
        """Whether it was taken."""
        if not self.accepts(shard, epoch):
            self._look_at_refusal(shard, epoch)
            return False
        if epoch < self.epochs.get(shard, 0):
            raise Violation(
                f"{who} appended to shard {shard} under epoch {epoch} after {self.epochs[shard]} was opened"
            )
        self._admit(shard, epoch, who)
        length = self.lengths.get(shard, 0)
        if offset != length:
            raise Violation(f"{who} appended to shard {shard} at {offset}, and its end is {length}")
        self.lengths[shard] = length + 1
        return True

    def accepts(self, shard: int, epoch: int) -> bool:
        """The comparison that refuses deposed leaders."""
        return epoch >= self.epochs.get(shard, 0)

    def _admit(self, shard: int, epoch: int, who: str) -> None:
        first = self.leaders.setdefault((shard, epoch), who)
        if first != who:
            raise Violation(f"{who} came to shard {shard} under epoch {epoch}, which is {first}'s")
        self.epochs[shard] = epoch

    def _look_at_refusal(self, shard: int, epoch: int) -> None:
        """What was handed over was drained before."""
        for key, value, _ in self.directory.history[SHARDS]:
            if key == f"{SHARDS}{shard}" and value is not None:
                record = decode(ShardRecord, value)
                if record.epoch == epoch + 1 and record.how == "handed":
                    raise Violation(f"shard {shard} was handed over under epoch {epoch + 1} before it was drained")
