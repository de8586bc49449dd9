# Act: what the gateway does with one frame of a client, from its bytes to the queued answer or the router's batch.
#
# PING, PONG, ACK, FIN, FIN_ACK, PUBLISH, JOIN and LEAVE are finished here; HELLO, HISTORY, PRESENCE, REFRESH and CALL
# are well-formed arrays with a number in front, and go to the control thread as they are. A frame that is no frame of
# the protocol ends the connection with FIN bad_frame; a request that is malformed is answered by ERROR bad_request
# under its id.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from core.answers cimport (TYPE_ACK, TYPE_CALL, TYPE_COUNT, TYPE_ERROR, TYPE_EVENT, TYPE_FIN, TYPE_FIN_ACK, TYPE_HELLO,
                           TYPE_HISTORY, TYPE_JOIN, TYPE_LEAVE, TYPE_MESSAGE, TYPE_PING, TYPE_PONG, TYPE_PRESENCE,
                           TYPE_PUBLISH, TYPE_REFRESH, TYPE_REPLY, TYPE_WELCOME, answer_error, answer_heartbeat)
from core.codes cimport (BAD_FRAME, BAD_REQUEST, NOT_ALLOWED, NOT_JOINED, NO_SUCH_CHANNEL, OVERLOADED, RATE_LIMITED,
                         TOO_LARGE)
from core.conn cimport (FLAG_ASKED, FLAG_ENCODED, FLAG_HELLO, FLAG_WEBSOCKET, FORM_TCP, FORM_WS_BINARY, FORM_WS_TEXT,
                        STATE_CLOSING, STATE_HANDSHAKING, STATE_OPEN, Aside, Connection, conn_aside, conn_handle,
                        conn_memberships)
from core.edge cimport (ENVELOPE_BYTES, KEY_BYTES_MAX, NAME_BYTES_MAX, REQUEST_PUBLISH, RETRY_AFTER_MS, UNDER_WAY_MAX,
                        Channel, Edge, link_of)
from core.fanout cimport channel_at, channel_find, conn_user, member_joined
from core.framing cimport FRAME_TEXT, FrameView
from core.kept cimport kept_end, kept_say, kept_seq, kept_take
from core.ledger cimport (COUNT_ACKS, COUNT_BAD_FRAMES, COUNT_FRAMES_IN, COUNT_PONGS_HEARD, COUNT_PUBLISHES,
                          ledger_count)
from core.lifecycle cimport edge_break, edge_fin_acked, edge_peer_fin
from core.link cimport LINK_PUBLISH_BYTES_MAX
from core.mpack cimport (MP_NIL, MP_OK, MP_STR, MpReader, mp_peek, mp_read_array, mp_read_map, mp_read_str,
                         mp_read_uint, mp_skip)
from core.namespaces cimport (DOMAIN_GLOBAL, DOMAIN_GROUP, DOMAIN_USER, PUBLISH_MEMBERS, PUBLISH_SERVER, Namespace,
                              namespace_of)
from core.records cimport REC_PUBLISH, RecPublish, record_add, record_init, record_size
from core.requests cimport request_open
from core.rights cimport RIGHT_REFUSED, right_to
from core.shards cimport shard_of_name
from core.transcode cimport json_to_mpack
from core.utf8 cimport utf8_valid
from core.vitals cimport vital_pinged, vital_ponged

cdef extern from *:
    """
    static const char NO_NAMESPACE[] = "a channel is <namespace>:<id>, of a namespace that the gateway has";
    """
    const char *NO_NAMESPACE

ctypedef struct PublishFrame:   # views into the frame, until the call returns
    uint64_t id
    const char *name
    const char *key
    const uint8_t *data
    uint32_t name_size
    uint32_t key_size
    uint32_t data_size
    uint8_t shard               # of the channel, once it was checked


cdef inline int publish_key(MpReader *reader, PublishFrame *frame) noexcept nogil:
    """The options of a PUBLISH; unknown ones are passed over."""
    cdef uint32_t count
    cdef uint32_t size
    cdef const char *option
    if mp_read_map(reader, &count) != MP_OK:
        return -1
    while count:
        count -= 1
        if mp_peek(reader) != MP_STR:
            if mp_skip(reader) != MP_OK or mp_skip(reader) != MP_OK:
                return -1
            continue
        if mp_read_str(reader, &option, &size) != MP_OK:
            return -1
        # A key that is no string is refused: passed over, it would cost the sender the protection it asked for.
        if size == 3 and option[0] == c'k' and option[1] == c'e' and option[2] == c'y' and mp_peek(reader) != MP_NIL:
            if mp_read_str(reader, &frame.key, &frame.key_size) != MP_OK:
                return -1
        elif mp_skip(reader) != MP_OK:
            return -1
    return 0


