from typing import Final

NEXT: Final[int]
JUMPED: Final[int]
LATE: Final[int]
REPEATED: Final[int]
WINDOW: Final[int]

class Reader:
    def __init__(self, base: int) -> None: ...
    @property
    def last(self) -> int: ...
    def take(self, offset: int) -> tuple[int, int]: ...
    def skip(self, last: int) -> int: ...
