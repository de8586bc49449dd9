from collections.abc import Iterable
from typing import Any

from core.namespace_spec import NamespaceSpec

class NamespaceTable:
    def __init__(self, specs: Iterable[NamespaceSpec]) -> None: ...
    def find(self, channel: bytes) -> dict[str, Any] | None: ...
