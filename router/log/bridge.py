"""The log in several regions: each has a Redis of its own, and the same in it (ADR 120).

A shard is led in one region. Its leader appends to its own region's Redis alone, by scripts that add each batch to a
redo log there (router/log/bridge_scripts.py); in each other region one router repeats that and says so
(router/log/bridge_follow.py), which the leader hears (router/log/replicated.py). So no region that is slow or away is
on the path of a message. Before a shard is led, all regions that are there are told to refuse the leader of before, and
whatever one of them has more than ours is repeated here: what a region confirmed to that leader, this one has. So is
what became of sessions where it was led before, if that region is there: it waits for no follower.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from core.owned import ACCOUNT
from router.log.bridge_copy import copy_shards
from router.log.bridge_follow import CATCHUP_BYTES_S, PAGE_FAR, Follower, Told, catch_up
from router.log.bridge_scripts import BRIDGE_ENTRIES
from router.log.bridge_source import Source
from router.log.bridge_states import lacks_states, take_states
from router.log.bridge_store import Followed, Store
from router.log.port import LogError, LogUnavailable, Position
from router.log.redis_shared import SharedRedisLog
from router.log.replicated import Replicated

# For a region whose routers are there, and for one that has none any more, as it may be from one moment to the next.
LIVING_DEADLINE_S = 2.0
DEAD_DEADLINE_S = 0.5
LOOK_S = 0.05
AGAIN_S = 0.1
FETCH_ROUNDS_MAX = 8
# Who could lead a shard has an answer of all regions within this, and lacks no more batches of it.
ABLE_DEADLINE_S = 1.0
ABLE_BEHIND_MAX = 64
_log = logging.getLogger("holdfast.log")


class Heard(Told):
    """What the router process hears of the bridge: each is called in the event loop, and is quick."""

    def replicated(self, number: int, confirming: bool) -> None:
        """All chunks up to this one are confirmed by another region; does any confirm at all?"""

    def led_replicated(self, shard: int) -> None:
        """Another region has all that this shard had when it was led here."""

    def dropped(self, shard: int, count: int) -> None:
        """So many records that only this region had were dropped."""

    def bans(self) -> None:
        """Other bans are stored than before."""


class Bridge:
    """Of one router.

    Args:
        log: our own region's, made with `bridge_entries`.
        region: our own.
        url: of our own region's Redis.
        regions: by name, the URLs of the other regions'.
        heard: what is told.
        living: the regions that have routers, as the directory says.
        before: the region where a shard was led last and its epoch then, as the directory says; None: that is not
            known.
        catchup_bytes_s: of what was missed, from each region.

    Raises:
        ValueError: a URL is none, or a cluster's.

    """

    def __init__(
        self,
        log: SharedRedisLog,
        region: str,
        url: str,
        regions: Mapping[str, str],
        heard: Heard,
        *,
        living: Callable[[], Collection[str]],
        before: Callable[[int], tuple[str, int] | None] = lambda shard: None,
        catchup_bytes_s: int = CATCHUP_BYTES_S,
    ) -> None:
        self._log = log
        self._living = living
        self._before = before
        self._heard = heard
        entries = log.bridge_entries or BRIDGE_ENTRIES
        keys = log.keys
        self.store = Store(url, keys, log.replicas_of, log.deadline_s, entries, heard.dropped)
        self.replicated = Replicated(
            Source(region, url, keys, lambda channel, text: self.replicated.on_push(channel, text)),
            keys,
            list(regions),
            log.appender.parts,
            on_replicated=heard.replicated,
            on_led=heard.led_replicated,
            on_link=log.heal_soon,
        )
        self.followers: dict[str, Follower] = {}
        self._sources: dict[str, Source] = {}
        for name, place in regions.items():
            source = self._sources[name] = Source(name, place, keys, self._pusher(name))
            self.followers[name] = Follower(
                region, source, self.store, keys, heard, on_bans=heard.bans, catchup_bytes_s=catchup_bytes_s
            )
        log.bridge = self

    def _pusher(self, region: str) -> Callable[[bytes, bytes], None]:
        return lambda channel, text: self.followers[region].on_push(channel, text)

    def start(self) -> None:
        """Follow and listen from now on, until `close`."""
        self.replicated.start()
        for follower in self.followers.values():
            follower.start()

    def follow(self, leaders: Mapping[int, tuple[str, int]]) -> None:
        """Follow these shards, each led in a region under an epoch, and no others; those of our own are left out."""
        before = {shard: one for follower in self.followers.values() for shard, one in follower.shards.items()}
        for name, follower in self.followers.items():
            follower.follow({shard: epoch for shard, (region, epoch) in leaders.items() if region == name}, before)

    def say(self, records: Mapping[int, bytes]) -> bool:
        """Tell who follows these shards what is in no log: once a region, and without waiting for any.

        Returns:
            False: our own log is away, by which they would have heard it.
        """
        return self.replicated.say(records)

    def followed(self) -> set[int]:
        """The shards that are followed."""
        return {shard for follower in self.followers.values() for shard in follower.shards}

    # --------------------------------------------------------------------------------------------------------- leading

    async def prepare(self, epochs: Mapping[int, int]) -> tuple[dict[int, int], dict[int, dict[str, Position]]]:
        """Have the other regions refuse lower epochs of shards, and fetch what they have more than ours.

        Returns:
            The shards that another one took with a higher epoch, and of all what each region has.

        Raises:
            LogUnavailable: a region that is there does not answer.
        """
        said = await self._fence(epochs)
        refused: dict[int, int] = {}
        known: dict[int, dict[str, Position]] = {shard: {} for shard in epochs}
        for region, answers in said.items():
            for shard, (epoch, at) in answers.items():
                known[shard][region] = at
                if epoch > epochs[shard]:
                    refused[shard] = max(epoch, refused.get(shard, 0))
        ours = [shard for shard in epochs if shard not in refused and known[shard]]
        behind: dict[str, dict[int, Position]] = {}
        partial = await self.store.partial(ours)
        for shard, (_, at) in zip(ours, await self.store.where(ours), strict=True):
            region, most = max(known[shard].items(), key=lambda one: one[1])
            if most > at or (most == at and shard in partial):
                behind.setdefault(region, {})[shard] = most
        fetching = [self._fetch(self._sources[region], goals) for region, goals in behind.items()]
        for error in await asyncio.gather(*fetching, return_exceptions=True):  # deadline: of each command
            if error is not None:
                raise error
        return refused, known

    async def able(self, shard: int) -> str:
        """What would keep a shard from being opened here soon after its leader gave it away; nothing: nothing would."""
        living = set(self._living())
        sources = [source for name, source in self._sources.items() if name in living]
        try:
            [(_, ours)] = await self.store.where([shard])
            if await self.store.partial([shard]):
                return "a copy of it from another region has not come to its end here"
        except LogError as error:
            return str(error)
        for region, found in zip(sources, await asyncio.gather(*(_asked(one, shard) for one in sources)), strict=True):
            if isinstance(found, str):
                return f"region `{region.region}`: {found}"
            is_near = found.epoch == ours.epoch and found.offset - ours.offset <= ABLE_BEHIND_MAX
            if found > ours and not is_near:
                there, here = (f"{one.epoch}-{one.offset}" for one in (found, ours))
                return f"region `{region.region}` has it up to {there}, ours to {here}"
        place, _ = self._before(shard) or ("", 0)
        return await _states_asked(self._sources[place], self.store, shard) if place in living else ""

    async def _fence(self, epochs: Mapping[int, int]) -> dict[str, dict[int, tuple[int, Position]]]:
        answers = await asyncio.gather(*(self._fence_one(source, epochs) for source in self._sources.values()))
        return {name: said for name, said in zip(self._sources, answers, strict=True) if said is not None}

    async def _fence_one(self, source: Source, epochs: Mapping[int, int]) -> dict[int, tuple[int, Position]] | None:
        """What one region says; None: it has no routers, and does not answer. While it has some it is asked again."""
        began = time.monotonic()
        while True:
            said = await self._answer(source, epochs, began)
            if not isinstance(said, str):
                return said
            if source.region not in self._living():
                _log.warning("shards are opened without region `%s`, which has no routers: %s", source.region, said)
                return None
            if time.monotonic() >= began + LIVING_DEADLINE_S - AGAIN_S:
                raise LogUnavailable(
                    f"region `{source.region}` has routers, but its log does not answer, which may have what ours has"
                    f" not: {said}"
                )
            await asyncio.sleep(AGAIN_S)

    async def _answer(
        self, source: Source, epochs: Mapping[int, int], began: float
    ) -> dict[int, tuple[int, Position]] | str:
        """What a region says, or why it says nothing: in the time that it has, which ends early with its routers."""
        asking = ACCOUNT.task(_fenced(source, epochs), f"fences of region {source.region}")
        try:
            while not asking.done():
                limit_s = LIVING_DEADLINE_S if source.region in self._living() else DEAD_DEADLINE_S
                if time.monotonic() >= began + limit_s:
                    return f"it has not said anything for {limit_s} s"
                await asyncio.wait({asking}, timeout=LOOK_S)
            return asking.result()
        finally:
            asking.cancel()
            await asyncio.wait({asking})  # deadline: it is cancelled

    async def _fetch(self, source: Source, goals: Mapping[int, Position]) -> None:
        """Repeat what another region has, which is told already to take nothing more from the leader of before."""
        # Not under the new epoch: who follows us would take ours for all there is.
        fences = dict(zip(goals, await self.store.where(list(goals)), strict=True))
        left = [Followed(shard, fence) for shard, (fence, _) in fences.items()]
        rounds = FETCH_ROUNDS_MAX
        while left:
            await self.store.load([one for one in left if one.at is None], source.region)
            before = [one.at for one in left]
            _, _, whole = await catch_up(source, self.store, left, PAGE_FAR)
            await copy_shards(source, self.store, whole, _at_once)
            rounds -= all(one.at is None or one.at == at for one, at in zip(left, before, strict=True))
            left = [one for one in left if one.at is None or one.at < goals[one.shard]]
            if rounds <= 0:
                raise LogUnavailable(f"what region `{source.region}` has of {len(left)} shards cannot be repeated here")
        for shard, at in goals.items():
            _log.info("shard %d was brought up to %d-%d from region `%s`", shard, *at, source.region)

    async def take_states(self, epochs: Mapping[int, int], known: Mapping[int, Collection[str]]) -> None:
        """Repeat what became of sessions where these shards were led before. That region and ours were told already to
        take nothing more from the leader of before: all is there that will ever be, and nobody else repeats it here.

        Args:
            epochs: under which they are to be led.
            known: of each, the regions that were told.

        Raises:
            LogUnavailable: that region does not answer any more.
        """
        some: dict[str, list[Followed]] = {}
        for shard, epoch in epochs.items():
            region, before = self._before(shard) or ("", 0)
            # Had anybody led it in between, that region had followed: what is there would be older than what is here.
            if before + 1 == epoch and region in known.get(shard, ()):
                some.setdefault(region, []).append(Followed(shard, epoch))
        for region, followed in some.items():
            try:
                async with asyncio.timeout(LIVING_DEADLINE_S):
                    await take_states(self._sources[region], self.store, followed)
            except TimeoutError:
                raise LogUnavailable(f"what became of sessions in region `{region}` cannot be repeated here") from None

    async def close(self) -> None:
        """Stop."""
        for follower in self.followers.values():
            await follower.close()  # deadline: a second
        await self.replicated.close()
        await self.store.close()


async def _fenced(source: Source, epochs: Mapping[int, int]) -> dict[int, tuple[int, Position]] | str:
    """What a region says to an epoch, or why it says nothing."""
    try:
        return await source.fence(epochs)
    except LogError as error:
        return str(error)


async def _asked(source: Source, shard: int) -> Position | str:
    """Where a region has a shard, or why it does not say so."""
    try:
        async with asyncio.timeout(ABLE_DEADLINE_S):
            return (await source.where([shard]))[0][1]
    except TimeoutError:
        return f"it has not said anything for {ABLE_DEADLINE_S} s"
    except LogError as error:
        return str(error)


async def _states_asked(source: Source, store: Store, shard: int) -> str:
    """What of sessions is too much that a region has and ours has not, or why it does not say so."""
    try:
        async with asyncio.timeout(ABLE_DEADLINE_S):
            return await lacks_states(source, store, Followed(shard, 0))
    except TimeoutError:
        return f"region `{source.region}`: it has not said anything for {ABLE_DEADLINE_S} s"
    except LogError as error:
        return f"region `{source.region}`: {error}"


async def _at_once(size: int) -> None:
    """A shard that has no leader waits for nobody."""
