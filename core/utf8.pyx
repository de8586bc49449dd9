"""The Python face of utf8.pxd, for tests."""

from libc.stdint cimport uint8_t

from core.utf8 cimport utf8_valid


def valid(data: bytes) -> bool:
    """Whether `data` is well-formed UTF-8 (RFC 3629)."""
    cdef const uint8_t[::1] text = data
    return utf8_valid(&text[0] if text.shape[0] else NULL, text.shape[0])
