"""What a code means to a client: its number's range says it, so that codes unknown today are understood too."""

from enum import StrEnum

BYE = 0
NOT_JOINED = 402
RESUMED_ELSEWHERE = 605
WEBSOCKET_STATUS_BASE = 4000


class CloseClass(StrEnum):
    """How to come back after a connection ended."""

    RESUME = "resume"
    FRESH = "fresh"
    STOP = "stop"


def close_class(code: int) -> CloseClass:
    """The class that the protocol's table gives to the range of this number; outside of every range: stop."""
    if 1 <= code < 200:
        return CloseClass.RESUME
    if 200 <= code < 400:
        return CloseClass.FRESH
    return CloseClass.STOP


def is_request_only(code: int) -> bool:
    """Whether an ERROR with this code leaves the connection as it was."""
    return 400 <= code < 600
