"""Opening: HELLO from the control thread's decision to WELCOME."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from core.act cimport join_refused
from core.answers cimport answer_reply, write_text
from core.codes cimport BAD_TOKEN, OVERLOADED, SESSION_EXPIRED, TOKEN_EXPIRED, UNAVAILABLE
from core.conn cimport (FLAG_HELLO, FLAG_SESSION, STATE_HANDSHAKING, STATE_OPEN, conn_get, conn_handle,
                        conn_memberships, conn_set_state)
from core.edge cimport (CHANNEL_KNOWN, CHANNEL_NAMED, NAME_BYTES_MAX, NONE, OPENING_KEY, REQUEST_OPEN, RETRY_AFTER_MS,
                        Channel, Link, Pending, conn_shard, edge_random, edge_tick, link_of)
from core.expiry cimport expiry_set
from core.fanout cimport channel_at, channel_find, channel_name, channel_rest, channel_shard
from core.joins cimport (attend_say, channel_wanted, joined_say, member_start, names_say, opening_at, pending_at,
                         pending_end, pending_outcome, pending_position, pending_settled, pending_since,
                         pending_start, state_say)
from core.ledger cimport KIND_PENDING, TIME_WELCOME, ledger_acquire, ledger_release, ledger_time
from core.lifecycle cimport edge_break, edge_fin, edge_timer_plan
from core.mailbox cimport OPEN_DEVICE, OPEN_IF_ALIVE, OPEN_RESUMES, OPEN_TELLS_UNREAD, OPEN_WHOLE
from core.mpack cimport (MpReader, MpWriter, mp_read_array, mp_read_str, mp_read_uint, mp_write_array, mp_write_map,
                         mp_write_nil, mp_write_raw, mp_write_str, mp_write_uint)
from core.namespaces cimport (DOMAIN_GLOBAL, DOMAIN_GROUP, DOMAIN_USER, JOIN_SERVER, NEW_LAST_ACK, NEW_LIVE,
                              USER_PREFIX_BYTES, Namespace, namespace_of)
from core.records cimport (CATCHUP_CURSOR, CATCHUP_LISTED, CATCHUP_START, CATCHUP_STORED, OPEN_AGAIN, OPEN_ALIVE,
                           OPEN_RESUME, OPENED_TAKEN, REC_OPEN, STATE_HEARS, STATE_HERE, STATE_JOINED, STATE_LEFT,
                           STATE_LISTS, record_add)
from core.requests cimport request_done, request_open, request_peek
from core.rights cimport rights_set
from core.shards cimport shards_have
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, slab_acquire, slab_release
from core.told cimport told_keep, told_take
from core.vitals cimport vital_of
from core.welcome cimport welcome_entry_bytes, welcome_room

cdef enum Stored:               # of a pending's channel; 0: the store does not have it
    STORED_TOO = 1              # the client's HELLO has it as well
    STORED_ALONE


cdef void _open_say(Edge *edge, Connection *conn, uint32_t seq, int flags, const uint8_t *stored,
                    uint32_t size) noexcept nogil:
    """Tell the router that this connection has the session."""
    cdef RecSession *record = <RecSession *> record_add(&link_of(edge, conn_shard(edge, conn)).out, REC_OPEN, flags,
                                                        sizeof(RecSession), size)
    if record != NULL:
        _open_fill(edge, conn, record, seq, stored, size)


cdef void _open_fill(Edge *edge, Connection *conn, RecSession *record, uint32_t seq, const uint8_t *stored,
                     uint32_t size) noexcept nogil:
    record.head.shard = conn_shard(edge, conn)
    record.conn = conn_handle(conn)
    record.seq = seq
    record.body_size = size
    record.fence = vital_of(edge, conn).fence
    memcpy(record.session, conn.session, 16)
    if size:
        memcpy(<uint8_t *> record + sizeof(RecSession), stored, size)


cdef void _open_keep(Edge *edge, Connection *conn, const Opening *opening) noexcept nogil:
    """The router answered the claim: from now on the next one is told of it, too."""
    cdef RecSession *record
    if vital_of(edge, conn).fence:
        record = <RecSession *> told_take(edge, REC_OPEN, _claim_flags(opening), sizeof(RecSession),
                                          opening.stored_size)
        if record != NULL:
            _open_fill(edge, conn, record, opening.seq, opening.welcome + opening.welcome_size, opening.stored_size)
            told_keep(&record.head)


cdef void open_again(Edge *edge, Connection *conn) noexcept nogil:
    """To a router that does not know: the session that a connection has."""
    _open_say(edge, conn, 0, OPEN_AGAIN, NULL, 0)


cdef void attends_again(Edge *edge, Link *link, Connection *conn, const uint64_t *shards) noexcept nogil:
    """To a router that begins to lead these shards (bits), the session's own or its channels': where it is a member."""
    cdef uint32_t slot, shard
    cdef uint32_t own = conn_shard(edge, conn)
    cdef bint all_ = shards_have(shards, own)
    cdef Channel *channel
    for slot in range(conn.membership_count):
        channel = channel_at(edge, conn_memberships(conn)[slot].channel)
        shard = channel_shard(edge, channel)
        if link_of(edge, shard) == link and (all_ or shards_have(shards, shard)):
            attend_say(edge, conn, channel)


cdef int _claim_flags(const Opening *opening) noexcept nogil:
    return (OPEN_RESUME if opening.resumed else 0) | (OPEN_ALIVE if opening.if_alive else 0)


cdef void opening_again(Edge *edge, Request *request, uint32_t seq) noexcept nogil:
    """After a lost link: a session whose claim was not answered, or whose channels still wait."""
    cdef Connection *conn = conn_get(&edge.connections, request.conn)
    cdef Opening *opening = opening_at(edge, request.index)
    if conn != NULL and conn.flags & FLAG_SESSION:
        _open_say(edge, conn, 0 if opening.claimed else seq, _claim_flags(opening),
                  opening.welcome + opening.welcome_size, opening.stored_size)


cdef int _fresh(Edge *edge, const Opening *opening, const Channel *channel) noexcept nogil:
    """Where a client that holds no position in a channel starts, by the router's word; 0: where it stands."""
    cdef int device
    if channel.domain == DOMAIN_GLOBAL and opening.older:
        return CATCHUP_LISTED
    if opening.resumed or channel.domain != DOMAIN_USER:
        return 0
    device = namespace_of(&edge.namespaces, channel_name(edge, channel), channel.name_size).new_device
    return 0 if device == NEW_LIVE else CATCHUP_CURSOR if device == NEW_LAST_ACK else CATCHUP_START


