"""Welcome: what a session's channels take there, held against the room that there is."""

from core.conn cimport ASIDE_NONE, conn_aside_at, conn_memberships
from core.edge cimport NAME_BYTES_MAX
from core.fanout cimport channel_at, channel_name, conn_user
from core.namespaces cimport DOMAIN_GLOBAL

cdef enum:
    ENTRY_BYTES_MAX = WELCOME_ENTRY_BYTES + 6 * NAME_BYTES_MAX


cdef int64_t welcome_room(Edge *edge, Connection *conn, const char *user, uint32_t user_size) noexcept nogil:
    """What all channels of a session may take but for the global ones; below 0: there is none for the session itself.

    The resume token holds the user and the token's lists, as base64.
    """
    cdef uint32_t held = user_size
    if conn.aside != ASIDE_NONE:
        held += conn_aside_at(&edge.asides, conn).rights_size
    return <int64_t> (edge.config.max_frame // 2) - WELCOME_REST_BYTES - welcome_text_bytes(user, user_size) \
        - held * 4 // 3


cdef bint welcome_fits(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """Whether an open session may be in one more channel; O(its memberships), once they might not fit whatever they are
    called."""
    cdef uint32_t size = 0
    cdef const char *user = conn_user(edge, conn, &size)
    cdef int64_t room = welcome_room(edge, conn, user, size)
    cdef uint32_t slot
    cdef Channel *joined
    if (<int64_t> conn.membership_count + 1) * ENTRY_BYTES_MAX <= room:
        return True
    room -= welcome_entry_bytes(channel_name(edge, channel), channel.name_size)
    for slot in range(conn.membership_count):
        joined = channel_at(edge, conn_memberships(conn)[slot].channel)
        if joined.domain != DOMAIN_GLOBAL:
            room -= welcome_entry_bytes(channel_name(edge, joined), joined.name_size)
    return room >= 0
