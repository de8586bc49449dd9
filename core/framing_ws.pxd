# WebSocket's framing (RFC 6455 section 5), both sides. See framing.pxd for the form of the cutter.
#
# A message in fragments is put together in the receive buffer itself: each payload is unmasked and moved down to the
# end of the one before, which leaves a hole (the bytes of the headers and of control frames in between):
#
#     base   pos              pos + assembled        pos + assembled + hole                end
#     | free | payload so far | hole                 | bytes not looked at                 |
#
# Moving the new payload and not the old ones keeps the cost of a message linear in its bytes, however it was cut. The
# hole is closed before 0 is returned, so that base[pos:end] holds nothing but what is needed.
#
# Invariant: pos + assembled + hole <= end; opcode 0 => assembled = hole = 0; hole <= 65535.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from core.framing cimport (
    FRAME_BINARY, FRAME_BYTES_MAX, FRAME_CLOSE, FRAME_CONTINUATION, FRAME_PONG, FRAME_TEXT, FRAMING_BAD,
    FRAMING_TOO_LARGE, FRAMING_UTF8, Cursor, FrameView
)
from core.utf8 cimport utf8_valid

cdef extern from "invariant.h":
    void invariant(bint) nogil

cdef extern from *:
    """
    #define holdfast_static_assert(cond) _Static_assert(cond, #cond)
    """
    void holdfast_static_assert(bint) nogil

cdef enum:
    WS_CLIENT = 1  # flag: we are the client, so the peer's frames must come unmasked

cdef enum:
    WS_HEADER_SIZE_MAX = 14         # 2, a length of 8, a mask of 4
    WS_CONTROL_SIZE_MAX = 125       # payload of a control frame
    WS_HOLE_SIZE_MAX = 32768        # beyond it the hole is closed early, so that its size stays inside 16 bits
    WS_CLOSE_PROTOCOL_ERROR = 1002  # close status for FRAMING_BAD
    WS_CLOSE_BAD_DATA = 1007        # close status for FRAMING_UTF8
    WS_CLOSE_TOO_LARGE = 1009       # close status for FRAMING_TOO_LARGE

ctypedef struct WsDecoder:  # 8 bytes, one in each connection
    uint32_t assembled  # bytes of the unfinished message already unmasked and in place
    uint16_t hole       # bytes between them and the bytes not looked at
    uint8_t opcode      # FRAME_TEXT or FRAME_BINARY of the unfinished message, 0 if there is none
    uint8_t flags       # WS_CLIENT

ctypedef struct WsHeader:
    uint64_t payload_size
    uint32_t size        # of the header itself, mask included
    uint8_t opcode
    uint8_t fin
    const uint8_t* mask  # 4 bytes, borrowed until the payload is unmasked; NULL if the frame is not masked


cdef inline void ws_decoder_init(WsDecoder* decoder, bint client) noexcept nogil:
    holdfast_static_assert(sizeof(WsDecoder) == 8)
    decoder.assembled = 0
    decoder.hole = 0
    decoder.opcode = 0
    decoder.flags = WS_CLIENT if client else 0


cdef inline void ws_decoder_check(const WsDecoder* decoder, const Cursor* cursor) noexcept nogil:
    invariant(cursor.pos <= cursor.end)
    invariant(<uint64_t>cursor.pos + decoder.assembled + decoder.hole <= cursor.end)
    invariant(decoder.opcode != 0 or (decoder.assembled == 0 and decoder.hole == 0))
    invariant(decoder.opcode <= FRAME_BINARY)


cdef inline void ws_mask_apply(uint8_t* payload, uint32_t size, const uint8_t* mask) noexcept nogil:
    """XOR `payload` in place with the 4 bytes of `mask` (RFC 6455 section 5.3), 8 bytes at a time."""
    cdef uint32_t key
    cdef uint64_t key_twice
    cdef uint64_t word
    cdef Py_ssize_t at, number
    memcpy(&key, mask, 4)
    key_twice = (<uint64_t>key << 32) | key
    for number in range(<Py_ssize_t>size >> 3):    # a counter that cannot wrap: the compiler makes SSE2 of it
        memcpy(&word, payload + 8 * number, 8)
        word ^= key_twice
        memcpy(payload + 8 * number, &word, 8)
    for at in range(<Py_ssize_t>size & ~<Py_ssize_t>7, size):
        payload[at] ^= (<const uint8_t*>&key)[at & 3]