cdef bint _open_channel(Edge *edge, Opening *opening, Channel *channel, const uint64_t *since,
                        int acked) noexcept nogil:
    """Add one channel to an opening; False: out of memory, as without a channel."""
    cdef Pending *pending
    if channel == NULL:
        return False
    pending = pending_start(edge, opening.conn, opening.request, channel)
    if pending == NULL:
        channel_rest(edge, channel)
        return False
    pending.opening = opening.index
    pending.sibling = opening.first
    opening.first = pending.index
    opening.count += 1
    opening.globals += channel.domain == DOMAIN_GLOBAL
    pending_since(pending, since)
    pending.acked = <uint8_t> acked
    if since == NULL:
        pending.fresh = <uint8_t> _fresh(edge, opening, channel)
        pending.has_since = pending.fresh != 0
    if pending.waits or not pending_settled(edge, pending, channel, opening.seq):
        opening.remaining += 1
    return True


cdef Pending *_opening_find(Edge *edge, Opening *opening, Channel *channel) noexcept nogil:
    """The pending of a channel, or NULL."""
    cdef uint32_t index = opening.first
    while index != NONE and pending_at(edge, index).channel != channel.index:
        index = pending_at(edge, index).sibling
    return NULL if index == NONE else pending_at(edge, index)


cdef void _name_all(Edge *edge, Opening *opening, bint named) noexcept nogil:
    """Mark the channels that an opening has: to look for each of many in its list would be O(n²)."""
    cdef uint32_t index = opening.first
    cdef Channel *channel
    while index != NONE:
        channel = channel_at(edge, pending_at(edge, index).channel)
        channel.flags = channel.flags | CHANNEL_NAMED if named else channel.flags & ~CHANNEL_NAMED
        index = pending_at(edge, index).sibling


