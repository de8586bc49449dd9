from collections.abc import Iterable
from typing import Any, Final

VERSION: Final[int]
LINK: Final[int]
LINKED: Final[int]
BEGIN: Final[int]
END: Final[int]
BYE: Final[int]
SUBSCRIBE: Final[int]
SUBSCRIBED: Final[int]
UNSUBSCRIBE: Final[int]
OPEN: Final[int]
OPENED: Final[int]
CLOSE: Final[int]
EVICT: Final[int]
PUBLISH: Final[int]
PUBLISHED: Final[int]
HISTORY: Final[int]
PRESENCE: Final[int]
REPLY: Final[int]
MESSAGE: Final[int]
TAKEN: Final[int]
STATE: Final[int]
CATCHUP: Final[int]
OUTCOME_ALONE: Final[int]
FROM_CURSOR: Final[int]
FROM_LISTING: Final[int]
FROM_STORE: Final[int]
CAUGHT: Final[int]
BAN: Final[int]
BANS: Final[int]
SESSIONS: Final[int]
SURVEY: Final[int]
GLOBAL: Final[int]
LEADS: Final[int]
SHARDS: Final[int]
ATTEND: Final[int]
SAID: Final[int]
ELSEWHERE: Final[int]
FEEDS: Final[int]
TOLD_GLOBALS: Final[int]
GONE: Final[int]
FRESH: Final[int]
BESIDE: Final[int]
EVERYBODY: Final[int]
BEFORE: Final[int]
AS_IS: Final[int]
POSITION: Final[int]
MESSAGES: Final[int]
JOINED: Final[int]
HERE: Final[int]
LEFT: Final[int]
ACKED: Final[int]
HEARS: Final[int]
LISTS: Final[int]
RESUMES: Final[int]
AGAIN: Final[int]
OVER: Final[int]
OPENS_TOLD: Final[int]
CLOSES_TOLD: Final[int]
STATES_TOLD: Final[int]
TOLD: Final[int]
ALIVE: Final[int]
CLAIM_BITS: Final[int]
CURSORS: Final[tuple[str, ...]]
OUTCOMES: Final[tuple[str, ...]]

class BatchWriter:
    def link(self, kind: int, epoch: int, worker: int, aux: int = 0, now_ms: int = 0, version: int = ...) -> None: ...
    def channel(
        self, kind: int, name: bytes, channel: int, epoch: int = 0, offset: int = 0, *, shard: int = 0
    ) -> None: ...
    def session(
        self,
        kind: int,
        session: bytes,
        conn: int,
        seq: int = 0,
        aux: int = 0,
        body: bytes = b"",
        time_us: int = 0,
        fence: int = 0,
        *,
        shards: int = 256,
    ) -> None: ...
    def state(
        self,
        session: bytes,
        what: int,
        name: bytes,
        epoch: int,
        offset: int,
        user: bytes = b"",
        conn: int = 0,
        time_us: int = 0,
        fence: int = 0,
        *,
        kind: int = ...,
        shard: int | None = None,
    ) -> None: ...
    def publish(
        self,
        seq: int,
        name: bytes,
        data: bytes,
        sender: bytes,
        key: bytes = b"",
        *,
        again: bool = False,
        shard: int = 0,
    ) -> None: ...
    def body(self, kind: int, body: bytes, seq: int = 0) -> None: ...
    def history(
        self,
        kind: int,
        seq: int,
        name: bytes,
        *,
        limit: int = 100,
        reverse: bool = False,
        since: tuple[int, int] | None = None,
        bytes_max: int = 65536,
        shard: int = 0,
    ) -> None: ...
    def catchup(
        self,
        seq: int,
        name: bytes,
        channel: int,
        epoch: int,
        offset: int,
        *,
        flags: int = 0,
        bytes_max: int = 32768,
        shard: int = 0,
    ) -> None: ...
    def shards(
        self, shards: Iterable[int], *, said: bool = False, before: bool = False, elsewhere: bool = False
    ) -> None: ...
    def take(self) -> bytes: ...

def unpack(batch: bytes) -> list[dict[str, Any]]: ...
