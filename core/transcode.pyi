MALFORMED: int
OVERFLOW: int
DEPTH: int

class TranscodeError(ValueError):
    code: int
    def __init__(self, code: int) -> None: ...

def mpack_from_json(data: bytes, capacity: int | None = None) -> bytes: ...
def json_from_mpack(data: bytes, capacity: int | None = None) -> bytes: ...
