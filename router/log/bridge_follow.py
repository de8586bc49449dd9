"""What follows one other region: reads what its leaders append, does the same here, and says so there.

All shards that are followed there share one connection and two tasks. What is published goes the short way: repeated
here within one round trip, told to the data plane, confirmed. A shard that has to catch up (at first, after the
connection was lost, after an outage) is read in pages beside that, at a bounded pace, until nothing is between what was
read and what is published.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from core.owned import ACCOUNT, Held, end_tasks
from core.redis_batch import bridged_records
from router.log.bridge_copy import copy_shards
from router.log.bridge_source import ABROAD, PUBLISHED, STATES, Entry, Page, Source, pushed_entry
from router.log.bridge_states import begin_anew, may_miss_states, take_all_again
from router.log.bridge_store import Followed, Store, fits
from router.log.port import LogError, Position
from router.log.redis_keys import Keys
from router.log.redis_link import Link

PAGE = 32
PAGE_FAR = 256
CATCHUP_BYTES_S = 8 * 1024 * 1024
# Of what came and is not repeated yet; beyond it all are read in pages again, once there is time.
QUEUE_BYTES_MAX = 32 * 1024 * 1024
# So often followers say that they are there, and look whether a leader is ready.
BEAT_S = 0.5
READY_S = 0.05
# For one shard that is far behind; then the others are looked at as well.
FAR_S = 2.0
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 2.0
_log = logging.getLogger("holdfast.log")


class Throttle:
    """So many bytes a second; what is let through at once is a quarter of a second's.

    Args:
        bytes_s: how many; 0: no bound.
        clock: in seconds.

    """

    def __init__(self, bytes_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_s = bytes_s
        self._clock = clock
        self._until = float("-inf")
        """When what was let through so far is over at this pace."""

    def wait_s(self, size: int) -> float:
        """How long to wait after so many bytes."""
        if not self._bytes_s:
            return 0.0
        now = self._clock()
        self._until = max(self._until, now - 0.25) + size / self._bytes_s
        return max(0.0, self._until - now)


class Told:
    """What a follower tells the data plane: nothing, unless it is given."""

    def records(self, shard: int, records: bytes) -> None:
        """Log records of a batch that our log has now."""

    def abroad(self, shard: int, records: bytes) -> None:
        """Records that are in no log."""

    def epoch(self, shard: int, epoch: int) -> None:
        """All before a shard's epoch is in our log."""

    def copied(self, shard: int) -> None:
        """Our log has a shard as it is there, without that all that this changed was told."""

    def live(self, shard: int) -> None:
        """Our log has all of a shard that its leader's had a moment ago; told again after each time that it had not."""


async def catch_up(
    source: Source, store: Store, some: Sequence[Followed], count: int
) -> tuple[dict[int, Page], list[tuple[Followed, Entry]], list[Followed]]:
    """Read a page of each shard, or of the first of them, and do what it says.

    Returns:
        The pages, of those that were read, the entries that were repeated, and the shards that have to be copied as a
        whole.
    """
    known = {one: one.at for one in some if one.at is not None}
    pages = await source.pages({one.shard: (at, one.states_at) for one, at in known.items()}, count)
    anew = [one for one in known if one.shard in pages and begin_anew(one, pages[one.shard])]
    await take_all_again(store, source.region, anew)
    pages = {shard: page for shard, page in pages.items() if shard not in {one.shard for one in anew}}
    known = {one: at for one, at in known.items() if one.shard in pages}
    doubtful = {one: pages[one.shard].states for one in known if may_miss_states(one, pages[one.shard])}
    # Two, since the very oldest may be of a node of the stream that has just left ours.
    ends = {one: {said for _, _, said in (*states[:1], *states[-1:])} for one, states in doubtful.items()}
    lacking = await store.lacking_states(ends)
    todo: list[tuple[Followed, Entry]] = []
    beyond: list[tuple[Followed, Position, int]] = []
    whole: list[Followed] = []
    for one, at in known.items():
        page = pages[one.shard]
        if page.fence < one.leader:
            continue  # who leads it there has not opened it yet: what is there may not be what stays
        if one.partial:
            whole.append(one)
            continue
        if page.fence == one.leader > at.epoch and page.at < at:
            beyond.append((one, page.at, one.leader))
            continue
        if one in lacking:
            whole.append(one)
            continue
        for entry in page.entries:
            how = fits(at, entry)
            if how == "next":
                todo.append((one, entry))
                at = entry.id
            elif how == "beyond":
                beyond.append((one, entry.before, max(one.leader, entry.id.epoch)))
                break
            elif how == "missing":
                whole.append(one)
                break
        else:
            if len(page.entries) < count and at < page.at:
                whole.append(one)  # the bridge does not begin where we end
    done = await store.repeat(todo)
    whole = [one for one in whole if one.at == known[one]]  # else it was moved on by somebody else meanwhile
    for one, target, leader in beyond:
        one.leader = max(one.leader, leader)  # what comes before its first entry is taken under that epoch as well
        if one.at is not None and not await store.undo(one, target, leader):
            whole.append(one)
    return pages, [entry for entry, has in zip(todo, done, strict=True) if has], whole


