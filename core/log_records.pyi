from typing import Final

MESSAGE: Final[int]
POSITION: Final[int]
EVENT: Final[int]
WAITS: Final[int]
REPLICATED: Final[int]
BEGINS: Final[int]
HEAD_BYTES: Final[int]

class LogEntry:
    kind: int
    channel: bytes
    epoch: int
    offset: int
    time_ms: int
    key: tuple[int, int]
    origin: tuple[int, int, int]
    flags: int
    body: bytes
    record: bytes
    def __init__(
        self,
        kind: int,
        channel: bytes,
        epoch: int,
        offset: int,
        time_ms: int,
        key: tuple[int, int],
        origin: tuple[int, int, int],
        flags: int,
        body: bytes,
        record: bytes,
    ) -> None: ...

def entries(batch: bytes) -> list[LogEntry]: ...
def pack(
    kind: int,
    channel: bytes,
    epoch: int,
    offset: int,
    *,
    time_ms: int = 0,
    key: tuple[int, int] = (0, 0),
    origin: tuple[int, int, int] = (0, 0, 0),
    flags: int = 0,
    body: bytes = b"",
    shard: int = 0,
) -> bytes: ...
