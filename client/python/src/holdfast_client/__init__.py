"""The asyncio client of Holdfast: `connect`, then join, publish and iterate."""

from .codes import CloseClass
from .errors import (
    Closed,
    ConnectFailed,
    FrameTooLarge,
    HoldfastError,
    ProtocolViolation,
    RequestInterrupted,
    RequestRefused,
    RequestTimeout,
)
from .kept import SessionState
from .messages import Event, History, Member, Message, Position, Presence
from .reconnect import Backoff
from .session import Options, Session, State, connect, connect_with, new_key

__all__ = [
    "Backoff",
    "CloseClass",
    "Closed",
    "ConnectFailed",
    "Event",
    "FrameTooLarge",
    "History",
    "HoldfastError",
    "Member",
    "Message",
    "Options",
    "Position",
    "Presence",
    "ProtocolViolation",
    "RequestInterrupted",
    "RequestRefused",
    "RequestTimeout",
    "Session",
    "SessionState",
    "State",
    "connect",
    "connect_with",
    "new_key",
]
__version__ = "0.1.0"
