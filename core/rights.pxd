# Rights: the channels that a session's token allows, where the token has such lists.
#
# MessagePack {join: [pattern, ...], publish: [pattern, ...]}, written and checked by the control thread and kept in the
# connection's aside, so that a session without lists costs nothing. A pattern is a channel's name, or ends in `*` and
# stands for all names that begin so. A list that is there is a limit in every namespace; one that is not there limits
# nothing, and gives nothing where the namespace asks for it (join = token).

from libc.stdint cimport uint8_t, uint32_t

from core.conn cimport ASIDE_NONE, Connection, conn_aside_at
from core.edge cimport Edge

cdef enum:
    RIGHTS_BYTES_MAX = 16384    # of one session; a PUBLISH may look through all of them

cdef enum Right:
    RIGHT_UNSAID                # there is no list
    RIGHT_GIVEN
    RIGHT_REFUSED               # there is a list, and nothing in it fits


cdef inline int right_to(Edge *edge, Connection *conn, bint join, const char *name, uint32_t size) noexcept nogil:
    """What the session's token says of joining a channel, or of publishing to it."""
    if conn.aside == ASIDE_NONE or conn_aside_at(&edge.asides, conn).rights == NULL:
        return RIGHT_UNSAID
    return right_find(conn_aside_at(&edge.asides, conn).rights, conn_aside_at(&edge.asides, conn).rights_size, join,
                      name, size)


cdef int right_find(const uint8_t *rights, uint32_t rights_size, bint join, const char *name,
                    uint32_t size) noexcept nogil
cdef int rights_set(Edge *edge, Connection *conn, const uint8_t *rights, uint32_t size) noexcept nogil
