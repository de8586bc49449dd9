"""Joins: what waits for the router before a JOIN is answered, and the channels of those that say HELLO."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from core.answers cimport answer_empty, answer_error, answer_position
from core.batch cimport batch_reserve, batch_write
from core.codes cimport NOT_JOINED, OVERLOADED, TOO_MANY_CHANNELS, UNAVAILABLE
from core.conn cimport STATE_OPEN, conn_get, conn_handle
from core.edge cimport (CHANNEL_KNOWN, CHANNEL_LIVE, NONE, REQUEST_JOIN, REQUEST_OPEN, RETRY_AFTER_MS, Link,
                        conn_shard, link_of)
from core.fanout cimport (channel_acquire, channel_at, channel_find, channel_handle, channel_name, channel_rest,
                          channel_shard, channel_subscribe, channel_unasked, conn_user, fanout_event_gap,
                          fanout_event_recreated, member_add, member_catch, member_catches, member_caught,
                          member_joined, member_remove, member_stands)
from core.ledger cimport (COUNT_STATES_LOST, COUNT_SUBSCRIPTIONS_REFUSED, KIND_PENDING, ledger_acquire, ledger_count,
                          ledger_leaks, ledger_release)
from core.mpack cimport MpWriter, mp_write_array, mp_write_map, mp_write_str, mp_write_uint
from core.namespaces cimport DOMAIN_GLOBAL, DOMAIN_GROUP, DOMAIN_USER, GLOBALS_MAX, domain_in
from core.opening cimport opening_answered, opening_end, opening_refused
from core.records cimport (CATCHUP_OUTCOME, GAP_ROUTER_LOST, GLOBAL_GONE, OUTCOME_GAP, OUTCOME_LIVE, OUTCOME_RESET,
                           REC_ATTEND, REC_STATE, STATE_ACKED, STATE_HEARS, STATE_HERE, STATE_JOINED, STATE_LEFT,
                           STATE_LISTS, RecState, Record, record_add)
from core.replay cimport catchup_ask
from core.requests cimport request_done, request_open, request_peek, request_take
from core.shards cimport shards_have
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, slab_acquire, slab_release
from core.told cimport told_keep, told_say, told_take, told_time
from core.vitals cimport vital_of
from core.welcome cimport welcome_fits

cdef enum:
    HEARS_ENTRY_BYTES = 24          # two numbers of nine bytes, and what says how long the name is


cdef Channel *channel_wanted(Edge *edge, const char *name, uint32_t size) noexcept nogil:
    """The channel of a name, made and subscribed to if this worker does not know it yet."""
    cdef Channel *channel = channel_find(edge, name, size)
    if channel == NULL:
        channel = channel_acquire(edge, name, size, domain_in(&edge.namespaces, name, size))
        if channel != NULL:
            channel_subscribe(edge, channel)
    return channel


cdef Pending *pending_start(Edge *edge, uint64_t conn, uint64_t request, Channel *channel) noexcept nogil:
    """A pending that holds the channel, in its waiting list while it is not live; NULL: out of memory."""
    cdef uint32_t index = slab_acquire(&edge.pendings)
    cdef Pending *pending
    if index == SLAB_NONE:
        return NULL
    pending = pending_at(edge, index)
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
    if not channel.flags & CHANNEL_LIVE:
        pending.waits = 1
        pending.next = channel.waiting
        if channel.waiting != NONE:
            pending_at(edge, channel.waiting).previous = index
        channel.waiting = index
    ledger_acquire(edge.ledger, KIND_PENDING, index, HERE)
    return pending


cdef void _pending_unlink(Edge *edge, Pending *pending) noexcept nogil:
    """Take it out of its channel's waiting list."""
    if not pending.waits:
        return
    pending.waits = 0
    if pending.previous != NONE:
        pending_at(edge, pending.previous).next = pending.next
    else:
        channel_at(edge, pending.channel).waiting = pending.next
    if pending.next != NONE:
        pending_at(edge, pending.next).previous = pending.previous


