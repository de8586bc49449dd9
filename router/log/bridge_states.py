"""What became of sessions where a shard was led before, as its next leader takes it.

Followers repeat it as they hear of it, and behind the messages. Who is about to lead does not wait for them: once that
region and ours take nothing more from the leader of before, all is in the stream of that region that will ever be, and
nobody else repeats it here.
"""

import logging
from collections.abc import Sequence

from router.log.bridge_scripts import STATES_ENTRIES
from router.log.bridge_source import Page, Source
from router.log.bridge_store import Followed, Store
from router.log.redis_sessions import position_of

PAGE = 256
# Who takes a shard over as planned lacks no more of them: a fourth of those that are kept, and one round trip of the
# pause.
ABLE_MAX = PAGE
_log = logging.getLogger("holdfast.log")


def may_miss_states(one: Followed, page: Page) -> bool:
    """Whether states that we do not have may be kept there no more; we may have them from where it was led before."""
    if one.states_at == b"0-0":
        return page.states_kept >= STATES_ENTRIES
    return page.states_kept > 0 and position_of(page.oldest_state) > position_of(one.states_at)


def begin_anew(one: Followed, page: Page) -> bool:
    """Whether the region has lost the last ones that we have, as a Redis may that comes back: what follows may have ids
    below theirs.
    """
    return position_of(page.newest_state or b"0-0") < position_of(one.states_at)


async def take_all_again(store: Store, region: str, some: Sequence[Followed]) -> None:
    """Have all that is kept there repeated here: it is in its order, and ends as it is there.

    Raises:
        LogUnavailable, LogBroken: our log is away.
    """
    if some:
        shards = [one.shard for one in some]
        _log.warning("shards %s: region `%s` lost what became of sessions last, and is read anew", shards, region)
        await store.forget_states(region, some)


async def lacks_states(source: Source, store: Store, one: Followed) -> str:
    """What keeps a shard that is led there from being led here soon after; nothing: there is not too much of it.

    Raises:
        LogUnavailable, LogBroken: one of the two is away.
    """
    await store.load([one], source.region)
    assert one.at is not None
    page = (await source.pages({one.shard: (one.at, one.states_at)}, ABLE_MAX + 1))[one.shard]
    if begin_anew(one, page):
        return f"what became of its sessions in region `{source.region}` is to be read anew"
    if len(page.states) > ABLE_MAX or may_miss_states(one, page):
        return f"more than {ABLE_MAX} changes of its sessions in region `{source.region}` are not here yet"
    return ""


async def take_states(source: Source, store: Store, some: Sequence[Followed]) -> None:
    """Repeat here, under the epochs of these shards, what the region has that is not here.

    Raises:
        LogUnavailable, LogBroken: one of the two is away.
    """
    await store.load(some, source.region)
    left, asked = list(some), set[Followed]()
    while left:
        pages = await source.pages({one.shard: (one.at, one.states_at) for one in left if one.at is not None}, PAGE)
        now = [one for one in left if one.shard in pages]
        anew = [one for one in now if begin_anew(one, pages[one.shard])]
        await take_all_again(store, source.region, anew)
        now = [one for one in now if one not in anew]
        missing = [one.shard for one in now if one not in asked and may_miss_states(one, pages[one.shard])]
        if missing:
            _log.warning(
                "shards %s: what became of sessions in region `%s` may not be kept there up to what is here",
                missing,
                source.region,
            )
        asked.update(now)
        states = [(one, state) for one in now for state in pages[one.shard].states]
        await store.repeat_states(source.region, states, replicas=True)
        done = {one for one in now if len(pages[one.shard].states) < PAGE}
        left = [one for one in left if one not in done and one.at is not None]  # None: a later leader's
