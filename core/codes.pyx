"""The codes of ERROR and FIN: number, name, class, who sends it and what the client should do."""

from typing import NamedTuple


class CodeInfo(NamedTuple):
    """One row of the table of codes."""

    number: int
    name: str
    kind: str
    when: str


def _row(int number, str when):
    cdef str kind = "request" if 400 <= number < 600 else (<bytes> code_class(number)).decode()
    return CodeInfo(number, (<bytes> code_name(number)).decode(), kind, when)


TABLE = tuple(_row(number, when) for number, when in (
    (BYE, "A wanted end; from a client: the session is over."),
    (DRAINING, "This gateway is about to stop; come back after `after` and resume."),
    (OVERLOADED, "Too much at once; wait `retry_after` or `after`."),
    (SLOW_CONSUMER, "More was queued for this connection than its bound allows."),
    (HEARTBEAT_LOST, "Nothing was heard for `misses` heartbeat intervals."),
    (UNAVAILABLE, "A part that the request needs is away; try again under the same key."),
    (INTERNAL, "A fault of the gateway's own."),
    (MOVED, "The session is served elsewhere; `target` says where."),
    (TOKEN_EXPIRED, "The token's time is over; come back with a new one."),
    (SESSION_EXPIRED, "The session to resume is gone, or its token is of a key not known here; start a new one."),
    (HELLO_TIMEOUT, "No HELLO arrived in time."),
    (NOT_ALLOWED, "This session may not do that."),
    (NO_SUCH_CHANNEL, "The channel's namespace is not configured."),
    (NOT_JOINED, "Join the channel first."),
    (RATE_LIMITED, "Too many requests from this session; wait `retry_after`."),
    (TOO_MANY_CHANNELS, "The session has joined as many channels as it may, or a global one is one too many."),
    (TOO_LARGE, "The payload or name is longer than its limit."),
    (BAD_REQUEST, "The request is malformed or not served by this version; the message says what."),
    (BAD_FRAME, "Bytes that are no frame of this protocol."),
    (FRAME_TOO_LARGE, "A frame longer than `max_frame`."),
    (BAD_TOKEN, "The token is missing, malformed or not signed by a known key."),
    (BANNED, "This user is banned."),
    (KICKED, "An operator ended this session."),
    (RESUMED_ELSEWHERE, "The session was resumed on another connection."),
    (VERSION, "The protocol version is not served here."),
))
BY_NAME = {info.name: info.number for info in TABLE}
NAMES = {info.number: info.name for info in TABLE}
