from typing import Final

VITAL_BYTES: Final[int]
