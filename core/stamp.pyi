from typing import Final

PAYLOAD_BYTES_MIN: Final[int]
PAYLOAD_BYTES_MAX: Final[int]

def write(size: int, intended_ns: int, sender: int, sequence: int) -> bytes: ...
def read(payload: bytes) -> tuple[int, int, int] | None: ...