cdef inline int ws_length_read(const uint8_t* src, WsHeader* header) noexcept nogil:
    """Read the extended length behind the first two bytes; FRAMING_BAD if a shorter form would have done."""
    cdef uint32_t length_size = 2 if (src[1] & 0x7F) == 126 else 8
    cdef uint32_t at
    header.payload_size = 0
    for at in range(2, 2 + length_size):
        header.payload_size = (header.payload_size << 8) | src[at]
    if length_size == 2:
        return 0 if header.payload_size > 125 else FRAMING_BAD
    return 0 if 0xFFFF < header.payload_size <= <uint64_t>0x7FFFFFFFFFFFFFFF else FRAMING_BAD


cdef inline int ws_opening_check(const WsDecoder* decoder, const uint8_t* src) noexcept nogil:
    """What the first two bytes of a frame already show to be wrong (RFC 6455 sections 5.1, 5.2, 5.4 and 5.5)."""
    cdef uint8_t opcode = src[0] & 0x0F
    cdef bint masked = (src[1] & 0x80) != 0
    if src[0] & 0x70 or masked == ((decoder.flags & WS_CLIENT) != 0):
        return FRAMING_BAD
    if opcode >= FRAME_CLOSE:
        if opcode > FRAME_PONG or not src[0] & 0x80 or (src[1] & 0x7F) > WS_CONTROL_SIZE_MAX:
            return FRAMING_BAD
        return 0
    if opcode > FRAME_BINARY or (opcode == FRAME_CONTINUATION) != (decoder.opcode != 0):
        return FRAMING_BAD
    return 0


cdef inline int ws_header_read(
    const WsDecoder* decoder, const uint8_t* src, uint32_t size, WsHeader* header, uint32_t* need
) noexcept nogil:
    """Read a frame's header: 1 and `header`, 0 and the bytes it `need`s from `src` on, or FRAMING_BAD."""
    need[0] = 2
    if size < 2:
        return 0
    if ws_opening_check(decoder, src) < 0:
        return FRAMING_BAD
    header.opcode = src[0] & 0x0F
    header.fin = src[0] >> 7
    header.payload_size = src[1] & 0x7F
    header.size = 2
    if header.payload_size > 125:
        header.size = 4 if header.payload_size == 126 else 10
        need[0] = header.size
        if size < header.size:
            return 0
        if ws_length_read(src, header) < 0:
            return FRAMING_BAD
    header.mask = NULL
    if src[1] & 0x80:
        header.mask = src + header.size
        header.size += 4
        need[0] = header.size
        if size < header.size:
            return 0
    return 1


cdef inline bint ws_close_code_valid(uint32_t code) noexcept nogil:
    """Whether a close frame may carry `code` on the wire (RFC 6455 section 7.4 and its registry)."""
    if code < 3000:
        return 1000 <= code <= 1003 or 1007 <= code <= 1014
    return code < 5000


cdef inline bint ws_close_valid(const uint8_t* payload, uint32_t size) noexcept nogil:
    """Whether a close frame's payload is empty, or a code and a reason in UTF-8 (RFC 6455 section 5.5.1)."""
    if size == 0:
        return True
    if size < 2:
        return False
    return ws_close_code_valid((<uint32_t>payload[0] << 8) | payload[1]) and utf8_valid(payload + 2, size - 2)


cdef inline void ws_hole_close(WsDecoder* decoder, Cursor* cursor) noexcept nogil:
    cdef uint32_t to
    if decoder.hole == 0:
        return
    to = cursor.pos + decoder.assembled
    memmove(cursor.base + to, cursor.base + to + decoder.hole, cursor.end - to - decoder.hole)
    cursor.end -= decoder.hole
    decoder.hole = 0


cdef inline int ws_control_take(
    WsDecoder* decoder, Cursor* cursor, const WsHeader* header, uint8_t* payload, FrameView* out
) noexcept nogil:
    """Give out a control frame; inside an unfinished message its bytes become part of the hole."""
    out.data = payload
    out.size = <uint32_t>header.payload_size
    out.opcode = header.opcode
    if header.opcode == FRAME_CLOSE and not ws_close_valid(out.data, out.size):
        return FRAMING_BAD
    if decoder.opcode:
        decoder.hole += <uint16_t>(header.size + out.size)
    else:
        cursor.pos += header.size + out.size
    return 1


cdef inline void ws_fragment_keep(
    WsDecoder* decoder, Cursor* cursor, const WsHeader* header, const uint8_t* payload
) noexcept nogil:
    """Join a fragment's payload to the unfinished message; its header becomes part of the hole."""
    if decoder.opcode == 0:
        # The first one stays where it is: the header goes to the free bytes in front.
        decoder.opcode = header.opcode
        cursor.pos += header.size
    else:
        memmove(cursor.base + cursor.pos + decoder.assembled, payload, header.payload_size)
        decoder.hole += <uint16_t>header.size
    decoder.assembled += <uint32_t>header.payload_size


