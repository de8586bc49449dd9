"""Joins: what waits for the router before a JOIN or a HELLO is answered."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from core.answers cimport answer_empty, answer_error, answer_position, answer_reply, write_text
from core.codes cimport BAD_REQUEST, NOT_JOINED, OVERLOADED, TOO_MANY_CHANNELS, UNAVAILABLE
from core.conn cimport FLAG_HELLO, FLAG_SESSION, STATE_HANDSHAKING, STATE_OPEN, conn_get, conn_handle, conn_set_state
from core.edge cimport (NAME_BYTES_MAX, NONE, OPENING_KEY, REQUEST_JOIN, REQUEST_OPEN, RETRY_AFTER_MS,
                        Opening, Pending, edge_random, edge_tick)
from core.fanout cimport (channel_acquire, channel_at, channel_find, channel_name, channel_rest, channel_subscribe,
                          channel_handle, fanout_event_gap, member_add, member_catch, member_joined, member_remove)
from core.ledger cimport KIND_PENDING, TIME_WELCOME, ledger_acquire, ledger_leaks, ledger_release, ledger_time
from core.lifecycle cimport edge_fin, edge_timer_plan
from core.mpack cimport (MpReader, MpWriter, mp_read_array, mp_read_str, mp_read_uint, mp_write_array, mp_write_map,
                         mp_write_raw, mp_write_str, mp_write_uint)
from core.namespaces cimport DOMAIN_GROUP, domain_in
from core.records cimport (CATCHUP_OUTCOME, OUTCOME_GAP, OUTCOME_LIVE, OUTCOME_REPLAYED, OUTCOME_RESET, REC_CLOSE,
                           REC_OPEN, RecSession, record_add)
from core.replay cimport catchup_ask
from core.requests cimport request_done, request_open, request_peek, request_take
from core.rights cimport rights_set
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, slab_acquire, slab_at, slab_release


cdef inline Pending *_pending_at(Edge *edge, uint32_t index) noexcept nogil:
    return <Pending *> slab_at(&edge.pendings, index)


cdef inline Opening *_opening_at(Edge *edge, uint32_t index) noexcept nogil:
    return <Opening *> slab_at(&edge.openings, index)


cdef Channel *_channel_wanted(Edge *edge, const char *name, uint32_t size) noexcept nogil:
    """The channel of a name, made and subscribed to if this worker does not know it yet."""
    cdef Channel *channel = channel_find(edge, name, size)
    if channel == NULL:
        channel = channel_acquire(edge, name, size, domain_in(&edge.namespaces, name, size))
        if channel != NULL:
            channel_subscribe(edge, channel)
    return channel


cdef Pending *_pending_start(Edge *edge, uint64_t conn, uint64_t request, Channel *channel) noexcept nogil:
    """A pending that holds the channel, in its waiting list while it is not live; NULL: out of memory."""
    cdef uint32_t index = slab_acquire(&edge.pendings)
    cdef Pending *pending
    if index == SLAB_NONE:
        return NULL
    pending = _pending_at(edge, index)
    memset(pending, 0, sizeof(Pending))
    pending.index = index
    pending.conn = conn
    pending.request = request
    pending.channel = channel.index
    pending.opening = NONE
    pending.sibling = NONE
    pending.previous = NONE
    pending.next = NONE
    channel.holds += 1
    if not channel.live:
        pending.waits = 1
        pending.next = channel.waiting
        if channel.waiting != NONE:
            _pending_at(edge, channel.waiting).previous = index
        channel.waiting = index
    ledger_acquire(edge.ledger, KIND_PENDING, index, HERE)
    return pending


cdef inline void _pending_since(Pending *pending, const uint64_t *since) noexcept nogil:
    """The position (epoch, offset) that the client holds; NULL: none."""
    if since != NULL:
        pending.has_since = 1
        pending.since_epoch = since[0]
        pending.since_offset = since[1]


cdef void _pending_unlink(Edge *edge, Pending *pending) noexcept nogil:
    """Take it out of its channel's waiting list."""
    if not pending.waits:
        return
    pending.waits = 0
    if pending.previous != NONE:
        _pending_at(edge, pending.previous).next = pending.next
    else:
        channel_at(edge, pending.channel).waiting = pending.next
    if pending.next != NONE:
        _pending_at(edge, pending.next).previous = pending.previous


