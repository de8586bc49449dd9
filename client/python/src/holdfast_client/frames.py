"""The gateway's frames, read from arrays of unknown content into typed values; whatever does not fit is refused."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, TypeVar

from .errors import ProtocolViolation
from .messages import Event, History, Member, Message, Position, Presence

T = TypeVar("T")


class FrameType(IntEnum):
    """The first element of every frame."""

    HELLO = 0
    WELCOME = 1
    REPLY = 2
    ERROR = 3
    PING = 4
    PONG = 5
    JOIN = 6
    LEAVE = 7
    PUBLISH = 8
    MESSAGE = 9
    ACK = 10
    HISTORY = 11
    PRESENCE = 12
    EVENT = 13
    FIN = 14
    FIN_ACK = 15
    REFRESH = 16
    CALL = 17


@dataclass(frozen=True, slots=True)
class Standing:
    """A channel as WELCOME or the answer to JOIN describes it."""

    position: Position
    outcome: str


@dataclass(frozen=True, slots=True)
class Welcome:
    request_id: int
    session: str
    user: str
    resume_token: str | None
    node: str
    ping_s: float = 30.0
    misses: int = 3
    max_frame_bytes: int = 65_536
    resumed: bool = False
    channels: dict[str, Standing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    request_id: int
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Error:
    request_id: int
    code: int
    message: str
    retry_after_ms: int | None


@dataclass(frozen=True, slots=True)
class Ping:
    seq: int
    time: Any


@dataclass(frozen=True, slots=True)
class Pong:
    seq: int
    time: Any


@dataclass(frozen=True, slots=True)
class Delivery:
    """A MESSAGE as it came; its epoch may be left out."""

    channel: str
    epoch: int | None
    offset: int
    data: Any
    sender: str | None
    time: int | None


@dataclass(frozen=True, slots=True)
class Fin:
    code: int
    reason: str
    class_: str | None
    after_ms: int | None
    target: str | None


@dataclass(frozen=True, slots=True)
class FinAck:
    pass


Frame = Welcome | Reply | Error | Ping | Pong | Delivery | Event | Fin | FinAck


WHILE_GREETING = (Welcome, Error, Fin, Ping, Pong, FinAck)
"""What may come before WELCOME, and WELCOME."""


def parse(array: object) -> Frame:
    """The frame that an array is.

    Raises:
        ProtocolViolation: no frame that a gateway may send; says which part is wrong.
    """
    if not isinstance(array, list) or not array:
        raise ProtocolViolation("a frame that is no array")
    kind = integer(array[0], "frame type")
    parser = _PARSERS.get(kind)
    if parser is None:
        raise ProtocolViolation(f"a frame of type {kind}, which a gateway does not send")
    shortest, read = parser
    if len(array) < shortest:
        raise ProtocolViolation(f"{FrameType(kind).name} of {len(array)} elements")
    return read(array)


def integer(value: object, what: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ProtocolViolation(f"{what} is {value!r:.60}, not a number of at least {least}")
    return value


def number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ProtocolViolation(f"{what} is {value!r:.60}, not a positive number")
    return float(value)


def milliseconds(value: object, what: str) -> int:
    """A time or a duration; a sender whose only numbers are floating ones may write them so."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ProtocolViolation(f"{what} is {value!r:.60}, not milliseconds")
    return int(value)


def text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ProtocolViolation(f"{what} is {value!r:.60}, not text")
    return value


def options(array: list[Any], index: int, what: str) -> dict[str, Any]:
    """The option map at the end of a frame; one that was left out is empty."""
    value = array[index] if len(array) > index else {}
    if not isinstance(value, dict):
        raise ProtocolViolation(f"{what} is {value!r:.60}, not a map")
    return value


def optional(value: object, read: Callable[[object, str], T], what: str) -> T | None:
    return None if value is None else read(value, what)


def read_nothing(value: dict[str, Any]) -> None:
    """The answer to LEAVE."""


def read_position(value: dict[str, Any], what: str) -> Position:
    """Epoch and offset of an answer."""
    return Position(integer(value.get("epoch"), f"{what} epoch"), integer(value.get("offset"), f"{what} offset"))


def read_standing(value: dict[str, Any]) -> Standing:
    """The answer to JOIN."""
    return Standing(read_position(value, "JOIN"), text(value.get("outcome", "live"), "JOIN outcome"))


def read_history(channel: str, value: dict[str, Any]) -> History:
    """The answer to HISTORY. A message in it may be the frame, the frame without type and channel, or a map."""
    position = read_position(value, "HISTORY")
    listed = value.get("messages", [])
    if not isinstance(listed, list):
        raise ProtocolViolation("HISTORY messages that are no array")
    return History([_read_past_message(channel, entry, position.epoch) for entry in listed], position)


def read_refreshed(welcome: Welcome | None, value: dict[str, Any]) -> tuple[Welcome, int | None]:
    """The answer to REFRESH: WELCOME with the new resume token, and when the new token ends."""
    if welcome is None:
        raise ProtocolViolation("REFRESH answered before WELCOME")
    expires, resume_token = value.get("expires"), value.get("resume_token", welcome.resume_token)
    if not (expires is None or isinstance(expires, int)) or not (resume_token is None or isinstance(resume_token, str)):
        raise ProtocolViolation("REFRESH answered by something else than {expires, resume_token}")
    return replace(welcome, resume_token=resume_token), expires


