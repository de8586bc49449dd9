"""Client session: what a client says, and what it does with each frame."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, strlen

from core.answers cimport (TYPE_ACK, TYPE_ERROR, TYPE_EVENT, TYPE_FIN, TYPE_FIN_ACK, TYPE_HELLO, TYPE_JOIN,
                           TYPE_LEAVE, TYPE_MESSAGE, TYPE_PING, TYPE_PONG, TYPE_PUBLISH, TYPE_REPLY,
                           TYPE_WELCOME, write_text)
from core.client cimport (CLIENT_ACCEPTED, CLIENT_ACKS, CLIENT_CONNECTED, CLIENT_CORRUPT, CLIENT_DELIVERED,
                          CLIENT_EVENTS, CLIENT_HELLO, CLIENT_JOINED, CLIENT_LATE, CLIENT_LEAVING,
                          CLIENT_LEFT, CLIENT_LOST, CLIENT_MISSED_AWAY, CLIENT_NONE, CLIENT_NOTE_CONNECTED,
                          CLIENT_NOTE_JOINED, CLIENT_NOTE_PUBLISHED, CLIENT_NOTE_REFUSED, CLIENT_OPEN, CLIENT_OVERDUE,
                          CLIENT_PINGS, CLIENT_PONGS, CLIENT_PUBLISHED, CLIENT_PUBLISH_REFUSED, CLIENT_REFUSED,
                          CLIENT_REPEATED, CLIENT_REQUEST_CATCH_UP, CLIENT_REQUEST_HELLO, CLIENT_REQUEST_HISTORY,
                          CLIENT_REQUEST_JOIN, CLIENT_REQUEST_LEAVE, CLIENT_REQUEST_PUBLISH, CLIENT_RESUMABLE,
                          CLIENT_RESUMED, CLIENT_RESUMING, CLIENT_TOLD, CLIENT_TOLD_GAPS, CLIENT_UNACKED,
                          CLIENT_UNCHECKED, MEMBER_JOINED, MEMBER_WANTED, TIME_CONNECT, TIME_DELIVERY, TIME_JOIN,
                          TIME_PUBLISH, ClientChannel, ClientRequest, channel_hold, client_channel, client_count,
                          client_request, client_tick, client_time, member_find, member_free, member_of, request_find,
                          request_free)
from core.client_history cimport (client_map_find, client_map_uint, history_catch_up, history_on_refusal,
                                  history_on_reply)
from core.client_life cimport (client_ended, client_fail, client_fault, client_plan, client_set_state, client_silence,
                               client_tell)
from core.client_out cimport client_ask, client_frame, client_send_body, client_shut
from core.codes cimport BYE, DRAINING, NOT_ALLOWED, TOKEN_EXPIRED
from core.mpack cimport (MP_OK, MpReader, MpWriter, mp_read_array, mp_read_bin, mp_read_double, mp_read_map,
                         mp_read_str, mp_read_uint, mp_skip, mp_write_array, mp_write_bin_head, mp_write_map,
                         mp_write_raw, mp_write_str, mp_write_uint)
from core.position cimport (POSITION_JUMPED, POSITION_LATE, POSITION_NEXT, position_base, position_based,
                            position_skip, position_take)
from core.stamp cimport Stamp, stamp_read, stamp_write
from core.wheel cimport WHEEL_TICK_MS

cdef enum:
    RESUME_BYTES_MAX = 8192     # session and resume token
    PING_SECONDS_MAX = 3600


# ---- HELLO and WELCOME

cdef void _write_resume(Client *client, ClientConn *conn, MpWriter *writer) noexcept nogil:
    """The last position of each channel that was joined."""
    cdef uint32_t place
    cdef uint32_t count = 0
    cdef ClientChannel *channel
    for place in range(conn.member_count):
        count += conn.members[place].state == MEMBER_JOINED
    write_text(writer, b"resume")
    mp_write_map(writer, count)
    for place in range(conn.member_count):
        if conn.members[place].state != MEMBER_JOINED:
            continue
        channel = client_channel(client, conn.members[place].channel)
        mp_write_str(writer, channel.name, channel.name_size)
        mp_write_array(writer, 2)
        mp_write_uint(writer, channel.epoch)
        mp_write_uint(writer, conn.members[place].position.last)


cdef void session_hello(Client *client, ClientConn *conn) noexcept nogil:
    cdef MpWriter writer
    cdef bint resume = conn.resume != NULL
    if conn.state != CLIENT_HELLO:
        client_set_state(client, conn, CLIENT_HELLO)
    if client_ask(client, conn, &writer, 3, TYPE_HELLO, CLIENT_REQUEST_HELLO, CLIENT_NONE) == NULL:
        return
    mp_write_map(&writer, 4 if resume else 2)
    write_text(&writer, b"v")
    mp_write_uint(&writer, 1)
    if resume:
        conn.flags |= CLIENT_RESUMING
        write_text(&writer, b"session")
        write_text(&writer, conn.resume)
        write_text(&writer, b"token")
        write_text(&writer, conn.resume + strlen(conn.resume) + 1)
        _write_resume(client, conn, &writer)
    else:
        conn.flags &= ~CLIENT_RESUMING
        write_text(&writer, b"user" if conn.identity[0] == c"u" else b"token")
        write_text(&writer, conn.identity + 1)
    client_send_body(client, conn, &writer)


cdef void _resume_keep(ClientConn *conn, MpReader *options) noexcept nogil:
    """Keep the session and its newest resume token, if this connection is to come back."""
    cdef MpReader at = options[0]
    cdef const char *session
    cdef const char *token
    cdef uint32_t session_size, token_size
    free(conn.resume)
    conn.resume = NULL
    if not conn.flags & CLIENT_RESUMABLE:
        return
    if not client_map_find(&at, b"session") or mp_read_str(&at, &session, &session_size) != MP_OK:
        return
    at = options[0]
    if not client_map_find(&at, b"resume_token") or mp_read_str(&at, &token, &token_size) != MP_OK:
        return
    if session_size + token_size > RESUME_BYTES_MAX:
        return
    conn.resume = <char *> malloc(session_size + token_size + 2)
    if conn.resume != NULL:
        memcpy(conn.resume, session, session_size)
        conn.resume[session_size] = 0
        memcpy(conn.resume + session_size + 1, token, token_size)
        conn.resume[session_size + 1 + token_size] = 0


cdef void _position_told(ClientChannel *channel, uint64_t epoch, uint64_t offset) noexcept nogil:
    """An answer says where a channel stands; a later epoch may begin anew."""
    if epoch > channel.epoch:
        channel.epoch = epoch
        channel.high = offset
    elif epoch == channel.epoch and offset > channel.high:
        channel.high = offset


cdef void _member_base(Client *client, ClientConn *conn, ClientMember *member, uint64_t epoch,
                       uint64_t offset) noexcept nogil:
    """The membership begins at this offset; what passed since an earlier one was missed."""
    cdef uint64_t held = member.position.last
    cdef bint missed = position_based(&member.position) and offset > held \
        and client_channel(client, member.channel).epoch == epoch
    position_base(&member.position, offset)
    member.state = MEMBER_JOINED
    if missed:
        client_count(client, CLIENT_MISSED_AWAY, offset - held)
        if client.config.catch_up:
            history_catch_up(client, conn, member.channel, epoch, held, offset)


cdef void _resumed_channels(Client *client, ClientConn *conn, MpReader *reader) noexcept nogil:
    """WELCOME's map of channels, {channel: [epoch, offset, outcome]}: what goes on as it was, and what begins anew."""
    cdef uint32_t count, parts, size
    cdef uint64_t epoch, offset
    cdef const char *text
    cdef ClientMember *member
    if mp_read_map(reader, &count) != MP_OK:
        return
    while count:
        count -= 1
        if mp_read_str(reader, &text, &size) != MP_OK:
            return
        member = member_find(client, conn, text, size)
        if mp_read_array(reader, &parts) != MP_OK or parts != 3 or mp_read_uint(reader, &epoch) != MP_OK \
                or mp_read_uint(reader, &offset) != MP_OK or mp_read_str(reader, &text, &size) != MP_OK:
            return
        if member == NULL:
            continue
        if size == 5 and memcmp(text, b"reset", 5) == 0:
            position_base(&member.position, offset)
        member.state = MEMBER_JOINED
        _position_told(client_channel(client, member.channel), epoch, offset)