cdef inline int publish_read(MpReader *reader, uint32_t count, PublishFrame *frame) noexcept nogil:
    """[8, id, channel, data, {key}] behind its type: 0, -1 without a usable id, 1 malformed behind the id."""
    frame.id = 0
    frame.key = NULL
    frame.key_size = 0
    if mp_read_uint(reader, &frame.id) != MP_OK:
        return -1
    if count < 4 or count > 5 or mp_read_str(reader, &frame.name, &frame.name_size) != MP_OK:
        return 1
    frame.data = reader.p
    if mp_skip(reader) != MP_OK:
        return 1
    frame.data_size = <uint32_t> (reader.p - frame.data)
    if count == 5 and publish_key(reader, frame) < 0:
        return 1
    return 0 if reader.p == reader.end else 1


cdef inline bint publish_rate_allows(Edge *edge, Connection *conn) noexcept nogil:
    """Token bucket a session; thousandths of a publish, filled with the time that passed."""
    cdef Aside *aside
    cdef uint64_t room
    cdef uint64_t tokens
    if edge.config.publish_rate == 0:
        return True
    aside = conn_aside(&edge.asides, edge.ledger, conn)
    if aside == NULL:
        return False
    aside.kept = 1
    room = <uint64_t> edge.config.publish_burst * 1000
    tokens = aside.tokens + <uint64_t> (<uint32_t> edge.now_ms - aside.tokens_ms) * edge.config.publish_rate
    if tokens > room or aside.tokens_ms == 0:
        tokens = room
    aside.tokens_ms = <uint32_t> edge.now_ms
    aside.tokens = <uint32_t> tokens
    if aside.tokens < 1000:
        return False
    aside.tokens -= 1000
    return True


cdef inline bint channel_own(Edge *edge, Connection *conn, const Namespace *namespace, const char *name,
                             uint32_t size) noexcept nogil:
    """Whether a channel of domain session is that of the session's user."""
    cdef uint32_t user_size = 0
    cdef const char *user
    if conn.membership_count == 0:
        return False
    user = conn_user(edge, conn, &user_size)
    return size == namespace.name_size + 1 + user_size and memcmp(name + namespace.name_size + 1, user, user_size) == 0


cdef inline const char *publish_allowed(Edge *edge, Connection *conn, const Namespace *namespace, PublishFrame *frame,
                                        int *code) noexcept nogil:
    """NULL when the namespace and the session's token let it publish to the channel; else why not, with its code."""
    cdef Channel *channel
    code[0] = NOT_ALLOWED
    if namespace.publish == PUBLISH_MEMBERS and namespace.domain == DOMAIN_GROUP:
        channel = channel_find(edge, frame.name, frame.name_size)
        if channel == NULL or not member_joined(conn, channel):
            code[0] = NOT_JOINED
            return b"join the group before publishing to it"
    elif namespace.publish == PUBLISH_MEMBERS and namespace.domain == DOMAIN_USER:
        if not channel_own(edge, conn, namespace, frame.name, frame.name_size):
            return b"only its own user publishes to this channel"
    elif namespace.publish == PUBLISH_SERVER and not (namespace.domain == DOMAIN_GLOBAL and edge.config.development):
        return b"channels of this namespace are published to through the admin API"
    if right_to(edge, conn, False, frame.name, frame.name_size) == RIGHT_REFUSED:
        return b"the session's token does not allow publishing to this channel"
    return NULL


cdef inline const char *publish_check(Edge *edge, Connection *conn, PublishFrame *frame, int *code) noexcept nogil:
    """NULL when the session may publish this; else why not, with its code."""
    cdef const Namespace *namespace = namespace_of(&edge.namespaces, frame.name, frame.name_size)
    cdef const char *why
    if frame.name_size > NAME_BYTES_MAX or not utf8_valid(<const uint8_t *> frame.name, frame.name_size):
        code[0] = BAD_REQUEST
        return b"the channel is longer than 255 bytes or not UTF-8"
    if namespace == NULL:
        code[0] = NO_SUCH_CHANNEL
        return NO_NAMESPACE
    frame.shard = shard_of_name(namespace.domain, frame.name, frame.name_size, edge.shard_count)
    if frame.key_size > KEY_BYTES_MAX:
        code[0] = TOO_LARGE
        return b"the key is longer than 64 bytes"
    if frame.data_size + ENVELOPE_BYTES > edge.config.max_frame:
        code[0] = TOO_LARGE
        return b"the data is longer than max_frame allows"
    if namespace.payload_bytes_max and frame.data_size > namespace.payload_bytes_max:
        code[0] = TOO_LARGE
        return b"the data is longer than the channel's namespace allows"
    why = publish_allowed(edge, conn, namespace, frame, code)
    if why != NULL:
        return why
    if not publish_rate_allows(edge, conn):
        code[0] = RATE_LIMITED
        return b"too many messages from this session"
    if conn.under_way >= UNDER_WAY_MAX:
        code[0] = RATE_LIMITED
        return b"too many messages of this session wait for their answers"
    if link_of(edge, frame.shard).out.size > LINK_PUBLISH_BYTES_MAX:
        code[0] = OVERLOADED
        return b"too much waits for the router"
    return NULL


