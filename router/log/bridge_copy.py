"""Copying whole shards from another region's log, where its bridge does not reach back to what ours has.

Everything of a shard is taken as it is there (DUMP, RESTORE): channels with the ids and last ids that they have,
sessions, cursors, keys. Messages that only ours had are counted and named. What is appended there meanwhile is part of
some copies and not of others; it is repeated afterwards from the position that the shard had before, and a record that
is there already is passed over by its id. A copy ends when anybody else changes the shard in our log (another router of
our region that follows it, or leads it): what is put here is never older than what is there.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from router.log.bridge_source import Source
from router.log.bridge_store import PIECE_BYTES, Dropped, Followed, Store

KEYS_TOGETHER = 32
# Of shards whose names were looked for together, beside twice the time that this took: who is copied late has to find
# in the bridge, which is short, all that came since.
TOGETHER_S = 2.0
_log = logging.getLogger("holdfast.log")


async def copy_shards(
    source: Source,
    store: Store,
    some: Sequence[Followed],
    pace: Callable[[int], Awaitable[None]],
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Put these shards, as they are there, in the place of ours; how many keys that were. `pace` waits after so many
    bytes. Those that are not led there under the epoch that is known, or a later one, are left as they are, and so are
    the last ones when the first took long: they are to be copied as they are then. Where those are that were not copied
    is not known afterwards.

    Raises:
        LogUnavailable, LogBroken: one of the two is away, or ours does not take what the other one has.
    """
    if not some:
        return 0
    began = clock()
    copy = secrets.token_hex(8).encode()
    connection = await store.connected()
    some = await store.begin_copy(some, copy)  # before anything is read
    where = dict(zip(some, await source.where([one.shard for one in some]), strict=True))
    some = [one for one in some if where[one][0] >= one.leader]
    states = await source.newest_states([one.shard for one in some])
    shards = [one.shard for one in some]
    there, here = await source.names(shards), await store.names(shards)
    keys, read = 0, clock()
    for one, state in zip(some, states, strict=True):
        if clock() > read + 2 * (read - began) + TOGETHER_S:
            break
        dropped = Dropped()
        try:
            found = await _copy_keys(source, store, one, copy, there[one.shard], pace, dropped)
            gone = [name for name in here[one.shard] if found is not None and name not in found]
            if (
                found is None
                or not await store.remove(one, copy, gone, dropped)
                or await store.connected() != connection  # it may have come back without what was put there
                or not await store.place(one, copy, source.region, where[one][1], state)
            ):
                _log.info(
                    "the copy of shard %d from region `%s` is begun again: another router changed it here, or our Redis"
                    " was connected to anew",
                    one.shard,
                    source.region,
                )
                continue
        finally:
            store.say_dropped(one.shard, "", dropped)
        keys += len(found)
        _log.warning(
            "shard %d was copied from region `%s`, whose bridge did not reach back to what was here: %d keys",
            one.shard,
            source.region,
            len(found),
        )
    return keys


async def _copy_keys(
    source: Source,
    store: Store,
    one: Followed,
    copy: bytes,
    names: Sequence[bytes],
    pace: Callable[[int], Awaitable[None]],
    dropped: Dropped,
) -> set[bytes] | None:
    """Of these keys, those that are there; `dropped` gets what only ours had. Nothing: the copy is over."""
    found: set[bytes] = set()
    start, together = 0, 1
    while start < len(names):
        dumped = await source.dump(names[start : start + together])
        if not await store.restore(one, copy, dumped, dropped):
            return None
        found |= {name for name, *_ in dumped}
        size = sum(len(data) for *_, data in dumped)
        await pace(size)  # deadline: none is needed: it sleeps
        start += together
        together = max(1, min(KEYS_TOGETHER, 2 * together, together * PIECE_BYTES // max(size, 1)))
    return found