cdef bint _is_full(Edge *edge, Opening *opening, const Namespace *namespace) noexcept nogil:
    """Whether the session is in as many channels as it may be; global ones do not count as joined, and are few: those
    of them that are over are left again before WELCOME (`_leave_gone`)."""
    return namespace.domain != DOMAIN_GLOBAL \
        and opening.count - opening.globals >= edge.config.channels_max + edge.namespaces.session_count


cdef bint _knows(Edge *edge, Opening *opening) noexcept nogil:
    """Whether a resume says where the session stands in whatever it has heard of: the store does, or the client."""
    cdef uint32_t index = opening.first
    while opening.resumed and index != NONE:
        if pending_at(edge, index).stored:
            return True
        index = pending_at(edge, index).sibling
    return opening.resumed and opening.whole


cdef void _leave(Edge *edge, Connection *conn, Opening *opening, uint32_t *place) noexcept nogil:
    """The session is not in this channel any more; `place` has the index of its pending, and then that of the next."""
    cdef Pending *pending = pending_at(edge, place[0])
    cdef Channel *channel = channel_at(edge, pending.channel)
    place[0] = pending.sibling
    opening.count -= 1
    opening.globals -= channel.domain == DOMAIN_GLOBAL
    state_say(edge, conn, channel, STATE_LEFT, channel.epoch, channel.offset)
    pending_end(edge, pending)


cdef void _leave_gone(Edge *edge, Connection *conn, Opening *opening) noexcept nogil:
    """Leave the global channels that only the store names and that are over: what is stored must not grow with each.

    Each of them was subscribed to, unless this worker holds it anyway; if it goes on, the router said GLOBAL before it
    answered that (core/everybody.pxd).
    """
    cdef uint32_t *place = &opening.first
    cdef Pending *pending
    cdef Channel *channel
    while place[0] != NONE:
        pending = pending_at(edge, place[0])
        channel = channel_at(edge, pending.channel)
        if pending.stored != STORED_ALONE or channel.domain != DOMAIN_GLOBAL or channel.flags & CHANNEL_KNOWN:
            place = &pending.sibling
        else:
            _leave(edge, conn, opening, place)


cdef inline int64_t _entry_bytes(Edge *edge, const Pending *pending) noexcept nogil:
    """What a channel takes of the session's own half of WELCOME: the other half has the global ones that go on."""
    cdef Channel *channel = channel_at(edge, pending.channel)
    return 0 if channel.flags & CHANNEL_KNOWN else welcome_entry_bytes(channel_name(edge, channel), channel.name_size)


cdef int64_t _leave_until(Edge *edge, Connection *conn, Opening *opening, int domain, int64_t room) noexcept nogil:
    """Leave channels of a domain, the last ones first, until there is room enough; what room there is then."""
    cdef uint32_t *place = &opening.first
    cdef Pending *pending
    while place[0] != NONE and room < 0:
        pending = pending_at(edge, place[0])
        if channel_at(edge, pending.channel).domain != domain or _entry_bytes(edge, pending) == 0:
            place = &pending.sibling
            continue
        room += _entry_bytes(edge, pending)
        _leave(edge, conn, opening, place)
    return room


cdef bint _leave_surplus(Edge *edge, Connection *conn, Opening *opening) noexcept nogil:
    """Leave what WELCOME has no room for, as after a change of max_frame, or of the token's lists by REFRESH: JOIN lets
    in only what finds room. First global channels that are over, then groups. False: there is none for the session."""
    cdef uint32_t index = opening.first
    cdef int64_t taken = 0
    cdef int64_t room
    cdef Channel *own = NULL            # the user's own: it was added first, and stands last
    while index != NONE:
        own = channel_at(edge, pending_at(edge, index).channel)
        taken += _entry_bytes(edge, pending_at(edge, index))
        index = pending_at(edge, index).sibling
    if own == NULL:
        return True
    room = welcome_room(edge, conn, channel_name(edge, own) + USER_PREFIX_BYTES, own.name_size - USER_PREFIX_BYTES)
    room = _leave_until(edge, conn, opening, DOMAIN_GLOBAL, room - taken)
    return _leave_until(edge, conn, opening, DOMAIN_GROUP, room) >= 0


