# What the two transports' cutters share: a cursor into the receive buffer, and the view of the frame they cut.
#
# A cutter has the form
#     int X_next(State*, Cursor*, uint32_t max_frame, FrameView* out, uint32_t* need) noexcept nogil
# and returns
#     1   a frame is in `out`; call again before reading more;
#     0   more bytes are needed: base[pos:end] is exactly what must be kept, and `need` says how many bytes
#         base[pos:end] must reach before another call makes sense (so that a slow sender costs no retry per byte);
#     <0  one of the FRAMING_ codes: the connection is beyond repair, answer and close.
# After 1 the caller may also stop: the cursor and the state together say where to go on. Bytes before `pos` are free
# once the view is done with; whoever moves base[pos:end] to the front of the buffer sets pos = 0 and end to match.
#
# Invariant: pos <= end <= capacity of the buffer (the owner's), and max_frame <= FRAME_BYTES_MAX.
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    FRAMING_BAD = -1        # breaks the transport's rules
    FRAMING_TOO_LARGE = -2  # the announced size is over max_frame; told from the header, before the payload arrives
    FRAMING_UTF8 = -3       # a text message that is not UTF-8

# WebSocket's opcodes (RFC 6455 section 11.8); a TCP frame is always FRAME_BINARY.
cdef enum:
    FRAME_CONTINUATION = 0
    FRAME_TEXT = 1
    FRAME_BINARY = 2
    FRAME_CLOSE = 8
    FRAME_PING = 9
    FRAME_PONG = 10

cdef enum:
    # Keeps every sum of sizes and headers inside 32 bits.
    FRAME_BYTES_MAX = 0x3FFFFFFF

ctypedef struct Cursor:
    uint8_t* base  # borrowed until the call returns: a linear, writable receive buffer
    uint32_t pos   # first byte not yet consumed
    uint32_t end   # one past the last byte received

ctypedef struct FrameView:
    const uint8_t* data  # borrowed until the next call on the same cursor, or until the buffer is moved
    uint32_t size        # bytes
    uint8_t opcode       # FRAME_…
