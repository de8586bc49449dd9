"""Fan-out: channels come and go, members join and leave, and the rare deliveries."""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from libc.stdint cimport uint16_t

from core.answers cimport TYPE_EVENT, answer_frame, write_text
from core.batch cimport Batch, batch_clear, batch_write
from core.conn cimport FLAG_CATCHING, MEMBERSHIPS_INLINE, PLACE_REPLAY, STATE_OPEN, conn_live
from core.edge cimport ANSWER_BYTES, CHANNEL_RECREATED, CHANNEL_UNASKED, NONE, Link, feed_of, link_of
from core.hash cimport index_put, index_remove
from core.ledger cimport (COUNT_BUS_FULL, COUNT_GAPS_RESET, COUNT_GAPS_TRIMMED, KIND_CHANNEL, KIND_MEMBERSHIP,
                          ledger_acquire, ledger_count, ledger_leaks, ledger_release)
from core.mpack cimport (MP_OK, MpReader, MpWriter, mp_read_array, mp_read_str, mp_read_uint, mp_write_array,
                         mp_write_map, mp_write_str, mp_write_uint)
from core.names cimport name_drop, name_keep
from core.namespaces cimport DOMAIN_GLOBAL, SLOW_DISCONNECT, Namespace, namespace_of
from core.pages cimport pages_give, pages_resize, pages_take
from core.records cimport (GAP_LOST, GAP_SLOW_CONSUMER, GAP_TRIMMED, REC_SUBSCRIBE, REC_UNSUBSCRIBE, RecChannel,
                           record_add)
from core.replay cimport replay_end, replay_position, replay_start
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, generation_next, invariant, invariant_always, slab_acquire, slab_release
from core.slow cimport slow_end, slow_told


cdef const char *message_channel(const Body *body, uint32_t *size) noexcept nogil:
    """The name of the channel of a MESSAGE frame, borrowed from it; NULL: it is none."""
    cdef MpReader reader
    cdef uint32_t count = 0
    cdef uint64_t kind = 0
    cdef const char *name
    reader.p = body.data
    reader.end = body.data + body.size
    if mp_read_array(&reader, &count) != MP_OK or mp_read_uint(&reader, &kind) != MP_OK \
            or mp_read_str(&reader, &name, size) != MP_OK:
        return NULL
    return name


cdef uint64_t fanout_all(Edge *edge, const Body *bodies, uint32_t count, Channel *channel) noexcept nogil:
    """Queue global MESSAGE frames for every open connection of this worker; how many deliveries found room.

    Who is being caught up on `channel` gets these frames by that; NULL: nobody is.
    """
    cdef RunForm runs[FORM_COUNT]
    cdef uint32_t chunk, number
    cdef uint64_t delivered = 0
    cdef uint32_t per_chunk = 1u << edge.connections.chunk_shift
    cdef Connection *conn
    runs_start(runs)
    for chunk in range(edge.connections.chunk_count):
        if edge.connections.chunks[chunk].memory == NULL:
            continue
        for number in range(per_chunk):
            conn = <Connection *> slab_at(&edge.connections, (chunk << edge.connections.chunk_shift) | number)
            if conn_live(conn) and conn.state == STATE_OPEN \
                    and not (channel != NULL and conn.flags & FLAG_CATCHING and member_joined(conn, channel)):
                delivered += deliver_local(edge, conn, bodies, count, runs)
    runs_release(edge, runs)
    return delivered


cdef inline const char *_reason_text(int reason) noexcept nogil:
    if reason == GAP_TRIMMED:
        return b"trimmed"
    if reason == GAP_LOST:
        return b"lost"
    return b"slow_consumer" if reason == GAP_SLOW_CONSUMER else b"router_lost"


cdef void _event_gap_head(Edge *edge, Channel *channel, uint64_t first, uint64_t last, const char *reason,
                          uint32_t pairs, MpWriter *writer) noexcept nogil:
    """EVENT gap up to the first three of its `pairs`."""
    mp_write_array(writer, 4)
    mp_write_uint(writer, TYPE_EVENT)
    mp_write_str(writer, channel_name(edge, channel), channel.name_size)
    write_text(writer, b"gap")
    mp_write_map(writer, pairs)
    write_text(writer, b"from")
    mp_write_uint(writer, first)
    write_text(writer, b"to")
    mp_write_uint(writer, last)
    write_text(writer, b"reason")
    write_text(writer, reason)


