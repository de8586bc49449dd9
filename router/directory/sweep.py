"""Removes what nodes that live no more left behind: slowly, and only what is certainly dead. One for both sides."""

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple

from router.directory.port import NODES, Claim, Directory, Item, Misused, NodeEpoch, Snapshot, Won

PAGE_KEYS = 200
BATCH_KEYS = 100


class Swept(NamedTuple):
    """What a sweep did."""

    examined: int
    removed: int


async def sweep(
    directory: Directory, prefix: str, owner: Callable[[str, bytes], NodeEpoch | None], keys_a_second: float
) -> Swept:
    """Look at all keys of a prefix once, and remove those whose owner is dead and that nobody has changed meanwhile.

    The nodes are read after the keys: a node that wrote one of them, and is not among the nodes then, was there before
    and is gone for good, since no epoch comes back. So an owner that is merely new is never taken for dead.

    Args:
        directory: where.
        prefix: such as `sessions/`.
        owner: of a key with its value; None: nobody's, it stays.
        keys_a_second: so many are looked at, and at most so many removed.

    Raises:
        Unavailable, NotAllowed: see there; what was removed until then is.
        Misused: the rate is none.
    """
    if keys_a_second <= 0:
        raise Misused(f"a sweep of {keys_a_second} keys a second: higher than 0")
    examined = removed = 0
    after = ""
    while (page := await directory.page(prefix, after, PAGE_KEYS)).items:
        living = _living(await directory.read(NODES))
        dead = [(key, item) for key, item in page.items.items() if _is_dead(owner(key, item.value), living)]
        for batch in _batches(dead):
            results = await directory.transact([Claim(key, item.revision, None) for key, item in batch])
            removed += sum(isinstance(one, Won) for one in results)
        examined += len(page.items)
        after = next(reversed(page.items))
        await asyncio.sleep(len(page.items) / keys_a_second)
    return Swept(examined, removed)


def _living(nodes: Snapshot) -> set[NodeEpoch]:
    """A node's epoch is the revision of its key, which is put once in a life."""
    return {NodeEpoch(key.removeprefix(NODES), item.revision) for key, item in nodes.items.items()}


def _is_dead(owner: NodeEpoch | None, living: set[NodeEpoch]) -> bool:
    return owner is not None and owner not in living


def _batches(found: list[tuple[str, Item]]) -> Iterator[list[tuple[str, Item]]]:
    for first in range(0, len(found), BATCH_KEYS):
        yield found[first : first + BATCH_KEYS]