cdef void _heartbeat_told(Client *client, MpReader *options) noexcept nogil:
    cdef MpReader at = options[0]
    cdef double seconds
    if client_map_find(&at, b"ping") and mp_read_double(&at, &seconds) == MP_OK and 0 < seconds <= PING_SECONDS_MAX:
        client.ping_ms = <uint32_t> (seconds * 1000)
    client.misses = <uint32_t> client_map_uint(options, b"misses", client.misses) or 1


cdef void _on_welcome(Client *client, ClientConn *conn, MpReader *options) noexcept nogil:
    cdef MpReader at = options[0]
    cdef uint32_t place
    cdef bint resumed = (conn.flags & CLIENT_RESUMING) != 0
    if conn.state != CLIENT_HELLO:
        return
    request_free(client, client_request(client, conn.request_first))
    client_set_state(client, conn, CLIENT_OPEN)
    _heartbeat_told(client, options)
    _resume_keep(conn, options)
    for place in range(conn.member_count):
        conn.members[place].state = MEMBER_WANTED
    if resumed and client_map_find(&at, b"channels"):
        _resumed_channels(client, conn, &at)
    client_count(client, CLIENT_CONNECTED, 1)
    client_count(client, CLIENT_RESUMED, resumed)
    client_time(client, TIME_CONNECT, client.now_ns - conn.started_ns)
    client_tell(client, conn, CLIENT_NOTE_CONNECTED, client.now_ns - conn.started_ns, resumed, 0, NULL, 0)
    client_plan(client, conn)
    place = 0
    while place < conn.member_count and conn.state == CLIENT_OPEN:
        if conn.members[place].state == MEMBER_WANTED:
            session_join(client, conn, &conn.members[place])
        place += 1


