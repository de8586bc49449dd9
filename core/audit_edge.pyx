"""Audit of a worker's data plane: from the connections outwards, and every other table from its own side."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort

from core.audit cimport (Audit, SlabWalk, audit_begin, audit_end, audit_equal, audit_fd, audit_finding, audit_found,
                         audit_peers, audit_send, audit_tell, slab_walk, slab_walk_next)
from core.buffer cimport Segment, Shared
from core.conn cimport (ASIDE_NONE, FLAG_SESSION, FORM_COUNT, PLACE_REPLAY, STATE_CLOSED, STATE_OPEN, Aside, Connection,
                        Membership, conn_aside_at, conn_get, conn_handle, conn_memberships)
from core.edge cimport (LINKS_MAX, NONE, OPENING_KEY, REPLAY_KEY, REQUEST_DONE, REQUEST_JOIN, REQUEST_OPEN, Channel,
                        ChannelMember, Lag, Opening, Pending, Replay, Request)
from core.fanout cimport channel_at, channel_members, member_joined, membership_key
from core.kept cimport kept_at
from core.ledger cimport (KIND_ASIDE, KIND_BUFFER, KIND_CHANNEL, KIND_CONNECTION, KIND_FD, KIND_KEPT, KIND_LAG,
                          KIND_MEMBERSHIP, KIND_PENDING, KIND_REQUEST, KIND_RING, KIND_SEGMENT, KIND_TIMER, KIND_TLS)
from core.names cimport NAME_CLASSES
from core.requests cimport request_kept
from core.sites cimport Site, SiteEntry, site_find
from core.slab cimport SLAB_NONE, Slab, slab_at
from core.tls cimport TlsConn
from core.wheel cimport timer_set, wheel_check

ctypedef struct Walk:           # sums over the connections and channels, to be held against each other
    Edge *edge                  # borrowed
    Audit audit
    SlabWalk slab
    Shared **holders            # owned: one a pointer to a shared buffer
    size_t holder_count
    size_t holders_max
    uint64_t queued_bytes
    uint64_t handshakes
    uint64_t under_way
    uint64_t holds
    uint64_t pendings
    uint64_t held_bytes
    uint64_t kept               # requests whose record is kept


cdef inline bint _slot_used(Slab *slab, uint32_t index) noexcept nogil:
    """Whether an index found in another table may be followed."""
    return (index >> slab.chunk_shift) < slab.chunk_count and slab.chunks[index >> slab.chunk_shift].memory != NULL


cdef inline bint _given(uint32_t generation) noexcept nogil:
    """Whether a generation is that of a live object: a free one has 0, or is poisoned."""
    return generation != 0 and generation != <uint32_t> 0xDDDDDDDD


cdef inline void _holder(Walk *walk, Shared *shared) noexcept nogil:
    if shared != NULL and walk.holder_count < walk.holders_max:
        walk.holders[walk.holder_count] = shared
        walk.holder_count += 1


cdef void _queue(Walk *walk, Connection *conn) noexcept nogil:
    """The segments of one connection, and what they point to."""
    cdef Segment *segment = conn.out_head
    cdef uint64_t bytes = 0
    while segment != NULL:
        audit_found(&walk.audit, KIND_SEGMENT, <size_t> segment)
        _holder(walk, segment.shared)
        bytes += segment.length
        segment = segment.next
    if bytes != conn.queued_bytes:
        audit_finding(&walk.audit, KIND_CONNECTION, conn.index, bytes, b"does not count the bytes (value) of its queue")
    walk.queued_bytes += bytes


cdef void _replay(Walk *walk, Connection *conn, Membership *membership) noexcept nogil:
    """A membership that is being caught up: its replay must be the connection's, and of that channel."""
    cdef uint32_t index = membership.place & ~(<uint32_t> PLACE_REPLAY)
    cdef Replay *replay
    if _slot_used(&walk.edge.replays, index):
        replay = <Replay *> slab_at(&walk.edge.replays, index)
        if replay.index == index and replay.conn == conn_handle(conn) and replay.channel == membership.channel:
            audit_found(&walk.audit, KIND_MEMBERSHIP, membership_key(conn, channel_at(walk.edge, replay.channel)))
            audit_found(&walk.audit, KIND_PENDING, REPLAY_KEY | index)
            walk.pendings += 1
            return
    audit_finding(&walk.audit, KIND_MEMBERSHIP, (<uint64_t> conn.index << 32) | membership.channel, index,
                  b"is being caught up (key: connection and channel), but its replay (value) is another's")


