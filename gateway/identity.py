"""Who a client was found to be, or why it may not come in."""

import math
from dataclasses import dataclass

from gateway.rights import Rights

NO_LISTS = Rights()
USER_BYTES_MAX = 250  # `user:` and the id together are a channel's name, at most 255 bytes


class AuthError(Exception):
    """A client that may not come in; `code` says why on the wire."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Identity:
    """What a client's credentials say of it."""

    user: str
    device: str = ""
    """Class of the device, such as phone; empty: not told."""
    rights: Rights = NO_LISTS
    """The channels that the token lists, if it lists any."""
    expires_s: float | None = None
    """Wall clock at which the credentials end, leeway included; None: never."""

    def left_ms(self, now_s: float) -> int:
        """Milliseconds until the credentials end, at least 1; 0: they never do."""
        if self.expires_s is None:
            return 0
        return max(1, math.ceil(min(self.expires_s - now_s, 2.0**32) * 1000))