# ---- requests

cdef void session_join(Client *client, ClientConn *conn, ClientMember *member) noexcept nogil:
    cdef MpWriter writer
    cdef ClientChannel *channel = client_channel(client, member.channel)
    cdef uint32_t held = channel_hold(client, channel.name, channel.name_size)
    if client_ask(client, conn, &writer, 4, TYPE_JOIN, CLIENT_REQUEST_JOIN, held) == NULL:
        return
    mp_write_str(&writer, channel.name, channel.name_size)
    mp_write_map(&writer, 0)
    client_send_body(client, conn, &writer)


cdef void session_part(Client *client, ClientConn *conn, const char *name, uint32_t size) noexcept nogil:
    """LEAVE; the membership lasts until the answer, since messages may come until then."""
    cdef MpWriter writer
    if client_ask(client, conn, &writer, 3, TYPE_LEAVE, CLIENT_REQUEST_LEAVE, channel_hold(client, name, size)) == NULL:
        return
    mp_write_str(&writer, name, size)
    client_send_body(client, conn, &writer)


cdef void session_publish(Client *client, ClientConn *conn, const char *name, uint32_t name_size, uint32_t size,
                          uint64_t intended_ns) noexcept nogil:
    cdef MpWriter writer
    cdef Stamp stamp
    cdef ClientRequest *request = client_ask(client, conn, &writer, 5, TYPE_PUBLISH, CLIENT_REQUEST_PUBLISH,
                                             channel_hold(client, name, name_size))
    if request == NULL:
        return
    request.started_ns = intended_ns
    stamp.intended_ns = intended_ns
    stamp.sender = conn.number
    stamp.sequence = conn.sequence
    conn.sequence += 1
    mp_write_str(&writer, name, name_size)
    mp_write_bin_head(&writer, size)
    if not writer.overflow:
        stamp_write(writer.p, size, &stamp)
        writer.p += size
    mp_write_map(&writer, 0)
    client_count(client, CLIENT_PUBLISHED, 1)
    client_send_body(client, conn, &writer)


