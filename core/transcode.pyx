"""The Python face of transcode.pxd, for tests and for the control plane's rare frames."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from core.transcode cimport (
    TRANSCODE_DEPTH, TRANSCODE_MALFORMED, TRANSCODE_OVERFLOW, json_bound, json_to_mpack, mpack_bound, mpack_to_json
)

MALFORMED = TRANSCODE_MALFORMED
OVERFLOW = TRANSCODE_OVERFLOW
DEPTH = TRANSCODE_DEPTH


class TranscodeError(ValueError):
    """A value that cannot be carried over; `code` is MALFORMED, OVERFLOW or DEPTH."""

    def __init__(self, code: int) -> None:
        super().__init__({MALFORMED: "malformed", OVERFLOW: "too small a buffer", DEPTH: "too deep"}[code])
        self.code = code


def mpack_from_json(data: bytes, capacity: int | None = None) -> bytes:
    """One JSON value as MessagePack, within `capacity` bytes (enough for any if left out)."""
    cdef size_t cap = mpack_bound(len(data)) if capacity is None else capacity
    cdef bytearray buffer = bytearray(cap)
    cdef size_t written = 0
    cdef int got = json_to_mpack(<const uint8_t*><const char*>data, len(data), <uint8_t*><char*>buffer, cap, &written)
    if got < 0:
        raise TranscodeError(got)
    return bytes(buffer[:written])


def json_from_mpack(data: bytes, capacity: int | None = None) -> bytes:
    """One MessagePack value as JSON, within `capacity` bytes (enough for any if left out)."""
    cdef size_t cap = json_bound(len(data)) if capacity is None else capacity
    cdef bytearray buffer = bytearray(cap)
    cdef size_t written = 0
    cdef int got = mpack_to_json(<const uint8_t*><const char*>data, len(data), <uint8_t*><char*>buffer, cap, &written)
    if got < 0:
        raise TranscodeError(got)
    return bytes(buffer[:written])