cdef bint _open_globals(Edge *edge, Opening *opening) noexcept nogil:
    """Add the global channels that nobody named; False: out of memory.

    A session begins where they stand. One that is resumed and had not heard of a channel is older than it: every HELLO
    is told of all, and they are stored with it. So it gets that channel from where workers were told of it.
    """
    cdef bint sound = True
    cdef uint32_t place
    cdef Channel *channel
    opening.older = _knows(edge, opening)
    _name_all(edge, opening, True)
    for place in range(edge.globals):
        channel = channel_at(edge, edge.everybody[place])
        if not channel.flags & CHANNEL_NAMED:
            sound = sound and _open_channel(edge, opening, channel, NULL, 0)
    _name_all(edge, opening, False)
    return sound


cdef inline void _set_stored(Pending *pending, int stored, const uint64_t *since) noexcept nogil:
    pending.stored = <uint8_t> stored
    pending.stored_epoch = since[0]
    pending.stored_offset = since[1]


cdef void _stored_channel(Edge *edge, Connection *conn, Opening *opening, const char *name, uint32_t size,
                          const uint64_t *since) noexcept nogil:
    """A channel of the session as it is stored: what the client itself says of it counts more."""
    cdef Channel *channel = channel_find(edge, name, size)
    cdef Pending *pending = NULL
    cdef const Namespace *namespace
    if channel != NULL and channel.flags & CHANNEL_NAMED:
        pending = _opening_find(edge, opening, channel)
    if pending != NULL:
        _set_stored(pending, STORED_TOO, since)
        if not pending.has_since:
            pending_since(pending, since)
            pending.acked = CATCHUP_STORED
            if not pending.waits and not pending_settled(edge, pending, channel, opening.seq):
                opening.remaining += 1
        return
    namespace = namespace_of(&edge.namespaces, name, size)
    if namespace == NULL or namespace.domain == DOMAIN_USER or _is_full(edge, opening, namespace) \
            or (namespace.domain == DOMAIN_GROUP and namespace.join != JOIN_SERVER
                and join_refused(edge, conn, namespace, name, size) != NULL):
        return                          # what the session may not join any more it is not in any more
    if _open_channel(edge, opening, channel_wanted(edge, name, size), since, CATCHUP_STORED):
        _set_stored(pending_at(edge, opening.first), STORED_ALONE, since)


cdef bint _channel_read(MpReader *reader, const char **name, uint32_t *size, uint64_t *since,
                        uint32_t *parts) noexcept nogil:
    """The next [name] or [name, epoch, offset, ...] up to its position; `parts`: how many it has. False: malformed."""
    if mp_read_array(reader, parts) != 0 or mp_read_str(reader, name, size) != 0:
        return False
    return parts[0] < 3 or (mp_read_uint(reader, &since[0]) == 0 and mp_read_uint(reader, &since[1]) == 0)


cdef void _stored_channels(Edge *edge, Connection *conn, Opening *opening, const uint8_t *body,
                           uint32_t size) noexcept nogil:
    """MessagePack [[name, epoch, offset], ...] from the store; a user's own channel also has the user's cursor."""
    cdef MpReader reader
    cdef uint32_t count = 0
    cdef uint32_t parts = 0
    cdef uint32_t name_size = 0
    cdef uint64_t since[2]
    cdef const char *name
    reader.p = body
    reader.end = body + size
    if mp_read_array(&reader, &count) != 0:
        return
    _name_all(edge, opening, True)
    while count and _channel_read(&reader, &name, &name_size, since, &parts) and parts >= 3:
        count -= 1
        if parts == 4:
            if mp_read_uint(&reader, &opening.cursor) != 0:
                break
            opening.cursor_known = 1
        _stored_channel(edge, conn, opening, name, name_size, since)
    _name_all(edge, opening, False)


