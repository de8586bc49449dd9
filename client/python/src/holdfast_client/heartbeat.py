"""The two-way heartbeat: when to send PING, what the round trip is, and when the other side is gone."""

from .frames import FrameType, Pong

_REMEMBERED_PINGS = 8


class Heartbeat:
    """One connection's heartbeat. All times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, now: float, interval_s: float, misses: int) -> None:
        self.interval_s = interval_s
        self._silence_s = interval_s * misses
        self._sent_at = now
        self._heard_at = now
        self._paused = False
        self._seq = 0
        self._pings: dict[int, float] = {}

    def sent(self, now: float) -> None:
        """Anything sent counts as life."""
        self._sent_at = now

    def heard(self, now: float) -> None:
        """So does anything received."""
        self._heard_at = now

    def pause(self) -> None:
        """While we do not read, silence says nothing about the other side."""
        self._paused = True

    def unpause(self, now: float) -> None:
        self._paused = False
        self._heard_at = now

    def is_lost(self, now: float) -> bool:
        return not self._paused and now >= self._heard_at + self._silence_s

    def is_due(self, now: float) -> bool:
        return now >= self._sent_at + self.interval_s

    def deadline(self) -> float:
        """When to look again."""
        ping_at = self._sent_at + self.interval_s
        return ping_at if self._paused else min(ping_at, self._heard_at + self._silence_s)

    def ping(self, now: float) -> list[object]:
        """The next PING frame."""
        self._seq += 1
        self._pings[self._seq] = now
        if len(self._pings) > _REMEMBERED_PINGS:
            del self._pings[min(self._pings)]
        return [FrameType.PING, self._seq, int(now * 1000)]

    def round_trip_ms(self, pong: Pong, now: float) -> float | None:
        """From our PING to its PONG, by our clock alone; None for a PONG of no PING that we remember."""
        sent_at = self._pings.pop(pong.seq, None)
        return None if sent_at is None else max(0.0, (now - sent_at) * 1000)
