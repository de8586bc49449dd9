# ZMTP: the bytes that ZeroMQ sockets exchange over a stream, version 3 with the NULL mechanism (RFC 23/ZMTP).
#
# A connection begins with a greeting of 64 bytes each way, then one READY command each way; after that it carries
# frames: a flag byte, a length of one or eight bytes, a body. Functions over bytes: no descriptor, clock or allocation.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    ZMTP_GREETING_BYTES = 64
    ZMTP_HEADER_BYTES_MAX = 9
    ZMTP_IDENTITY_BYTES_MAX = 255
    ZMTP_COMMAND_BYTES_MAX = 512        # of a READY with the longest identity, and what others add to it
    ZMTP_MORE = 1
    ZMTP_LONG = 2
    ZMTP_COMMAND = 4
    ZMTP_BROKEN = -1

ctypedef struct ZmtpFrame:
    uint64_t size               # bytes of the body
    uint32_t header             # bytes before it
    uint32_t flags


cdef inline int zmtp_frame_read(const uint8_t *data, size_t size, ZmtpFrame *frame) noexcept nogil:
    """The header of a frame: 1 read, 0 more bytes wanted, ZMTP_BROKEN."""
    cdef uint32_t place
    if size == 0:
        return 0
    frame.flags = data[0]
    if frame.flags & ~<uint32_t> (ZMTP_MORE | ZMTP_LONG | ZMTP_COMMAND):
        return ZMTP_BROKEN
    frame.header = 9 if frame.flags & ZMTP_LONG else 2
    if size < frame.header:
        return 0
    frame.size = 0
    for place in range(1, frame.header):
        frame.size = (frame.size << 8) | data[place]
    return 1


cdef inline void zmtp_long_header_write(uint8_t *out, uint64_t size) noexcept nogil:
    """Nine bytes: a message frame that is the last of its message, its length in eight bytes whatever it is."""
    cdef int place
    out[0] = ZMTP_LONG
    for place in range(8):
        out[1 + place] = <uint8_t> (size >> (56 - 8 * place))


cdef inline void zmtp_greeting_write(uint8_t *out) noexcept nogil:
    """The greeting of ZMTP_GREETING_BYTES: version 3.1, NULL mechanism."""
    memset(out, 0, ZMTP_GREETING_BYTES)
    out[0] = 0xFF
    out[8] = 1                  # what libzmq says there, for peers of version 1
    out[9] = 0x7F
    out[10] = 3
    out[11] = 1
    memcpy(out + 12, b"NULL", 4)


cdef int zmtp_greeting_check(const uint8_t *data) noexcept nogil
cdef uint32_t zmtp_ready_write(uint8_t *out, const char *kind, const uint8_t *identity,
                               uint32_t identity_size) noexcept nogil
cdef int zmtp_ready_read(const uint8_t *data, uint32_t size, const uint8_t **identity,
                         uint32_t *identity_size) noexcept nogil
cdef uint32_t zmtp_pong_write(uint8_t *out, const uint8_t *ping, uint32_t size) noexcept nogil
