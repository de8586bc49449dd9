"""Where a connection of the protocol stands, and what the protocol concludes: for whoever drives it."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from .errors import Closed, HoldfastError
from .messages import Event, Message


class Phase(Enum):
    """Where the current connection stands."""

    IDLE = "idle"
    GREETING = "greeting"
    REJOINING = "rejoining"
    OPEN = "open"
    CLOSING = "closing"
    ENDED = "ended"


# From: to. Anything else is a fault of ours.
LEGAL = {
    Phase.IDLE: {Phase.GREETING},
    Phase.GREETING: {Phase.REJOINING, Phase.CLOSING, Phase.ENDED, Phase.IDLE},
    Phase.REJOINING: {Phase.OPEN, Phase.CLOSING, Phase.ENDED, Phase.IDLE},
    Phase.OPEN: {Phase.CLOSING, Phase.ENDED, Phase.IDLE},
    Phase.CLOSING: {Phase.ENDED, Phase.IDLE},
    Phase.ENDED: {Phase.IDLE},
}


@dataclass(frozen=True, slots=True)
class Opened:
    """The session can be used; `resumed` says whether it is the one from before."""

    resumed: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """For the application, in this order."""

    item: Message | Event


@dataclass(frozen=True, slots=True)
class Answered:
    """A request's answer, or why there is none."""

    request_id: int
    result: Any | HoldfastError


@dataclass(frozen=True, slots=True)
class Measured:
    """A round trip."""

    rtt_ms: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is to be closed now, once what is still to be sent was sent."""

    closed: Closed


Output = Opened | Delivered | Answered | Measured | Ended