cdef void _memberships(Walk *walk, Connection *conn) noexcept nogil:
    """Each membership of a connection must be its channel's as well."""
    cdef Membership *memberships = conn_memberships(conn)
    cdef Channel *channel
    cdef ChannelMember member
    cdef uint32_t slot
    for slot in range(conn.membership_count):
        if memberships[slot].place & PLACE_REPLAY:
            _replay(walk, conn, &memberships[slot])
            continue
        if _slot_used(&walk.edge.channels, memberships[slot].channel):
            channel = channel_at(walk.edge, memberships[slot].channel)
            if _given(channel.generation) and memberships[slot].place < channel.count:
                member = channel_members(channel)[memberships[slot].place]
                if member.conn == conn.index and member.slot == slot:
                    audit_found(&walk.audit, KIND_MEMBERSHIP, membership_key(conn, channel))
                    continue
        audit_finding(&walk.audit, KIND_MEMBERSHIP, (<uint64_t> conn.index << 32) | memberships[slot].channel, slot,
                      b"is a connection's (key, high half), but not its channel's (low half)")


cdef void _lags(Walk *walk, Connection *conn, Aside *aside) noexcept nogil:
    """Where a connection is behind, it must be a member."""
    cdef uint32_t number = aside.lags
    cdef uint64_t held = 0
    cdef Lag *lag
    while number:
        lag = <Lag *> slab_at(&walk.edge.lags, number - 1)
        audit_found(&walk.audit, KIND_LAG, number - 1)
        if lag.conn != conn.index or not member_joined(conn, channel_at(walk.edge, lag.channel)):
            audit_finding(&walk.audit, KIND_LAG, number - 1, conn.index, b"holds messages for no member (value)")
        held += lag.held.size - lag.start
        number = lag.next
    if held != aside.held_bytes or conn.behind != (aside.lags != 0):
        audit_finding(&walk.audit, KIND_CONNECTION, conn.index, held, b"does not count the bytes (value) held aside")
    walk.held_bytes += held


cdef void _aside(Walk *walk, Connection *conn) noexcept nogil:
    cdef Aside *aside
    cdef TlsConn *tls
    if conn.aside == ASIDE_NONE:
        return
    aside = conn_aside_at(&walk.edge.asides, conn)
    audit_found(&walk.audit, KIND_ASIDE, conn.aside - 1)
    _lags(walk, conn, aside)
    if aside.input != NULL:
        audit_found(&walk.audit, KIND_RING, <size_t> aside.input)
    if aside.tls != NULL:
        tls = <TlsConn *> aside.tls
        audit_found(&walk.audit, KIND_TLS, <size_t> tls)
        if tls.unsent != NULL:
            audit_found(&walk.audit, KIND_RING, <size_t> tls.unsent)


cdef void _connection(Walk *walk, Connection *conn) noexcept nogil:
    cdef SiteEntry *entry
    cdef const Site *site = NULL
    if conn.state == STATE_CLOSED or conn.fd < 0:
        audit_finding(&walk.audit, KIND_CONNECTION, conn.index, conn.state, b"is closed, but was not freed")
        return
    audit_found(&walk.audit, KIND_CONNECTION, conn.index)
    audit_found(&walk.audit, KIND_FD, <uint64_t> conn.fd)
    audit_fd(&walk.audit, conn.fd)
    if timer_set(&conn.timer):
        audit_found(&walk.audit, KIND_TIMER, conn.index)
    else:
        entry = site_find(walk.audit.ledger.sites, KIND_CONNECTION, conn.index)
        if entry != NULL:
            site = entry.site
        audit_tell(&walk.audit, KIND_TIMER, conn.index, conn.state, b"is missing: this connection waits for ever",
                   site)
    walk.handshakes += conn.state < STATE_OPEN
    walk.under_way += conn.under_way
    walk.audit.sessions += (conn.flags & FLAG_SESSION) != 0
    _queue(walk, conn)
    _memberships(walk, conn)
    _aside(walk, conn)