cdef void session_leave(Client *client, ClientConn *conn, bint resume) noexcept nogil:
    cdef MpWriter writer
    if conn.state == CLIENT_LEAVING:
        return
    if conn.state < CLIENT_OPEN:
        client_ended(client, conn)
        return
    client_frame(client, &writer, 4, TYPE_FIN)
    mp_write_uint(&writer, DRAINING if resume else BYE)
    write_text(&writer, b"draining" if resume else b"bye")
    mp_write_map(&writer, 0)
    client_send_body(client, conn, &writer)
    if conn.state == CLIENT_OPEN:
        client_set_state(client, conn, CLIENT_LEAVING)
        conn.state_deadline = client_tick(client) + client.config.fin_timeout_ms // WHEEL_TICK_MS + 1
        client_plan(client, conn)


# ---- answers

cdef inline uint64_t _since(Client *client, uint64_t started_ns) noexcept nogil:
    """0 when clocks disagree."""
    return client.now_ns - started_ns if client.now_ns > started_ns else 0


cdef void _on_joined(Client *client, ClientConn *conn, ClientRequest *request, uint64_t epoch,
                     uint64_t offset) noexcept nogil:
    cdef ClientMember *member = member_of(conn, request.channel)
    cdef ClientChannel *channel = client_channel(client, request.channel)
    cdef uint64_t took = _since(client, request.started_ns)
    client_count(client, CLIENT_JOINED, 1)
    client_time(client, TIME_JOIN, took)
    # A message may overtake the answer; then it is where the membership began.
    if member != NULL and member.state == MEMBER_WANTED:
        _member_base(client, conn, member, epoch, offset)
    _position_told(channel, epoch, offset)
    if client.config.tell_requests:
        client_tell(client, conn, CLIENT_NOTE_JOINED, offset, took, 0, channel.name, channel.name_size)


cdef void _on_published(Client *client, ClientConn *conn, ClientRequest *request, uint64_t epoch,
                        uint64_t offset) noexcept nogil:
    cdef ClientChannel *channel = client_channel(client, request.channel)
    cdef uint64_t took = _since(client, request.started_ns)
    client_count(client, CLIENT_ACCEPTED, 1)
    client_time(client, TIME_PUBLISH, took)
    _position_told(channel, epoch, offset)
    if client.config.tell_requests:
        client_tell(client, conn, CLIENT_NOTE_PUBLISHED, offset, took, 0, channel.name, channel.name_size)


cdef void _on_reply(Client *client, ClientConn *conn, uint64_t wire_id, MpReader *options) noexcept nogil:
    cdef ClientRequest *request = request_find(client, conn, wire_id)
    cdef ClientMember *member
    cdef uint64_t epoch, offset
    if request == NULL:
        return
    epoch = client_map_uint(options, b"epoch", 0)
    offset = client_map_uint(options, b"offset", 0)
    if request.kind == CLIENT_REQUEST_JOIN:
        _on_joined(client, conn, request, epoch, offset)
    elif request.kind == CLIENT_REQUEST_PUBLISH:
        _on_published(client, conn, request, epoch, offset)
    elif request.kind == CLIENT_REQUEST_HISTORY or request.kind == CLIENT_REQUEST_CATCH_UP:
        history_on_reply(client, conn, request, options)
    elif request.kind == CLIENT_REQUEST_LEAVE:
        member = member_of(conn, request.channel)
        if member != NULL:
            member_free(client, conn, member)
    request_free(client, request)


