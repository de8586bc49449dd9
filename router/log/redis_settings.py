"""Whether a Redis is set to keep what it is given: `appendonly` and `maxmemory-policy`, by its own INFO.

INFO is asked and not CONFIG, which many who rent a Redis may not use. What is wrong is told and never refused: it may
be meant so, and a primary whose replicas keep everything is worth something too.
"""

from collections.abc import Sequence

from router.log.port import LogUnavailable
from router.log.redis_keys import SHARDS
from router.log.redis_link import Link
from router.log.redis_nodes import Nodes, slot_of
from router.log.redis_url import parse

_Answer = bytes | str


async def concerns_of(link: Link) -> list[str] | None:
    """What of a server's settings loses messages, in words; None: it does not tell us."""
    try:
        answers = await link.ask(["INFO", "persistence"], ["INFO", "memory"])
    except LogUnavailable:  # not allowed, or gone: whoever uses the connection next hears of that
        return None
    return judged(answers)


def judged(answers: Sequence[_Answer]) -> list[str] | None:
    """The same, of what INFO said."""
    text = b"\n".join(one if isinstance(one, bytes) else str(one).encode() for one in answers)
    said = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
    appends, policy = said.get(b"aof_enabled"), said.get(b"maxmemory_policy")
    if appends is None and policy is None:
        return None
    found = []
    if appends == b"0":
        found.append(
            "appendonly is no, so that its restart or crash loses messages that were answered as logged: "
            "set appendonly yes"
        )
    if policy not in (None, b"noeviction"):
        found.append(
            f"maxmemory-policy is {policy.decode(errors='replace')}, so that it removes channels, sessions and cursors "
            "when its memory is full: set maxmemory-policy noeviction"
        )
    return found


async def concerns_at(url: str, deadline_s: float) -> list[str] | None:
    """What of the settings of all primaries of a Redis loses messages; None: nobody tells.

    Raises:
        LogUnavailable, LogBroken: it cannot be asked.
        ValueError: the URL is none.
    """
    told: dict[str, list[str] | None] = {}

    async def greet(link: Link) -> None:
        told[link.name] = await concerns_of(link)

    nodes = Nodes(parse(url), deadline_s, greet)
    try:
        for number in range(SHARDS):
            await nodes.link(slot_of(b"s%d" % number))
    finally:
        await nodes.close()
    if all(concerns is None for concerns in told.values()):
        return None
    return [f"{name}: {one}" for name, concerns in sorted(told.items()) for one in concerns or ()]
