from typing import Final

TURNS: Final[int]

class TurnPace:
    def __init__(self, turn_ns: int) -> None: ...
    def turn(self, now_ns: int) -> int: ...
