"""Act: the frames that are not on the path of a message."""

from core.edge cimport CONTROL_AHEAD_MS, CONTROL_UNIT_BYTES, CONTROL_UNIT_MS
from core.lifecycle cimport edge_fin
from core.mailbox cimport NOTE_FRAME, Note, mailbox_put


cdef int act_fin(Edge *edge, Connection *conn, MpReader *reader, uint32_t count) noexcept nogil:
    """FIN of the client: [14, code, reason, {...}]; -1: malformed."""
    cdef uint64_t code
    cdef uint32_t _at
    if count < 2 or count > 4 or mp_read_uint(reader, &code) != MP_OK:
        return -1
    for _at in range(2, count):
        if mp_skip(reader) != MP_OK:
            return -1
    if reader.p != reader.end:
        return -1
    edge_peer_fin(edge, conn)
    return 0


cdef bint act_well_formed(const uint8_t *body, uint32_t size) noexcept nogil:
    """Whether the bytes are exactly one MessagePack value."""
    cdef MpReader reader
    reader.p = body
    reader.end = body + size
    return mp_skip(&reader) == MP_OK and reader.p == reader.end


cdef bint _channel_refused(Edge *edge, Connection *conn, uint64_t kind, const uint8_t *body,
                           uint32_t size) noexcept nogil:
    """A channel that is not UTF-8 is one request's fault; True: answered by ERROR."""
    cdef MpReader reader
    cdef uint32_t count
    cdef uint64_t number, request
    cdef const char *name
    reader.p = body
    reader.end = body + size
    if kind not in (TYPE_JOIN, TYPE_LEAVE, TYPE_HISTORY, TYPE_PRESENCE):
        return False
    if mp_read_array(&reader, &count) != MP_OK or count < 3 or count > 4 or mp_read_uint(&reader, &number) != MP_OK \
            or mp_read_uint(&reader, &request) != MP_OK or mp_read_str(&reader, &name, &size) != MP_OK \
            or utf8_valid(<const uint8_t *> name, size):
        return False
    if (count == 4 and mp_skip(&reader) != MP_OK) or reader.p != reader.end:
        return False
    answer_error(edge, conn, request, BAD_REQUEST, b"the channel is not UTF-8", 0)
    return True


cdef bint _credit_allows(Edge *edge, Connection *conn, uint32_t size) noexcept nogil:
    """Token bucket of control frames a connection, so that none fills the mailbox that all share.

    It is kept as the time when it is full again: one number instead of two.
    """
    cdef uint32_t cost = (1 + size // CONTROL_UNIT_BYTES) * CONTROL_UNIT_MS
    cdef uint32_t ahead = conn.control_until - <uint32_t> edge.now_ms
    if ahead > CONTROL_AHEAD_MS:                        # in the past, however long ago: the bucket is full
        ahead = 0
    if ahead + cost > CONTROL_AHEAD_MS:
        return False
    conn.control_until = <uint32_t> edge.now_ms + ahead + cost
    return True


cdef void _refuse_rate(Edge *edge, Connection *conn, const uint8_t *body, uint32_t size) noexcept nogil:
    """ERROR rate_limited under the request's number; HELLO, which has no ERROR of that kind, ends the connection."""
    cdef MpReader reader
    cdef uint32_t count
    cdef uint64_t kind, request
    reader.p = body
    reader.end = body + size
    if conn.state != STATE_OPEN:
        edge_fin(edge, conn, OVERLOADED, b"too many control frames from this connection", RETRY_AFTER_MS)
    elif mp_read_array(&reader, &count) == MP_OK and mp_read_uint(&reader, &kind) == MP_OK \
            and mp_read_uint(&reader, &request) == MP_OK:
        answer_error(edge, conn, request, RATE_LIMITED, b"too many control frames from this session", RETRY_AFTER_MS)


cdef int act_control(Edge *edge, Connection *conn, uint64_t kind, const uint8_t *body, uint32_t size) noexcept nogil:
    """Hand a control frame to the Python thread; -1: not one, or not in this state."""
    cdef Note note
    cdef Channel *user
    cdef const uint8_t *user_name = NULL
    if conn.state == STATE_HANDSHAKING:
        if kind != TYPE_HELLO or conn.flags & FLAG_HELLO:
            return -1
    elif kind not in (TYPE_HELLO, TYPE_JOIN, TYPE_LEAVE, TYPE_HISTORY, TYPE_PRESENCE, TYPE_REFRESH, TYPE_CALL):
        return -1
    if not act_well_formed(body, size):
        return 0 if conn.state == STATE_OPEN and _channel_refused(edge, conn, kind, body, size) else -1
    if not _credit_allows(edge, conn, size):
        _refuse_rate(edge, conn, body, size)
        return 0
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_FRAME
    note.flags = <unsigned short> conn.state
    note.conn = conn_handle(conn)
    note.text_size = size
    memcpy(note.session, conn.session, 16)
    if conn.membership_count:
        user = channel_at(edge, conn_memberships(conn)[0].channel)
        user_name = <const uint8_t *> channel_name(edge, user) + 5
        note.extra_size = user.name_size - 5
    if mailbox_put(&edge.to_control, &note, body, user_name) < 0:
        edge_fin(edge, conn, OVERLOADED, b"too many control frames wait", RETRY_AFTER_MS)
        return 0
    if conn.state == STATE_HANDSHAKING:
        conn.flags |= FLAG_HELLO
    return 0