cdef void _pending_end(Edge *edge, Pending *pending) noexcept nogil:
    """Free it, and let go of its channel."""
    cdef Channel *channel = channel_at(edge, pending.channel)
    _pending_unlink(edge, pending)
    if ledger_leaks(edge.ledger, KIND_PENDING):
        return
    ledger_release(edge.ledger, KIND_PENDING, pending.index)
    slab_release(&edge.pendings, pending.index)
    channel.holds -= 1
    channel_rest(edge, channel)


cdef bint _settled(Edge *edge, Pending *pending, Channel *channel, uint32_t seq) noexcept nogil:
    """The channel is live: whether the outcome is known now. Otherwise the router is asked for it, under `seq`."""
    if pending.told or not pending.has_since:
        return True
    if pending.since_epoch == channel.epoch and pending.since_offset == channel.offset:
        pending.told = 1
        pending.outcome = OUTCOME_LIVE
        return True
    pending.asked = 1
    catchup_ask(edge, channel, seq, pending.since_epoch, pending.since_offset, CATCHUP_OUTCOME)
    return False


cdef const char *_outcome(Pending *pending, Channel *channel) noexcept nogil:
    """What the client hears now (protocol, "Resuming"): the channel may have moved on since the outcome was found."""
    if not pending.has_since:
        return b"live"
    if pending.outcome == OUTCOME_RESET:
        return b"reset"
    if pending.outcome == OUTCOME_GAP:
        return b"gap"
    return b"live" if pending.since_offset == channel.offset else b"replayed"


cdef int _member_start(Edge *edge, Connection *conn, Pending *pending, Channel *channel) noexcept nogil:
    """Begin the membership where the client stands; -1: out of memory."""
    if pending.has_since and pending.outcome != OUTCOME_RESET and pending.since_offset != channel.offset:
        return member_catch(edge, conn, channel, pending.since_epoch, pending.since_offset)
    return member_add(edge, conn, channel)


