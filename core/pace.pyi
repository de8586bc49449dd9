from typing import Final

TURN_NS: Final[int]
TURNS: Final[int]

class TurnPace:
    def turn(self, now_ns: int) -> int: ...
