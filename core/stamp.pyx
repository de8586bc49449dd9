"""Stamp: writing payloads, and a Python face."""

from libc.string cimport memcmp

PAYLOAD_BYTES_MIN = STAMP_BYTES
PAYLOAD_BYTES_MAX = STAMP_PAYLOAD_MAX

cdef uint8_t _pattern[STAMP_PAYLOAD_MAX]


cdef void _pattern_fill() noexcept nogil:
    """Printable, without a period that a lost or doubled piece of a power of two would keep."""
    cdef uint32_t at
    for at in range(STAMP_PAYLOAD_MAX):
        _pattern[at] = <uint8_t> (33 + (at * 31 + at // 94) % 94)


_pattern_fill()


cdef void stamp_write(uint8_t *payload, uint32_t size, Stamp *stamp) noexcept nogil:
    stamp.check = stamp_sum(stamp, size)
    memcpy(payload, stamp, STAMP_BYTES)
    memcpy(payload + STAMP_BYTES, _pattern, size - STAMP_BYTES)


cdef bint stamp_pattern_found(const uint8_t *payload, uint32_t size) noexcept nogil:
    return memcmp(payload + STAMP_BYTES, _pattern, size - STAMP_BYTES) == 0


def write(uint32_t size, uint64_t intended_ns, uint32_t sender, uint32_t sequence):
    """A stamped payload.

    Raises:
        ValueError: the size is not between PAYLOAD_BYTES_MIN and PAYLOAD_BYTES_MAX.
    """
    cdef Stamp stamp
    if not STAMP_BYTES <= size <= STAMP_PAYLOAD_MAX:
        raise ValueError(f"a stamped payload has {STAMP_BYTES} to {STAMP_PAYLOAD_MAX} bytes, not {size}")
    payload = bytes(size)
    stamp.intended_ns = intended_ns
    stamp.sender = sender
    stamp.sequence = sequence
    stamp_write(<uint8_t *> <char *> payload, size, &stamp)
    return payload


def read(bytes payload):
    """(intended_ns, sender, sequence) of a stamped payload; None when it is not one, or was changed."""
    cdef Stamp stamp
    if not stamp_read(<const uint8_t *> <const char *> payload, <uint32_t> len(payload), &stamp):
        return None
    return stamp.intended_ns, stamp.sender, stamp.sequence