cdef inline void publish_write(Edge *edge, Connection *conn, PublishFrame *frame, RecPublish *record,
                               uint32_t seq) noexcept nogil:
    """Fill a record that has room for all of the message."""
    cdef uint32_t sender_size = 0
    cdef const char *sender = conn_user(edge, conn, &sender_size)
    cdef uint8_t *place
    record.head.shard = frame.shard
    record.seq = seq
    record.data_size = frame.data_size
    record.key_size = <unsigned short> frame.key_size
    record.sender_size = <unsigned short> sender_size
    place = <uint8_t *> record + sizeof(RecPublish)
    memcpy(place, frame.name, frame.name_size)
    place += frame.name_size
    if frame.key_size:
        memcpy(place, frame.key, frame.key_size)
        place += frame.key_size
    memcpy(place, sender, sender_size)
    memcpy(place + sender_size, frame.data, frame.data_size)
    ledger_count(edge.ledger, COUNT_PUBLISHES, 1)


cdef inline uint32_t publish_bytes(Edge *edge, Connection *conn, PublishFrame *frame) noexcept nogil:
    """What follows the fixed part of the record."""
    cdef uint32_t sender_size = 0
    conn_user(edge, conn, &sender_size)
    return frame.name_size + frame.key_size + sender_size + frame.data_size


cdef inline void publish_kept(Edge *edge, Connection *conn, PublishFrame *frame) noexcept nogil:
    """A message that is kept until the router has answered, and said to it now or when it is back."""
    cdef uint32_t variable = publish_bytes(edge, conn, frame)
    cdef uint32_t block = 0
    cdef uint32_t seq = 0
    cdef uint8_t *room = kept_take(edge, record_size(sizeof(RecPublish), variable), &block)
    if room != NULL:
        seq = request_open(edge, REQUEST_PUBLISH, conn_handle(conn), frame.id, block)
        kept_seq(room, seq)
        if seq == 0:
            record_init(room, REC_PUBLISH, 0, sizeof(RecPublish), variable)     # walked, and waits for nothing
            kept_end(edge, block)
    if seq == 0:
        answer_error(edge, conn, frame.id, OVERLOADED, b"too many messages wait for the router's answers",
                     RETRY_AFTER_MS)
        return
    record_init(room, REC_PUBLISH, frame.name_size, sizeof(RecPublish), variable)
    publish_write(edge, conn, frame, <RecPublish *> room, seq)
    if link_of(edge, frame.shard).up:
        kept_say(edge, room)            # without room it stays, and is answered when it is overdue


cdef inline void publish_forward(Edge *edge, Connection *conn, PublishFrame *frame) noexcept nogil:
    """Append the message to the router's batch of this turn. Without an answer it is kept only to await the router."""
    cdef RecPublish *record
    if frame.id or not link_of(edge, frame.shard).up:
        publish_kept(edge, conn, frame)
        return
    record = <RecPublish *> record_add(&link_of(edge, frame.shard).out, REC_PUBLISH, frame.name_size,
                                       sizeof(RecPublish), publish_bytes(edge, conn, frame))
    if record == NULL:
        answer_error(edge, conn, 0, OVERLOADED, b"out of memory", 0)
        return
    publish_write(edge, conn, frame, record, 0)


cdef inline int act_publish(Edge *edge, Connection *conn, MpReader *reader, uint32_t count, const uint8_t *body,
                            uint32_t size) noexcept nogil:
    """PUBLISH; -1: no frame of the protocol."""
    cdef PublishFrame frame
    cdef int code = 0
    cdef const char *why
    cdef int status = publish_read(reader, count, &frame)
    if status < 0:
        return -1
    if status > 0:
        if not act_well_formed(body, size):     # a wrong request is refused, what is no MessagePack ends the session
            return -1
        answer_error(edge, conn, frame.id, BAD_REQUEST, b"PUBLISH is [8, id, channel, data, {key}]", 0)
        return 0
    why = publish_check(edge, conn, &frame, &code)
    if why != NULL:
        answer_error(edge, conn, frame.id, code, why,
                     RETRY_AFTER_MS if code in (RATE_LIMITED, OVERLOADED) else 0)
        return 0
    publish_forward(edge, conn, &frame)
    return 0


