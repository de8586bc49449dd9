from typing import Final

TURN_NS: Final[int]
WINDOW_NS: Final[int]
ENTER: Final[int]
LEAVE: Final[int]

class TurnPace:
    def turn(self, events: int, now_ns: int) -> int: ...
