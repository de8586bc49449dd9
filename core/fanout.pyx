"""Fan-out: channels come and go, members join and leave, and the rare deliveries."""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from libc.stdint cimport uint16_t

from core.answers cimport TYPE_EVENT, write_text
from core.conn cimport MEMBERSHIPS_INLINE, STATE_OPEN, conn_live
from core.edge cimport ANSWER_BYTES, NONE
from core.hash cimport index_put, index_remove
from core.ledger cimport (COUNT_GAPS, KIND_CHANNEL, KIND_MEMBERSHIP, ledger_acquire, ledger_count, ledger_leaks,
                          ledger_release)
from core.mpack cimport MpWriter, mp_write_array, mp_write_map, mp_write_str, mp_write_uint
from core.names cimport name_drop, name_keep
from core.namespaces cimport DOMAIN_GLOBAL
from core.pages cimport pages_give, pages_resize, pages_take
from core.records cimport REC_SUBSCRIBE, REC_UNSUBSCRIBE, RecChannel, record_add
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, generation_next, invariant, invariant_always, slab_acquire, slab_release


cdef uint64_t fanout_all(Edge *edge, const Body *bodies, uint32_t count) noexcept nogil:
    """Queue global MESSAGE frames for every open connection of this worker; how many deliveries found room."""
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
            if conn_live(conn) and conn.state == STATE_OPEN:
                delivered += deliver_local(edge, conn, bodies, count, runs)
    runs_release(edge, runs)
    return delivered


cdef void fanout_event_gap(Edge *edge, Channel *channel, uint64_t first, uint64_t last,
                           const char *reason) noexcept nogil:
    """Tell every member that the messages first..last of the channel will not come: EVENT gap."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef MpWriter writer
    cdef Body said
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 4)
    mp_write_uint(&writer, TYPE_EVENT)
    mp_write_str(&writer, channel_name(edge, channel), channel.name_size)
    write_text(&writer, b"gap")
    mp_write_map(&writer, 3)
    write_text(&writer, b"from")
    mp_write_uint(&writer, first)
    write_text(&writer, b"to")
    mp_write_uint(&writer, last)
    write_text(&writer, b"reason")
    write_text(&writer, reason)
    ledger_count(edge.ledger, COUNT_GAPS, 1)
    said.data = body
    said.size = <uint32_t> (writer.p - body)
    fanout_members(edge, channel, &said, 1)


cdef Channel *channel_acquire(Edge *edge, const char *name, uint32_t size, int domain) noexcept nogil:
    """A new channel without members, known by its name, not subscribed yet; NULL: out of memory."""
    cdef uint32_t index = slab_acquire(&edge.channels)
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
    channel.capacity = 1
    channel.waiting = NONE
    ledger_acquire(edge.ledger, KIND_CHANNEL, index, HERE)
    return channel


cdef inline uint8_t *_channel_record(Edge *edge, Channel *channel, int kind) noexcept nogil:
    cdef RecChannel *record = <RecChannel *> record_add(&edge.link.out, kind, channel.name_size, sizeof(RecChannel),
                                                        channel.name_size)
    if record == NULL:
        return NULL
    record.channel = channel_handle(channel)
    memcpy(<uint8_t *> record + sizeof(RecChannel), channel_name(edge, channel), channel.name_size)
    return <uint8_t *> record


cdef void channel_subscribe(Edge *edge, Channel *channel) noexcept nogil:
    """Ask the router for the channel, telling it the last position seen here."""
    cdef RecChannel *record = <RecChannel *> _channel_record(edge, channel, REC_SUBSCRIBE)
    if record != NULL:
        record.epoch = channel.epoch
        record.offset = channel.offset


cdef void channel_rest(Edge *edge, Channel *channel) noexcept nogil:
    """Free the channel if nobody needs it any more, and tell the router."""
    if channel.count or channel.holds or ledger_leaks(edge.ledger, KIND_CHANNEL):
        return
    _channel_record(edge, channel, REC_UNSUBSCRIBE)
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
    if channel.count == channel.capacity and not _channel_grow(channel):
        return -1
    if conn.membership_count == conn.membership_capacity and not _conn_grow(conn):
        return -1
    conn_memberships(conn)[conn.membership_count].channel = channel.index
    conn_memberships(conn)[conn.membership_count].place = channel.count
    channel_members(channel)[channel.count].conn = conn.index
    channel_members(channel)[channel.count].slot = conn.membership_count
    conn.membership_count += 1
    channel.count += 1
    ledger_acquire(edge.ledger, KIND_MEMBERSHIP, membership_key(conn, channel), HERE)
    return 0


cdef void _member_cut(Edge *edge, Connection *conn, uint32_t slot) noexcept nogil:
    """Remove one membership from both sides; the last of each list takes the free place."""
    cdef Membership *memberships = conn_memberships(conn)
    cdef Channel *channel = channel_at(edge, memberships[slot].channel)
    cdef ChannelMember *members = channel_members(channel)
    cdef uint32_t place = memberships[slot].place
    cdef ChannelMember moved
    cdef Membership last
    invariant(members[place].conn == conn.index and members[place].slot == slot)
    if ledger_leaks(edge.ledger, KIND_MEMBERSHIP):
        conn.membership_count -= 1      # only the last one of a connection is ever cut so
        return
    channel.count -= 1
    if place != channel.count:
        moved = members[channel.count]
        members[place] = moved
        conn_memberships(<Connection *> slab_at(&edge.connections, moved.conn))[moved.slot].place = place
    conn.membership_count -= 1
    if slot != conn.membership_count:
        last = memberships[conn.membership_count]
        memberships[slot] = last
        channel_members(channel_at(edge, last.channel))[last.place].slot = slot
    ledger_release(edge.ledger, KIND_MEMBERSHIP, membership_key(conn, channel))
    channel_rest(edge, channel)


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
