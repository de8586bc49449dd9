from collections.abc import Sequence
from typing import Final

from core.ledger import Stats

CONNECTED: Final[int]
JOINED: Final[int]
PUBLISHED: Final[int]
REFUSED: Final[int]
PAUSED: Final[int]
FAILED: Final[int]
CLOSED: Final[int]
AUDITED: Final[int]
COUNTS: Final[tuple[str, ...]]
TIMES: Final[tuple[str, ...]]
REQUESTS: Final[tuple[str, ...]]

class ClientLoop:
    def __init__(
        self,
        stats: Stats,
        endpoints: Sequence[tuple[str, int]],
        *,
        connections_max: int,
        path: str = "/ws",
        connect_rate: int = 0,
        source: str = "",
        handshake_timeout_ms: int = 10_000,
        request_timeout_ms: int = 10_000,
        fin_timeout_ms: int = 5_000,
        tell_requests: bool = True,
        catch_up: bool = False,
    ) -> None: ...
    @property
    def event_fd(self) -> int: ...
    @property
    def sockets(self) -> int: ...
    def run(self) -> None: ...
    def open(
        self,
        *,
        user: str | None = None,
        token: str | None = None,
        endpoint: int = 0,
        resumable: bool = False,
        tcp: bool = False,
    ) -> int: ...
    def join(self, handle: int, channel: str) -> None: ...
    def leave(self, handle: int, channel: str) -> None: ...
    def publish(self, handle: int, channel: str, size: int, intended_ns: int = 0) -> None: ...
    def history(self, handle: int, channel: str, limit: int = 20) -> None: ...
    def pause(self, handle: int) -> None: ...
    def reconnect(self, handle: int) -> None: ...
    def close(self, handle: int) -> None: ...
    def audit(self, final: bool = False) -> None: ...
    def stop(self) -> None: ...
    def flush(self) -> None: ...
    def take(self) -> list[tuple[int, int, int, int, int, str]]: ...
    def counts(self) -> dict[str, int]: ...
    def times(self) -> dict[str, list[tuple[int, int]]]: ...
