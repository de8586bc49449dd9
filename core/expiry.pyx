"""Expiry: what a client hears of it."""

from core.answers cimport TYPE_EVENT, answer_frame, write_text
from core.conn cimport conn_memberships
from core.edge cimport ANSWER_BYTES, Channel
from core.fanout cimport channel_at, channel_name
from core.mpack cimport MpWriter, mp_write_array, mp_write_map, mp_write_str, mp_write_uint


cdef void expiry_tell(Edge *edge, Connection *conn) noexcept nogil:
    """EVENT expired on the channel of the session's user: so many ms are left for a REFRESH."""
    cdef unsigned char body[ANSWER_BYTES]
    cdef Vital *vital = vital_of(edge, conn)
    cdef Channel *user
    cdef MpWriter writer
    cdef int32_t left = <int32_t> (vital.expires - edge_tick(edge))
    vital.warned = 1
    if conn.membership_count == 0:
        return
    user = channel_at(edge, conn_memberships(conn)[0].channel)
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 4)
    mp_write_uint(&writer, TYPE_EVENT)
    mp_write_str(&writer, channel_name(edge, user), user.name_size)
    write_text(&writer, b"expired")
    mp_write_map(&writer, 1)
    write_text(&writer, b"after")
    mp_write_uint(&writer, <uint64_t> max(left, <int32_t> 0) * WHEEL_TICK_MS)
    answer_frame(edge, conn, body, <uint32_t> (writer.p - body))