cdef bint _full(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """Whether the session is in as many groups as it may be (its user's own channels do not count)."""
    return channel.domain == DOMAIN_GROUP and \
        conn.membership_count >= edge.config.channels_max + edge.namespaces.session_count \
        and not member_joined(conn, channel)


cdef void _join_finish(Edge *edge, Pending *pending) noexcept nogil:
    """The channel is live: add the member, answer, and free the pending."""
    cdef Channel *channel = channel_at(edge, pending.channel)
    cdef Connection *conn = conn_get(&edge.connections, pending.conn)
    if pending.seq:
        request_done(edge, pending.seq)
    if conn != NULL and conn.state == STATE_OPEN:
        if _full(edge, conn, channel):
            answer_error(edge, conn, pending.request, TOO_MANY_CHANNELS, b"leave a channel before joining another", 0)
        elif _member_start(edge, conn, pending, channel) < 0:
            answer_error(edge, conn, pending.request, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        else:
            answer_position(edge, conn, pending.request, channel.epoch, channel.offset, _outcome(pending, channel))
    _pending_end(edge, pending)


cdef void join_start(Edge *edge, Connection *conn, uint64_t request, const char *name, uint32_t name_size,
                     const uint64_t *since) noexcept nogil:
    """JOIN, allowed: answer at once if the channel is live here, else ask the router; `since` may be NULL."""
    cdef Channel *channel = _channel_wanted(edge, name, name_size)
    cdef Pending *pending = NULL
    if channel != NULL:
        pending = _pending_start(edge, conn_handle(conn), request, channel)
    if pending == NULL:
        if channel != NULL:
            channel_rest(edge, channel)
        answer_error(edge, conn, request, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        return
    _pending_since(pending, since)
    if channel.live and (since == NULL or (since[0] == channel.epoch and since[1] == channel.offset)):
        _join_finish(edge, pending)
        return
    pending.seq = request_open(edge, REQUEST_JOIN, pending.conn, request, pending.index)
    if pending.seq == 0:
        _pending_end(edge, pending)
        answer_error(edge, conn, request, OVERLOADED, b"too many requests wait for the router", RETRY_AFTER_MS)
    elif channel.live:
        _settled(edge, pending, channel, pending.seq)


cdef void join_leave(Edge *edge, Connection *conn, uint64_t request, const char *name,
                     uint32_t name_size) noexcept nogil:
    """LEAVE."""
    cdef Channel *channel = channel_find(edge, name, name_size)
    if channel != NULL and channel.domain == DOMAIN_GROUP and member_remove(edge, conn, channel):
        answer_empty(edge, conn, request)
    else:
        answer_error(edge, conn, request, NOT_JOINED, b"this session has not joined the channel", 0)


cdef void open_record(Edge *edge, Connection *conn, uint32_t seq) noexcept nogil:
    """Tell the router that this connection has the session."""
    cdef RecSession *record = <RecSession *> record_add(&edge.link.out, REC_OPEN, 0, sizeof(RecSession), 0)
    if record != NULL:
        record.conn = conn_handle(conn)
        record.seq = seq
        memcpy(record.session, conn.session, 16)


cdef bint _open_channel(Edge *edge, Opening *opening, const char *name, uint32_t size,
                        const uint64_t *since) noexcept nogil:
    """Add one channel to an opening; False: out of memory."""
    cdef Channel *channel = _channel_wanted(edge, name, size)
    cdef Pending *pending
    if channel == NULL:
        return False
    pending = _pending_start(edge, opening.conn, opening.request, channel)
    if pending == NULL:
        channel_rest(edge, channel)
        return False
    pending.opening = opening.index
    pending.sibling = opening.first
    opening.first = pending.index
    opening.count += 1
    _pending_since(pending, since)
    if pending.waits or not _settled(edge, pending, channel, opening.seq):
        opening.remaining += 1
    return True


cdef bint _open_channels(Edge *edge, Opening *opening, const uint8_t *extra, uint32_t size) noexcept nogil:
    """All channels of a HELLO: MessagePack [[name, epoch, offset], ...] from the control thread; offset -1 as nil."""
    cdef MpReader reader
    cdef uint32_t count = 0
    cdef uint32_t parts = 0
    cdef uint32_t name_size = 0
    cdef uint64_t since[2]
    cdef const char *name
    reader.p = extra
    reader.end = extra + size
    if mp_read_array(&reader, &count) != 0:
        return False
    while count:
        count -= 1
        if mp_read_array(&reader, &parts) != 0 or mp_read_str(&reader, &name, &name_size) != 0:
            return False
        if parts == 3 and (mp_read_uint(&reader, &since[0]) != 0 or mp_read_uint(&reader, &since[1]) != 0):
            return False
        if not _open_channel(edge, opening, name, name_size, since if parts == 3 else NULL):
            return False
    return True


cdef void _opening_end(Edge *edge, Opening *opening) noexcept nogil:
    """Free an opening and its pendings."""
    cdef uint32_t index = opening.first
    cdef Pending *pending
    while index != NONE:
        pending = _pending_at(edge, index)
        index = pending.sibling
        _pending_end(edge, pending)
    if opening.seq:
        request_done(edge, opening.seq)
    free(opening.welcome)
    ledger_release(edge.ledger, KIND_PENDING, OPENING_KEY | opening.index)
    slab_release(&edge.openings, opening.index)


cdef void open_start(Edge *edge, Connection *conn, const Note *note, const uint8_t *welcome,
                     const uint8_t *extra) noexcept nogil:
    """HELLO, accepted by the control thread: claim the session and subscribe to its channels."""
    cdef uint32_t rights = <uint32_t> note.first
    cdef uint32_t index
    cdef Opening *opening
    if conn.state != STATE_HANDSHAKING or not conn.flags & FLAG_HELLO:
        return
    index = slab_acquire(&edge.openings)
    if index == SLAB_NONE:
        edge_fin(edge, conn, OVERLOADED, b"out of memory", RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))
        return
    opening = _opening_at(edge, index)
    memset(opening, 0, sizeof(Opening))
    ledger_acquire(edge.ledger, KIND_PENDING, OPENING_KEY | index, HERE)
    opening.index = index
    opening.conn = conn_handle(conn)
    opening.request = note.request
    opening.first = NONE
    opening.remaining = 1
    opening.welcome = <uint8_t *> malloc(note.text_size)
    opening.seq = request_open(edge, REQUEST_OPEN, opening.conn, note.request, index)
    if opening.welcome == NULL or opening.seq == 0 or rights > note.extra_size \
            or not _open_channels(edge, opening, extra, note.extra_size - rights) \
            or rights_set(edge, conn, extra + (note.extra_size - rights), rights) < 0:
        _opening_end(edge, opening)
        edge_fin(edge, conn, OVERLOADED, b"too many sessions open at once",
                 RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))
        return
    memcpy(opening.welcome, welcome, note.text_size)
    opening.welcome_size = note.text_size
    memcpy(conn.session, note.session, 16)
    conn.flags |= FLAG_SESSION
    open_record(edge, conn, opening.seq)


cdef void _welcome_send(Edge *edge, Connection *conn, Opening *opening) noexcept nogil:
    """WELCOME: what the control thread wrote, completed by the map of channels, written backwards from the list."""
    cdef uint32_t bytes_max = opening.welcome_size + 16 + opening.count * (NAME_BYTES_MAX + 32)
    cdef uint8_t *body = <uint8_t *> malloc(bytes_max)
    cdef uint32_t index = opening.first
    cdef MpWriter writer
    cdef Pending *pending
    cdef Channel *channel
    if body == NULL:
        edge_fin(edge, conn, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        return
    writer.p = body
    writer.end = body + bytes_max
    writer.overflow = False
    mp_write_raw(&writer, opening.welcome, opening.welcome_size)
    mp_write_map(&writer, opening.count)
    while index != NONE:
        pending = _pending_at(edge, index)
        channel = channel_at(edge, pending.channel)
        mp_write_str(&writer, channel_name(edge, channel), channel.name_size)
        mp_write_array(&writer, 3)
        mp_write_uint(&writer, channel.epoch)
        mp_write_uint(&writer, channel.offset)
        write_text(&writer, _outcome(pending, channel))
        index = pending.sibling
    invariant(not writer.overflow)
    answer_reply(edge, conn, body, <uint32_t> (writer.p - body))
    free(body)


cdef bint _open_members(Edge *edge, Connection *conn, Opening *opening) noexcept nogil:
    """Start the memberships; False: out of memory.

    The user's own channel is the first of them: it was added first, so it stands last in the list.
    """
    cdef uint32_t index = opening.first
    cdef Pending *own = NULL
    while index != NONE:
        own = _pending_at(edge, index)
        index = own.sibling
    if own == NULL or _member_start(edge, conn, own, channel_at(edge, own.channel)) < 0:
        return False
    index = opening.first
    while index != own.index:
        if _member_start(edge, conn, _pending_at(edge, index),
                         channel_at(edge, _pending_at(edge, index).channel)) < 0:
            return False
        index = _pending_at(edge, index).sibling
    return True


cdef void _open_finish(Edge *edge, Opening *opening) noexcept nogil:
    """The router answered everything: the session is open."""
    cdef Connection *conn = conn_get(&edge.connections, opening.conn)
    if conn != NULL and conn.state == STATE_HANDSHAKING:
        conn_set_state(conn, edge.ledger, STATE_OPEN)
        edge.handshakes -= 1
        conn.flags &= ~FLAG_HELLO
        ledger_time(edge.ledger, TIME_WELCOME, <uint32_t> (<uint32_t> edge.now_ms - conn.ping_seq))
        conn.ping_seq = 0
        _welcome_send(edge, conn, opening)
        if conn.state == STATE_OPEN and not _open_members(edge, conn, opening):
            edge_fin(edge, conn, OVERLOADED, b"out of memory", RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))
        elif conn.state == STATE_OPEN:
            # A random phase, so that the heartbeats of connections that came together do not stay together.
            conn.last_sent = edge_tick(edge) - edge_random(edge, edge.config.ping_ms // 200 + 1)
            edge_timer_plan(edge, conn)
    _opening_end(edge, opening)


cdef void _opening_answered(Edge *edge, Opening *opening) noexcept nogil:
    """One of the answers that an opening waits for is there."""
    opening.remaining -= 1
    if opening.remaining == 0:
        _open_finish(edge, opening)


cdef void open_claimed(Edge *edge, RecSession *record) noexcept nogil:
    """OPENED: the session is this connection's, and whoever had it before was told."""
    cdef Request *request = request_peek(edge, record.seq)
    if request != NULL and request.kind == REQUEST_OPEN:
        _opening_answered(edge, _opening_at(edge, request.index))


cdef void outcome_told(Edge *edge, Request *request, RecCaught *record) noexcept nogil:
    """CAUGHT for a JOIN or a channel of a HELLO. A refusal is left to the request's deadline."""
    cdef uint32_t index = request.index
    cdef Pending *pending
    cdef Opening *opening = NULL
    if record.head.aux:
        return
    if request.kind == REQUEST_OPEN:
        opening = _opening_at(edge, request.index)
        index = opening.first
    while index != NONE:
        pending = _pending_at(edge, index)
        if pending.asked and not pending.told and channel_handle(channel_at(edge, pending.channel)) == record.channel:
            pending.told = 1
            pending.outcome = record.outcome
            if opening == NULL:
                _join_finish(edge, pending)
            else:
                _opening_answered(edge, opening)
            return
        index = pending.sibling


cdef void _outcome_again(Edge *edge, Pending *pending, uint32_t seq) noexcept nogil:
    if pending.asked and not pending.told:
        catchup_ask(edge, channel_at(edge, pending.channel), seq, pending.since_epoch, pending.since_offset,
                    CATCHUP_OUTCOME)


cdef void joins_again(Edge *edge) noexcept nogil:
    """The router does not know this worker: the outcomes that were asked for are asked for again."""
    cdef uint32_t seq = edge.requests.oldest
    cdef uint32_t index
    cdef Request *request
    while seq != edge.requests.next:
        request = request_peek(edge, seq)
        if request != NULL and request.kind == REQUEST_JOIN:
            _outcome_again(edge, _pending_at(edge, request.index), seq)
        elif request != NULL and request.kind == REQUEST_OPEN:
            index = _opening_at(edge, request.index).first
            while index != NONE:
                _outcome_again(edge, _pending_at(edge, index), seq)
                index = _pending_at(edge, index).sibling
        seq += 1


cdef void channel_subscribed(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil:
    """SUBSCRIBED: the channel is live from this position on; after a new link it may tell of lost messages."""
    cdef uint32_t index = channel.waiting
    cdef Pending *pending
    cdef Opening *opening
    if channel.live and offset > channel.offset and channel.count:
        fanout_event_gap(edge, channel, channel.offset + 1, offset, b"router_lost")
    channel.live = 1
    channel.epoch = epoch
    channel.offset = offset
    channel.holds += 1                  # the list below may hold the last reference
    while index != NONE:
        pending = _pending_at(edge, index)
        index = pending.next
        _pending_unlink(edge, pending)
        if pending.opening == NONE:
            if _settled(edge, pending, channel, pending.seq):
                _join_finish(edge, pending)
        elif _settled(edge, pending, channel, _opening_at(edge, pending.opening).seq):
            _opening_answered(edge, _opening_at(edge, pending.opening))
    channel.holds -= 1
    channel_rest(edge, channel)


cdef void join_overdue(Edge *edge, Request *request) noexcept nogil:
    """The router did not answer a JOIN in time."""
    cdef Connection *conn = conn_get(&edge.connections, request.conn)
    if conn != NULL:
        answer_error(edge, conn, request.request, UNAVAILABLE, b"the router did not answer in time", RETRY_AFTER_MS)
    _pending_end(edge, _pending_at(edge, request.index))


cdef void open_overdue(Edge *edge, Request *request) noexcept nogil:
    """The router did not answer a HELLO in time."""
    cdef Connection *conn = conn_get(&edge.connections, request.conn)
    cdef Opening *opening = _opening_at(edge, request.index)
    opening.seq = 0                     # the caller has closed the request
    _opening_end(edge, opening)
    if conn != NULL:
        edge_fin(edge, conn, UNAVAILABLE, b"the router did not answer in time",
                 RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))


cdef void joins_end(Edge *edge) noexcept nogil:
    """The loop stops: let go of all that still waits for the router."""
    cdef uint32_t seq = edge.requests.oldest
    cdef uint32_t last = edge.requests.next
    cdef Request taken
    while seq != last:
        if request_take(edge, seq, &taken):
            if taken.kind == REQUEST_JOIN:
                _pending_end(edge, _pending_at(edge, taken.index))
            elif taken.kind == REQUEST_OPEN:
                _opening_at(edge, taken.index).seq = 0      # it is closed by now
                _opening_end(edge, _opening_at(edge, taken.index))
        seq += 1
