from typing import Final

from typing_extensions import Buffer

from core.codes import TABLE as TABLE

CHECKED: Final[bool]
STATS_BYTES: Final[int]
KINDS: Final[tuple[str, ...]]
COUNTERS: Final[tuple[str, ...]]
STATES: Final[tuple[str, ...]]
GAUGES: Final[tuple[str, ...]]
TIMES: Final[tuple[str, ...]]
BOUNDS_MS: Final[tuple[int, ...]]

class Stats:
    def __init__(self, fd: int = -1) -> None: ...
    def read(self) -> dict[str, dict[str, int]]: ...

def turn_ms(buffer: Buffer) -> int: ...
def read(buffer: Buffer) -> dict[str, dict[str, int]]: ...