cdef void _connections(Walk *walk) noexcept nogil:
    cdef uint32_t index
    slab_walk(&walk.slab, &walk.edge.connections)
    index = slab_walk_next(&walk.slab)
    while index != SLAB_NONE:
        _connection(walk, <Connection *> slab_at(&walk.edge.connections, index))
        index = slab_walk_next(&walk.slab)
    audit_equal(&walk.audit, KIND_CONNECTION, walk.queued_bytes, walk.edge.queued_bytes,
                b"queued bytes (key) are counted, but in the queues (value) are")
    audit_equal(&walk.audit, KIND_LAG, walk.held_bytes, walk.edge.held_bytes,
                b"bytes held aside (key) are counted, but members that are behind have (value)")
    audit_equal(&walk.audit, KIND_CONNECTION, walk.handshakes, walk.edge.handshakes,
                b"handshakes (key) are counted, but under way (value) are")
    audit_equal(&walk.audit, KIND_TIMER, walk.audit.found[<int> KIND_TIMER], walk.edge.wheel.count,
                b"timers (key) are in the wheel, but connections that have one (value) are")
    if not wheel_check(&walk.edge.wheel):
        audit_finding(&walk.audit, KIND_TIMER, 0, 0, b"is not where the wheel should have it")


cdef void _members(Walk *walk, Channel *channel) noexcept nogil:
    """Each member of a channel must be a connection's membership as well."""
    cdef ChannelMember member
    cdef Connection *conn
    cdef Membership *memberships
    cdef uint32_t place
    for place in range(channel.count):
        member = channel_members(channel)[place]
        if _slot_used(&walk.edge.connections, member.conn):
            conn = <Connection *> slab_at(&walk.edge.connections, member.conn)
            memberships = conn_memberships(conn)
            if _given(conn.generation) and conn.state != STATE_CLOSED and member.slot < conn.membership_count \
                    and memberships[member.slot].channel == channel.index and memberships[member.slot].place == place:
                continue
        audit_finding(&walk.audit, KIND_MEMBERSHIP, (<uint64_t> member.conn << 32) | channel.index, place,
                      b"is a channel's (key, low half), but not its connection's (high half)")


cdef void _channels(Walk *walk) noexcept nogil:
    cdef uint32_t index
    cdef uint32_t names = 0
    cdef int part
    cdef Channel *channel
    slab_walk(&walk.slab, &walk.edge.channels)
    index = slab_walk_next(&walk.slab)
    while index != SLAB_NONE:
        channel = channel_at(walk.edge, index)
        if channel.count or channel.holds:
            audit_found(&walk.audit, KIND_CHANNEL, index)
        else:
            audit_finding(&walk.audit, KIND_CHANNEL, index, 0, b"has neither members nor anybody who waits for it")
        walk.holds += channel.holds
        walk.audit.channels += 1
        _members(walk, channel)
        index = slab_walk_next(&walk.slab)
    for part in range(NAME_CLASSES):
        names += walk.edge.names.slabs[part].live
    audit_equal(&walk.audit, KIND_CHANNEL, names, walk.edge.channels.live, b"channels (key), but names (value)")
    audit_equal(&walk.audit, KIND_CHANNEL, walk.edge.channel_index.count, walk.edge.channels.live,
                b"channels (key), but by name (value)")


cdef void _opening(Walk *walk, uint32_t index) noexcept nogil:
    """A HELLO that waits, and the channels that wait with it."""
    cdef Opening *opening = <Opening *> slab_at(&walk.edge.openings, index)
    cdef uint32_t pending = opening.first
    audit_found(&walk.audit, KIND_PENDING, OPENING_KEY | index)
    while pending != NONE:
        audit_found(&walk.audit, KIND_PENDING, pending)
        walk.pendings += 1
        pending = (<Pending *> slab_at(&walk.edge.pendings, pending)).sibling


cdef void _requests(Walk *walk) noexcept nogil:
    """What is asked of the router, each with a deadline, and what waits for the answer."""
    cdef uint32_t seq = walk.edge.requests.oldest
    cdef uint64_t charged = 0
    cdef Request *request
    while seq != walk.edge.requests.next:
        request = &walk.edge.requests.ring[seq & (walk.edge.requests.capacity - 1)]
        if request.kind != REQUEST_DONE:
            audit_found(&walk.audit, KIND_REQUEST, seq)
            charged += conn_get(&walk.edge.connections, request.conn) != NULL
            if walk.edge.now_ms - request.sent_ms > 2 * <uint64_t> walk.edge.config.request_timeout_ms + 2000:
                audit_finding(&walk.audit, KIND_REQUEST, seq, walk.edge.now_ms - request.sent_ms,
                              b"is long overdue (value: ms)")
            if request.kind == REQUEST_JOIN:
                audit_found(&walk.audit, KIND_PENDING, request.index)
                walk.pendings += 1
            elif request.kind == REQUEST_OPEN:
                _opening(walk, request.index)
            elif request_kept(request):
                walk.kept += 1
        seq += 1
    audit_equal(&walk.audit, KIND_REQUEST, charged, walk.under_way,
                b"requests (key) are charged to connections, but under way for them (value) are")
    audit_equal(&walk.audit, KIND_CHANNEL, walk.pendings + walk.edge.globals, walk.holds,
                b"holds (key) are counted by channels, but joins that wait, and global channels (value) are")


