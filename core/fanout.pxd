# Fan-out: the channels this worker has members of, and the delivery of one message to all of them.
#
# A worker subscribes to a channel at the router while it has members or pendings there, once, however many members it
# has. A membership is 8 bytes at each side, each naming the other's place, so that it is added and removed in O(1).
# Invariant: channel.members[m.place] names the connection whose memberships[slot] is m, and the other way round, but
# for a membership that is being caught up (core/replay.pxd): the channel does not know it yet, and its place names the
# replay.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from core.answers cimport WS_HEADER_BYTES_MAX, WireView, frame_encode
from core.buffer cimport arena_reserve, shared_release
from core.conn cimport FLAG_BLOCKED, FLAG_OVERFULL, FORM_COUNT, Connection, Membership, conn_memberships
from core.edge cimport Body, Channel, ChannelMember, Edge, Link, edge_shard
from core.hash cimport hash_bytes, index_find
from core.names cimport name_text
from core.namespaces cimport DOMAIN_GLOBAL, SLOW_DISCONNECT, USER_PREFIX_BYTES
from core.outbox cimport OUTBOX_SENT, outbox_append, outbox_overfull
from core.slab cimport slab_at
from core.slow cimport slow_hold, slow_lags

cdef extern from *:
    void __builtin_prefetch(const void *) nogil

cdef enum:
    RUN_MAX = 64                # messages fanned out together

ctypedef struct RunPart:        # neighbours of a run that are one piece of the arena
    WireView view               # shared: the part's own reference, until run_release
    uint32_t count              # messages

ctypedef struct RunForm:        # messages that go to the same members, in one wire form
    uint32_t parts
    bint encoded                # all of them, or as far as it went
    bint failed                 # out of memory, or no JSON can say one of them: the parts are those before it
    RunPart part[RUN_MAX]


cdef inline Channel *channel_at(Edge *edge, uint32_t index) noexcept nogil:
    return <Channel *> slab_at(&edge.channels, index)


cdef inline const char *channel_name(Edge *edge, const Channel *channel) noexcept nogil:
    """Its name, not terminated, `name_size` bytes; valid while the channel is."""
    return name_text(&edge.names, channel.name, channel.name_size)


cdef inline uint8_t channel_shard(Edge *edge, const Channel *channel) noexcept nogil:
    return edge_shard(edge, channel_name(edge, channel), channel.name_size)


cdef inline ChannelMember *channel_members(Channel *channel) noexcept nogil:
    """Its members, `count` of them; valid until the next join or leave."""
    return &channel.members.one if channel.capacity == 1 else channel.members.many


cdef inline uint64_t channel_handle(Channel *channel) noexcept nogil:
    return (<uint64_t> channel.generation << 32) | channel.index


cdef inline Channel *channel_get(Edge *edge, uint64_t handle) noexcept nogil:
    """The channel of a handle, or NULL when it is gone."""
    cdef uint32_t index = <uint32_t> handle
    cdef uint32_t place = index >> edge.channels.chunk_shift
    cdef Channel *channel
    if place >= edge.channels.chunk_count or edge.channels.chunks[place].memory == NULL:
        return NULL
    channel = channel_at(edge, index)
    return channel if channel.generation == <uint32_t> (handle >> 32) and channel.generation else NULL


cdef inline const char *conn_user(Edge *edge, Connection *conn, uint32_t *size) noexcept nogil:
    """The id of an open session's user, which its own channel is named after; valid until the session ends."""
    cdef Channel *own = channel_at(edge, conn_memberships(conn)[0].channel)
    size[0] = own.name_size - USER_PREFIX_BYTES
    return channel_name(edge, own) + USER_PREFIX_BYTES


cdef inline Channel *channel_find(Edge *edge, const char *name, uint32_t size) noexcept nogil:
    """The channel of a name, or NULL."""
    cdef uint64_t hash = hash_bytes(&edge.hash_key, <const uint8_t *> name, size)
    cdef uint32_t probe = 0
    cdef uint32_t found = index_find(&edge.channel_index, hash, &probe)
    cdef Channel *channel
    while found:
        channel = channel_at(edge, found - 1)
        if channel.name_size == size and memcmp(channel_name(edge, channel), name, size) == 0:
            return channel
        found = index_find(&edge.channel_index, hash, &probe)
    return NULL


cdef inline uint64_t membership_key(const Connection *conn, const Channel *channel) noexcept nogil:
    """What the ledger tells memberships apart by."""
    return (<uint64_t> conn.index << 32) | channel.index


cdef inline bint member_joined(Connection *conn, Channel *channel) noexcept nogil:
    """Whether the connection is a member, be it one that is caught up; O(its memberships), at most channels_max."""
    cdef Membership *memberships = conn_memberships(conn)
    cdef uint32_t slot
    for slot in range(conn.membership_count):
        if memberships[slot].channel == channel.index:
            return True
    return False


cdef inline void run_encode(Edge *edge, int form, const Body *bodies, uint32_t count, RunForm *run) noexcept nogil:
    """Write all bodies in one wire form, side by side as far as the arena and a quarter of a queue's bound go.

    Each part holds a reference: the arena may move on before, and a queue may be sent before, all members have it.
    """
    cdef WireView view
    cdef RunPart *last = NULL
    cdef uint32_t number
    cdef uint32_t size = 0
    for number in range(count):
        size += bodies[number].size + WS_HEADER_BYTES_MAX
    run.encoded = True
    run.failed = arena_reserve(&edge.arenas[form], edge.ledger, size) == NULL
    for number in range(count):
        if run.failed or frame_encode(edge, form, bodies[number].data, bodies[number].size, &view) < 0:
            run.failed = True
            return
        if last != NULL and last.view.shared == view.shared and last.view.offset + last.view.length == view.offset \
                and last.view.length + view.length <= edge.config.queue_bytes_max // 4:
            last.view.length += view.length
        else:
            last = &run.part[run.parts]
            last.view = view
            last.count = 0
            view.shared.refs += 1
            run.parts += 1
        last.count += 1


