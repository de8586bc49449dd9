from collections.abc import Iterable

from core.ledger import Stats
from core.namespace_spec import NamespaceSpec
from core.notes import _Note

class RouterLoop:
    def __init__(
        self,
        stats: Stats,
        *,
        epoch: int,
        key_window_s: int,
        channels_max: int,
        spill_bytes_max: int,
        endpoint: str = "",
        namespaces: Iterable[NamespaceSpec] = ...,
        keys_max: int = 1 << 20,
        history_total_bytes: int = 1 << 28,
        message_bytes_max: int = 1 << 25,
        log_under_way_max: int = 0,
        log_pace_ms: int = 0,
        log_bytes_max: int = 1 << 26,
        seeds: bytes = b"",
        log_complete: bool = True,
        sessions_kept: bool = False,
        presence_damping_ms: int = 3000,
        events_members_max: int = 200,
        presence_quiet_ms: int = 30000,
        log_chunks_max: int = 1024,
        globals_bytes_max: int = 1 << 15,
        workers: int = 0,
        shards: int = 256,
        leads_all: bool = True,
        admits: bool = False,
        bridged: bool = False,
    ) -> None: ...
    def bind(self, endpoint: str, *, public_key: str = "", secret_key: str = "") -> None: ...
    def recover(self, batch: bytes) -> int: ...
    @property
    def knows_all(self) -> bool: ...
    def recover_globals(self, batch: bytes) -> int: ...
    def shard_counts(self) -> list[int]: ...
    def published(self) -> dict[bytes, list[int]]: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def control_fd(self) -> int: ...
    def take(self) -> list[_Note]: ...
    def put(
        self,
        kind: int,
        *,
        request: int = 0,
        conn: int = 0,
        first: int = 0,
        second: int = 0,
        third: int = 0,
        text: bytes = b"",
        extra: bytes = b"",
    ) -> None: ...
