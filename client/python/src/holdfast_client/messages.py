"""What an application is given: messages, events, positions and answers."""

from dataclasses import dataclass
from typing import Any, NamedTuple


class Position(NamedTuple):
    """Where a message stands in its channel. The epoch grows when the channel's sequencer changes hands."""

    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a channel, delivered once.

    Attributes:
        channel: `namespace:id`.
        epoch: of the sequencer that gave the position.
        offset: counts 1, 2, 3 … inside the channel.
        data: any MessagePack or JSON value; JSON's `{"$bin": …}` is bytes here.
        sender: the user it came from; None when the gateway does not say.
        time: when it was sequenced, ms since 1970; None when the gateway does not say.
    """

    channel: str
    epoch: int
    offset: int
    data: Any
    sender: str | None = None
    time: int | None = None

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a channel.

    The gateway's kinds are `joined`, `left`, `gap` and `expired`. This client adds `reset` (the position moved without
    common history: what lay between is unknown; details: `epoch`, `offset`, `held`), `gap` for offsets that were passed
    over (`from`, `to`: first and last missing offset, `reason`: `unannounced`) and `left` when a channel could not be
    joined again (`reason`).
    """

    channel: str
    kind: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class History:
    """The answer to `history`: messages, and the channel's last position."""

    messages: list[Message]
    position: Position


class Member(NamedTuple):
    """One live session in a channel."""

    session: str
    user: str


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is in a channel. `sessions` may be cut short by the gateway, the counts are whole."""

    sessions: list[Member]
    users: int
    count: int
