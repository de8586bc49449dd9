from typing import Final

FIELDS: Final[tuple[str, ...]]
SLOTS_A_TURN: Final[int]
RECORDS_A_TURN: Final[int]
PEERS_A_TURN: Final[int]
END: Final[int]
TICK_MS: Final[int]
ANY_STATE: Final[int]

def query(
    *,
    conn: int = 0,
    slot: int = 0,
    limit: int = ...,
    older: int = 0,
    idle: int = 0,
    queued_bytes: int = 0,
    states: int = ...,
    user: str | None = None,
    session: bytes | None = None,
    address: bytes | None = None,
    channel: str | None = None,
    device: int | None = None,
) -> bytes: ...