cdef bint _open_channels(Edge *edge, Opening *opening, const uint8_t *extra, uint32_t size) noexcept nogil:
    """All channels of a HELLO: MessagePack [[name, epoch, offset], ...] by the control thread; [name]: no position."""
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
        if not _channel_read(&reader, &name, &name_size, since, &parts):
            return False
        if not _open_channel(edge, opening, channel_wanted(edge, name, name_size), since if parts == 3 else NULL, 0):
            return False
    return True


cdef void opening_end(Edge *edge, Opening *opening) noexcept nogil:
    """Free an opening and its pendings."""
    cdef uint32_t index = opening.first
    cdef Pending *pending
    while index != NONE:
        pending = pending_at(edge, index)
        index = pending.sibling
        pending_end(edge, pending)
    if opening.seq:
        request_done(edge, opening.seq)
    free(opening.welcome)
    ledger_release(edge.ledger, KIND_PENDING, OPENING_KEY | opening.index)
    slab_release(&edge.openings, opening.index)


cdef void open_start(Edge *edge, Connection *conn, const Note *note, const uint8_t *welcome,
                     const uint8_t *extra) noexcept nogil:
    """HELLO, accepted by the control thread: claim the session and subscribe to its channels."""
    cdef uint32_t index, rights, channels
    cdef Opening *opening
    if conn.state != STATE_HANDSHAKING or not conn.flags & FLAG_HELLO:
        return
    index = slab_acquire(&edge.openings)
    if index == SLAB_NONE:
        edge_fin(edge, conn, OVERLOADED, b"out of memory", RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))
        return
    opening = opening_at(edge, index)
    memset(opening, 0, sizeof(Opening))
    ledger_acquire(edge.ledger, KIND_PENDING, OPENING_KEY | index, HERE)
    opening.index = index
    opening.conn = conn_handle(conn)
    opening.request = note.request
    opening.first = NONE
    opening.remaining = 1
    opening.resumed = note.flags & OPEN_RESUMES != 0
    opening.whole = note.flags & OPEN_WHOLE != 0
    opening.tells_unread = note.flags & OPEN_TELLS_UNREAD != 0
    opening.if_alive = note.flags & OPEN_IF_ALIVE != 0
    opening.welcome_size = note.text_size
    opening.stored_size = <uint32_t> min(note.second, <uint64_t> note.extra_size)
    rights = <uint32_t> min(note.first, <uint64_t> (note.extra_size - opening.stored_size))
    channels = note.extra_size - opening.stored_size - rights
    opening.welcome = <uint8_t *> malloc(note.text_size + opening.stored_size)
    opening.seq = request_open(edge, REQUEST_OPEN, opening.conn, note.request, index)
    if opening.welcome == NULL or opening.seq == 0 \
            or not _open_channels(edge, opening, extra, channels) \
            or rights_set(edge, conn, extra + channels, rights) < 0:
        opening_end(edge, opening)
        edge_fin(edge, conn, OVERLOADED, b"too many sessions open at once",
                 RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))
        return
    memcpy(opening.welcome, welcome, note.text_size)
    memcpy(opening.welcome + note.text_size, extra + note.extra_size - opening.stored_size, opening.stored_size)
    memcpy(conn.session, note.session, 16)
    conn.flags |= FLAG_SESSION
    expiry_set(edge, conn, note.third)
    vital_of(edge, conn).device = <uint8_t> (note.flags // OPEN_DEVICE)
    _open_say(edge, conn, opening.seq, _claim_flags(opening), opening.welcome + opening.welcome_size,
              opening.stored_size)


cdef void _welcome_send(Edge *edge, Connection *conn, Opening *opening) noexcept nogil:
    """WELCOME: what the control thread wrote, completed by the map of channels, written backwards from the list."""
    cdef uint32_t bytes_max = opening.welcome_size + 32 + opening.count * (NAME_BYTES_MAX + 32)
    cdef uint8_t *body = <uint8_t *> malloc(bytes_max)
    cdef uint32_t index = opening.first
    cdef MpWriter writer
    cdef Pending *pending
    cdef Channel *channel = NULL
    cdef uint64_t position[2]
    if body == NULL:
        edge_fin(edge, conn, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        return
    writer.p = body
    writer.end = body + bytes_max
    writer.overflow = False
    mp_write_raw(&writer, opening.welcome, opening.welcome_size)
    mp_write_map(&writer, opening.count)
    while index != NONE:
        pending = pending_at(edge, index)
        channel = channel_at(edge, pending.channel)
        mp_write_str(&writer, channel_name(edge, channel), channel.name_size)
        pending_position(pending, channel, position)
        mp_write_array(&writer, 3)
        mp_write_uint(&writer, position[0])
        mp_write_uint(&writer, position[1])
        write_text(&writer, pending_outcome(pending, channel))
        index = pending.sibling
    if opening.tells_unread:            # the channel written last was added first: the user's own
        write_text(&writer, b"unread")
        if opening.cursor_known or channel.offset == 0:
            mp_write_uint(&writer, channel.offset - opening.cursor if opening.cursor < channel.offset else 0)
        else:
            mp_write_nil(&writer)
    invariant(not writer.overflow)
    answer_reply(edge, conn, body, <uint32_t> (writer.p - body))
    free(body)


cdef bint _open_member(Edge *edge, Connection *conn, Pending *pending) noexcept nogil:
    cdef Channel *channel = channel_at(edge, pending.channel)
    if member_start(edge, conn, pending, channel) < 0:
        return False
    if channel.domain != DOMAIN_GLOBAL:         # of those that are new here `names_say` tells, all at once
        joined_say(edge, conn, pending, channel, STATE_HERE if pending.stored else STATE_JOINED)
    return True


cdef bint _open_members(Edge *edge, Connection *conn, Opening *opening) noexcept nogil:
    """Start the memberships; False: out of memory.

    The user's own channel is the first of them: it was added first, so it stands last in the list.
    """
    cdef uint32_t index = opening.first
    cdef Pending *own = NULL
    if opening.resumed:
        names_say(edge, conn, opening, STATE_LISTS)
    while index != NONE:
        own = pending_at(edge, index)
        index = own.sibling
    if own == NULL or not _open_member(edge, conn, own):
        return False
    index = opening.first
    while index != own.index:
        if not _open_member(edge, conn, pending_at(edge, index)):
            return False
        index = pending_at(edge, index).sibling
    names_say(edge, conn, opening, STATE_HEARS)
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
    opening_end(edge, opening)


cdef void opening_answered(Edge *edge, Opening *opening) noexcept nogil:
    """One of the answers that an opening waits for is there."""
    cdef Connection *conn = conn_get(&edge.connections, opening.conn)
    opening.remaining -= 1
    if opening.remaining:
        return
    if conn != NULL:
        _leave_gone(edge, conn, opening)
        if not _leave_surplus(edge, conn, opening):
            opening_end(edge, opening)
            edge_fin(edge, conn, BAD_TOKEN, b"the user id, or the token's lists, are too long for WELCOME: it has half"
                     b" of gateway.max_frame for them", 0)
            return
    if not _open_globals(edge, opening):    # at last: none of them begins between this and WELCOME
        opening_refused(edge, opening, OVERLOADED, b"out of memory")
    elif opening.remaining == 0:
        _open_finish(edge, opening)


cdef void opening_refused(Edge *edge, Opening *opening, int code, const char *why) noexcept nogil:
    """The router cannot do what the HELLO needs: the client is told to come back."""
    cdef Connection *conn = conn_get(&edge.connections, opening.conn)
    opening_end(edge, opening)
    if conn != NULL:
        edge_fin(edge, conn, code if code < TOKEN_EXPIRED else UNAVAILABLE, why,
                 RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))


cdef bint _named_by_client(Edge *edge, Opening *opening) noexcept nogil:
    """Whether HELLO says where the session stands in each of its channels, its user's own among them."""
    cdef uint32_t index = opening.first
    while index != NONE:
        if not pending_at(edge, index).has_since or pending_at(edge, index).fresh:
            return False
        index = pending_at(edge, index).sibling
    return opening.whole


cdef void _fence_raise(Edge *edge, const RecSession *record) noexcept nogil:
    """A claim that was said again, over a link that was lost, got a later number: what is stored is dated by that."""
    cdef Connection *conn = conn_get(&edge.connections, record.conn)
    if conn != NULL and conn.flags & FLAG_SESSION and vital_of(edge, conn).fence:
        vital_of(edge, conn).fence = max(vital_of(edge, conn).fence, record.fence)


cdef void _claim_refused(Edge *edge, Connection *conn, Opening *opening, const RecSession *record) noexcept nogil:
    """The session is another's, and the client hears whose; or nobody can tell now."""
    cdef char why[256]
    cdef uint32_t size = min(record.body_size, <uint32_t> sizeof(why) - 1)
    memcpy(why, <const uint8_t *> record + sizeof(RecSession), size)
    why[size] = 0
    if record.head.aux == UNAVAILABLE or record.head.aux == OVERLOADED:
        opening_refused(edge, opening, record.head.aux, b"nobody can tell now whose the session is")
    else:
        opening_end(edge, opening)
        edge_break(edge, conn, record.head.aux, why)


cdef void open_claimed(Edge *edge, const Link *by, RecSession *record) noexcept nogil:
    """OPENED: the session is this connection's, and whoever had it before was told."""
    cdef Request *request = request_peek(edge, record.seq)
    cdef Opening *opening
    cdef Connection *conn
    if request == NULL or request.kind != REQUEST_OPEN or opening_at(edge, request.index).claimed:
        _fence_raise(edge, record)
        return
    opening = opening_at(edge, request.index)
    opening.claimed = 1
    opening.router_epoch = by.router_epoch
    conn = conn_get(&edge.connections, opening.conn)
    if conn != NULL and record.fence == 0 and record.head.aux > OPENED_TAKEN:
        _claim_refused(edge, conn, opening, record)
        return
    if conn != NULL and conn.flags & FLAG_SESSION:
        vital_of(edge, conn).fence = record.fence
        if record.head.aux != SESSION_EXPIRED:      # what was over stays so, for the next router too
            _open_keep(edge, conn, opening)
    if record.head.aux == SESSION_EXPIRED and conn != NULL:
        opening_end(edge, opening)
        edge_break(edge, conn, SESSION_EXPIRED, b"the session is over, or nothing of it is stored any more: begin anew,"
                   b" and JOIN its channels with `since`")
        return
    if opening.resumed and record.head.aux <= OPENED_TAKEN and record.body_size == 0 and conn != NULL \
            and not _named_by_client(edge, opening):
        # No log keeps sessions here: what the client leaves out, nobody knows.
        opening_end(edge, opening)
        edge_break(edge, conn, SESSION_EXPIRED, b"this gateway stores no sessions: begin anew, or name the positions of"
                   b" all channels and say `whole`")
        return
    if record.head.aux > OPENED_TAKEN and conn != NULL and (opening.if_alive or not _named_by_client(edge, opening)):
        # Nobody knows what else the session was in: a resume would pass over what it missed there, in silence.
        opening_refused(edge, opening, record.head.aux, b"what is stored of the session cannot be read now: come back,"
                        b" or name the positions of all its channels and say `whole`")
        return
    if record.body_size and conn != NULL:
        _stored_channels(edge, conn, opening, <const uint8_t *> record + sizeof(RecSession), record.body_size)
    opening_answered(edge, opening)


cdef void open_overdue(Edge *edge, Request *request) noexcept nogil:
    """The router did not answer a HELLO in time."""
    cdef Opening *opening = opening_at(edge, request.index)
    opening.seq = 0                     # the caller has closed the request
    opening_refused(edge, opening, UNAVAILABLE, b"the router did not answer in time")
