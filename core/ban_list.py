"""How a ban looks on the bus: a worker's or the admin API's wish, and what the router tells all of them.

A wish is [ask, user, until_ms, reason]: `ask` is a number by which whoever asked knows the answer, and a time that is
over ends the ban. What is told is [ask, refusal, [[user, since_ms, until_ms, reason], ...]]: `refusal` is empty, or
says why nothing has changed. A ban that is over is told as well, as long as there may be resume tokens that it killed.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgpack

FOREVER_MS = 2**53 - 1
USER_BYTES_MAX = 250
REASON_BYTES_MAX = 200
BANS_MAX = 20_000
RESUME_AGE_MAX_MS = 30 * 86_400_000
"""The longest that a resume token is good (gateway.resume_token_ttl_s)."""


class Standing(NamedTuple):
    """A ban, or what is left of one."""

    user: str
    since_ms: int
    """Wall clock: resume tokens that were issued until then are dead for good."""
    until_ms: int
    """Wall clock: until then the user may not come in."""
    reason: str

    @property
    def kept_ms(self) -> int:
        """Wall clock until which it is told: as long as it holds, and as there may be tokens that it killed."""
        return max(self.until_ms, self.since_ms + RESUME_AGE_MAX_MS)


class Wish(NamedTuple):
    """Somebody wants a ban, or its end."""

    ask: int
    user: str
    until_ms: int
    reason: str


class Told(NamedTuple):
    """A change of the bans, or all of them."""

    ask: int
    refusal: str
    standings: list[Standing]


def wish_packed(wish: Wish) -> bytes:
    """A wish as a body."""
    body: bytes = msgpack.packb(list(wish))
    return body


def wish_unpacked(body: bytes) -> Wish:
    """The other way round."""
    return Wish(*msgpack.unpackb(body))


def told_packed(ask: int, refusal: str, standings: Iterable[Standing]) -> bytes:
    """What is told, as a body."""
    body: bytes = msgpack.packb([ask, refusal, [list(one) for one in standings]])
    return body


def told_unpacked(body: bytes) -> Told:
    """The other way round."""
    ask, refusal, standings = msgpack.unpackb(body)
    return Told(ask, refusal, [Standing(*one) for one in standings])