cdef void pending_end(Edge *edge, Pending *pending) noexcept nogil:
    """Free it, and let go of its channel."""
    cdef Channel *channel = channel_at(edge, pending.channel)
    _pending_unlink(edge, pending)
    if ledger_leaks(edge.ledger, KIND_PENDING):
        return
    ledger_release(edge.ledger, KIND_PENDING, pending.index)
    slab_release(&edge.pendings, pending.index)
    channel.holds -= 1
    channel_rest(edge, channel)


cdef bint pending_settled(Edge *edge, Pending *pending, Channel *channel, uint32_t seq) noexcept nogil:
    """The channel is live: whether the outcome is known now. Otherwise the router is asked for it, under `seq`."""
    if pending.told or not pending.has_since:
        return True
    if pending.fresh and channel.offset == 0:
        pending.since_offset = 0
        pending.told = 1
        return True
    if not pending.fresh and pending.since_epoch == channel.epoch and pending.since_offset == channel.offset:
        pending.told = 1
        pending.outcome = OUTCOME_LIVE
        return True
    pending.asked = 1
    catchup_ask(edge, channel, seq, pending.since_epoch, pending.since_offset,
                <uint32_t> CATCHUP_OUTCOME | pending.fresh | pending.acked)
    return False


cdef const char *pending_outcome(Pending *pending, Channel *channel) noexcept nogil:
    """What the client hears now (protocol, "Resuming"): the channel may have moved on since the outcome was found."""
    if not pending.has_since:
        return b"live"
    if pending.outcome == OUTCOME_RESET:
        return b"reset"
    if pending.outcome == OUTCOME_GAP:
        return b"gap"
    return b"live" if pending.since_offset == channel.offset else b"replayed"


cdef void pending_position(const Pending *pending, const Channel *channel, uint64_t *position) noexcept nogil:
    """The position that the client hears: where the channel stands, or stood when the outcome was `reset`, since the
    client begins there."""
    cdef bint is_reset = pending.has_since and pending.outcome == OUTCOME_RESET
    position[0] = pending.since_epoch if is_reset else channel.epoch
    position[1] = pending.since_offset if is_reset else channel.offset


cdef void state_say(Edge *edge, Connection *conn, Channel *channel, int what, uint64_t epoch,
                    uint64_t offset) noexcept nogil:
    """Tell the router what the session did; the user comes with it, but with ACKED and before its session is open."""
    cdef uint32_t size = channel.name_size
    cdef uint32_t user_size = 0
    cdef const char *user = NULL
    cdef bint kept = what == STATE_JOINED or what == STATE_LEFT
    cdef uint8_t shard = conn_shard(edge, conn)
    cdef RecState *record
    if what != STATE_ACKED and conn.membership_count:
        user = conn_user(edge, conn, &user_size)
    if kept:
        record = <RecState *> told_take(edge, REC_STATE, size, sizeof(RecState), size + user_size)
    else:
        record = <RecState *> record_add(&link_of(edge, shard).out, REC_STATE, size, sizeof(RecState), size + user_size)
    if record == NULL:
        return                          # of an ACK, what the client says when it resumes counts
    record.head.shard = shard
    record.what = <unsigned short> what
    record.user_size = <unsigned short> user_size
    record.conn = <uint32_t> conn_handle(conn)
    record.epoch = epoch
    record.offset = offset
    memcpy(record.session, conn.session, 16)
    memcpy(<uint8_t *> record + sizeof(RecState), channel_name(edge, channel), size)
    if user_size:
        memcpy(<uint8_t *> record + sizeof(RecState) + size, user, user_size)
    if kept or what == STATE_HERE:
        record.fence = vital_of(edge, conn).fence
    if kept:
        record.time_us = told_time(edge)
        _attend_too(edge, record, channel)
        told_say(edge, &record.head)
    elif what == STATE_HERE:
        _attend_too(edge, record, channel)


