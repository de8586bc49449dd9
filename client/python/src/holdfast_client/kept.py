"""What outlives a process: the session and where the application stands in each channel, to go on with later."""

from dataclasses import dataclass
from typing import Any, Self

from .messages import Event, Message, Position


@dataclass(frozen=True, slots=True)
class SessionState:
    """Give it to `connect(state=…)`, in another process as well, and the session goes on where the application was.

    Attributes:
        session: the session's id.
        resume_token: a secret; whoever has it can take the session over.
        user: whose session it is.
        joined: the channels joined by `join`.
        positions: of each channel the last message that the application took; those that it had received and not taken
            come again.
        left: the channels left by `leave`.
    """

    session: str
    resume_token: str
    user: str
    joined: frozenset[str]
    positions: dict[str, Position]
    left: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "session": self.session,
            "resume_token": self.resume_token,
            "user": self.user,
            "joined": sorted(self.joined),
            "positions": {channel: list(position) for channel, position in self.positions.items()},
            "left": sorted(self.left),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            texts = (value["session"], value["resume_token"], value["user"])
            positions = {channel: Position(*map(int, at)) for channel, at in value["positions"].items()}
            joined, left = frozenset(value["joined"]), frozenset(value.get("left", ()))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no exported session: {error!r}") from error
        if not all(isinstance(text, str) for text in (*texts, *joined, *positions, *left)):
            raise ValueError("no exported session: ids, names and channels are texts")
        return cls(*texts, joined, positions, left)


class Taken:
    """Where the application stands: what it took, which may be less than what was received."""

    def __init__(self) -> None:
        self._at: dict[str, Position] = {}
        # Where a channel stood when the gateway told of a gap: one that reaches up to there ends in this very position.
        self._promised: dict[str, Position] = {}

    def stands(self, channel: str, position: Position) -> None:
        """A channel was entered here, and nothing of it has been taken since."""
        self._at[channel] = position

    def queued(self, message: Message) -> None:
        """A message was received: unless something is known, the application stands just before it."""
        self._at.setdefault(message.channel, Position(message.epoch, message.offset - 1))

    def promised(self, channel: str, position: Position) -> None:
        self._promised[channel] = position

    def end_of_gap(self, event: Event) -> Position | None:
        """The position behind a gap after which nothing is kept; None: its next message will tell."""
        promised = self._promised.get(event.channel)
        return promised if promised is not None and promised.offset == event.details.get("to") else None

    def take(self, item: Message | Event) -> None:
        if isinstance(item, Message):
            self._at[item.channel] = item.position
        elif item.kind == "gap":
            behind = self.end_of_gap(item)
            if behind is not None:
                self._at[item.channel] = behind
        elif item.kind == "reset":
            epoch, offset = item.details["epoch"], item.details["offset"]
            if offset is None:
                self._at.pop(item.channel, None)
            else:
                self._at[item.channel] = Position(epoch, offset)

    def forget(self, channel: str) -> None:
        self._at.pop(channel, None)
        self._promised.pop(channel, None)

    def over(self, received: dict[str, Position]) -> dict[str, Position]:
        """Of each channel what was taken, and what was received where nothing is known of the taking."""
        return {channel: self._at.get(channel, position) for channel, position in received.items()}
