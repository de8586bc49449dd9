"""Which messages are new: the last position of each channel, held across connections.

A position is the pair (epoch, offset). Offsets grow by one inside a channel and go on across epochs when the log
survived. So, held (E, O) and a message at (e, o):

- e = E, o ≤ O: had already, dropped.
- e < E: the word of a sequencer that was deposed, or a repetition; dropped.
- o = O + 1: the next one, also when e > E.
- o > O + 1: offsets O + 1 … o - 1 are missing; reported as `gap` unless the gateway announced it, then delivered.
- e > E, o ≤ O: the new sequencer counts from an earlier point, so what was held beyond it is not this channel's
  history any more; reported as `reset`, then delivered. It is no repetition: its position was never held.
"""

from dataclasses import dataclass

from .frames import Standing
from .messages import Event, Position


@dataclass(slots=True)
class Held:
    """What is held of one channel."""

    epoch: int
    offset: int
    # Last missing offset that the gateway announced by EVENT gap; the message after it decides, not the announcement.
    announced_to: int = 0


class Positions:
    """The last position of every channel, and the verdict on each message."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self.dropped_count = 0

    def get(self, channel: str) -> Position | None:
        held = self._held.get(channel)
        return None if held is None else Position(held.epoch, held.offset)

    def set(self, channel: str, position: Position) -> None:
        self._held[channel] = Held(*position)

    def forget(self, channel: str) -> None:
        self._held.pop(channel, None)

    def clear(self) -> None:
        self._held.clear()

    def all(self) -> dict[str, Position]:
        return {channel: Position(held.epoch, held.offset) for channel, held in self._held.items()}

    def restore(self, channel: str, standing: Standing, held: Position | None, resumed: bool) -> Event | None:
        """Take a channel's position from WELCOME; a held one stays while what was missed follows it. What to tell."""
        follows = standing.outcome in ("replayed", "gap")
        if held is None and follows:
            return None  # it goes on from where the gateway knows it to be: the first that comes tells where
        # In a new session what follows starts at the user's last ACK, which is never after what is held.
        goes_on = held is not None and (resumed or (follows and held.offset <= standing.position.offset))
        if held is not None and goes_on and standing.outcome != "reset":
            self.set(channel, held)
            return None
        self.set(channel, standing.position)
        # Where nothing was said before and nothing is now, only the epoch is another one.
        if held is None or held == standing.position or not (held.offset or standing.position.offset):
            return None
        return reset_event(channel, standing.position, held)

    def announce_gap(self, channel: str, last_missing: object) -> None:
        """The gateway said that offsets up to here are gone; what it sends next is not reported a second time."""
        held = self._held.get(channel)
        if held is not None and isinstance(last_missing, int):
            held.announced_to = max(held.announced_to, last_missing)

    def accept(self, channel: str, epoch: int | None, offset: int) -> tuple[Position, Event | None] | None:
        """Judge a message: None if it is to be dropped, else its position and what to report before it."""
        held = self._held.get(channel)
        if held is None:
            position = Position(epoch or 0, offset)
            self._held[channel] = Held(*position)
            return position, None
        epoch = held.epoch if epoch is None else epoch
        if epoch < held.epoch or (epoch == held.epoch and offset <= held.offset):
            self.dropped_count += 1
            return None
        event = self._passed_over(channel, held, epoch, offset)
        held.epoch, held.offset, held.announced_to = epoch, offset, 0
        return Position(epoch, offset), event

    @staticmethod
    def _passed_over(channel: str, held: Held, epoch: int, offset: int) -> Event | None:
        if offset <= held.offset:
            return reset_event(channel, Position(epoch, offset - 1), Position(held.epoch, held.offset))
        first_missing = max(held.offset, held.announced_to) + 1
        if offset <= first_missing:
            return None
        return Event(channel, "gap", {"from": first_missing, "to": offset - 1, "reason": "unannounced"})


def reset_event(channel: str, position: Position | None, held: Position | None) -> Event:
    """The channel goes on from a position (None: the next message's) without common history with the one held."""
    epoch, offset = (None, None) if position is None else position
    return Event(channel, "reset", {"epoch": epoch, "offset": offset, "held": None if held is None else list(held)})
