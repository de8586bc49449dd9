"""The names of our keys in Redis, and how long channels are kept.

Each key has a shard's hash tag, so that one script may touch all keys of a shard also in a cluster of Redis. One router
alone spreads its channels and sessions as it likes; where several write one log, each leads some of the shards of
core/shards.pxd, and all that is of one of these has its tag.
"""

import zlib
from collections.abc import Sequence

from core.namespace_spec import (
    BUILT_IN,
    DAY_S,
    HISTORY_AGE_S_MAX,
    HISTORY_BYTES_MAX,
    HISTORY_MESSAGES_MAX,
    NamespaceSpec,
)
from core.shards import Shards
from router.log.redis_nodes import slot_of

# Each costs a script a batch, about 15 µs of Redis and of us: with 256 of them a batch of 300 records took three times
# as long. As many primaries of a cluster can take part.
SHARDS = 16
USER_SHARDS = 256
REGION = "region"
"""Field of the root: whose log this is, where there are regions."""
# Twice as long as it takes until a channel that is spoken in is listed again (core/redis_batch.pxd, REFRESH_MINUTES).
_LISTED_LONGER_MS = 2 * 3_600_000
# Channels of a namespace that is not configured: theirs may have been as large as any, and may be configured again.
_OTHERS = NamespaceSpec(
    name="",
    domain="group",
    history_messages=HISTORY_MESSAGES_MAX,
    history_bytes=HISTORY_BYTES_MAX,
    history_age_s=HISTORY_AGE_S_MAX,
)


class Retention:
    """What is kept of the channels of one namespace."""

    __slots__ = ("age_ms", "bytes", "expire_ms", "listed_ms", "messages")

    def __init__(self, spec: NamespaceSpec) -> None:
        self.messages = spec.history_messages
        self.bytes = spec.history_bytes
        self.age_ms = spec.history_age_s * 1000
        # Well after its messages, so that a channel's last position outlives them.
        self.expire_ms = 2 * self.age_ms + DAY_S * 1000
        # What everybody hears is told to whoever comes, so that a router has to know of it without being asked.
        self.listed_ms = self.age_ms + _LISTED_LONGER_MS if spec.domain == "global" else 0

    @property
    def settings(self) -> str:
        """How long the key of a channel is kept and, if it is, listed, for the script that appends."""
        return f"{self.expire_ms}:{self.listed_ms}" if self.listed_ms else f"{self.expire_ms}"


class Keys:
    """Names with one prefix.

    Args:
        prefix: of every key.
        namespaces: what channels may be of.
        shards: that several routers lead; 0: one router has all.

    """

    def __init__(self, prefix: str, namespaces: Sequence[NamespaceSpec] = BUILT_IN, shards: int = 0) -> None:
        if not prefix or any(letter in "{} \r\n*?[]\\" for letter in prefix):
            raise ValueError(f"`{prefix}` cannot begin keys: use letters, digits and colons")
        start = prefix.encode()
        self.root = start + b"log"
        self.bans = start + b"bans"
        self.shared = shards > 0
        self._led = Shards(namespaces, shards) if shards else None
        self.tag = b"h" if self.shared else b"s"
        users = b"h" if self.shared else b"u"
        self.shards = [b"%s{%s%d}:" % (start, self.tag, number) for number in range(shards or SHARDS)]
        self.users = [b"%s{%s%d}:" % (start, users, number) for number in range(shards or USER_SHARDS)]
        self.shard_slots = [slot_of(b"%s%d" % (self.tag, number)) for number in range(shards or SHARDS)]
        self.user_slots = [slot_of(b"%s%d" % (users, number)) for number in range(shards or USER_SHARDS)]
        self.root_slot = slot_of(self.root)
        self.bans_slot = slot_of(self.bans)
        self._retentions = {spec.name.encode(): Retention(spec) for spec in namespaces}
        self._others = Retention(_OTHERS)

    @property
    def retentions(self) -> list[tuple[bytes, Retention]]:
        """Of each namespace, and at last of all others."""
        return [*self._retentions.items(), (b"", self._others)]

    def shard_of(self, channel: bytes) -> int:
        return self._led.of_channel(channel) if self._led else zlib.crc32(channel) % SHARDS

    def shard_of_session(self, session: bytes) -> int:
        return session[0] % len(self.users) if self.shared else zlib.crc32(session) % USER_SHARDS

    def shard_of_cursor(self, channel: bytes) -> int:
        return self._led.of_channel(channel) if self._led else zlib.crc32(channel) % USER_SHARDS

    def channel(self, channel: bytes) -> tuple[bytes, int]:
        """Its key, and the slot of that."""
        number = self.shard_of(channel)
        return b"%sc:%s" % (self.shards[number], channel), self.shard_slots[number]

    def session(self, session: bytes) -> tuple[bytes, int]:
        """Its key, and the slot of that."""
        number = self.shard_of_session(session)
        return b"%ss:%s" % (self.users[number], session.hex().encode()), self.user_slots[number]

    def cursor(self, channel: str) -> tuple[bytes, int]:
        """Its key, and the slot of that."""
        name = channel.encode()
        number = self.shard_of_cursor(name)
        return b"%scursor:%s" % (self.users[number], name), self.user_slots[number]

    def is_known(self, namespace: bytes) -> bool:
        """Whether it is configured."""
        return namespace in self._retentions

    def retention(self, channel: bytes) -> Retention:
        return self._retentions.get(channel.partition(b":")[0], self._others)
