from core.ledger import Stats
from core.notes import _Note

class RouterLoop:
    def __init__(
        self,
        stats: Stats,
        *,
        endpoint: str,
        epoch: int,
        history_messages: int,
        history_bytes: int,
        history_age_s: int,
        key_window_s: int,
        channels_max: int,
        spill_bytes_max: int,
        keys_max: int = 1 << 20,
        history_total_bytes: int = 1 << 28,
        message_bytes_max: int = 1 << 25,
    ) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def control_fd(self) -> int: ...
    def take(self) -> list[_Note]: ...
    def put(self, kind: int, *, request: int = 0) -> None: ...
