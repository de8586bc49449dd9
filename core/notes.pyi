from typing import Final

FRAME: Final[int]
PRESENCE_EXPECT: Final[int]
PRESENCE_PART: Final[int]
LINKED: Final[int]
STOPPED: Final[int]
OPEN: Final[int]
SEND: Final[int]
FIN: Final[int]
HISTORY: Final[int]
PRESENCE: Final[int]
DRAIN: Final[int]
STOP: Final[int]
