# Joins: JOIN from the decision to the answer, across the router's SUBSCRIBED.
#
# A join of a channel that is live here needs no router: its position is the last one seen, and membership starts with
# the next message. Otherwise a pending waits in the channel's list. A client that holds another position than the
# channel's has its outcome told by the router (CATCHUP with CATCHUP_OUTCOME), and its membership is caught up first
# (core/replay.pxd). A HELLO has one pending for each of its channels (core/opening.pxd), the global ones among them:
# those that the router told of (core/everybody.pxd) are held for as long as the worker lives. Of the global domain
# these alone are stored with a session, be they joined, acknowledged or named in HELLO: of any other name nothing is
# kept. Invariant: each pending holds its channel.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Channel, Edge, Opening, Pending, Request
from core.records cimport RecCaught, RecChannel
from core.slab cimport slab_at


cdef inline Pending *pending_at(Edge *edge, uint32_t index) noexcept nogil:
    return <Pending *> slab_at(&edge.pendings, index)


cdef inline Opening *opening_at(Edge *edge, uint32_t index) noexcept nogil:
    return <Opening *> slab_at(&edge.openings, index)


cdef inline void pending_since(Pending *pending, const uint64_t *since) noexcept nogil:
    """The position (epoch, offset) that the client holds; NULL: none."""
    if since != NULL:
        pending.has_since = 1
        pending.since_epoch = since[0]
        pending.since_offset = since[1]


cdef void join_start(Edge *edge, Connection *conn, uint64_t request, const char *name, uint32_t name_size,
                     const uint64_t *since) noexcept nogil
cdef void join_leave(Edge *edge, Connection *conn, uint64_t request, const char *name,
                     uint32_t name_size) noexcept nogil
cdef void channel_subscribed(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil
cdef Channel *global_known(Edge *edge, const char *name, uint32_t size) noexcept nogil
cdef void global_told(Edge *edge, RecChannel *record) noexcept nogil
cdef void channel_refused(Edge *edge, Channel *channel, int code) noexcept nogil
cdef void outcome_told(Edge *edge, Request *request, RecCaught *record) noexcept nogil
cdef void join_overdue(Edge *edge, Request *request) noexcept nogil
cdef void joins_again(Edge *edge, const uint64_t *shards) noexcept nogil
cdef void attend_say(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef void joins_end(Edge *edge) noexcept nogil
cdef Channel *channel_wanted(Edge *edge, const char *name, uint32_t size) noexcept nogil
cdef Pending *pending_start(Edge *edge, uint64_t conn, uint64_t request, Channel *channel) noexcept nogil
cdef void pending_end(Edge *edge, Pending *pending) noexcept nogil
cdef bint pending_settled(Edge *edge, Pending *pending, Channel *channel, uint32_t seq) noexcept nogil
cdef const char *pending_outcome(Pending *pending, Channel *channel) noexcept nogil
cdef void pending_position(const Pending *pending, const Channel *channel, uint64_t *position) noexcept nogil
cdef int member_start(Edge *edge, Connection *conn, Pending *pending, Channel *channel) noexcept nogil
cdef void joined_say(Edge *edge, Connection *conn, Pending *pending, Channel *channel, int what) noexcept nogil
cdef void names_say(Edge *edge, Connection *conn, const Opening *opening, int what) noexcept nogil
cdef void state_say(Edge *edge, Connection *conn, Channel *channel, int what, uint64_t epoch,
                    uint64_t offset) noexcept nogil
cdef void pending_began(const Pending *pending, const Channel *channel, uint64_t *position) noexcept nogil
