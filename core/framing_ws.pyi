from typing import final

BAD: int
TOO_LARGE: int
UTF8: int

@final
class WsReader:
    max_frame: int
    need: int
    error: int
    def __init__(self, max_frame: int = 65536, client: bool = False) -> None: ...
    @property
    def buffered(self) -> int: ...
    @property
    def assembled(self) -> int: ...
    def feed(self, data: bytes) -> list[tuple[int, bytes]]: ...

def header(opcode: int, payload_size: int, mask: bytes | None = None) -> bytes: ...
def masked(payload: bytes, mask: bytes) -> bytes: ...
