"""Everything that this client raises.

HoldfastError
├── ConnectFailed       the gateway could not be reached
├── Closed              the session has ended; says with which code, how to come back and when
│   └── ProtocolViolation   the other side does not speak this protocol
├── RequestRefused      the gateway answered ERROR
├── RequestTimeout      no answer within the deadline (also a TimeoutError)
├── RequestInterrupted  the connection went away; whether the request was carried out is not known
└── FrameTooLarge       longer than the gateway's max_frame; nothing was sent (also a ValueError)
"""

from .codes import CloseClass


class HoldfastError(Exception):
    """The root of this client's exceptions."""


class ConnectFailed(HoldfastError):
    """The gateway could not be reached: refused, unresolvable, not TLS, no WebSocket, no answer in time."""


class Closed(HoldfastError):
    """The session or its connection has ended.

    Args:
        code: the FIN's or the close status' number, None when the connection went away without one.
        reason: the other side's words.
        class_: whether to resume, to start afresh or to stop.
        after_ms: how long to wait first, already jittered by the gateway; None when it did not say.
        target: where to go, when the gateway said so.
    """

    def __init__(
        self,
        code: int | None,
        reason: str,
        class_: CloseClass,
        after_ms: int | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.class_ = class_
        self.after_ms = after_ms
        self.target = target

    def __str__(self) -> str:
        number = "without a code" if self.code is None else f"with code {self.code}"
        return f"closed {number}: {self.reason or 'no reason given'} ({self.class_})"


class ProtocolViolation(Closed):
    """The other side sent what is no frame of this protocol; the same again will fail again."""

    def __init__(self, what: str) -> None:
        super().__init__(None, what, CloseClass.STOP)


class RequestRefused(HoldfastError):
    """The gateway answered ERROR.

    Args:
        code: the number; its range says whose fault it is.
        message: the gateway's words.
        retry_after_ms: when to try again, if trying again may help.
    """

    def __init__(self, code: int, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        again = "" if self.retry_after_ms is None else f"; try again in {self.retry_after_ms} ms"
        return f"refused with code {self.code}: {self.message}{again}"


class RequestTimeout(HoldfastError, TimeoutError):
    """No answer came within the request's deadline."""


class RequestInterrupted(HoldfastError):
    """The connection went away before the answer; a PUBLISH without a key is not sent twice on its own."""


class FrameTooLarge(HoldfastError, ValueError):
    """The frame would be longer than the gateway takes; nothing was sent."""
