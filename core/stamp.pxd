# Stamp: what a load client writes at the head of each payload, by which whoever receives it knows when it should have
# been sent, by whom, and whether it came unchanged. The rest of the payload is a fixed pattern.
#
# All programs that measure with each other run on one machine or on machines of one byte order.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    STAMP_BYTES = 24
    STAMP_PAYLOAD_MAX = 60000   # below max_frame's default with everything around it

ctypedef struct Stamp:          # 24 bytes
    uint64_t intended_ns        # the sender's wall clock: when the message should have left
    uint32_t sender             # its index
    uint32_t sequence           # of the sender
    uint64_t check              # over the fields above and the size of the payload


cdef inline uint64_t stamp_sum(const Stamp *stamp, uint32_t size) noexcept nogil:
    cdef uint64_t sum = stamp.intended_ns * <uint64_t> 0x9e3779b97f4a7c15ULL
    sum ^= (<uint64_t> stamp.sender << 32) | stamp.sequence
    sum += size
    sum ^= sum >> 29
    return sum * <uint64_t> 0xbf58476d1ce4e5b9ULL


cdef inline bint stamp_read(const uint8_t *payload, uint32_t size, Stamp *stamp) noexcept nogil:
    """Read the stamp of a payload; False: it is not one that stamp_write wrote."""
    if size < STAMP_BYTES or size > STAMP_PAYLOAD_MAX:
        return False
    memcpy(stamp, payload, STAMP_BYTES)
    return stamp.check == stamp_sum(stamp, size) and stamp_pattern_found(payload, size)


# Fill `size` bytes (STAMP_BYTES to STAMP_PAYLOAD_MAX): the stamp, whose check is computed here, and the pattern.
cdef void stamp_write(uint8_t *payload, uint32_t size, Stamp *stamp) noexcept nogil
cdef bint stamp_pattern_found(const uint8_t *payload, uint32_t size) noexcept nogil