cdef void _refused(Client *client, ClientConn *conn, ClientRequest *request, uint64_t code, uint64_t after_ms,
                   const char *why, uint32_t size) noexcept nogil:
    """A request that was not granted: it is counted, told, and, if it was a JOIN, the membership ends."""
    cdef ClientMember *member = NULL
    client_count(client, CLIENT_PUBLISH_REFUSED, request.kind == CLIENT_REQUEST_PUBLISH)
    if history_on_refusal(client, conn, request):
        client_tell(client, conn, CLIENT_NOTE_REFUSED, code, request.kind, after_ms, why, size)
    if request.kind == CLIENT_REQUEST_JOIN:
        member = member_of(conn, request.channel)
        if member != NULL and member.state == MEMBER_WANTED:
            member_free(client, conn, member)
    request_free(client, request)


cdef void _on_error(Client *client, ClientConn *conn, uint64_t wire_id, MpReader *reader) noexcept nogil:
    cdef ClientRequest *request = request_find(client, conn, wire_id)
    cdef uint64_t code
    cdef const char *why
    cdef uint32_t size
    if request == NULL or mp_read_uint(reader, &code) != MP_OK or mp_read_str(reader, &why, &size) != MP_OK:
        return
    if request.kind == CLIENT_REQUEST_HELLO and conn.resume != NULL:
        # The session cannot be resumed: come as a new one, on the same connection.
        request_free(client, request)
        free(conn.resume)
        conn.resume = NULL
        session_hello(client, conn)
        return
    client_count(client, CLIENT_REFUSED, 1)
    _refused(client, conn, request, code, client_map_uint(reader, b"retry_after", 0), why, size)


# ---- deliveries

cdef void _on_other_epoch(Client *client, ClientMember *member, uint64_t offset, MpReader *reader) noexcept nogil:
    """An offset that had come: a repetition, unless another epoch has begun. The reader stands before the data."""
    cdef uint64_t epoch = 0
    cdef ClientChannel *channel = client_channel(client, member.channel)
    cdef MpReader at = reader[0]
    if mp_skip(&at) == MP_OK:
        epoch = client_map_uint(&at, b"epoch", 0)
    if epoch > channel.epoch:
        _position_told(channel, epoch, offset)
        position_base(&member.position, offset)
    else:
        client_count(client, CLIENT_REPEATED, 1)


cdef inline void _check_order(Client *client, ClientConn *conn, ClientMember *member, uint64_t offset,
                              MpReader *reader) noexcept nogil:
    cdef uint64_t jumped = 0
    cdef int step
    cdef ClientChannel *channel = client_channel(client, member.channel)
    if member.state == MEMBER_WANTED:
        _member_base(client, conn, member, channel.epoch, offset - 1)
    step = position_take(&member.position, offset, &jumped)
    if offset > channel.high:
        channel.high = offset
    if step == POSITION_NEXT:
        return
    if step == POSITION_JUMPED:
        client_count(client, CLIENT_LOST, jumped)
    elif step == POSITION_LATE:
        client_count(client, CLIENT_LATE, 1)
        client_count(client, CLIENT_LOST, <uint64_t> -1)
    else:
        _on_other_epoch(client, member, offset, reader)


