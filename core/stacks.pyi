from typing import Final

NATIVE: Final[int]
PYTHON: Final[int]

def install(fd: int, place: int) -> None: ...
