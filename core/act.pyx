"""Act: the frames that are not on the path of a message."""

from core.codes cimport BYE
from core.edge cimport CHANNEL_KNOWN, CONTROL_AHEAD_MS, CONTROL_UNIT_BYTES, CONTROL_UNIT_MS
from core.fanout cimport member_stands
from core.joins cimport join_leave, join_start, state_say
from core.lifecycle cimport edge_fin
from core.mailbox cimport NOTE_FRAME, Note, mailbox_put
from core.mpack cimport MP_MAP
from core.namespaces cimport JOIN_SERVER, JOIN_TOKEN
from core.records cimport STATE_ACKED
from core.rights cimport RIGHT_GIVEN

ctypedef struct ChannelFrame:   # a JOIN or LEAVE: views into the frame, until the call returns
    uint64_t id
    const char *name
    uint64_t since[2]           # epoch and offset
    uint32_t name_size
    bint has_since


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
    edge_peer_fin(edge, conn, code == BYE)
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


cdef void _acknowledge(Edge *edge, Connection *conn, const char *name, uint32_t size, uint64_t offset) noexcept nogil:
    """One position of an ACK, as far as the session was given the messages. It is passed over where the session is in
    no channel of the name: a global one that nobody is told of any more is none."""
    cdef Channel *channel = channel_find(edge, name, size)
    cdef uint64_t stands[2]
    if channel == NULL or not channel.flags & CHANNEL_KNOWN \
            and (channel.domain == DOMAIN_GLOBAL or not member_joined(conn, channel)):
        return
    member_stands(edge, conn, channel, stands)
    state_say(edge, conn, channel, STATE_ACKED, channel.epoch, min(offset, stands[1]))


cdef void act_acked(Edge *edge, Connection *conn, MpReader *reader, uint32_t pairs) noexcept nogil:
    """Tell the router of a well-formed ACK's map. A client that sends too many of them is passed over: the next one
    says what this one said, and more."""
    cdef uint32_t size
    cdef uint64_t offset
    cdef const char *name
    if not _credit_allows(edge, conn, pairs * CONTROL_UNIT_BYTES):
        return
    while pairs:
        pairs -= 1
        mp_read_str(reader, &name, &size)
        mp_read_uint(reader, &offset)
        if offset and size <= NAME_BYTES_MAX:
            _acknowledge(edge, conn, name, size, offset)


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


cdef bint _since_read(MpReader *reader, ChannelFrame *frame) noexcept nogil:
    """The options of a JOIN, well-formed; unknown ones are passed over. False: since is no [epoch, offset]."""
    cdef uint32_t pairs, size
    cdef uint32_t parts = 0
    cdef bint sound = True
    cdef const char *option
    cdef const uint8_t *value
    if mp_read_map(reader, &pairs) != MP_OK:
        return False
    while pairs:
        pairs -= 1
        if mp_peek(reader) != MP_STR:
            mp_skip(reader)
            mp_skip(reader)
            continue
        mp_read_str(reader, &option, &size)
        value = reader.p
        if size == 5 and memcmp(option, b"since", 5) == 0:      # said twice, the last one counts
            frame.has_since = mp_read_array(reader, &parts) == MP_OK and parts == 2 \
                and mp_read_uint(reader, &frame.since[0]) == MP_OK and mp_read_uint(reader, &frame.since[1]) == MP_OK
            reader.p = value
            sound = frame.has_since or mp_peek(reader) == MP_NIL
        mp_skip(reader)
    return sound


cdef const char *join_refused(Edge *edge, Connection *conn, const Namespace *namespace, const char *name,
                              uint32_t size) noexcept nogil:
    """NULL when the namespace and the session's token let it join the group; else why not."""
    cdef int right = right_to(edge, conn, True, name, size)
    if namespace.join == JOIN_SERVER:
        return b"no client joins channels of this namespace"
    if right == RIGHT_REFUSED or (namespace.join == JOIN_TOKEN and right != RIGHT_GIVEN
                                  and not edge.config.development):
        return b"the session's token does not allow joining this channel"
    return NULL