cdef inline int ws_message_take(
    WsDecoder* decoder, Cursor* cursor, const WsHeader* header, const uint8_t* payload, FrameView* out
) noexcept nogil:
    """Give out a message that is complete with this frame."""
    if header.opcode == FRAME_CONTINUATION:
        memmove(cursor.base + cursor.pos + decoder.assembled, payload, header.payload_size)
        out.data = cursor.base + cursor.pos
        out.size = decoder.assembled + <uint32_t>header.payload_size
        out.opcode = decoder.opcode
        cursor.pos += out.size + decoder.hole + header.size
        decoder.assembled = 0
        decoder.hole = 0
        decoder.opcode = 0
    else:
        out.data = payload
        out.size = <uint32_t>header.payload_size
        out.opcode = header.opcode
        cursor.pos += header.size + out.size
    if out.opcode == FRAME_TEXT and not utf8_valid(out.data, out.size):
        return FRAMING_UTF8
    return 1


cdef inline int ws_more(WsDecoder* decoder, Cursor* cursor, uint32_t more, uint32_t* need) noexcept nogil:
    """Leave with 0: the frame under way needs `more` bytes in all."""
    ws_hole_close(decoder, cursor)
    need[0] = decoder.assembled + more
    ws_decoder_check(decoder, cursor)
    return 0


cdef inline int ws_next(
    WsDecoder* decoder, Cursor* cursor, uint32_t max_frame, FrameView* out, uint32_t* need
) noexcept nogil:
    """Cut the next message or control frame; see framing.pxd for the contract. `max_frame` bounds a whole message."""
    cdef WsHeader header
    cdef uint8_t* src
    cdef uint32_t more = 0
    cdef uint32_t available
    cdef int got
    invariant(max_frame <= FRAME_BYTES_MAX)
    while True:
        ws_decoder_check(decoder, cursor)
        if decoder.hole > WS_HOLE_SIZE_MAX:
            ws_hole_close(decoder, cursor)
        src = cursor.base + cursor.pos + decoder.assembled + decoder.hole
        available = cursor.end - cursor.pos - decoder.assembled - decoder.hole
        got = ws_header_read(decoder, src, available, &header, &more)
        if got < 0:
            return got
        if got == 0:
            return ws_more(decoder, cursor, more, need)
        # A control frame inside a message is bounded by its own 125 bytes, not by what the message has left.
        if header.opcode < FRAME_CLOSE and header.payload_size + decoder.assembled > max_frame:
            return FRAMING_TOO_LARGE
        if available - header.size < header.payload_size:
            return ws_more(decoder, cursor, header.size + <uint32_t>header.payload_size, need)
        src += header.size
        if header.mask != NULL:
            ws_mask_apply(src, <uint32_t>header.payload_size, header.mask)
        if header.opcode >= FRAME_CLOSE:
            return ws_control_take(decoder, cursor, &header, src, out)
        if header.fin:
            return ws_message_take(decoder, cursor, &header, src, out)
        ws_fragment_keep(decoder, cursor, &header, src)


cdef inline uint32_t ws_header_write(uint8_t* dst, uint8_t opcode, uint64_t payload_size) noexcept nogil:
    """Write the header of an unmasked frame that is a whole message; returns its size: 2, 4 or 10 bytes."""
    cdef uint32_t at
    dst[0] = 0x80 | opcode
    if payload_size <= 125:
        dst[1] = <uint8_t>payload_size
        return 2
    if payload_size <= 0xFFFF:
        dst[1] = 126
        dst[2] = <uint8_t>(payload_size >> 8)
        dst[3] = <uint8_t>payload_size
        return 4
    dst[1] = 127
    for at in range(8):
        dst[2 + at] = <uint8_t>(payload_size >> (56 - 8 * at))
    return 10


cdef inline uint32_t ws_header_write_masked(
    uint8_t* dst, uint8_t opcode, uint64_t payload_size, const uint8_t* mask
) noexcept nogil:
    """As ws_header_write, for a client: 6, 8 or 14 bytes; the caller applies `mask` (4 bytes) to the payload."""
    cdef uint32_t size = ws_header_write(dst, opcode, payload_size)
    dst[1] |= 0x80
    memcpy(dst + size, mask, 4)
    return size + 4
