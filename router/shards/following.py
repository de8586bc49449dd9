"""Which shards a router follows: of those that are led in other regions, the ones that fall to it in its own.

A pure function of what stands in the directory, like placement, but for one thing: where a shard was led last is
remembered while nobody leads it. What its former leader had is still to be had from that region's log then.
"""

from router.shards.events import Follow
from router.shards.placement import follower
from router.shards.roles import Settings
from router.shards.view import View


class Following:
    """One router's part of what its region follows."""

    def __init__(self, node: str, settings: Settings) -> None:
        self.node = node
        self.settings = settings
        self.told: dict[int, tuple[str, int]] = {}
        """What was wanted last: by shard, the region where it is led, and its epoch."""
        self.complaints: list[str] = []
        self.before: dict[int, tuple[str, int]] = {}
        """By shard, the region where it was led last, and its epoch then: not what it was claimed for here since."""
        self._leaders: dict[int, tuple[str, int]] = {}
        self._unknown: set[str] = set()

    def look(self, view: View, epoch: int) -> Follow | None:
        """What to follow now; None: nothing has changed.

        Args:
            view: all of it was read.
            epoch: of our own life; 0: we have no lease, and follow nothing.

        """
        for shard in range(self.settings.shards):
            self._find_leader(view, shard, epoch)
        wanted = self._wanted(view) if epoch else {}
        if wanted == self.told:
            return None
        self.told = wanted
        return Follow(frozenset(wanted), dict(wanted))

    def leads(self, shard: int, epoch: int) -> None:
        """Begin to lead a shard here."""
        self.before[shard] = (self.settings.region, epoch)

    def _find_leader(self, view: View, shard: int, epoch: int) -> None:
        record = view.shards.get(str(shard)).record
        if record is None:
            return
        if record.node_epoch == epoch:
            self._leaders[shard] = (self.settings.region, record.epoch)
            return
        name = view.alive.get(record.node_epoch)
        if name is not None:  # else it is not known where it is led, and the place before counts on
            self._leaders[shard] = self.before[shard] = (view.region_of(name), record.epoch)

    def _wanted(self, view: View) -> dict[int, tuple[str, int]]:
        routers = followers_of(view, self.settings.region)
        wanted = {}
        for shard, (region, epoch) in self._leaders.items():
            if region == self.settings.region:
                continue
            if region not in self.settings.regions:
                self._complain(region, shard)
            elif follower(shard, routers) == self.node:
                wanted[shard] = (region, epoch)
        return wanted

    def _complain(self, region: str, shard: int) -> None:
        if region not in self._unknown:
            self._unknown.add(region)
            known = ", ".join(sorted(self.settings.regions))
            self.complaints.append(
                f"shard {shard} is led in region {region!r}, whose log is not known here: messages from there do not"
                f" reach region {self.settings.region} (log.regions names {known})"
            )


def followers_of(view: View, region: str) -> dict[str, int]:
    """The routers of a region among which its followers are chosen, with their weights."""
    there = view.routers_of(region)
    # Who is about to stop, or is not to be burdened, follows only where nobody else can.
    return {name: weight for name, weight in there.items() if not view.cordoned(name)} or there