cdef void _kept(Walk *walk) noexcept nogil:
    """The blocks of records that wait, from the oldest on."""
    cdef uint32_t index = walk.edge.kept.first
    cdef uint64_t waiting = 0
    cdef uint32_t bytes = 0
    while index != NONE and _slot_used(&walk.edge.kept.blocks, index):
        audit_found(&walk.audit, KIND_KEPT, index)
        waiting += kept_at(walk.edge, index).waiting
        bytes += kept_at(walk.edge, index).capacity
        index = kept_at(walk.edge, index).next
    audit_equal(&walk.audit, KIND_KEPT, waiting, walk.kept,
                b"requests (key) wait with their records, but records that wait in blocks (value) are")
    audit_equal(&walk.audit, KIND_KEPT, bytes, walk.edge.kept.bytes,
                b"bytes (key) are counted, but blocks have (value)")


cdef int _by_address(const void *one, const void *other) noexcept nogil:
    cdef size_t left = (<const size_t *> one)[0]
    cdef size_t right = (<const size_t *> other)[0]
    return -1 if left < right else (1 if left > right else 0)


cdef void _buffers(Walk *walk) noexcept nogil:
    """Each shared buffer once, with as many references as there are pointers to it."""
    cdef size_t first = 0
    cdef size_t last
    cdef Shared *shared
    qsort(walk.holders, walk.holder_count, sizeof(Shared *), &_by_address)
    while first < walk.holder_count:
        shared = walk.holders[first]
        last = first
        while last < walk.holder_count and walk.holders[last] == shared:
            last += 1
        audit_found(&walk.audit, KIND_BUFFER, <size_t> shared)
        if shared.refs != last - first:
            audit_finding(&walk.audit, KIND_BUFFER, <size_t> shared, shared.refs,
                          b"counts more references (value) than there are")
        first = last


cdef void _descriptors(Walk *walk) noexcept nogil:
    cdef Edge *edge = walk.edge
    if edge.tcp_fd >= 0:
        audit_found(&walk.audit, KIND_FD, <uint64_t> edge.tcp_fd)
    if edge.ws_fd >= 0:
        audit_found(&walk.audit, KIND_FD, <uint64_t> edge.ws_fd)
    audit_fd(&walk.audit, edge.tcp_fd)
    audit_fd(&walk.audit, edge.ws_fd)
    audit_fd(&walk.audit, edge.epoll_fd)
    audit_fd(&walk.audit, edge.reserve_fd)
    audit_fd(&walk.audit, edge.to_control.event_fd)
    audit_fd(&walk.audit, edge.from_control.event_fd)
    for place in range(LINKS_MAX):      # also those that the control thread is about to close
        audit_peers(&walk.audit, &edge.links[place].bus.peers)


cdef void edge_audit(Edge *edge, uint64_t request) noexcept nogil:
    """Walk everything, and tell the control thread. To be called between turns: no connection is being ended."""
    cdef Walk *walk = <Walk *> malloc(sizeof(Walk))
    cdef int form
    if walk == NULL:
        return                          # the asker's deadline tells
    walk.edge = edge
    audit_begin(&walk.audit, edge.ledger)
    walk.holder_count = 0
    walk.kept = walk.held_bytes = 0
    walk.holders_max = edge.segments.live + FORM_COUNT
    walk.holders = <Shared **> malloc(walk.holders_max * sizeof(Shared *))
    if walk.holders == NULL:
        free(walk)
        return
    walk.queued_bytes = walk.handshakes = walk.under_way = walk.holds = walk.pendings = 0
    _connections(walk)
    _channels(walk)
    _requests(walk)
    _kept(walk)
    for form in range(FORM_COUNT):
        _holder(walk, edge.arenas[form].current)
    _buffers(walk)
    _descriptors(walk)
    audit_end(&walk.audit)
    audit_send(&walk.audit, &edge.to_control, request, NULL, 0)
    free(walk.holders)
    free(walk)