cdef inline void runs_start(RunForm *runs) noexcept nogil:
    cdef int form
    for form in range(FORM_COUNT):
        runs[form].parts = 0
        runs[form].encoded = False
        runs[form].failed = False


cdef inline void runs_release(Edge *edge, RunForm *runs) noexcept nogil:
    """Every member has its own references now."""
    cdef int form
    cdef uint32_t part
    for form in range(FORM_COUNT):
        for part in range(runs[form].parts):
            shared_release(edge.ledger, runs[form].part[part].view.shared)


cdef inline uint32_t deliver_local(Edge *edge, Connection *conn, const Body *bodies, uint32_t count,
                                   RunForm *runs) noexcept nogil:
    """Queue messages for one connection; `runs` holds their wire forms as far as they were needed so far.

    Returns how many found room; after fewer than `count` the turn ends the connection.
    """
    cdef RunForm *run = &runs[conn.form]
    cdef uint32_t delivered = 0
    cdef uint32_t part
    if not run.encoded:
        run_encode(edge, conn.form, bodies, count, run)
    for part in range(run.parts):
        if outbox_append(edge, conn, run.part[part].view.shared, run.part[part].view.offset,
                         run.part[part].view.length) != OUTBOX_SENT:
            return delivered
        delivered += run.part[part].count
    if run.failed:
        outbox_overfull(edge, conn)
    return delivered


cdef inline uint32_t deliver_slow(Edge *edge, Connection *conn, Channel *channel, const Body *bodies, uint32_t count,
                                  uint64_t first, uint64_t last, RunForm *runs) noexcept nogil:
    """Queue messages for a member whose namespace leaves some out rather than end the connection; how many."""
    cdef uint32_t delivered = 0
    if conn.flags & FLAG_OVERFULL:
        return 0
    if not conn.flags & FLAG_BLOCKED and not (conn.behind and slow_lags(edge, conn, channel)):
        delivered = deliver_local(edge, conn, bodies, count, runs)
        if delivered == count or runs[conn.form].failed:
            return delivered
        conn.flags &= ~FLAG_OVERFULL    # it was the queue's bound: here it ends nothing
    slow_hold(edge, conn, channel, bodies + delivered, count - delivered, first + delivered if first else 0, last)
    return delivered


cdef uint64_t fanout_all(Edge *edge, const Body *bodies, uint32_t count, Channel *channel) noexcept nogil


cdef inline uint64_t fanout_run(Edge *edge, Channel *channel, const Body *bodies, uint32_t count, uint64_t first,
                                uint64_t last) noexcept nogil:
    """Queue frames (MessagePack) for every member of a channel: a pointer each, encoded once per wire form. Of a global
    one everybody is a member.

    At most RUN_MAX of them. `first` is the offset of the first of messages that follow each other; with `last` it is
    the range that one frame tells of; 0: they have no position. Returns how many deliveries found room.
    """
    cdef uint64_t delivered = 0
    cdef bint slow = channel.slow != SLOW_DISCONNECT
    cdef RunForm runs[FORM_COUNT]
    cdef ChannelMember *members = channel_members(channel)
    cdef uint32_t place
    cdef Connection *conn
    if channel.domain == DOMAIN_GLOBAL:
        return fanout_all(edge, bodies, count, channel)
    runs_start(runs)
    for place in range(channel.count):
        if place + 4 < channel.count:
            __builtin_prefetch(slab_at(&edge.connections, members[place + 4].conn))
        conn = <Connection *> slab_at(&edge.connections, members[place].conn)
        if slow:
            delivered += deliver_slow(edge, conn, channel, bodies, count, first, last, runs)
        else:
            delivered += deliver_local(edge, conn, bodies, count, runs)
    runs_release(edge, runs)
    return delivered


cdef const char *message_channel(const Body *body, uint32_t *size) noexcept nogil
cdef void event_gap_told(Edge *edge, Connection *conn, Channel *channel, uint64_t first, uint64_t last,
                         int reason) noexcept nogil
cdef uint32_t event_gap_write(Edge *edge, Channel *channel, uint64_t first, uint64_t last, int reason,
                              uint8_t *body) noexcept nogil
cdef uint32_t event_recreated_write(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset, uint64_t last,
                                    uint8_t *body) noexcept nogil
cdef void fanout_event_recreated(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil
cdef void fanout_event_gap(Edge *edge, Channel *channel, uint64_t first, uint64_t last, int reason) noexcept nogil
cdef Channel *channel_acquire(Edge *edge, const char *name, uint32_t size, int domain) noexcept nogil
cdef void channel_rest(Edge *edge, Channel *channel) noexcept nogil
cdef void channel_leave_leader(Edge *edge, Channel *channel) noexcept nogil
cdef void channel_subscribe(Edge *edge, Channel *channel) noexcept nogil
cdef void channel_unasked(Edge *edge, Channel *channel) noexcept nogil
cdef void parted_say(Link *link) noexcept nogil
cdef int member_add(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef int member_catch(Edge *edge, Connection *conn, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil
cdef bint member_catches(Connection *conn, Channel *channel) noexcept nogil
cdef void member_stands(Edge *edge, Connection *conn, Channel *channel, uint64_t *position) noexcept nogil
cdef void member_caught(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef bint member_remove(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef void member_remove_all(Edge *edge, Connection *conn) noexcept nogil
