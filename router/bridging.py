"""The bridge to other regions in a router process: what goes between it, the keeper of shards and the data plane."""

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

from core import log_records, notes
from router.config import DirectoryConfig, RouterConfig
from router.directory.opening import make_directory
from router.directory.port import Claim, Unavailable
from router.loads import Other
from router.log.bridge import Bridge, Heard
from router.log.redis import SEED_BYTES
from router.log.redis_shared import SharedRedisLog
from router.shard_keeper import EPOCH_BITS, ShardKeeper

SEEDS = "seeds"
RETRY_S = 0.5


async def shared_seeds(config: DirectoryConfig, waits: Callable[[str], None] = lambda why: None) -> bytes:
    """The seeds of all regions, so that an idempotency key has one hash everywhere: whoever comes first makes them.

    Waits for a directory that is away; `waits` hears why that takes long.

    Raises:
        NotAllowed, Misused: it will never be.
    """
    directory = make_directory(config)
    try:
        while True:
            try:
                found = (await directory.read(SEEDS)).items.get(SEEDS)
                if found is not None:
                    return found.value
                await directory.transact([Claim(SEEDS, 0, os.urandom(SEED_BYTES))])
            except Unavailable as error:
                waits(f"its directory is away: {error}")
                await asyncio.sleep(RETRY_S)
    finally:
        await directory.close()


class Bridged(Heard):
    """One router's bridge.

    Invariant: the data plane is told of a followed shard only once our log has all of it. Until then workers of our
    region ask its leader: a client that heard more elsewhere than is here would have to wait for the rest.

    Args:
        config: of the router, with the other regions' logs.
        log: our region's.
        count: adds to a counter of the ledger.

    """

    def __init__(
        self, config: RouterConfig, log: SharedRedisLog, count: Callable[[str, int], None] = lambda name, by: None
    ) -> None:
        assert config.directory is not None
        self._count = count
        self.bridge = Bridge(
            log,
            config.directory.region,
            config.log_redis_url,
            config.log_regions,
            self,
            living=self._living,
            before=self._before,
        )
        self._abroad: dict[int, list[bytes]] = {}
        """By shard, what is in no log, and is published before the event loop waits again."""
        self._keeper: ShardKeeper | None = None
        self._on_bans: Callable[[], None] = lambda: None
        self._epochs: dict[int, int] = {}
        """Of followed shards, up to which all is in our log."""
        self._told: set[int] = set()
        """Shards that the data plane was told to follow."""
        self._replicated = 0

    def begin(self, keeper: ShardKeeper, on_bans: Callable[[], None] = lambda: None) -> None:
        """With the keeper of this router's shards, which is made after the log. `on_bans`: told when other bans are
        stored than before.
        """
        self._keeper = keeper
        self._on_bans = on_bans

    def follow(self, shards: frozenset[int], leaders: Mapping[int, tuple[str, int]]) -> None:
        """See `ShardKeeper`."""
        self._told &= shards
        self._epochs = {shard: epoch for shard, epoch in self._epochs.items() if shard in shards}
        self.bridge.follow(leaders)

    def led(self, shard: int) -> None:
        """A shard is about to be led here; once the data plane was told so, it may hear what is replicated of it."""
        asyncio.get_running_loop().call_soon(self.bridge.replicated.led, shard)

    def on_batch(self, number: int, data: bytes) -> None:
        """The data plane hands over a batch, which is about to be given to the log."""
        self.bridge.replicated.on_batch(number, data)

    def others(self) -> dict[str, Other]:
        """How far the other regions are."""
        away = self.bridge.replicated.breakers()
        lags: dict[str, dict[int, tuple[int, float]]] = {name: {} for name in away}
        for (shard, name), lag in self.bridge.replicated.lags().items():
            lags[name][shard] = lag
        return {
            name: Other(away[name], lags[name], len(follower.shards), follower.behind())
            for name, follower in self.bridge.followers.items()
        }

    def on_abroad(self, shard: int, records: bytes) -> None:
        """The data plane has for other regions what is in no log."""
        if not self._abroad:
            asyncio.get_running_loop().call_soon(self._say_abroad)
        self._abroad.setdefault(shard, []).append(records)

    def _say_abroad(self) -> None:
        said = {shard: b"".join(records) for shard, records in self._abroad.items()}
        self._abroad = {}
        if not self.bridge.say(said):
            self._count("abroad_lost", sum(len(log_records.entries(records)) for records in said.values()))

    # ---- what the bridge says

    def records(self, shard: int, records: bytes) -> None:
        """Our log has them now: those of one batch of the leader's."""
        self._count("log_batches_followed", 1)
        self.abroad(shard, records)

    def abroad(self, shard: int, records: bytes) -> None:
        """Records that no log has."""
        if shard in self._told:
            self._tell(notes.FOLLOWED, text=records)

    def epoch(self, shard: int, epoch: int) -> None:
        """All before it is in our log."""
        self._epochs[shard] = epoch
        if shard in self._told:
            self._follow(shard)

    def copied(self, shard: int) -> None:
        """What the data plane has of it is not what our log has now: members are to ask again."""
        assert self._keeper is not None
        if shard in self._told:
            self._keeper.follow_anew(shard)

    def dropped(self, shard: int, count: int) -> None:
        """Records that only our log had, before another leader's region went on without them."""
        self._count("log_records_dropped", count)
        self.copied(shard)

    def live(self, shard: int) -> None:
        """Our log has all of it."""
        if shard not in self._told:
            self._told.add(shard)
            self._follow(shard)

    def _follow(self, shard: int) -> None:
        self._tell(notes.FOLLOW, request=shard, first=self._epochs.get(shard, 0) << EPOCH_BITS)

    def replicated(self, number: int, confirming: bool) -> None:
        """Batches up to this one."""
        self._count("log_batches_replicated", max(0, number - self._replicated))
        self._replicated = max(number, self._replicated)
        self._tell(notes.REPLICATED, request=number, first=int(confirming))

    def led_replicated(self, shard: int) -> None:
        """All that a shard had when it was led here."""
        self._tell(notes.REPLICATED, request=shard, second=1)

    def bans(self) -> None:
        """Our log has some of another region's."""
        self._on_bans()

    def _tell(self, kind: int, **fields: Any) -> None:
        assert self._keeper is not None
        self._keeper.tell(kind, **fields)

    def _living(self) -> frozenset[str]:
        assert self._keeper is not None
        return self._keeper.machine.regions()

    def _before(self, shard: int) -> tuple[str, int] | None:
        assert self._keeper is not None
        return self._keeper.machine.before(shard)
