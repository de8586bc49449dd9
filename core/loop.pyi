from collections.abc import Iterable

from core.ledger import Stats
from core.namespace_spec import NamespaceSpec
from core.notes import _Note

class EdgeLoop:
    def __init__(
        self,
        stats: Stats,
        *,
        endpoint: str,
        identity: str,
        tcp_fd: int,
        ws_fd: int,
        connections_max: int,
        namespaces: Iterable[NamespaceSpec] = ...,
        **options: int | str | bool | bytes | tuple[str, str, str] | None,
    ) -> None: ...
    def link_open(
        self,
        place: int,
        endpoint: str,
        server_key: str = "",
        public_key: str = "",
        secret_key: str = "",
        *,
        near: bool = True,
    ) -> None: ...
    def link_close(self, place: int) -> None: ...
    @property
    def control_fd(self) -> int: ...
    def run(self) -> None: ...
    def close(self) -> None: ...
    def take(self) -> list[_Note]: ...
    def put(
        self,
        kind: int,
        conn: int = 0,
        request: int = 0,
        *,
        flags: int = 0,
        first: int = 0,
        second: int = 0,
        third: int = 0,
        session: bytes = ...,
        text: bytes = b"",
        extra: bytes = b"",
    ) -> None: ...
    def flush(self) -> None: ...
