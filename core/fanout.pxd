# Fan-out: the channels this worker has members of, and the delivery of one message to all of them.
#
# A worker subscribes to a channel at the router while it has members or pendings there, once, however many members it
# has. A membership is 8 bytes at each side, each naming the other's place, so that it is added and removed in O(1).
# Invariant: channel.members[m.place] names the connection whose memberships[slot] is m, and the other way round.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from core.answers cimport WS_HEADER_BYTES_MAX, WireView, frame_encode
from core.buffer cimport arena_reserve
from core.conn cimport FORM_COUNT, Connection, Membership, conn_memberships
from core.edge cimport Channel, ChannelMember, Edge
from core.hash cimport hash_bytes, index_find
from core.names cimport name_text
from core.outbox cimport OUTBOX_SENT, outbox_append, outbox_overfull
from core.slab cimport slab_at

cdef extern from *:
    void __builtin_prefetch(const void *) nogil

cdef enum:
    RUN_MAX = 64                # messages fanned out together

ctypedef struct Body:           # one frame as MessagePack; borrowed until the call returns
    const uint8_t *data
    uint32_t size

ctypedef struct RunForm:        # messages that go to the same members, in one wire form
    uint32_t parts              # 0: not encoded yet
    WireView part[RUN_MAX]      # neighbours in the arena are one


cdef inline Channel *channel_at(Edge *edge, uint32_t index) noexcept nogil:
    return <Channel *> slab_at(&edge.channels, index)


cdef inline const char *channel_name(Edge *edge, const Channel *channel) noexcept nogil:
    """Its name, not terminated, `name_size` bytes; valid while the channel is."""
    return name_text(&edge.names, channel.name, channel.name_size)


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


cdef inline bint member_joined(Connection *conn, Channel *channel) noexcept nogil:
    """Whether the connection is a member; O(memberships of the connection), at most channels_max."""
    cdef Membership *memberships = conn_memberships(conn)
    cdef uint32_t slot
    for slot in range(conn.membership_count):
        if memberships[slot].channel == channel.index:
            return True
    return False


cdef inline void run_encode(Edge *edge, int form, const Body *bodies, uint32_t count, RunForm *run) noexcept nogil:
    """Write all bodies in one wire form, side by side in the arena if they fit; `run.parts` 0: out of memory, or no
    JSON can say one of them."""
    cdef WireView view
    cdef WireView *last = NULL
    cdef uint32_t number
    cdef uint32_t bytes_all = 0
    for number in range(count):
        bytes_all += bodies[number].size + WS_HEADER_BYTES_MAX
    arena_reserve(&edge.arenas[form], edge.ledger, bytes_all)
    for number in range(count):
        if frame_encode(edge, form, bodies[number].data, bodies[number].size, &view) < 0:
            run.parts = 0
            return
        if last != NULL and last.shared == view.shared and last.offset + last.length == view.offset:
            last.length += view.length
        else:
            last = &run.part[run.parts]
            last[0] = view
            run.parts += 1


cdef inline bint deliver_local(Edge *edge, Connection *conn, const Body *bodies, uint32_t count,
                               RunForm *runs) noexcept nogil:
    """Queue messages for one connection; `runs` holds their wire forms as far as they were needed so far.

    False: there was no room, and the turn ends the connection.
    """
    cdef RunForm *run = &runs[conn.form]
    cdef uint32_t part
    if run.parts == 0:
        run_encode(edge, conn.form, bodies, count, run)
        if run.parts == 0:
            outbox_overfull(edge, conn)
            return False
    for part in range(run.parts):
        if outbox_append(edge, conn, run.part[part].shared, run.part[part].offset,
                         run.part[part].length) != OUTBOX_SENT:
            return False
    return True


cdef inline uint32_t fanout_members(Edge *edge, Channel *channel, const Body *bodies, uint32_t count) noexcept nogil:
    """Queue frames (MessagePack) for every member of a channel: a pointer each, encoded once per wire form.

    At most RUN_MAX of them. Returns for how many members there was room.
    """
    cdef uint32_t delivered = 0
    cdef RunForm runs[FORM_COUNT]
    cdef ChannelMember *members = channel_members(channel)
    cdef uint32_t place
    cdef Connection *conn
    for place in range(FORM_COUNT):
        runs[place].parts = 0
    for place in range(channel.count):
        if place + 4 < channel.count:
            __builtin_prefetch(slab_at(&edge.connections, members[place + 4].conn))
        conn = <Connection *> slab_at(&edge.connections, members[place].conn)
        delivered += deliver_local(edge, conn, bodies, count, runs)
    return delivered


cdef uint32_t fanout_all(Edge *edge, const Body *bodies, uint32_t count) noexcept nogil
cdef void fanout_event_gap(Edge *edge, Channel *channel, uint64_t first, uint64_t last,
                           const char *reason) noexcept nogil
cdef Channel *channel_acquire(Edge *edge, const char *name, uint32_t size, int domain) noexcept nogil
cdef void channel_rest(Edge *edge, Channel *channel) noexcept nogil
cdef void channel_subscribe(Edge *edge, Channel *channel) noexcept nogil
cdef int member_add(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef bint member_remove(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef void member_remove_all(Edge *edge, Connection *conn) noexcept nogil