cdef inline void _on_message(Client *client, ClientConn *conn, MpReader *reader) noexcept nogil:
    """[9, channel, offset, data, {...}] behind its type."""
    cdef const char *name
    cdef const char *data
    cdef uint32_t name_size, data_size
    cdef uint64_t offset
    cdef Stamp stamp
    cdef ClientMember *member
    client_count(client, CLIENT_DELIVERED, 1)
    if mp_read_str(reader, &name, &name_size) != MP_OK or mp_read_uint(reader, &offset) != MP_OK:
        client_count(client, CLIENT_CORRUPT, 1)
        return
    member = member_find(client, conn, name, name_size)
    if member == NULL:
        client_count(client, CLIENT_UNCHECKED, 1)
        return
    conn.flags |= CLIENT_UNACKED
    _check_order(client, conn, member, offset, reader)
    if mp_read_bin(reader, &data, &data_size) != MP_OK or not stamp_read(<const uint8_t *> data, data_size, &stamp):
        client_count(client, CLIENT_CORRUPT, 1)
        return
    client_time(client, TIME_DELIVERY, _since(client, stamp.intended_ns))


cdef void _on_event(Client *client, ClientConn *conn, MpReader *reader) noexcept nogil:
    """[13, channel, kind, {...}] behind its type: `gap` says what will not come."""
    cdef const char *name
    cdef const char *kind
    cdef uint32_t name_size, kind_size
    cdef uint64_t first, last, skipped, told
    cdef ClientMember *member
    client_count(client, CLIENT_EVENTS, 1)
    if mp_read_str(reader, &name, &name_size) != MP_OK or mp_read_str(reader, &kind, &kind_size) != MP_OK:
        return
    member = member_find(client, conn, name, name_size)
    if member == NULL or kind_size != 3 or memcmp(kind, b"gap", 3) != 0:
        return
    first = client_map_uint(reader, b"from", 0)
    last = client_map_uint(reader, b"to", 0)
    if not position_based(&member.position) or first > last:
        return
    skipped = position_skip(&member.position, last)
    told = last - first + 1
    if told > skipped:
        told = skipped
    client_count(client, CLIENT_TOLD_GAPS, told)
    client_count(client, CLIENT_LOST, skipped - told)


# ---- heartbeats and ends

cdef void _on_ping(Client *client, ClientConn *conn, MpReader *reader) noexcept nogil:
    """PONG echoes both values byte for byte, whatever they are."""
    cdef MpWriter writer
    cdef const uint8_t *echoed = reader.p
    if mp_skip(reader) != MP_OK or mp_skip(reader) != MP_OK or reader.p - echoed > 64:
        return
    client_frame(client, &writer, 3, TYPE_PONG)
    mp_write_raw(&writer, echoed, <uint32_t> (reader.p - echoed))
    client_count(client, CLIENT_PINGS, 1)
    client_send_body(client, conn, &writer)


cdef void _send_ping(Client *client, ClientConn *conn) noexcept nogil:
    cdef MpWriter writer
    conn.ping_seq += 1
    client_frame(client, &writer, 3, TYPE_PING)
    mp_write_uint(&writer, conn.ping_seq)
    mp_write_uint(&writer, client.now_ms)
    client_send_body(client, conn, &writer)


cdef void _send_ack(Client *client, ClientConn *conn) noexcept nogil:
    cdef MpWriter writer
    cdef uint32_t place
    cdef uint32_t count = 0
    cdef ClientChannel *channel
    conn.flags &= ~CLIENT_UNACKED
    for place in range(conn.member_count):
        count += conn.members[place].state == MEMBER_JOINED
    client_frame(client, &writer, 2, TYPE_ACK)
    mp_write_map(&writer, count)
    for place in range(conn.member_count):
        if conn.members[place].state == MEMBER_JOINED:
            channel = client_channel(client, conn.members[place].channel)
            mp_write_str(&writer, channel.name, channel.name_size)
            mp_write_uint(&writer, conn.members[place].position.last)
    client_count(client, CLIENT_ACKS, 1)
    client_send_body(client, conn, &writer)


