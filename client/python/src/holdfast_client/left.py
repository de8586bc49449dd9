"""The channels that were left in a session. WELCOME may still list them: a LEAVE holds for a resume once it is stored.

What is listed although it was left is left again, and up to then nothing is heard of it. A LEAVE counts from when it
was asked; only a refusal takes that back, and a JOIN that is asked later.
"""

from collections.abc import Iterable

from .codes import NOT_JOINED

REMEMBERED_MAX = 4096
"""Beyond so many the oldest are forgotten."""


class Left:
    """The memory of a session, and of a connection what is not heard over it."""

    def __init__(self, channels: Iterable[str] = ()) -> None:
        # In the order of leaving, and whether that was answered.
        self._answered: dict[str, bool] = dict.fromkeys(channels, True)
        self._unheard: set[str] = set()
        # What is left again, by the number of its request.
        self._again: dict[int, str] = {}

    @property
    def channels(self) -> frozenset[str]:
        return frozenset(self._answered)

    def asks(self, channel: str) -> None:
        """LEAVE is asked."""
        self._answered[channel] = self._answered.pop(channel, False)
        if len(self._answered) > REMEMBERED_MAX:
            del self._answered[next(iter(self._answered))]

    def answered(self, request_id: int, channel: str) -> bool:
        """LEAVE was done; whether it was to leave the channel again."""
        if channel in self._answered:  # else it was asked to be joined meanwhile
            self._answered[channel] = True
        self._unheard.discard(channel)
        return self._again.pop(request_id, None) is not None

    def failed(self, request_id: int, channel: str, code: int | None) -> None:
        """LEAVE was refused with this code, or had no answer: all the same nothing is heard of what was to be left,
        unless the session is not in there, or JOIN was asked meanwhile.
        """
        if code is not None and not self._answered.get(channel, True):
            del self._answered[channel]
        if self._again.pop(request_id, None) is not None and (code == NOT_JOINED or channel not in self._answered):
            self._unheard.discard(channel)

    def joins(self, channel: str) -> None:
        """JOIN is asked; what comes before the answer to a LEAVE that is under way is still not its."""
        self._answered.pop(channel, None)
        if channel not in self._again.values():
            self._unheard.discard(channel)

    def begins_anew(self, keeps: Iterable[str]) -> None:
        """Another session, in which these are still to be left."""
        kept = set(keeps)
        self._answered = {channel: answer for channel, answer in self._answered.items() if channel in kept}

    # Of one connection.

    def connection_lost(self) -> None:
        self._unheard.clear()
        self._again.clear()

    def leaves_again(self, channel: str, request_id: int) -> None:
        self._unheard.add(channel)
        self._again[request_id] = channel

    def is_unheard(self, channel: str) -> bool:
        return channel in self._unheard