cdef uint32_t event_gap_write(Edge *edge, Channel *channel, uint64_t first, uint64_t last, int reason,
                              uint8_t *body) noexcept nogil:
    """EVENT gap into ANSWER_BYTES bytes, counted: the messages first..last of the channel will not come; its size.

    `reason`: GapReason, not GAP_NONE.
    """
    cdef MpWriter writer
    ledger_count(edge.ledger, COUNT_GAPS_TRIMMED + reason - GAP_TRIMMED, 1)
    writer.p = body
    writer.end = body + ANSWER_BYTES
    writer.overflow = False
    _event_gap_head(edge, channel, first, last, _reason_text(reason), 3, &writer)
    return <uint32_t> (writer.p - body)


cdef void event_gap_told(Edge *edge, Connection *conn, Channel *channel, uint64_t first, uint64_t last,
                         int reason) noexcept nogil:
    """Tell one connection that the messages first..last of the channel will not come."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef uint32_t size = event_gap_write(edge, channel, first, last, reason, body)
    answer_frame(edge, conn, body, size)


cdef void fanout_event_gap(Edge *edge, Channel *channel, uint64_t first, uint64_t last, int reason) noexcept nogil:
    """Tell every member that the messages first..last of the channel will not come: EVENT gap."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef Body said
    said.data = body
    said.size = event_gap_write(edge, channel, first, last, reason, body)
    fanout_run(edge, channel, &said, 1, first, last)


cdef uint32_t event_recreated_write(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset, uint64_t last,
                                    uint8_t *body) noexcept nogil:
    """EVENT gap, `recreated`, into ANSWER_BYTES bytes: the channel goes on behind this position, and what lies between
    it and `last` in an older epoch nobody has any more; its size."""
    cdef MpWriter writer
    writer.p = body
    writer.end = body + ANSWER_BYTES
    writer.overflow = False
    _event_gap_head(edge, channel, offset + 1, last, b"recreated", 5, &writer)
    write_text(&writer, b"epoch")
    mp_write_uint(&writer, epoch)
    write_text(&writer, b"offset")
    mp_write_uint(&writer, offset)
    return <uint32_t> (writer.p - body)


