TRUNCATED: int
INVALID: int
NIL: int
BOOL: int
INT: int
FLOAT: int
STR: int
BIN: int
ARRAY: int
MAP: int
EXT: int

def read(what: str, data: bytes) -> tuple[int, object, int]: ...
def peek(data: bytes) -> int: ...
def skip(data: bytes) -> int: ...
def write(items: list[tuple[str, object]], capacity: int) -> tuple[bytes, bool]: ...
