"""The id under which the admin API and the command line know a connection.

It names the worker, that worker's start, and the core's handle (slot and generation), so that an id of a connection
that is gone finds nothing: neither whoever has its slot now, nor a connection of the worker's next start.
"""

import re
from dataclasses import dataclass
from typing import Self

_ID = re.compile(r"(?P<worker>[0-9]{1,6})-(?P<epoch>[0-9]{1,19})-(?P<generation>[0-9a-f]{1,8})-(?P<slot>[0-9a-f]{1,8})")


@dataclass(frozen=True)
class ConnectionId:
    """One connection; as text `<worker>-<epoch>-<generation>-<slot>`, the last two in hexadecimal."""

    worker: int
    epoch: int
    handle: int

    @property
    def slot(self) -> int:
        """Where the worker's table holds it."""
        return self.handle & 0xFFFF_FFFF

    def __str__(self) -> str:
        return f"{self.worker}-{self.epoch}-{self.handle >> 32:x}-{self.slot:x}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The id, or None when the text is none. Generation 0 is that of nobody: to the core it would mean all."""
        match = _ID.fullmatch(text)
        if match is None or int(match["generation"], 16) == 0:
            return None
        handle = int(match["generation"], 16) << 32 | int(match["slot"], 16)
        return cls(int(match["worker"]), int(match["epoch"]), handle)
