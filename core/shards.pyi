from collections.abc import Iterable
from typing import Final

from core.namespace_spec import NamespaceSpec

COUNT_MAX: Final[int]
OF_GLOBALS: Final[int]

def byte_of(name: bytes) -> int: ...
def check_count(count: int) -> int: ...

class Shards:
    def __init__(self, namespaces: Iterable[NamespaceSpec], count: int = ...) -> None: ...
    def of_channel(self, name: bytes) -> int: ...
