from typing import Final

COUNT_MAX: Final[int]
OF_GLOBALS: Final[int]

def byte_of(name: bytes) -> int: ...
def check_count(count: int) -> int: ...