cdef const char *_channel_check(Edge *edge, Connection *conn, bint join, MpReader *reader, uint32_t count,
                                ChannelFrame *frame, int *code) noexcept nogil:
    """Read JOIN or LEAVE behind its id: NULL when the session may do this; else why not, with its code."""
    cdef const char *shape = b"JOIN is [6, id, channel, {since}]" if join else b"LEAVE is [7, id, channel]"
    cdef const Namespace *namespace
    code[0] = BAD_REQUEST
    if count < 3 or count > (4 if join else 3):
        return shape
    if mp_read_str(reader, &frame.name, &frame.name_size) != MP_OK or frame.name_size > NAME_BYTES_MAX:
        return b"a channel is a string of at most 255 bytes"
    namespace = namespace_of(&edge.namespaces, frame.name, frame.name_size)
    if namespace == NULL:
        code[0] = NO_SUCH_CHANNEL
        return NO_NAMESPACE
    if count == 4 and mp_peek(reader) != MP_MAP:
        return shape
    if namespace.domain == DOMAIN_USER and not channel_own(edge, conn, namespace, frame.name, frame.name_size):
        code[0] = NOT_ALLOWED
        return b"another user's channel can only be published to"
    if not join and namespace.domain != DOMAIN_GROUP:
        code[0] = NOT_ALLOWED
        return b"user and global channels are joined as long as the session lives"
    if count == 4 and not _since_read(reader, frame):
        return b"since is [epoch, offset], both integers from 0"
    if join and namespace.domain == DOMAIN_GROUP:
        code[0] = NOT_ALLOWED
        return join_refused(edge, conn, namespace, frame.name, frame.name_size)
    return NULL


cdef int _act_channel(Edge *edge, Connection *conn, bint join, const uint8_t *body, uint32_t size) noexcept nogil:
    """JOIN or LEAVE, well-formed; -1: no frame of the protocol."""
    cdef MpReader reader
    cdef ChannelFrame frame
    cdef uint32_t count = 0
    cdef uint64_t kind
    cdef const char *why
    cdef int code
    memset(&frame, 0, sizeof(frame))
    reader.p = body
    reader.end = body + size
    if mp_read_array(&reader, &count) != MP_OK or mp_read_uint(&reader, &kind) != MP_OK \
            or mp_read_uint(&reader, &frame.id) != MP_OK:
        return -1
    why = _channel_check(edge, conn, join, &reader, count, &frame, &code)
    if why != NULL:
        answer_error(edge, conn, frame.id, code, why, 0)
    elif join:
        join_start(edge, conn, frame.id, frame.name, frame.name_size,
                   <const uint64_t *> frame.since if frame.has_since else NULL)
    else:
        join_leave(edge, conn, frame.id, frame.name, frame.name_size)
    return 0


cdef int act_control(Edge *edge, Connection *conn, uint64_t kind, const uint8_t *body, uint32_t size) noexcept nogil:
    """JOIN and LEAVE are done here, the others by the control thread; -1: not one, or not in this state."""
    cdef Note note
    cdef const uint8_t *user = NULL
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
    if kind == TYPE_JOIN or kind == TYPE_LEAVE:
        return _act_channel(edge, conn, kind == TYPE_JOIN, body, size)
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_FRAME
    note.flags = <unsigned short> conn.state
    note.conn = conn_handle(conn)
    note.text_size = size
    memcpy(note.session, conn.session, 16)
    if conn.membership_count:
        user = <const uint8_t *> conn_user(edge, conn, &note.extra_size)
    if mailbox_put(&edge.to_control, &note, body, user) < 0:
        edge_fin(edge, conn, OVERLOADED, b"too many control frames wait", RETRY_AFTER_MS)
        return 0
    conn.flags |= FLAG_HELLO if conn.state == STATE_HANDSHAKING else FLAG_ASKED
    return 0