cdef inline int act_heartbeat(Edge *edge, Connection *conn, MpReader *reader, uint32_t count, bint ping) noexcept nogil:
    """PING is echoed, PONG was heard; -1: malformed."""
    cdef uint64_t seq, time
    if count != 3 or mp_read_uint(reader, &seq) != MP_OK or mp_read_uint(reader, &time) != MP_OK \
            or reader.p != reader.end:
        return -1
    if ping:
        vital_pinged(edge, conn, seq)
        answer_heartbeat(edge, conn, TYPE_PONG, seq, time)
    else:
        ledger_count(edge.ledger, COUNT_PONGS_HEARD, 1)
        vital_ponged(edge, conn, seq, time)
    return 0


cdef inline int act_ack(Edge *edge, Connection *conn, MpReader *reader, uint32_t count) noexcept nogil:
    """ACK: positions that become part of the session's state; -1: malformed."""
    cdef uint32_t pairs, size
    cdef uint64_t offset
    cdef const char *name
    cdef MpReader again
    cdef uint32_t left
    if count != 2 or mp_read_map(reader, &pairs) != MP_OK:
        return -1
    again = reader[0]
    left = pairs
    while left:
        left -= 1
        if mp_read_str(reader, &name, &size) != MP_OK or mp_read_uint(reader, &offset) != MP_OK:
            return -1
    if reader.p != reader.end:
        return -1
    ledger_count(edge.ledger, COUNT_ACKS, 1)
    act_acked(edge, conn, &again, pairs)
    return 0


cdef inline int act_body(Edge *edge, Connection *conn, const uint8_t *body, uint32_t size) noexcept nogil:
    """One frame as MessagePack; -1: no frame of the protocol."""
    cdef MpReader reader
    cdef uint32_t count
    cdef uint64_t kind
    reader.p = body
    reader.end = body + size
    if mp_read_array(&reader, &count) != MP_OK or count == 0 or mp_read_uint(&reader, &kind) != MP_OK:
        return -1
    if conn.state == STATE_OPEN:
        if kind == TYPE_PUBLISH:
            return act_publish(edge, conn, &reader, count, body, size)
        if kind == TYPE_PING or kind == TYPE_PONG:
            return act_heartbeat(edge, conn, &reader, count, kind == TYPE_PING)
        if kind == TYPE_ACK:
            return act_ack(edge, conn, &reader, count)
    if kind == TYPE_FIN_ACK:
        if count != 1 or reader.p != reader.end:
            return -1
        edge_fin_acked(edge, conn)
        return 0
    if kind == TYPE_FIN:
        return act_fin(edge, conn, &reader, count)
    if conn.state == STATE_CLOSING:
        return 0
    return act_control(edge, conn, kind, body, size)


cdef inline const char *act_frame(Edge *edge, Connection *conn, FrameView *view) noexcept nogil:
    """Act on one frame as cut from the stream; NULL, or why the connection has to end with bad_frame."""
    cdef const uint8_t *body = view.data
    cdef uint32_t size = view.size
    cdef size_t written = 0
    cdef bint text = view.opcode == FRAME_TEXT
    ledger_count(edge.ledger, COUNT_FRAMES_IN, 1)
    if conn.flags & FLAG_WEBSOCKET:
        if conn.flags & FLAG_ENCODED:
            if text != (conn.form == FORM_WS_TEXT):
                return b"the encoding of a session is that of its HELLO"
        else:
            conn.form = FORM_WS_TEXT if text else FORM_WS_BINARY
            conn.flags |= FLAG_ENCODED
    if text:
        if json_to_mpack(body, size, edge.unpacked, edge.unpacked_bytes, &written) < 0:
            return b"the message is not JSON"
        body = edge.unpacked
        size = <uint32_t> written
    if act_body(edge, conn, body, size) < 0:
        return b"not a frame of this protocol"
    return NULL


cdef bint act_well_formed(const uint8_t *body, uint32_t size) noexcept nogil
cdef int act_control(Edge *edge, Connection *conn, uint64_t kind, const uint8_t *body, uint32_t size) noexcept nogil
cdef void act_acked(Edge *edge, Connection *conn, MpReader *reader, uint32_t pairs) noexcept nogil
cdef const char *join_refused(Edge *edge, Connection *conn, const Namespace *namespace, const char *name,
                              uint32_t size) noexcept nogil
cdef int act_fin(Edge *edge, Connection *conn, MpReader *reader, uint32_t count) noexcept nogil
