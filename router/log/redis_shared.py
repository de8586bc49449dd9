"""The log in Redis that several routers write, each those shards that it leads.

Keys, with `hf:` as prefix, and h0 to h255 at most for the shards of core/shards.pxd:

    hf:log                     a hash: the seeds, this format (FORMAT), and with regions the name of ours
    hf:{h7}:epoch             a hash: the shard's epoch, the last batch of its leader, whether it is replicated
    hf:{h7}:c:<channel>       a stream, as in router/log/redis.py
    hf:{h7}:keys, …:tail, …:global, …:s:<session>, …:cursor:<channel>  likewise
    hf:bans                    a hash

A batch is taken under the epoch with which its records were ordered, what is saved of a session under that of its
shard: what a leader of before says late changes nothing.
"""

import logging
import os
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, Protocol

from router.log.bridge_scripts import FENCE_BRIDGED, WHERE
from router.log.port import Changes, LogBroken, LogUnavailable, Opened, Position
from router.log.redis import SEED_BYTES, RedisLog
from router.log.redis_append import REPLICATED
from router.log.redis_keys import REGION
from router.log.redis_link import Link, pack
from router.log.redis_scripts import FENCE, JOIN
from router.log.redis_sessions import ask_all, position_of
from router.log.replicated import Replicated

FORMAT = 2
_log = logging.getLogger("holdfast.log")


class Opener(Protocol):
    """What is asked of the bridge to other regions: see router/log/bridge.py."""

    replicated: Replicated

    async def prepare(self, epochs: Mapping[int, int]) -> tuple[dict[int, int], dict[int, dict[str, Position]]]:
        """Have other regions refuse lower epochs, and fetch what they have."""
        ...

    async def take_states(self, epochs: Mapping[int, int], known: Mapping[int, Collection[str]]) -> None:
        """Repeat what became of sessions where shards were led before."""
        ...

    def followed(self) -> set[int]:
        """The shards that are followed."""
        ...