cdef void _on_fin(Client *client, ClientConn *conn, MpReader *reader) noexcept nogil:
    """The server ends it: FIN_ACK is owed, and then it is us who close first (TIME_WAIT is to be here)."""
    cdef MpWriter writer
    cdef uint64_t code
    cdef const char *reason
    cdef uint32_t size
    if mp_read_uint(reader, &code) != MP_OK or mp_read_str(reader, &reason, &size) != MP_OK:
        client_fail(client, conn, b"a FIN that is not [14, code, reason, {...}]")
        return
    client_frame(client, &writer, 1, TYPE_FIN_ACK)
    client_send_body(client, conn, &writer)
    if TOKEN_EXPIRED <= code < NOT_ALLOWED:     # come back afresh: what was held of its channels is caught up on there
        free(conn.resume)
        conn.resume = NULL
    if conn.state != CLIENT_HELLO and conn.state != CLIENT_OPEN:
        return
    client_fault(client, conn, code, client_map_uint(reader, b"after", 0), reason, size)
    client_set_state(client, conn, CLIENT_LEAVING)
    conn.state_deadline = client_tick(client) + client.config.fin_timeout_ms // WHEEL_TICK_MS + 1
    client_plan(client, conn)
    client_shut(client, conn)


cdef void session_timer_fired(Client *client, ClientConn *conn) noexcept nogil:
    cdef uint32_t now = client_tick(client)
    cdef ClientRequest *request
    if conn.state != CLIENT_OPEN:
        if now < conn.state_deadline:
            client_plan(client, conn)
        else:
            client_fail(client, conn, b"no FIN_ACK in time" if conn.state == CLIENT_LEAVING else b"no WELCOME in time")
        return
    if now - conn.last_heard >= client_silence(client):
        client_fail(client, conn, b"the server was silent for too long")
        return
    while conn.request_first != CLIENT_NONE and client_request(client, conn.request_first).deadline <= now:
        request = client_request(client, conn.request_first)
        client_count(client, CLIENT_OVERDUE, 1)
        _refused(client, conn, request, 0, 0, b"no answer in time", 17)
    if conn.flags & CLIENT_UNACKED:
        _send_ack(client, conn)
    elif now - conn.last_sent >= client.ping_ms // WHEEL_TICK_MS:
        _send_ping(client, conn)
    if conn.state == CLIENT_OPEN:
        client_plan(client, conn)


cdef void _on_rare(Client *client, ClientConn *conn, uint64_t kind, MpReader *reader) noexcept nogil:
    if kind == TYPE_PING:
        _on_ping(client, conn, reader)
    elif kind == TYPE_PONG:
        client_count(client, CLIENT_PONGS, 1)
    elif kind == TYPE_EVENT:
        _on_event(client, conn, reader)
    elif kind == TYPE_FIN:
        _on_fin(client, conn, reader)
    elif kind == TYPE_FIN_ACK and conn.state == CLIENT_LEAVING and not conn.flags & CLIENT_TOLD:
        client_count(client, CLIENT_LEFT, 1)
        client_ended(client, conn)


cdef void session_on_body(Client *client, ClientConn *conn, const uint8_t *body, uint32_t size) noexcept nogil:
    cdef MpReader reader
    cdef uint32_t count
    cdef uint64_t kind
    cdef uint64_t wire_id
    reader.p = body
    reader.end = body + size
    if mp_read_array(&reader, &count) != MP_OK or count == 0 or mp_read_uint(&reader, &kind) != MP_OK:
        client_fail(client, conn, b"the server sent a body that is not a frame")
        return
    if kind == TYPE_MESSAGE:
        _on_message(client, conn, &reader)
        return
    if kind != TYPE_WELCOME and kind != TYPE_REPLY and kind != TYPE_ERROR:
        _on_rare(client, conn, kind, &reader)
        return
    if mp_read_uint(&reader, &wire_id) != MP_OK:
        client_fail(client, conn, b"the server sent an answer without a number")
    elif kind == TYPE_REPLY:
        _on_reply(client, conn, wire_id, &reader)
    elif kind == TYPE_WELCOME:
        _on_welcome(client, conn, &reader)
    else:
        _on_error(client, conn, wire_id, &reader)