cdef void _attend_too(Edge *edge, const RecState *record, Channel *channel) noexcept nogil:
    """Where another router leads the channel, that one knows who is there: it is told as well."""
    cdef uint8_t shard = channel_shard(edge, channel)
    cdef Link *link = link_of(edge, shard)
    cdef uint8_t *room
    if link == link_of(edge, record.head.shard) or not link.up:
        return                          # it is told of all that are there when it is up, or leads the channel
    room = batch_reserve(&link.out, record.head.size)
    if room == NULL:
        ledger_count(edge.ledger, COUNT_STATES_LOST, 1)
        return
    memcpy(room, record, record.head.size)
    (<Record *> room).kind = REC_ATTEND
    (<Record *> room).shard = shard


cdef void attend_say(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """To a router that begins to lead the channel: the session is there."""
    cdef uint8_t shard = channel_shard(edge, channel)
    cdef Link *link = link_of(edge, shard)
    cdef uint32_t user_size = 0
    cdef const char *user = conn_user(edge, conn, &user_size)
    cdef bint own = link == link_of(edge, conn_shard(edge, conn))
    cdef RecState *record = <RecState *> record_add(&link.out, REC_STATE if own else REC_ATTEND, channel.name_size,
                                                    sizeof(RecState), channel.name_size + user_size)
    if record == NULL:
        return
    record.head.shard = conn_shard(edge, conn) if own else shard
    record.what = STATE_HERE
    record.user_size = <unsigned short> user_size
    record.conn = <uint32_t> conn_handle(conn)
    record.fence = vital_of(edge, conn).fence
    record.epoch = channel.epoch
    record.offset = channel.offset
    memcpy(record.session, conn.session, 16)
    memcpy(<uint8_t *> record + sizeof(RecState), channel_name(edge, channel), channel.name_size)
    memcpy(<uint8_t *> record + sizeof(RecState) + channel.name_size, user, user_size)


cdef void pending_began(const Pending *pending, const Channel *channel, uint64_t *position) noexcept nogil:
    """Where the membership began: a client that is caught up stands where it said, or where a `reset` put it."""
    position[0] = pending.since_epoch if pending.has_since else channel.epoch
    position[1] = pending.since_offset if pending.has_since else channel.offset


cdef void _names_told(Edge *edge, Connection *conn, int what, uint64_t said_by, const uint8_t *names,
                      uint32_t size) noexcept nogil:
    """HEARS or LISTS: where the session is, {name: [epoch, offset]}, as the router of the epoch `said_by` knew."""
    cdef RecState *record = <RecState *> told_take(edge, REC_STATE, <int> size, sizeof(RecState), size)
    if record == NULL:
        return
    record.head.shard = conn_shard(edge, conn)
    record.what = <unsigned short> what
    record.conn = <uint32_t> conn_handle(conn)
    record.time_us = told_time(edge)
    record.fence = vital_of(edge, conn).fence
    memcpy(record.session, conn.session, 16)
    memcpy(<uint8_t *> record + sizeof(RecState), names, size)
    if what == STATE_HEARS:
        told_say(edge, &record.head)
        return
    told_keep(&record.head)
    if said_by != link_of(edge, record.head.shard).router_epoch \
            and batch_write(&link_of(edge, record.head.shard).out, record, record.head.size) < 0:
        ledger_count(edge.ledger, COUNT_STATES_LOST, 1)     # another one came since, and told_say_all had nothing of it


cdef inline bint _is_named(Edge *edge, const Pending *pending, int what) noexcept nogil:
    """Whether HEARS or LISTS has its channel: HEARS those global ones that go on and are not stored with the session
    yet, LISTS the others that are stored."""
    cdef Channel *channel = channel_at(edge, pending.channel)
    if what == STATE_LISTS:
        return pending.stored and channel.domain != DOMAIN_GLOBAL
    return not pending.stored and channel.flags & CHANNEL_KNOWN != 0


cdef void _names_write(Edge *edge, const Opening *opening, int what, uint32_t count, MpWriter *writer) noexcept nogil:
    """{name: [epoch, offset]} of the channels that HEARS or LISTS has."""
    cdef uint32_t index = opening.first
    cdef uint64_t position[2]
    cdef Pending *pending
    cdef Channel *channel
    mp_write_map(writer, count)
    while index != NONE:
        pending = pending_at(edge, index)
        index = pending.sibling
        if not _is_named(edge, pending, what):
            continue
        channel = channel_at(edge, pending.channel)
        if what == STATE_LISTS:         # what the client says that it has is no ACK
            position[0] = pending.stored_epoch
            position[1] = pending.stored_offset
        else:
            pending_began(pending, channel, position)
        mp_write_str(writer, channel_name(edge, channel), channel.name_size)
        mp_write_array(writer, 2)
        mp_write_uint(writer, position[0])
        mp_write_uint(writer, position[1])
    invariant(not writer.overflow)


cdef void names_say(Edge *edge, Connection *conn, const Opening *opening, int what) noexcept nogil:
    """HEARS: tell the router in which global channels the session begins; one record, since a JOINED for each of 128 of
    them cost five times what all the rest of a HELLO does.

    LISTS: keep for the next router which of its channels this one knew. It may be gone before it has stored all of it,
    and whoever told it may tell the next one late, or never.
    """
    cdef uint32_t index = opening.first
    cdef uint32_t count = 0
    cdef uint32_t bytes_max = 8
    cdef uint8_t *names
    cdef MpWriter writer
    while index != NONE:
        if _is_named(edge, pending_at(edge, index), what):
            count += 1
            bytes_max += channel_at(edge, pending_at(edge, index).channel).name_size + HEARS_ENTRY_BYTES
        index = pending_at(edge, index).sibling
    if count == 0 and what == STATE_HEARS:
        return
    names = <uint8_t *> malloc(bytes_max)
    if names == NULL:
        ledger_count(edge.ledger, COUNT_STATES_LOST, 1)
        return
    writer.p = names
    writer.end = names + bytes_max
    writer.overflow = False
    _names_write(edge, opening, what, count, &writer)
    if writer.p - names <= 0xFFFF:      # a larger `max_frame` lets in more: then what is stored counts
        _names_told(edge, conn, what, opening.router_epoch, names, <uint32_t> (writer.p - names))
    free(names)


cdef void joined_say(Edge *edge, Connection *conn, Pending *pending, Channel *channel, int what) noexcept nogil:
    """Tell the router where the membership began."""
    cdef uint64_t position[2]
    pending_began(pending, channel, position)
    state_say(edge, conn, channel, what, position[0], position[1])


cdef int member_start(Edge *edge, Connection *conn, Pending *pending, Channel *channel) noexcept nogil:
    """Begin the membership where the client stands; -1: out of memory."""
    if pending.has_since and pending.since_offset != channel.offset:
        return member_catch(edge, conn, channel, pending.since_epoch, pending.since_offset)
    if pending.has_since and member_catches(conn, channel):     # what it was being caught up on it has, or gave up
        member_caught(edge, conn, channel)
        return 0
    return member_add(edge, conn, channel)


cdef const char *_full(Edge *edge, Connection *conn, const Pending *pending, Channel *channel) noexcept nogil:
    """Why the session may not be in one more group (its user's own channels do not count as such); NULL: it may.

    A global channel that is over takes a place as well while the session is caught up there: its names have no bound.
    """
    if channel.domain == DOMAIN_USER or channel.flags & CHANNEL_KNOWN or member_joined(conn, channel) \
            or (channel.domain == DOMAIN_GLOBAL and not pending.has_since):
        return NULL
    if conn.membership_count >= edge.config.channels_max + edge.namespaces.session_count:
        return b"leave a channel before joining another"
    if not welcome_fits(edge, conn, channel):
        return b"the names of the session's channels fill half of max_frame: leave one before joining another"
    return NULL


cdef void _join_finish(Edge *edge, Pending *pending) noexcept nogil:
    """The channel is live: add the member, answer, and free the pending."""
    cdef Channel *channel = channel_at(edge, pending.channel)
    cdef Connection *conn = conn_get(&edge.connections, pending.conn)
    cdef uint64_t position[2]
    cdef const char *full
    cdef bint joined
    if pending.seq:
        request_done(edge, pending.seq)
    if conn != NULL and conn.state == STATE_OPEN:
        joined = member_joined(conn, channel)
        full = _full(edge, conn, pending, channel)
        if full != NULL:
            answer_error(edge, conn, pending.request, TOO_MANY_CHANNELS, full, 0)
        elif member_start(edge, conn, pending, channel) < 0:
            answer_error(edge, conn, pending.request, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        else:
            if (pending.has_since or not joined) and (channel.domain != DOMAIN_GLOBAL or channel.flags & CHANNEL_KNOWN):
                joined_say(edge, conn, pending, channel, STATE_JOINED)
            pending_position(pending, channel, position)
            if joined and not pending.has_since:    # it may be on its way there still
                member_stands(edge, conn, channel, position)
            answer_position(edge, conn, pending.request, position[0], position[1], pending_outcome(pending, channel))
    pending_end(edge, pending)


cdef void join_start(Edge *edge, Connection *conn, uint64_t request, const char *name, uint32_t name_size,
                     const uint64_t *since) noexcept nogil:
    """JOIN, allowed: answer at once if the channel is live here, else ask the router; `since` may be NULL."""
    cdef Channel *channel = channel_wanted(edge, name, name_size)
    cdef Pending *pending = NULL
    if channel != NULL:
        pending = pending_start(edge, conn_handle(conn), request, channel)
    if pending == NULL:
        if channel != NULL:
            channel_rest(edge, channel)
        answer_error(edge, conn, request, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        return
    pending_since(pending, since)
    if channel.flags & CHANNEL_LIVE and (since == NULL or (since[0] == channel.epoch and since[1] == channel.offset)):
        _join_finish(edge, pending)
        return
    pending.seq = request_open(edge, REQUEST_JOIN, pending.conn, request, pending.index)
    if pending.seq == 0:
        pending_end(edge, pending)
        answer_error(edge, conn, request, OVERLOADED, b"too many requests wait for the router", RETRY_AFTER_MS)
    elif channel.flags & CHANNEL_LIVE:
        pending_settled(edge, pending, channel, pending.seq)


cdef void join_leave(Edge *edge, Connection *conn, uint64_t request, const char *name,
                     uint32_t name_size) noexcept nogil:
    """LEAVE."""
    cdef Channel *channel = channel_find(edge, name, name_size)
    if channel != NULL and channel.domain == DOMAIN_GROUP and member_joined(conn, channel):
        state_say(edge, conn, channel, STATE_LEFT, channel.epoch, channel.offset)
        member_remove(edge, conn, channel)
        answer_empty(edge, conn, request)
    else:
        answer_error(edge, conn, request, NOT_JOINED, b"this session has not joined the channel", 0)


cdef void outcome_told(Edge *edge, Request *request, RecCaught *record) noexcept nogil:
    """CAUGHT for a JOIN or a channel of a HELLO. A refusal is left to the request's deadline."""
    cdef uint32_t index = request.index
    cdef Pending *pending
    cdef Opening *opening = NULL
    if record.head.aux:
        return
    if request.kind == REQUEST_OPEN:
        opening = opening_at(edge, request.index)
        index = opening.first
    while index != NONE:
        pending = pending_at(edge, index)
        if pending.asked and not pending.told and channel_handle(channel_at(edge, pending.channel)) == record.channel:
            pending.told = 1
            pending.outcome = record.outcome
            if record.outcome == OUTCOME_RESET:     # from here on it misses nothing, though others still wait
                pending.since_epoch = record.epoch
                pending.since_offset = record.offset
            else:                                   # as asked, or as the router knows better
                pending.since_epoch = record.last_epoch
                pending.since_offset = record.last_offset
            if pending.fresh and opening != NULL and pending.sibling == NONE:
                opening.cursor = record.last_offset
                opening.cursor_known = 1
            if opening == NULL:
                _join_finish(edge, pending)
            else:
                opening_answered(edge, opening)
            return
        index = pending.sibling


cdef void _outcome_again(Edge *edge, Pending *pending, uint32_t seq, const uint64_t *shards) noexcept nogil:
    cdef uint32_t shard = channel_shard(edge, channel_at(edge, pending.channel))
    if pending.asked and not pending.told and shards_have(shards, shard):
        catchup_ask(edge, channel_at(edge, pending.channel), seq, pending.since_epoch, pending.since_offset,
                    <uint32_t> CATCHUP_OUTCOME | pending.fresh | pending.acked)


cdef void joins_again(Edge *edge, const uint64_t *shards) noexcept nogil:
    """A router does not know what this worker asked of these shards (bits): the outcomes are asked for again."""
    cdef uint32_t seq = edge.requests.oldest
    cdef uint32_t index
    cdef Request *request
    while seq != edge.requests.next:
        request = request_peek(edge, seq)
        if request != NULL and request.kind == REQUEST_JOIN:
            _outcome_again(edge, pending_at(edge, request.index), seq, shards)
        elif request != NULL and request.kind == REQUEST_OPEN:
            index = opening_at(edge, request.index).first
            while index != NONE:
                _outcome_again(edge, pending_at(edge, index), seq, shards)
                index = pending_at(edge, index).sibling
        seq += 1


cdef void channel_subscribed(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil:
    """SUBSCRIBED: the channel is live from this position on; after a new link it may tell of lost messages."""
    cdef uint32_t index = channel.waiting
    # What was on its way from where it was heard before came first.
    cdef bint is_behind = channel.flags & CHANNEL_LIVE and offset < channel.offset and epoch <= channel.epoch
    cdef Pending *pending
    if channel.flags & CHANNEL_LIVE and (channel.count or channel.domain == DOMAIN_GLOBAL):
        if offset > channel.offset:
            fanout_event_gap(edge, channel, channel.offset + 1, offset, GAP_ROUTER_LOST)
        elif offset < channel.offset and epoch > channel.epoch:
            fanout_event_recreated(edge, channel, epoch, offset)
    if not is_behind:
        channel.epoch = epoch
        channel.offset = offset
    channel.flags |= CHANNEL_LIVE
    channel.holds += 1                  # the list below may hold the last reference
    while index != NONE:
        pending = pending_at(edge, index)
        index = pending.next
        _pending_unlink(edge, pending)
        if pending.opening == NONE:
            if pending_settled(edge, pending, channel, pending.seq):
                _join_finish(edge, pending)
        elif pending_settled(edge, pending, channel, opening_at(edge, pending.opening).seq):
            opening_answered(edge, opening_at(edge, pending.opening))
    channel.holds -= 1
    channel_rest(edge, channel)


cdef Channel *global_known(Edge *edge, const char *name, uint32_t size) noexcept nogil:
    """A global channel, held from now on; NULL: it is none, or there is no room or no memory for it."""
    cdef Channel *channel = channel_find(edge, name, size)
    if channel != NULL and channel.flags & CHANNEL_KNOWN:
        return channel
    if edge.globals == GLOBALS_MAX or domain_in(&edge.namespaces, name, size) != DOMAIN_GLOBAL:
        return NULL
    if channel == NULL:
        channel = channel_acquire(edge, name, size, DOMAIN_GLOBAL)
    if channel != NULL:
        channel.flags |= CHANNEL_KNOWN
        channel.holds += 1
        edge.everybody[edge.globals] = channel.index
        edge.globals += 1
    return channel


cdef void _global_let_go(Edge *edge, uint32_t place) noexcept nogil:
    cdef Channel *channel = channel_at(edge, edge.everybody[place])
    edge.globals -= 1
    edge.everybody[place] = edge.everybody[edge.globals]
    channel.flags &= ~CHANNEL_KNOWN
    channel.holds -= 1
    channel_rest(edge, channel)


cdef void global_told(Edge *edge, RecChannel *record) noexcept nogil:
    """GLOBAL: the router tells of a global channel, or lets it go."""
    cdef const char *name = <const char *> record + sizeof(RecChannel)
    cdef Channel *channel
    cdef uint32_t place = 0
    if record.channel != GLOBAL_GONE:
        channel = global_known(edge, name, record.head.aux)
        if channel != NULL:
            channel_subscribed(edge, channel, record.epoch, record.offset)
        return
    channel = channel_find(edge, name, record.head.aux)
    if channel != NULL and channel.flags & CHANNEL_KNOWN:
        while edge.everybody[place] != channel.index:
            place += 1
        _global_let_go(edge, place)


cdef void channel_refused(Edge *edge, Channel *channel, int code) noexcept nogil:
    """SUBSCRIBED with a code: the router has no room for the channel. Who waits for it hears so.

    Where members are already, after a new link, it is asked for until it holds: then they get what was said, or are
    told of the gap.
    """
    cdef Pending *pending
    ledger_count(edge.ledger, COUNT_SUBSCRIPTIONS_REFUSED, 1)
    if channel.flags & CHANNEL_LIVE:
        channel_unasked(edge, channel)
        return
    channel.holds += 1                  # the list below may hold the last reference
    while channel.waiting != NONE:
        pending = pending_at(edge, channel.waiting)
        if pending.opening == NONE:
            _join_refused(edge, pending, code)
        else:
            opening_refused(edge, opening_at(edge, pending.opening), code,
                            b"the router has no room for a channel of the session")
    channel.holds -= 1
    channel_rest(edge, channel)


cdef void _join_refused(Edge *edge, Pending *pending, int code) noexcept nogil:
    cdef Connection *conn = conn_get(&edge.connections, pending.conn)
    request_done(edge, pending.seq)
    if conn != NULL:
        answer_error(edge, conn, pending.request, code, b"the router has no room for one more channel",
                     RETRY_AFTER_MS if code == OVERLOADED else 0)
    pending_end(edge, pending)


cdef void join_overdue(Edge *edge, Request *request) noexcept nogil:
    """The router did not answer a JOIN in time."""
    cdef Connection *conn = conn_get(&edge.connections, request.conn)
    if conn != NULL:
        answer_error(edge, conn, request.request, UNAVAILABLE, b"the router did not answer in time", RETRY_AFTER_MS)
    pending_end(edge, pending_at(edge, request.index))


cdef void joins_end(Edge *edge) noexcept nogil:
    """The loop stops: let go of all that still waits for the router, and of the global channels."""
    cdef uint32_t seq = edge.requests.oldest
    cdef uint32_t last = edge.requests.next
    cdef Request taken
    while seq != last:
        if request_take(edge, seq, &taken):
            if taken.kind == REQUEST_JOIN:
                pending_end(edge, pending_at(edge, taken.index))
            elif taken.kind == REQUEST_OPEN:
                opening_at(edge, taken.index).seq = 0      # it is closed by now
                opening_end(edge, opening_at(edge, taken.index))
        seq += 1
    while edge.globals:
        _global_let_go(edge, edge.globals - 1)