cdef void fanout_event_recreated(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Tell every member that the channel goes on behind this position, which is of a later epoch than what they hold
    and not of a higher offset. Who is behind is told later (core/slow.pyx)."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef Body said
    said.data = body
    said.size = event_recreated_write(edge, channel, epoch, offset, channel.offset, body)
    ledger_count(edge.ledger, COUNT_GAPS_RESET, 1)
    channel.epoch = epoch
    channel.flags |= CHANNEL_RECREATED
    fanout_run(edge, channel, &said, 1, offset + 1, channel.offset)
    channel.flags &= ~CHANNEL_RECREATED


cdef Channel *channel_acquire(Edge *edge, const char *name, uint32_t size, int domain) noexcept nogil:
    """A new channel without members, known by its name, not subscribed yet; NULL: out of memory."""
    cdef uint32_t index = slab_acquire(&edge.channels)
    cdef const Namespace *namespace
    cdef Channel *channel
    if index == SLAB_NONE:
        return NULL
    channel = channel_at(edge, index)
    memset(channel, 0, sizeof(Channel))
    channel.name = name_keep(&edge.names, name, size)
    if channel.name == SLAB_NONE:
        slab_release(&edge.channels, index)
        return NULL
    if index_put(&edge.channel_index, hash_bytes(&edge.hash_key, <const uint8_t *> name, size), index) < 0:
        name_drop(&edge.names, channel.name, size)
        slab_release(&edge.channels, index)
        return NULL
    channel.name_size = <uint8_t> size
    channel.index = index
    channel.generation = generation_next(&edge.generation)
    channel.domain = <uint8_t> domain
    namespace = namespace_of(&edge.namespaces, name, size)
    channel.slow = SLOW_DISCONNECT if namespace == NULL else namespace.slow_consumer
    channel.capacity = 1
    channel.waiting = NONE
    ledger_acquire(edge.ledger, KIND_CHANNEL, index, HERE)
    return channel


cdef inline uint8_t *_channel_record(Edge *edge, Batch *batch, Channel *channel, int kind,
                                     uint8_t shard) noexcept nogil:
    cdef RecChannel *record = <RecChannel *> record_add(batch, kind, channel.name_size, sizeof(RecChannel),
                                                        channel.name_size)
    if record == NULL:
        return NULL
    record.head.shard = shard
    record.channel = channel_handle(channel)
    memcpy(<uint8_t *> record + sizeof(RecChannel), channel_name(edge, channel), channel.name_size)
    return <uint8_t *> record


cdef void channel_unasked(Edge *edge, Channel *channel) noexcept nogil:
    """Its SUBSCRIBE found no room: the link says it again with its next heartbeat."""
    if not channel.flags & CHANNEL_UNASKED:
        channel.flags |= CHANNEL_UNASKED
        edge.unasked += 1


cdef void _channel_asked(Edge *edge, Channel *channel) noexcept nogil:
    if channel.flags & CHANNEL_UNASKED:
        channel.flags &= ~CHANNEL_UNASKED
        edge.unasked -= 1


cdef void channel_subscribe(Edge *edge, Channel *channel) noexcept nogil:
    """Ask the router for the channel, telling it the last position seen here."""
    cdef uint8_t shard = channel_shard(edge, channel)
    cdef RecChannel *record = <RecChannel *> _channel_record(edge, &feed_of(edge, shard).out, channel, REC_SUBSCRIBE,
                                                             shard)
    if record == NULL:
        channel_unasked(edge, channel)
        return
    record.epoch = channel.epoch
    record.offset = channel.offset
    _channel_asked(edge, channel)


cdef void _channel_unsubscribe(Edge *edge, Channel *channel) noexcept nogil:
    """Tell the router that nobody is here any more, with the next heartbeat of the link if there is no room now."""
    cdef uint8_t shard = channel_shard(edge, channel)
    cdef Link *link = feed_of(edge, shard)
    if channel.flags & CHANNEL_UNASKED:
        _channel_asked(edge, channel)   # the router has no route to this worker
    elif _channel_record(edge, &link.out, channel, REC_UNSUBSCRIBE, shard) == NULL \
            and _channel_record(edge, &link.parted, channel, REC_UNSUBSCRIBE, shard) == NULL:
        ledger_count(edge.ledger, COUNT_BUS_FULL, 1)    # the route stays until the next link: messages for nobody


cdef void channel_leave_leader(Edge *edge, Channel *channel) noexcept nogil:
    """Tell its leader that it is heard elsewhere now. Without room, what it still sends is passed over."""
    cdef uint8_t shard = channel_shard(edge, channel)
    cdef Link *link = link_of(edge, shard)
    if link.up and link != feed_of(edge, shard):
        _channel_record(edge, &link.out, channel, REC_UNSUBSCRIBE, shard)


cdef void parted_say(Link *link) noexcept nogil:
    """Say again what found no room, once there is room for all of it; a handle that was given up is nobody else's."""
    if link.parted.size and batch_write(&link.out, link.parted.data, link.parted.size) == 0:
        batch_clear(&link.parted)


cdef void channel_rest(Edge *edge, Channel *channel) noexcept nogil:
    """Free the channel if nobody needs it any more, and tell the router."""
    if channel.count or channel.holds or ledger_leaks(edge.ledger, KIND_CHANNEL):
        return
    _channel_unsubscribe(edge, channel)
    index_remove(&edge.channel_index, hash_bytes(&edge.hash_key, <const uint8_t *> channel_name(edge, channel),
                                                 channel.name_size), channel.index)
    if channel.capacity > 1:
        pages_give(channel.members.many, channel.capacity * sizeof(ChannelMember))
    name_drop(&edge.names, channel.name, channel.name_size)
    channel.generation = 0
    ledger_release(edge.ledger, KIND_CHANNEL, channel.index)
    slab_release(&edge.channels, channel.index)


cdef bint _channel_grow(Channel *channel) noexcept nogil:
    cdef uint32_t capacity = 8 if channel.capacity == 1 else channel.capacity + channel.capacity // 2
    cdef ChannelMember *members
    if channel.capacity == 1:
        members = <ChannelMember *> pages_take(capacity * sizeof(ChannelMember))
        if members != NULL:
            members[0] = channel.members.one
    else:
        members = <ChannelMember *> pages_resize(channel.members.many, channel.capacity * sizeof(ChannelMember),
                                                 capacity * sizeof(ChannelMember))
    if members == NULL:
        return False
    channel.members.many = members
    channel.capacity = capacity
    return True


cdef bint _conn_grow(Connection *conn) noexcept nogil:
    cdef uint32_t capacity = conn.membership_capacity * 2
    cdef Membership *memberships
    if conn.membership_capacity == MEMBERSHIPS_INLINE:
        memberships = <Membership *> malloc(capacity * sizeof(Membership))
        if memberships != NULL:
            memcpy(memberships, conn.memberships.own, sizeof(conn.memberships.own))
    else:
        memberships = <Membership *> realloc(conn.memberships.many, capacity * sizeof(Membership))
    if memberships == NULL:
        return False
    invariant_always(capacity <= 0xFFFF)    # what a session may join at most is far below (gateway/config.py)
    conn.memberships.many = memberships
    conn.membership_capacity = <uint16_t> capacity
    return True


cdef int member_add(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """Make the connection a member; joining twice is one membership. -1: out of memory."""
    if channel.domain == DOMAIN_GLOBAL or member_joined(conn, channel):
        return 0
    if conn.membership_count == conn.membership_capacity and not _conn_grow(conn):
        return -1
    if not _member_known(conn, channel, conn.membership_count):
        return -1
    conn_memberships(conn)[conn.membership_count].channel = channel.index
    conn.membership_count += 1
    ledger_acquire(edge.ledger, KIND_MEMBERSHIP, membership_key(conn, channel), HERE)
    return 0


cdef bint _member_known(Connection *conn, Channel *channel, uint32_t slot) noexcept nogil:
    """Make a connection's membership known to the channel, at its list's end; False: out of memory."""
    if channel.count == channel.capacity and not _channel_grow(channel):
        return False
    conn_memberships(conn)[slot].place = channel.count
    channel_members(channel)[channel.count].conn = conn.index
    channel_members(channel)[channel.count].slot = slot
    channel.count += 1
    return True


cdef void _member_unknown(Edge *edge, Channel *channel, uint32_t place) noexcept nogil:
    """Take a member out of the channel's list; the last one takes its place."""
    cdef ChannelMember *members = channel_members(channel)
    cdef ChannelMember moved
    channel.count -= 1
    if place != channel.count:
        moved = members[channel.count]
        members[place] = moved
        conn_memberships(<Connection *> slab_at(&edge.connections, moved.conn))[moved.slot].place = place


cdef uint32_t _slot_of(Connection *conn, Channel *channel) noexcept nogil:
    """Where the connection's memberships hold a channel; their count: nowhere."""
    cdef uint32_t slot = 0
    while slot < conn.membership_count and conn_memberships(conn)[slot].channel != channel.index:
        slot += 1
    return slot


cdef int member_catch(Edge *edge, Connection *conn, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Make the connection a member that is caught up from a position first, whatever it was. -1: out of memory."""
    cdef uint32_t slot = _slot_of(conn, channel)
    cdef uint32_t replay
    cdef Membership *membership
    if slot == conn.membership_count and slot == conn.membership_capacity and not _conn_grow(conn):
        return -1
    replay = replay_start(edge, conn, channel, epoch, offset)
    if replay == SLAB_NONE:
        return -1
    membership = &conn_memberships(conn)[slot]
    if slot == conn.membership_count:
        membership.channel = channel.index
        conn.membership_count += 1
        ledger_acquire(edge.ledger, KIND_MEMBERSHIP, membership_key(conn, channel), HERE)
    elif membership.place & PLACE_REPLAY:
        replay_end(edge, conn, membership.place & ~(<uint32_t> PLACE_REPLAY))
    else:
        if conn.behind:
            slow_end(edge, conn, channel.index)
        _member_unknown(edge, channel, membership.place)
    membership.place = <uint32_t> PLACE_REPLAY | replay
    return 0


cdef bint member_catches(Connection *conn, Channel *channel) noexcept nogil:
    """Whether it is a member that is being caught up."""
    cdef uint32_t slot = _slot_of(conn, channel)
    return slot != conn.membership_count and conn_memberships(conn)[slot].place & <uint32_t> PLACE_REPLAY != 0


cdef void member_stands(Edge *edge, Connection *conn, Channel *channel, uint64_t *position) noexcept nogil:
    """The position (epoch, offset) up to which a member was given everything: one that is caught up, or is behind, gets
    what the channel is beyond it."""
    cdef uint32_t slot = _slot_of(conn, channel)
    position[0] = channel.epoch
    position[1] = channel.offset
    if slot != conn.membership_count and conn_memberships(conn)[slot].place & PLACE_REPLAY:
        replay_position(edge, conn_memberships(conn)[slot].place & ~(<uint32_t> PLACE_REPLAY), position)
    elif conn.behind:
        position[1] = slow_told(edge, conn, channel)


cdef void member_caught(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """A member has all up to the channel's position: from here on it gets what comes. Nobody joins a global channel."""
    cdef uint32_t slot = _slot_of(conn, channel)
    cdef uint32_t replay = conn_memberships(conn)[slot].place & ~(<uint32_t> PLACE_REPLAY)
    if channel.domain == DOMAIN_GLOBAL:
        _member_cut(edge, conn, slot)
    elif _member_known(conn, channel, slot):
        replay_end(edge, conn, replay)
    # else it stays in its replay, which asks again: without memory for a member there is none to be lost for it


cdef void _member_cut(Edge *edge, Connection *conn, uint32_t slot) noexcept nogil:
    """Remove one membership from both sides; the last of each list takes the free place."""
    cdef Membership *memberships = conn_memberships(conn)
    cdef Channel *channel = channel_at(edge, memberships[slot].channel)
    cdef uint32_t place = memberships[slot].place
    cdef bint caught = not place & PLACE_REPLAY
    cdef Membership last
    invariant(not caught or (channel_members(channel)[place].conn == conn.index
                             and channel_members(channel)[place].slot == slot))
    if caught and ledger_leaks(edge.ledger, KIND_MEMBERSHIP):
        conn.membership_count -= 1      # only the last one of a connection is ever cut so
        return
    if caught:
        if conn.behind:
            slow_end(edge, conn, channel.index)
        _member_unknown(edge, channel, place)
    conn.membership_count -= 1
    if slot != conn.membership_count:
        last = memberships[conn.membership_count]
        memberships[slot] = last
        if not last.place & PLACE_REPLAY:
            channel_members(channel_at(edge, last.channel))[last.place].slot = slot
    ledger_release(edge.ledger, KIND_MEMBERSHIP, membership_key(conn, channel))
    if caught:
        channel_rest(edge, channel)
    else:
        replay_end(edge, conn, place & ~(<uint32_t> PLACE_REPLAY))      # it holds the channel


cdef bint member_remove(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """End a membership; False when there was none. The user's own channel (slot 0) stays."""
    cdef uint32_t slot
    for slot in range(1, conn.membership_count):
        if conn_memberships(conn)[slot].channel == channel.index:
            _member_cut(edge, conn, slot)
            return True
    return False


cdef void member_remove_all(Edge *edge, Connection *conn) noexcept nogil:
    """End every membership of a connection."""
    while conn.membership_count:
        _member_cut(edge, conn, conn.membership_count - 1)
    if conn.membership_capacity != MEMBERSHIPS_INLINE:
        free(conn.memberships.many)
        conn.membership_capacity = MEMBERSHIPS_INLINE
