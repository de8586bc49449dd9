# TCP's framing: a u32 big-endian body length, then the body. See framing.pxd for the form of the cutter.
#
# The length is consumed as soon as it is complete, so that a body may fill the receive buffer to its last byte.
# Invariant: body_size is 0 exactly while a length is awaited (a body of no bytes is refused).
from libc.stdint cimport uint8_t, uint32_t

from core.framing cimport FRAME_BINARY, FRAME_BYTES_MAX, FRAMING_BAD, FRAMING_TOO_LARGE, Cursor, FrameView

cdef extern from "invariant.h":
    void invariant(bint) nogil

cdef enum:
    TCP_HEADER_SIZE = 4

ctypedef struct TcpDecoder:
    uint32_t body_size  # bytes of the body under way; 0: its length has not come yet


cdef inline void tcp_decoder_init(TcpDecoder* decoder) noexcept nogil:
    decoder.body_size = 0


cdef inline uint32_t tcp_header_read(const uint8_t* src) noexcept nogil:
    return (<uint32_t>src[0] << 24) | (<uint32_t>src[1] << 16) | (<uint32_t>src[2] << 8) | src[3]


cdef inline uint32_t tcp_header_write(uint8_t* dst, uint32_t body_size) noexcept nogil:
    """Write the length of a body to follow; returns TCP_HEADER_SIZE, which `dst` must have room for."""
    invariant(body_size > 0)
    dst[0] = <uint8_t>(body_size >> 24)
    dst[1] = <uint8_t>(body_size >> 16)
    dst[2] = <uint8_t>(body_size >> 8)
    dst[3] = <uint8_t>body_size
    return TCP_HEADER_SIZE


cdef inline int tcp_next(
    TcpDecoder* decoder, Cursor* cursor, uint32_t max_frame, FrameView* out, uint32_t* need
) noexcept nogil:
    """Cut the next body; see framing.pxd for the contract. The length itself does not count against `max_frame`."""
    invariant(cursor.pos <= cursor.end and max_frame <= FRAME_BYTES_MAX)
    if decoder.body_size == 0:
        if cursor.end - cursor.pos < TCP_HEADER_SIZE:
            need[0] = TCP_HEADER_SIZE
            return 0
        decoder.body_size = tcp_header_read(cursor.base + cursor.pos)
        if decoder.body_size == 0:
            return FRAMING_BAD
        if decoder.body_size > max_frame:
            return FRAMING_TOO_LARGE
        cursor.pos += TCP_HEADER_SIZE
    if cursor.end - cursor.pos < decoder.body_size:
        need[0] = decoder.body_size
        return 0
    out.data = cursor.base + cursor.pos
    out.size = decoder.body_size
    out.opcode = FRAME_BINARY
    cursor.pos += decoder.body_size
    decoder.body_size = 0
    return 1
