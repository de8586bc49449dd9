"""Which offsets to acknowledge, and when: cumulative per channel, batched."""

from .frames import FrameType
from .messages import Position

# So many messages make a batch of their own; otherwise half a heartbeat's interval does.
BATCH_MESSAGES = 256
HEARTBEAT_SHARE = 0.5


class Acks:
    """What the application took since the last ACK."""

    def __init__(self, heartbeat_s: float) -> None:
        self._delay_s = heartbeat_s * HEARTBEAT_SHARE
        self._taken: dict[str, Position] = {}
        self._message_count = 0
        self._due_at: float | None = None

    def take(self, channel: str, position: Position, now: float) -> None:
        """A message reached the application; positions of one channel only grow."""
        self._taken[channel] = position
        self._message_count += 1
        if self._due_at is None:
            self._due_at = now + self._delay_s

    def is_due(self, now: float) -> bool:
        return self._due_at is not None and (self._message_count >= BATCH_MESSAGES or now >= self._due_at)

    def deadline(self) -> float | None:
        return self._due_at

    def pending(self) -> dict[str, Position]:
        """What was taken and is not acknowledged yet."""
        return dict(self._taken)

    def forget(self, channel: str) -> None:
        """A channel that was left takes no more ACKs."""
        self._taken.pop(channel, None)

    def frame(self) -> list[object] | None:
        """The ACK for everything taken, None if there is nothing; the batch is empty afterwards."""
        offsets = {channel: position.offset for channel, position in self._taken.items()}
        self._taken, self._message_count, self._due_at = {}, 0, None
        return [FrameType.ACK, offsets] if offsets else None
