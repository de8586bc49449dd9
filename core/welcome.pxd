# Welcome: how many bytes the channels of a session may take in WELCOME, so that it always fits in `max_frame`.
#
# One half of a frame is for the global channels, which the router bounds (core/stream.pyx:stream_list), the other half
# for what is the session's own: who it is, its token, its user's channels and its groups. It is counted as JSON, which
# is longer than MessagePack, so that a session comes back in either. Nothing is kept for it: a JOIN counts what the
# session has. Invariant: what it has together with what it joins finds room, or it does not join.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from core.conn cimport Connection
from core.edge cimport Channel, Edge

cdef enum:
    WELCOME_ENTRY_BYTES = 64    # of a channel in WELCOME, but for its name: a position and an outcome
    WELCOME_REST_BYTES = 512    # of WELCOME but for its channels and what depends on the user and the token's lists


cdef inline uint32_t welcome_text_bytes(const char *text, uint32_t size) noexcept nogil:
    """Bytes of a text as JSON writes it, without its quotes."""
    cdef const uint8_t *byte = <const uint8_t *> text
    cdef uint32_t bytes = 0
    cdef uint32_t place
    for place in range(size):
        bytes += 6 if byte[place] < 0x20 else 2 if byte[place] == c'"' or byte[place] == c"\\" else 1
    return bytes


cdef inline uint32_t welcome_entry_bytes(const char *name, uint32_t size) noexcept nogil:
    """Bytes of a channel in WELCOME, at most."""
    return WELCOME_ENTRY_BYTES + welcome_text_bytes(name, size)


cdef int64_t welcome_room(Edge *edge, Connection *conn, const char *user, uint32_t user_size) noexcept nogil
cdef bint welcome_fits(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