def read_presence(value: dict[str, Any]) -> Presence:
    """The answer to PRESENCE; counts that were left out are counted here."""
    listed = value.get("sessions", [])
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ProtocolViolation("PRESENCE sessions that are no array of maps")
    members = [Member(text(e.get("session"), "member session"), text(e.get("user"), "member user")) for e in listed]
    users = value.get("users", len({member.user for member in members}))
    # `users` may be the list of names or their number.
    users = len(users) if isinstance(users, list) else users
    count = value.get("count", len(members))
    return Presence(members, integer(users, "PRESENCE users"), integer(count, "PRESENCE count"))


def _read_past_message(channel: str, entry: object, epoch: int) -> Message:
    if isinstance(entry, dict):
        entry = [entry.get("offset"), entry.get("data"), entry]
    if not isinstance(entry, list):
        raise ProtocolViolation(f"a past message that is {entry!r:.60}")
    whole = len(entry) >= 4 and entry[0] == FrameType.MESSAGE and isinstance(entry[1], str)
    delivery = _read_message(entry if whole else [FrameType.MESSAGE, channel, *entry])
    held_epoch = epoch if delivery.epoch is None else delivery.epoch
    return Message(channel, held_epoch, delivery.offset, delivery.data, delivery.sender, delivery.time)


def hello_values(
    welcome: Welcome | None, token: str | None, user: str | None, positions: dict[str, list[int]] | None
) -> dict[str, Any]:
    """Who says HELLO: the session of this WELCOME, or a new one. `positions`: None when no frame has room for them."""
    if welcome is not None:
        # Without positions every channel stands at its last ACK; what comes twice then is dropped here.
        held = {"resume": {}} if positions is None else {"resume": positions, "whole": True}
        return {"session": welcome.session, "token": welcome.resume_token, **held}
    who = {"token": token} if token is not None else {} if user is None else {"user": user}
    return {**who, "resume": positions} if positions else who


def _read_welcome(array: list[Any]) -> Welcome:
    values = options(array, 2, "WELCOME")
    listed = values.get("channels") or {}
    if not isinstance(listed, dict):
        raise ProtocolViolation("WELCOME channels that are no map")
    return Welcome(
        request_id=integer(array[1], "WELCOME id"),
        session=text(values.get("session"), "WELCOME session"),
        user=text(values.get("user"), "WELCOME user"),
        resume_token=optional(values.get("resume_token"), text, "WELCOME resume_token"),
        node=str(values.get("node", "")),
        ping_s=number(values.get("ping", 30), "WELCOME ping"),
        misses=integer(values.get("misses", 3), "WELCOME misses", 1),
        max_frame_bytes=integer(values.get("max_frame", 65536), "WELCOME max_frame", 1),
        resumed=bool(values.get("resumed", False)),
        channels={text(name, "channel"): _read_listed(standing) for name, standing in listed.items()},
    )


def _read_listed(value: object) -> Standing:
    if not isinstance(value, list) or len(value) < 2:
        raise ProtocolViolation(f"a channel's position is {value!r:.60}")
    outcome = text(value[2], "outcome") if len(value) > 2 else "live"
    return Standing(Position(integer(value[0], "epoch"), integer(value[1], "offset")), outcome)


def _read_message(array: list[Any]) -> Delivery:
    if len(array) < 4:
        raise ProtocolViolation(f"MESSAGE of {len(array)} elements")
    values = options(array, 4, "MESSAGE")
    return Delivery(
        channel=text(array[1], "MESSAGE channel"),
        epoch=optional(values.get("epoch"), integer, "MESSAGE epoch"),
        offset=integer(array[2], "MESSAGE offset", 1),
        data=array[3],
        sender=optional(values.get("from"), text, "MESSAGE from"),
        time=optional(values.get("time"), milliseconds, "MESSAGE time"),
    )


def _read_error(array: list[Any]) -> Error:
    again = options(array, 4, "ERROR").get("retry_after")
    return Error(
        request_id=integer(array[1], "ERROR id"),
        code=integer(array[2], "ERROR code"),
        message=text(array[3], "ERROR message") if len(array) > 3 else "",
        retry_after_ms=optional(again, milliseconds, "ERROR retry_after"),
    )


def _read_fin(array: list[Any]) -> Fin:
    values = options(array, 3, "FIN")
    return Fin(
        code=integer(array[1], "FIN code"),
        reason=text(array[2], "FIN reason") if len(array) > 2 else "",
        class_=optional(values.get("class"), text, "FIN class"),
        after_ms=optional(values.get("after"), milliseconds, "FIN after"),
        target=optional(values.get("target"), text, "FIN target"),
    )


def _read_event(array: list[Any]) -> Event:
    return Event(text(array[1], "EVENT channel"), text(array[2], "EVENT kind"), options(array, 3, "EVENT"))


# Type: the fewest elements it may have, and who reads it.
_PARSERS: dict[int, tuple[int, Callable[[list[Any]], Frame]]] = {
    FrameType.WELCOME: (3, _read_welcome),
    FrameType.REPLY: (2, lambda array: Reply(integer(array[1], "REPLY id"), options(array, 2, "REPLY"))),
    FrameType.ERROR: (3, _read_error),
    FrameType.PING: (2, lambda array: Ping(integer(array[1], "PING seq"), array[2] if len(array) > 2 else None)),
    FrameType.PONG: (2, lambda array: Pong(integer(array[1], "PONG seq"), array[2] if len(array) > 2 else None)),
    FrameType.MESSAGE: (4, _read_message),
    FrameType.EVENT: (3, _read_event),
    FrameType.FIN: (2, _read_fin),
    FrameType.FIN_ACK: (1, lambda array: FinAck()),
}
