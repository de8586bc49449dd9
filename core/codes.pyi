from enum import IntEnum
from typing import Final, NamedTuple

class Code(IntEnum):
    BYE = 0
    DRAINING = 1
    OVERLOADED = 2
    SLOW_CONSUMER = 3
    HEARTBEAT_LOST = 4
    UNAVAILABLE = 5
    INTERNAL = 6
    MOVED = 7
    TOKEN_EXPIRED = 200
    SESSION_EXPIRED = 201
    HELLO_TIMEOUT = 202
    NOT_ALLOWED = 400
    NO_SUCH_CHANNEL = 401
    NOT_JOINED = 402
    RATE_LIMITED = 403
    TOO_MANY_CHANNELS = 404
    TOO_LARGE = 405
    BAD_REQUEST = 406
    BAD_FRAME = 600
    FRAME_TOO_LARGE = 601
    BAD_TOKEN = 602
    BANNED = 603
    KICKED = 604
    RESUMED_ELSEWHERE = 605
    VERSION = 606

class CodeInfo(NamedTuple):
    number: int
    name: str
    kind: str
    when: str

TABLE: Final[tuple[CodeInfo, ...]]
BY_NAME: Final[dict[str, int]]
NAMES: Final[dict[int, str]]
