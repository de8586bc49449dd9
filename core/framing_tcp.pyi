from typing import final

BAD: int
TOO_LARGE: int

@final
class TcpReader:
    max_frame: int
    need: int
    error: int
    def __init__(self, max_frame: int = 65536) -> None: ...
    @property
    def buffered(self) -> int: ...
    def feed(self, data: bytes) -> list[bytes]: ...

def header(body_size: int) -> bytes: ...
