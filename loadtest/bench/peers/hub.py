"""What the peers in Python share: the subset of our protocol that the floor program speaks, without any socket.

HELLO, JOIN, PUBLISH, PING and FIN are answered; a message is encoded once for all members. There are no sessions,
rights or limits. A server on a library gives each body to `Hub.act` and sends what comes back in the library's own way.
"""

import itertools
import time
from collections import defaultdict
from typing import Generic, NamedTuple, TypeVar

import msgpack

HELLO, WELCOME, REPLY, PING, PONG, JOIN, PUBLISH, MESSAGE, FIN, FIN_ACK = 0, 1, 2, 4, 5, 6, 8, 9, 14, 15
Member = TypeVar("Member")


class Outcome(NamedTuple, Generic[Member]):
    """What a frame leads to: an answer to its sender, and a message to members. Empty bytes: none."""

    answer: bytes = b""
    message: bytes = b""
    members: "dict[Member, None] | None" = None


class Hub(Generic[Member]):
    """The groups, with their members and positions."""

    def __init__(self) -> None:
        # Dictionaries keep the order of joining, and forget a member at once.
        self._members: defaultdict[str, dict[Member, None]] = defaultdict(dict)
        self._joined: defaultdict[Member, set[str]] = defaultdict(set)
        self._offsets: defaultdict[str, int] = defaultdict(int)
        self._sessions = itertools.count(1)

    def act(self, member: Member, body: bytes | memoryview) -> Outcome[Member]:
        """One frame of a member."""
        frame = msgpack.unpackb(body)
        kind = frame[0]
        if kind == PUBLISH:
            return self._publish(frame[1], frame[2], frame[3])
        if kind == JOIN:
            self._members[frame[2]][member] = None
            self._joined[member].add(frame[2])
            return Outcome(msgpack.packb([REPLY, frame[1], {"epoch": 1, "offset": self._offsets[frame[2]]}]))
        if kind == HELLO:
            return Outcome(msgpack.packb([WELCOME, frame[1], {"session": str(next(self._sessions)), "ping": 30}]))
        if kind == PING:
            return Outcome(msgpack.packb([PONG, frame[1], frame[2]]))
        return Outcome(msgpack.packb([FIN_ACK])) if kind == FIN else Outcome()

    def gone(self, member: Member) -> None:
        """The member's connection has ended."""
        for channel in self._joined.pop(member, ()):
            self._members[channel].pop(member, None)

    def _publish(self, number: int, channel: str, data: object) -> Outcome[Member]:
        self._offsets[channel] = offset = self._offsets[channel] + 1
        options = {"from": "swarm-0", "time": time.time_ns() // 1_000_000, "epoch": 1}
        return Outcome(
            msgpack.packb([REPLY, number, {"epoch": 1, "offset": offset}]),
            msgpack.packb([MESSAGE, channel, offset, data, options]),
            self._members[channel],
        )