class Follower:
    """See the module.

    Args:
        own: our region.
        source: the other's log; what it is told of has to come to `on_push`.
        store: our log.
        keys: names.
        told: hears what is new.
        on_bans: called when other bans are stored here than before.
        catchup_bytes_s: of what is read in pages.

    """

    def __init__(
        self,
        own: str,
        source: Source,
        store: Store,
        keys: Keys,
        told: Told,
        *,
        on_bans: Callable[[], None] = lambda: None,
        catchup_bytes_s: int = CATCHUP_BYTES_S,
    ) -> None:
        self.region = source.region
        self.shards: dict[int, Followed] = {}
        self._own = own
        self._source = source
        self._store = store
        self._keys = keys
        self._told = told
        self._on_bans = on_bans
        self._throttle = Throttle(catchup_bytes_s)
        self._names: dict[bytes, tuple[int, bytes]] = {}
        """Of what is published: the shard, and what of it."""
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._queue_bytes = 0
        self._held_bytes = 0
        self._turn = 0
        self._bans: dict[bytes, bytes] = {}
        """Those that came and are not stored yet."""
        self._something = asyncio.Event()
        self._behind = asyncio.Event()
        self._seen: tuple[Link | None, int] = (None, 0)
        """The connections, to there and of our log, over which all was read that is known."""
        self._tasks: list[asyncio.Task[None]] = []
        self._held: Held | None = None
        self._said_away = ""

    def start(self) -> None:
        """Follow from now on, until `close`."""
        self._held = ACCOUNT.hold("handle", f"the follower of region {self.region}", object_=self)
        self._tasks = [
            ACCOUNT.task(work, f"{name} of region {self.region}", owner=self._held)
            for work, name in ((self._live(), "what is new"), (self._catch_up(), "what was missed"))
        ]

    def follow(self, leaders: Mapping[int, int], before: Mapping[int, Followed] | None = None) -> None:
        """Follow these shards, each led there under an epoch, and no others. `before`: as they were followed, if they
        were, there or elsewhere.
        """
        gone = [shard for shard in self.shards if shard not in leaders]
        for shard in gone:
            self._held_bytes -= sum(len(text) for _, text in self.shards.pop(shard).held)
            for name in PUBLISHED:
                self._names.pop(self._keys.shards[shard] + name, None)
        link = self._source.up()
        if gone and link is not None:
            self._source.unsubscribe(link, gone)
        for shard, epoch in leaders.items():
            one = self.shards.get(shard)
            if one is None:
                self.shards[shard] = Followed(shard, epoch, (before or {}).get(shard))
                for name in PUBLISHED:
                    self._names[self._keys.shards[shard] + name] = (shard, name)
            elif epoch > one.leader:
                one.leader = epoch
                one.is_live = False
        self._behind.set()

    def behind(self) -> int:
        """How many shards are being caught up."""
        return sum(not one.is_live for one in self.shards.values())

    # -------------------------------------------------------------------------------------------------------- what came

    def on_push(self, channel: bytes, text: bytes) -> None:
        """Something was published there."""
        if channel == self._keys.bans:
            user, _, said = text.partition(b"\0")
            self._bans[user] = said
        else:
            self._queue.append((channel, text))
            self._queue_bytes += len(text)
        if self._queue_bytes > QUEUE_BYTES_MAX:
            self._drop_queue()
        self._something.set()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queue_bytes = 0
        self._doubt(self.shards.values())

    def _doubt(self, some: Iterable[Followed]) -> None:
        """These have to catch up, from what our log says."""
        for one in some:
            one.is_live = False
            one.at = None
            self._behind.set()

    async def _live(self) -> None:
        beat_s = float("-inf")
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._something.wait()
            self._something.clear()
            came, self._queue, self._queue_bytes = self._queue, deque(), 0
            try:
                await self._take(came)
                await self._merge_bans()
            except LogError as error:
                self._away(error)
                self._doubt(self.shards.values())
            if time.monotonic() >= beat_s + BEAT_S:  # also while something comes of which nothing is confirmed
                beat_s = time.monotonic()
                await self._beat()

    async def _beat(self) -> None:
        """That we are there is said by a region that can store what comes."""
        try:
            await self._store.ask([b"*1\r\n$4\r\nPING\r\n"])
            if await self._connections() != self._seen:
                self._behind.set()
        except LogError as error:
            self._away(error)
            return
        self._source.confirm(self._own, {})

    async def _take(self, came: Iterable[tuple[bytes, bytes]]) -> None:
        todo: list[tuple[Followed, Entry]] = []
        states: list[tuple[Followed, tuple[bytes, bytes, bytes]]] = []
        at: dict[Followed, Position] = {}
        for channel, text in came:
            shard, what = self._names.get(channel, (-1, b""))
            one = self.shards.get(shard)
            if one is not None and what == ABROAD:
                self._told.abroad(shard, text)  # at once: our log has no part in it
                continue
            if one is None or not one.is_live or one.at is None:
                if one is not None and one.subscribed:
                    self._hold(one, channel, text)
                continue
            if what == STATES:
                id_, kind, data = text.split(b" ", 2)
                states.append((one, (id_, kind, data)))
                continue
            entry = pushed_entry(text)
            how = fits(at.get(one, one.at), entry)
            if how == "next" and entry.id.epoch >= one.leader:  # else a former leader's, whom that Redis takes again
                todo.append((one, entry))
                at[one] = entry.id
            elif how != "old":
                one.is_live = False
                self._behind.set()
        done = await self._store.repeat(todo)
        self._tell([entry for entry, has in zip(todo, done, strict=True) if has])
        self._doubt([one for one in at if one.at is None])
        await self._store.repeat_states(self.region, states)
        self._doubt([one for one, _ in states if one.at is None])

    async def _merge_bans(self) -> None:
        """What cannot be stored now is tried again."""
        if not self._bans:
            return
        bans, self._bans = self._bans, {}
        try:
            await self._store.merge_bans(bans)
        except LogError:
            self._bans = bans | self._bans
            raise
        self._on_bans()  # also when somebody else of our region was quicker

    def _hold(self, one: Followed, channel: bytes, text: bytes) -> None:
        """Keep what came until the rest is there."""
        self._held_bytes += len(text)
        one.held.append((channel, text))
        if self._held_bytes > QUEUE_BYTES_MAX:
            self._forget_held(self.shards.values())

    def _forget_held(self, some: Iterable[Followed]) -> None:
        """As if they were not subscribed to yet."""
        for one in some:
            if one.is_live:
                continue
            self._held_bytes -= sum(len(text) for _, text in one.held)
            one.held = []
            one.subscribed = False

    def _tell(self, entries: Sequence[tuple[Followed, Entry]], also: Collection[Followed] = ()) -> None:
        """The data plane of what our log has now, and the leader that it has it."""
        for one, entry in entries:
            if self.shards.get(one.shard) is not one:
                continue  # nothing is told of what is not followed any more
            if one.told is not None and entry.id <= one.told:
                continue  # it was lost here, and is here again
            if entry.id.epoch > one.said:
                one.said = entry.id.epoch
                self._told.epoch(one.shard, one.said)
            self._told.records(one.shard, bridged_records(entry.data, one.shard))
            one.told = entry.id
        some = dict.fromkeys([*(one for one, _ in entries), *also])
        touched = {one.shard: one.at for one in some if one.at is not None}
        if touched:
            self._source.confirm(self._own, touched)

    # ------------------------------------------------------------------------------------------------- what was missed

    async def _catch_up(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            await self._behind.wait()  # no deadline: for as long as all are live
            self._behind.clear()
            try:
                await self._connected()
                while some := [one for one in self.shards.values() if not one.is_live]:
                    if not await self._catch_some(some):
                        await asyncio.sleep(READY_S)
                retry_s = RETRY_FIRST_S
                self._said_away = ""
            except LogError as error:
                self._away(error)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_MOST_S)
                self._behind.set()

    async def _connections(self) -> tuple[Link | None, int]:
        return await self._source.link(), await self._store.connected()

    async def _connected(self) -> bool:
        """See to it that there are connections; whether one is new: what was published before it may be missed, and our
        log may have come back without its last second.
        """
        seen = await self._connections()
        if seen == self._seen:
            return False
        self._doubt(self.shards.values())
        self._forget_held(self.shards.values())
        self._queue.clear()
        self._queue_bytes = 0
        link, _ = seen
        assert link is not None
        self._source.subscribe(link, (), bans=True)
        if await self._store.merge_bans(await self._source.bans()):
            self._on_bans()
        self._seen = seen
        return True

    async def _catch_some(self, some: list[Followed]) -> bool:
        """Read a page of each, or of the one that is far behind; whether anything was there to be done."""
        if await self._connected():
            return True
        unknown = [one for one in some if one.at is None]
        if unknown:
            await self._store.load(unknown, self.region)
            for one in unknown:
                if one.said == 0 and one.at is not None and self.shards.get(one.shard) is one:
                    one.said = one.at.epoch
                    self._told.epoch(one.shard, one.said)
            await self._tell_untold(unknown)
        known = sorted((one for one in some if one.at is not None), key=lambda one: one.turn)
        asked = len(known)
        subscribed = {one for one in known if one.subscribed}
        pages, done, whole = await catch_up(self._source, self._store, known, PAGE)
        known = [one for one in known if one.shard in pages]
        self._turn += 1
        for one in known:
            one.turn = self._turn
        states = [(one, state) for one in known if one not in whole for state in pages[one.shard].states]
        await self._store.repeat_states(self.region, states)
        reached = self._reached(known, pages, whole, PAGE)
        self._tell(done, reached)
        self._go_live([one for one in reached if one in subscribed and one.subscribed])
        fresh = [one for one in reached if not one.subscribed]
        link, _ = self._seen
        if link is not None:
            self._source.subscribe(link, [one.shard for one in fresh])
        for one in fresh:
            one.subscribed = True
        if whole:
            await copy_shards(self._source, self._store, whole, self._pace)
            for one in whole:
                if one.at is not None and (one.told is None or one.at > one.told):
                    one.told = one.at
                    self._told.copied(one.shard)
        for one in known:
            if len(pages[one.shard].entries) == PAGE and one not in whole:
                await self._catch_far(one)
        return bool(len(known) < asked or done or whole or states or fresh or any(one.is_live for one in reached))

    def _reached(
        self, some: Iterable[Followed], pages: Mapping[int, Page], whole: Collection[Followed], count: int
    ) -> list[Followed]:
        """Those that have all that was there."""
        return [
            one
            for one in some
            if one not in whole
            and one.at is not None
            and pages[one.shard].fence >= one.leader
            and len(pages[one.shard].entries) < count
            and len(pages[one.shard].states) < count
            and one.at >= pages[one.shard].at
        ]

    async def _tell_untold(self, some: Iterable[Followed]) -> None:
        """Of these our log may have got more than was told: what it answered was lost, or somebody else repeated it."""
        for one in some:
            if one.told is not None and one.at is not None and one.at > one.told:
                entries = await self._store.entries(one, one.told)
                if entries and entries[0].before <= one.told:
                    self._tell([(one, entry) for entry in entries if entry.id <= one.at])
                else:
                    self._told.copied(one.shard)  # by somebody else
            if one.at is not None:
                one.told = one.at if one.told is None else max(one.at, one.told)

    def _go_live(self, some: Iterable[Followed]) -> None:
        """These have all that was there after they were subscribed to; what came since goes before all else."""
        for one in some:
            if self.shards.get(one.shard) is not one:
                continue
            one.is_live = True
            self._held_bytes -= sum(len(text) for _, text in one.held)
            self._queue_bytes += sum(len(text) for _, text in one.held)
            self._queue.extendleft(reversed(one.held))
            one.held = []
            if one.leader > one.said:
                one.said = one.leader
                self._told.epoch(one.shard, one.said)
            self._told.live(one.shard)
        if self._queue:
            self._something.set()

    async def _catch_far(self, one: Followed) -> None:
        """One that is far behind, at a bounded pace."""
        until = time.monotonic() + FAR_S
        while self.shards.get(one.shard) is one and one.at is not None and time.monotonic() < until:
            pages, done, whole = await catch_up(self._source, self._store, [one], PAGE_FAR)
            self._tell(done)
            page = pages.get(one.shard)
            if whole or page is None or len(page.entries) < PAGE_FAR:
                return
            await self._pace(sum(len(entry.data) for entry in page.entries))

    async def _pace(self, size: int) -> None:
        wait_s = self._throttle.wait_s(size)
        if wait_s:
            await asyncio.sleep(wait_s)

    def _away(self, error: LogError) -> None:
        why = str(error)
        if why != self._said_away:
            self._said_away = why
            _log.warning("region `%s` is not followed now: %s", self.region, why)

    async def close(self) -> None:
        """Stop."""
        await end_tasks(self._tasks)
        await self._source.close()
        if self._held is not None:
            self._held.close()