class SharedRedisLog(RedisLog):
    """See `router.shard_keeper.ShardLog`.

    Args:
        url: see RedisLog, and for `settings` as well.
        shards: how many there are.
        bridge_entries: of each shard, that are kept for other regions; 0: there are none.
        seeds: that all regions have; nothing: those of this log, or new ones.
        region: whose log this is; empty: there are none.

    """

    def __init__(
        self,
        url: str,
        *,
        shards: int,
        bridge_entries: int = 0,
        seeds: bytes = b"",
        region: str = "",
        **settings: Any,
    ) -> None:
        super().__init__(url, shards=shards, bridge_entries=bridge_entries, **settings)
        self.bridge: Opener | None = None
        self.bridge_entries = bridge_entries
        self.replicas_of = self._replicas
        self.deadline_s = self._deadline_s
        self._wanted_seeds = self._seeds = seeds
        self._region = region
        self._ours: dict[int, int] = {}
        """Shards that are open, with their epochs."""
        self._at: dict[int, Position] = {}
        """Of those that were fenced, where they were."""
        self._needed: dict[int, Position] = {}
        """Where our shards were when they were opened: what is before that, we cannot give a server again."""

    def take_seeds(self, seeds: bytes) -> None:
        """Those that all regions have, which are known only once the directory was asked; before `open`."""
        self._wanted_seeds = self._seeds = seeds

    async def open(self, epoch: int) -> Opened:
        """See the port. Nothing is written before `open_shards`."""
        root, slot = self.keys.root, self.keys.root_slot
        joins = pack("EVALSHA", JOIN.sha, 1, root, FORMAT)
        [found] = await ask_all(self._nodes, [(slot, joins)])
        if int(found) != FORMAT:
            raise LogBroken(
                f"the log at {root.decode()} in Redis is of one router alone, or of a later format: with a directory,"
                " use another log.redis_prefix (what is there stays, for a node without directory)"
            )
        await ask_all(self._nodes, [(slot, pack("HSETNX", root, "seeds", self._seeds or os.urandom(SEED_BYTES)))])
        [self._seeds] = await ask_all(self._nodes, [(slot, pack("HGET", root, "seeds"))])
        if self._wanted_seeds and self._seeds != self._wanted_seeds:
            raise LogBroken(
                f"the log at {root.decode()} in Redis has other seeds than the directory, by which the same idempotency"
                " key has another name in each region: use another log.redis_prefix, in all regions the same"
            )
        if self._region:
            await self._be_of_region()
        self._epoch = epoch
        return Opened(epoch, self._seeds, complete=False)

    async def _be_of_region(self) -> None:
        """Write down whose log this is, so that nobody takes it for another region's."""
        root, slot = self.keys.root, self.keys.root_slot
        own = self._region.encode()
        await ask_all(self._nodes, [(slot, pack("HSETNX", root, REGION, own))])
        [there] = await ask_all(self._nodes, [(slot, pack("HGET", root, REGION))])
        if there != own:
            raise LogBroken(
                f"the log at {root.decode()} in Redis is that of region `{there.decode()}`, and this node is in"
                f" `{self._region}`: name the own region's in log.redis_url. Where the region has another name from now"
                f" on: HSET {root.decode()} {REGION} {self._region}"
            )

    async def open_shards(self, epochs: Mapping[int, int]) -> dict[int, int | None]:
        """Have it refuse lower epochs of shards; by shard, None: it is open, or the epoch, not below, of another."""
        known: Mapping[int, Mapping[str, Position]] = {}
        elsewhere: Mapping[int, int] = {}
        if self.bridge is not None:
            elsewhere, known = await self.bridge.prepare(epochs)
        ours = await self._fence_shards({one: epochs[one] for one in epochs if one not in elsewhere})
        refused = {**elsewhere, **ours}
        opened = [shard for shard, higher in refused.items() if higher is None]
        if self.bridge is not None:
            await self.bridge.take_states({shard: epochs[shard] for shard in opened}, known)
        await self._wait_for_replicas([self.keys.shard_slots[shard] for shard in opened])
        marks = [
            (self.keys.shard_slots[one], pack("HGET", self.keys.shards[one] + b"epoch", REPLICATED)) for one in opened
        ]
        said = await ask_all(self._nodes, marks) if self._wanted_replicas != 0 else [None] * len(opened)
        self.appender.open_shards({one: mark is not None for one, mark in zip(opened, said, strict=True)})
        if any(mark is not None for mark in said):
            self._sessions.on_marks([True])
        for shard in opened:
            self._ours[shard] = self._sessions.epochs[shard] = epochs[shard]
            if self.bridge is not None:
                self._needed[shard] = self._at[shard]
                self.bridge.replicated.open(shard, epochs[shard], self._at[shard], known.get(shard, {}))
        return refused

    async def _fence_shards(self, epochs: Mapping[int, int]) -> dict[int, int | None]:
        """Raise the epochs of shards; None, or what another has taken that is not below."""
        sha = FENCE_BRIDGED.sha if self.bridge_entries else FENCE.sha
        commands = [
            (
                self.keys.shard_slots[shard],
                pack("EVALSHA", sha, 1, self.keys.shards[shard] + b"epoch", b"%020d" % epoch, self._holder),
            )
            for shard, epoch in epochs.items()
        ]
        answers = await ask_all(self._nodes, commands)
        if self.bridge_entries:
            self._at |= {shard: position_of(at) for shard, (_, at) in zip(epochs, answers, strict=True)}
            answers = [known for known, _ in answers]
        return {one: int(answer) if answer else None for one, answer in zip(epochs, answers, strict=True)}

    async def close_shards(self, shards: Collection[int]) -> None:
        """They are another's now, or nobody's: what was appended to them is not given again."""
        self.appender.close_shards(shards)
        if self.bridge is not None:
            self.bridge.replicated.close_shards(shards)
        for shard in shards:
            self._ours.pop(shard, None)
            self._needed.pop(shard, None)

    async def recover_shards(self, shards: Collection[int]) -> AsyncIterator[bytes]:
        """`recover`, of some shards."""
        async for batch in self._recover(sorted(shards)):
            yield batch

    async def save(self, changes: Changes) -> None:
        """See the port. Claims have numbers within their shard's epoch, so that none has to be kept free."""
        await self._sessions.save(changes)

    def heal_soon(self) -> None:
        """Look whether the server has what it had: it was connected to anew, maybe while nothing is appended."""
        if self._ours:
            self._heal_soon()

    # What is asked of one that has all of the log.

    async def _take_again(self) -> None:
        await self.open(self._epoch)
        elsewhere = await self._fetch_lost() if self.bridge is not None else {}
        await self._fence_shards({shard: epoch for shard, epoch in self._ours.items() if shard not in elsewhere})

    # Where other regions have it as well: a server that came back older than our epochs, told of these, would have
    # followers drop what it has lost.

    def _lost(self, found: Mapping[int, Position]) -> list[int]:
        """Which of our shards lack, where they are found to be, what we cannot give again and somebody may have."""
        assert self.bridge is not None
        lost = []
        for shard, at in found.items():
            if shard not in self._ours:
                continue
            has = at.offset if at.epoch == self._ours[shard] else 0
            again = has + 1 >= self.appender.first_kept(shard)
            if at < self._needed[shard] or (not again and at < self.bridge.replicated.confirmed(shard)):
                lost.append(shard)
        return lost

    async def _check_is_whole(self, link: Link) -> None:
        if self.bridge is None or not self._ours:
            return
        shards = list(self._ours)
        answers = await link.ask(*(("EVALSHA", WHERE.sha, 1, self.keys.shards[one] + b"epoch") for one in shards))
        lost = self._lost({shard: position_of(at) for shard, (_, at) in zip(shards, answers, strict=True)})
        if lost:
            self._heal_soon()
            raise LogUnavailable(
                f"{link.name} came back without what it had of {len(lost)} shards, for which other regions are asked"
            )

    async def _fetch_lost(self) -> Mapping[int, int]:
        """Repeat here what other regions have and our Redis lost; the shards that are led elsewhere by now. What no
        region that is there has is given up.
        """
        assert self.bridge is not None
        lost = self._lost(await self._where())
        if not lost:
            return {}
        _log.warning("our Redis came back without what it had of %d shards: other regions are asked for it", len(lost))
        elsewhere, known = await self.bridge.prepare({shard: self._ours[shard] for shard in lost})
        found = await self._where()
        for shard in lost:
            if shard in found and shard not in elsewhere:
                self._needed[shard] = min(found[shard], self._needed[shard])
                self.bridge.replicated.confirmed_anew(shard, known[shard])
        return elsewhere

    async def _where(self) -> dict[int, Position]:
        shards = list(self._ours)
        commands = [
            (self.keys.shard_slots[one], pack("EVALSHA", WHERE.sha, 1, self.keys.shards[one] + b"epoch"))
            for one in shards
        ]
        answers = await ask_all(self._nodes, commands)
        return {shard: position_of(at) for shard, (_, at) in zip(shards, answers, strict=True)}

    async def _stop_if_deposed(self, link: Link) -> None:
        return

    async def _check_is_mine(self) -> None:
        return

    def _to_sift(self, names: list[bytes]) -> list[bytes]:
        ours = self._ours.keys() | (self.bridge.followed() if self.bridge is not None else set())
        return [name for name in names if self.keys.shard_of(name.partition(b"}:c:")[2]) in ours]
