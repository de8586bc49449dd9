from typing import Final

MEMORY: Final[dict[str, int]]
